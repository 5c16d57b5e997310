"""``kornia-mvit predict`` on models for segmentation and detectors; classifiers are in test_cli."""

import json
import os

import pytest
import torch
from PIL import Image

from kornia_mvit import DeepLabV3, MobileViTClassifier, Preprocess, SSDLite, save_checkpoint
from kornia_mvit.data.masks import read_mask
from kornia_mvit.data.reading import read_image
from kornia_mvit.data.synthetic import Shapes
from kornia_mvit.weights.registry import from_pretrained
from tests.cli.test_cli import run
from tests.training.shapes import write


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Images of two sizes in a folder with a subfolder, and a checkpoint."""
    root = tmp_path_factory.mktemp("predict")
    for i, (place, size) in enumerate((("a.png", (40, 52)), ("more/a.png", (64, 48)))):
        write(Shapes(1, size, seed=i)[0], root / "images" / place, root / "truth" / place)
    torch.manual_seed(0)
    model = DeepLabV3("xxs", 4, aspp_channels=8)
    model.class_names, model.preprocess = Shapes.mask_names, Preprocess(48, crop=48)
    save_checkpoint(model, root / "model.ckpt")
    return root


class TestPredict:
    def test_label_images_overlays_and_shares(self, given, tmp_path, capsys):
        arguments = [given / "images", "--checkpoint", given / "model.ckpt", "--labels", tmp_path / "labels"]
        status, out, _ = run(capsys, "predict", *arguments, "--draw", tmp_path / "pictures", "--tta", "flip")
        assert status == 0
        rows = [json.loads(line) for line in out.splitlines()]
        assert [row["labels"] for row in rows] == [str(tmp_path / "labels" / n) for n in ("a.png", "more/a.png")]
        for row in rows:
            size = (row["height"], row["width"])
            assert size == read_image(row["path"]).shape[1:]
            mask = read_mask(row["labels"])
            assert mask.shape == size
            assert list(row["share"]) == list(Shapes.mask_names)
            for k, share in enumerate(row["share"].values()):
                assert share == pytest.approx((mask == k).float().mean().item(), abs=1e-6)
        pictures = sorted((tmp_path / "pictures").iterdir())
        assert [path.name for path in pictures] == ["0000_a.png", "0001_a.png"]
        with Image.open(pictures[0]) as picture:
            assert picture.width == 52

    def test_colours_and_windows(self, given, tmp_path, capsys):
        classes = tmp_path / "classes.json"
        classes.write_text(json.dumps({"sky": [1, 2, 3], "sea": [4, 5, 6], "sand": [7, 8, 9], "ship": [9, 9, 9]}))
        arguments = ["--weights", given / "model.ckpt", "--labels", tmp_path, "--classes", classes, "--window", 32]
        status, out, _ = run(capsys, "predict", given / "images" / "a.png", *arguments)
        assert status == 0
        (row,) = map(json.loads, out.splitlines())
        assert list(row["share"]) == ["sky", "sea", "sand", "ship"]
        with Image.open(row["labels"]) as image:
            assert image.mode == "P"
            assert image.getpalette()[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9]

    def test_exception(self, given, tmp_path, capsys):
        model, image = given / "model.ckpt", given / "images" / "a.png"
        save_checkpoint(MobileViTClassifier("xxs", 2), tmp_path / "classifier.ckpt")
        (tmp_path / "classes.json").write_text('["sky"]')
        bad = tmp_path / "bad.png"
        bad.write_text("hello")
        for arguments, message in (
            ((image, "--checkpoint", model, "--top", 2), "is for segmentation; leave out --top"),
            (
                (image, "--checkpoint", tmp_path / "classifier.ckpt", "--labels", "a"),
                "is for classification; leave out --labels",
            ),
            ((image, "--checkpoint", model, "--stride", 3), "--stride 3 is that of windows; give --window too"),
            ((image, "--checkpoint", model, "--window", 0), "--window 0 is not at least 1"),
            ((image, "--checkpoint", model, "--tta", "spin"), "unknown transforms spin"),
            ((image, "--checkpoint", model, "--classes", tmp_path / "classes.json"), "has 1 classes, the model 4"),
            ((image, image, "--checkpoint", model, "--labels", tmp_path / "x"), "would both be"),
            ((image, "--checkpoint", model, "--labels", image.parent), "would overwrite it"),
            ((bad, "--checkpoint", model), f"not an image, or of a format that Pillow cannot read: {bad}"),
        ):
            status, out, err = run(capsys, "predict", *arguments)
            assert (status, out) == (2, "")
            assert err.startswith("kornia-mvit: error: ")
            assert message in err
            assert err.count("\n") == 1


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Images of two sizes, and the checkpoint of a detector that finds much, rightly or not."""
    root = tmp_path_factory.mktemp("detect")
    for i, (place, size) in enumerate((("a.png", (40, 52)), ("more/b.png", (64, 48)))):
        write(Shapes(1, size, seed=i)[0], root / "images" / place, root / "truth" / place)
    torch.manual_seed(0)
    model = SSDLite("xxs", 4, widths=(8, 8, 8, 8, 8, 4))
    model.class_names, model.preprocess = Shapes.class_names, Preprocess((64, 64))
    save_checkpoint(model, root / "model.ckpt")
    return root


def annotations(path, images=((7, "a.png"), (3, "b.png")), names=("ellipse", *Shapes.class_names)):
    """A COCO file in which the classes have the numbers 10, 20 and so on."""
    data = {
        "images": [{"id": number, "file_name": name} for number, name in images],
        "categories": [{"id": 10 * k, "name": name} for k, name in enumerate(names, 1)],
        "annotations": [],
    }
    path.write_text(json.dumps(data))
    return path


class TestPredictBoxes:
    def rows(self, capsys, detector, *arguments):
        status, out, err = run(
            capsys, "predict", detector / "images", "--checkpoint", detector / "model.ckpt", *arguments
        )
        assert status == 0, err
        return [json.loads(line) for line in out.splitlines()]

    def test_boxes_of_each_image_in_its_pixels(self, detector, capsys):
        rows = self.rows(capsys, detector, "--score", 0)
        assert [row["path"] for row in rows] == [str(detector / "images" / n) for n in ("a.png", "more/b.png")]
        assert [(row["height"], row["width"]) for row in rows] == [(40, 52), (64, 48)]
        for row in rows:
            assert 0 < len(row["boxes"]) <= 100
            scores = [box["score"] for box in row["boxes"]]
            assert scores == sorted(scores, reverse=True)
            for box in row["boxes"]:
                assert box["class"] in Shapes.class_names
                left, top, right, bottom = box["box"]
                assert 0 <= left <= right <= row["width"]
                assert 0 <= top <= bottom <= row["height"]
        assert max(box["box"][2] for box in rows[0]["boxes"]) > 48, "they are not in the pixels of the wider image"

    def test_they_are_what_the_model_finds(self, detector, capsys):
        """The first image by hand: stretched to the input, and back."""
        model = from_pretrained(detector / "model.ckpt").eval()
        image = model.preprocess.module()(read_image(detector / "images" / "a.png"))[None]
        with torch.no_grad():
            (found,) = model.decode(*model(image), (64, 64), max_detections=100)
        row = self.rows(capsys, detector, "--score", 0)[0]
        assert [box["class"] for box in row["boxes"]] == [Shapes.class_names[k] for k in found.labels.tolist()]
        expected = (found.boxes * torch.tensor([52, 40, 52, 40]) / 64).clamp_min(0)
        expected = expected.minimum(torch.tensor([52.0, 40, 52, 40]))
        torch.testing.assert_close(torch.tensor([box["box"] for box in row["boxes"]]), expected, atol=0.02, rtol=0)

    def test_score(self, detector, capsys):
        every = self.rows(capsys, detector, "--score", 0)
        least = sorted(box["score"] for row in every for box in row["boxes"])[-5]
        some = self.rows(capsys, detector, "--score", least - 1e-6)
        assert sum(len(row["boxes"]) for row in some) == 5
        for row, whole in zip(some, every, strict=True):
            assert row["boxes"] == whole["boxes"][: len(row["boxes"])]
        assert [row["boxes"] for row in self.rows(capsys, detector, "--score", 1)] == [[], []]

    def test_pictures(self, detector, tmp_path, capsys):
        self.rows(capsys, detector, "--score", 0, "--draw", tmp_path / "some")
        self.rows(capsys, detector, "--score", 1, "--draw", tmp_path / "none")
        pictures = [sorted((tmp_path / name).iterdir()) for name in ("some", "none")]
        assert [[path.name for path in some] for some in pictures] == [["0000_a.png", "0001_b.png"]] * 2
        drawn, plain = (read_image(some[0]) for some in pictures)
        assert drawn.shape == plain.shape == (3, 40, 52)
        assert torch.equal(plain, read_image(detector / "images" / "a.png"))
        assert not torch.equal(drawn, plain)

    def test_coco(self, detector, tmp_path, capsys):
        """All boxes, whatever --score says; the images' own order and classes from 1, or a file's numbers."""
        every = self.rows(capsys, detector, "--score", 0)
        files = []
        for name, more in (("own", []), ("theirs", ["--annotations", annotations(tmp_path / "truth.json")])):
            path = tmp_path / f"{name}.json"
            assert self.rows(capsys, detector, "--score", 1, "--coco", path, *more)[0]["boxes"] == []
            files.append(json.loads(path.read_text()))
        own, theirs = files
        assert len(own) == len(theirs) == sum(len(row["boxes"]) for row in every)
        flat = [(number, box) for number, row in enumerate(every) for box in row["boxes"]]
        for one, other, (number, box) in zip(own, theirs, flat, strict=True):
            label = Shapes.class_names.index(box["class"])
            assert (one["image_id"], one["category_id"]) == (number, label + 1)
            assert (other["image_id"], other["category_id"]) == ((7, 3)[number], 10 * (label + 2))
            assert one["score"] == other["score"] == box["score"]
            left, top, width, height = one["bbox"]
            assert [left, top, left + width, top + height] == pytest.approx(box["box"], abs=0.01)

    def test_tta(self, detector, capsys):
        """A mirrored image has mirrored boxes, which holds for two views alone."""
        rows = self.rows(capsys, detector, "--score", 0, "--tta", "flip")
        assert rows != self.rows(capsys, detector, "--score", 0)
        mirrored = detector / "mirrored.png"
        with Image.open(detector / "images" / "a.png") as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
        status, out, _ = run(
            capsys, "predict", mirrored, "--checkpoint", detector / "model.ckpt", "--score", 0, "--tta", "flip"
        )
        assert status == 0
        best, other = rows[0]["boxes"][0], json.loads(out)["boxes"][0]
        assert best["score"] == pytest.approx(other["score"], abs=1e-4)
        left, top, right, bottom = other["box"]
        assert [52 - right, top, 52 - left, bottom] == pytest.approx(best["box"], abs=0.1)

    def test_files_that_cannot_be_read(self, detector, tmp_path, capsys):
        """Skipped, they do not shift the numbers of those that follow."""
        bad = tmp_path / "bad.png"
        bad.write_text("hello")
        arguments = [bad, detector / "images" / "a.png", "--checkpoint", detector / "model.ckpt"]
        out = tmp_path / "new" / "out.json"
        status, lines, err = run(capsys, "predict", *arguments, "--on-error", "skip", "--coco", out)
        assert status == 0
        assert f"skipped: not an image, or of a format that Pillow cannot read: {bad}" in err
        assert lines.count("\n") == 1
        assert {row["image_id"] for row in json.loads(out.read_text())} == {1}

    def test_exception(self, detector, given, tmp_path, capsys):
        model, image = detector / "model.ckpt", detector / "images" / "a.png"
        truth = annotations(tmp_path / "truth.json")
        lacking = annotations(tmp_path / "lacking.json", images=[(1, "c.png")])
        other = annotations(tmp_path / "other.json", names=Shapes.class_names[1:])
        twice = annotations(tmp_path / "twice.json", images=[(1, "x/a.png"), (2, "y/a.png")])
        (tmp_path / "broken.json").write_text("{")
        out = tmp_path / "out.json"
        twins = (image, given / "images" / "more" / "a.png")
        for arguments, message in (
            (
                (image, "--checkpoint", model, "--top", 2, "--labels", "a"),
                "is for detection; leave out --top, --labels",
            ),
            ((image, "--checkpoint", model, "--window", 32), "is for detection; leave out --window"),
            ((image, "--checkpoint", given / "model.ckpt", "--score", 0.5), "for segmentation; leave out --score"),
            ((image, "--checkpoint", given / "model.ckpt", "--coco", out), "for segmentation; leave out --coco"),
            ((image, "--checkpoint", model, "--score", 1.5), "--score 1.5 is not in [0, 1]"),
            ((image, "--checkpoint", model, "--score", "nan"), "--score nan is not in [0, 1]"),
            ((image, "--checkpoint", model, "--tta", "spin"), "unknown transforms spin"),
            ((image, "--checkpoint", model, "--annotations", truth), "is for --coco; give that too"),
            ((image, "--checkpoint", model, "--coco", out, "--annotations", lacking), "has no image 'a.png'"),
            ((image, "--checkpoint", model, "--coco", out, "--annotations", twice), "has the image 'a.png' 2 times"),
            (
                (image, "--checkpoint", model, "--coco", out, "--annotations", other),
                f"has no class {Shapes.class_names[0]!r}",
            ),
            (
                (image, "--checkpoint", model, "--coco", out, "--annotations", tmp_path / "broken.json"),
                f"{tmp_path / 'broken.json'} is not JSON",
            ),
            (
                (*twins, "--checkpoint", model, "--coco", out, "--annotations", truth),
                "would both be image 'a.png' of",
            ),
            ((image, "--checkpoint", model, "--coco", tmp_path), f"--coco {tmp_path} is a folder"),
        ):
            status, said, err = run(capsys, "predict", *arguments)
            assert (status, said) == (2, ""), message
            assert err.startswith("kornia-mvit: error: ")
            assert message in err
            assert err.count("\n") == 1
        assert not out.exists()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A checkpoint for each task, of images with a shorter side of 64 pixels."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, model in (
        ("classifier", MobileViTClassifier("xxs", 2)),
        ("segmenter", DeepLabV3("xxs", 3, aspp_channels=8)),
        ("detector", SSDLite("xxs", 3)),
    ):
        model.preprocess = Preprocess(64)
        save_checkpoint(model, root / f"{name}.ckpt")
    return root


def extreme(path, size):
    Image.new("L", size, 100).save(path)
    return path


class TestExtremeImages:
    """Images that are no files, or far too long, stop nothing where files that cannot be read are skipped."""

    @pytest.mark.parametrize("model", ["classifier", "segmenter", "detector"])
    def test_they_are_refused_by_name(self, models, tmp_path, capsys, model):
        pipe, good = tmp_path / "pipe.png", extreme(tmp_path / "good.png", (60, 50))
        os.mkfifo(pipe)
        bad = {
            extreme(tmp_path / "wide.png", (20000, 1)): "1x20000 pixels resized to 64x1280000 is larger than 16,777",
            extreme(tmp_path / "tall.png", (1, 20000)): "20000x1 pixels resized to 1280000x64 is larger than 16,777",
            pipe: "is a pipe or a device, not an image file",
            "/dev/zero": "is a pipe or a device, not an image file",
            tmp_path / "none.png": "no such image",
        }
        options = ["--checkpoint", models / f"{model}.ckpt"]
        status, out, err = run(capsys, "predict", *bad, good, *options, "--on-error", "skip")
        assert status == 0
        assert [json.loads(line)["path"] for line in out.splitlines()] == [str(good)]
        lines = err.splitlines()
        for line, (path, message) in zip(lines, bad.items(), strict=True):
            assert line.startswith("kornia-mvit: skipped: ")
            assert str(path) in line
            assert message in line
            status, out, err = run(capsys, "predict", path, *options)
            assert (status, out) == (2, "")
            assert str(path) in err
            assert err.count("\n") == 1

    @pytest.mark.parametrize("model", ["classifier", "segmenter", "detector"])
    def test_nothing_could_be_read(self, models, tmp_path, capsys, model):
        wide = extreme(tmp_path / "wide.png", (20000, 1))
        options = ["--checkpoint", models / f"{model}.ckpt", "--on-error", "skip"]
        coco = ["--coco", tmp_path / "a.json"] if model == "detector" else []
        status, out, err = run(capsys, "predict", wide, tmp_path / "none.png", *options, *coco)
        assert (status, out) == (2, "")
        assert err.splitlines()[-1] == "kornia-mvit: error: none of the 2 images could be read"
        assert not (tmp_path / "a.json").exists()

    def test_another_bound(self, models, tmp_path, capsys):
        image = extreme(tmp_path / "a.png", (640, 64))
        options = ["--checkpoint", models / "classifier.ckpt"]
        status, _, err = run(capsys, "predict", image, *options, "--max-pixels", 64 * 640 - 1)
        assert (status, f"{image}: an image of 64x640 pixels" in err) == (2, True)
        assert run(capsys, "predict", image, *options, "--max-pixels", 64 * 640)[0] == 0

    def test_numbers_that_are_not_finite(self, tmp_path, capsys):
        image = extreme(tmp_path / "a.png", (60, 50))
        for model in (MobileViTClassifier("xxs", 2), DeepLabV3("xxs", 3, aspp_channels=8), SSDLite("xxs", 3)):
            torch.nn.init.constant_(next(model.parameters()), float("nan"))
            model.preprocess = Preprocess((64, 64))
            save_checkpoint(model, tmp_path / "nan.ckpt")
            options = ["--checkpoint", tmp_path / "nan.ckpt", "--on-error", "skip"]
            status, out, err = run(capsys, "predict", image, *options)
            assert (status, out) == (2, "")
            assert "nan.ckpt gives numbers that are not finite" in err


class TestEscapeCodes:
    NAME = "a\x1b[2J\x9b\u202e\r\n=b"

    def test_predict_and_info(self, tmp_path, capsys):
        model = MobileViTClassifier("xxs", 2)
        model.class_names, model.preprocess = (self.NAME, "b"), Preprocess((64, 64))
        path = tmp_path / f"m{self.NAME}.ckpt"
        save_checkpoint(model, path)
        image, bad = extreme(tmp_path / f"i{self.NAME}.png", (60, 50)), tmp_path / f"bad{self.NAME}.png"
        out = []
        status, line, err = run(capsys, "predict", image, bad, "--checkpoint", path, "--on-error", "skip")
        assert status == 0
        row = json.loads(line)
        assert row["path"] == str(image)
        assert {one["class"] for one in row["top"]} == {self.NAME, "b"}
        out += [line, err]
        out += run(capsys, "info", path)[1:]
        out += run(capsys, "info", bad)[1:]
        out += run(capsys, "predict", bad, "--checkpoint", path)[1:]
        target = tmp_path / f"o{self.NAME}.pt"
        out += run(capsys, "convert", path, target, "--to", "native")[1:]
        assert target.is_file()
        assert all(line.isprintable() for text in out for line in text.split("\n"))
        assert "\\x1b[2J" in "".join(out)
