"""``kornia-mvit predict`` on models for segmentation; classifiers are in test_cli."""

import json

import pytest
import torch
from PIL import Image

from kornia_mvit import DeepLabV3, MobileViTClassifier, Preprocess, SSDLite, save_checkpoint
from kornia_mvit.data.datasets import read_image, read_mask
from kornia_mvit.data.synthetic import Shapes
from tests.test_cli import run
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
    def test_detectors_are_refused(self, given, tmp_path, capsys):
        model = SSDLite("xxs", 3, widths=(8, 8, 8, 8, 8, 4))
        model.class_names, model.preprocess = ("a", "b"), Preprocess((64, 64))
        save_checkpoint(model, tmp_path / "a.ckpt")
        status, _, err = run(capsys, "predict", given / "images", "--checkpoint", tmp_path / "a.ckpt")
        assert status == 2
        assert "a.ckpt is for detection, which predict cannot do; use from_pretrained and decode" in err

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
