"""``kornia-mvit preview``."""

import pytest
import torch
from PIL import Image

from kornia_mvit import AugmentationPipeline, Preprocess, policies
from kornia_mvit.cli import main
from kornia_mvit.training.datamodules import COCOData, SegmentationFolderData, VOCData
from kornia_mvit.training.preview import draw_preview, preview
from tests.data.people import make_coco_people, make_yolo_people
from tests.data.test_datamodules import make_folder, make_masks, make_voc
from tests.training.shapes import make_yolo

PEOPLE = [f"--data.{split}_file=annotations/person_keypoints_{split}2017.json" for split in ("train", "val")]


def run(*arguments):
    return main(["preview", *map(str, arguments)])


def read(path):
    with Image.open(path) as image:
        return image.size, image.tobytes()


class TestPreview:
    def test_of_a_recipe(self, tmp_path, capsys):
        """The recipe's own augmentation, its labels below."""
        make_folder(tmp_path / "data")
        out = tmp_path / "out" / "a.png"
        assert (
            run("--config", "folder", "--data.root", tmp_path / "data", "--count", 3, "--copies", 2, "--out", out) == 0
        )
        assert read(out)[0] == (3 * (8 + 220 + 8 + 6), 8 + 3 * (220 + 17 + 8 + 6))
        said = capsys.readouterr().out
        assert "1. RandomResizedCrop(size=(128, 128)" in said
        assert "3 images, each with 2 augmentations" in said

    def test_of_a_folder(self, tmp_path, capsys):
        """Its layout tells the recipe and the data, as for fit; options of the recipe go with it."""
        make_folder(tmp_path / "photos")
        make_yolo(tmp_path / "boxes")
        for name, expected in (("photos", "classification_train"), ("boxes", "detection_train")):
            out = tmp_path / f"{name}.png"
            assert run(tmp_path / name, "--out", out, "--count", 1, "--copies=1", "--model.image_size", 64) == 0
            said = capsys.readouterr().out
            assert f"{expected}\n" in said
            assert f"{out}: 1 image, each with 1 augmentation\n" in said
        found = preview("folder", folder=tmp_path / "photos", options=["--model.image_size=64"], count=1, copies=1)
        assert found.picture.size[0] > 0

    def test_pairs_of_keypoints_are_those_of_the_data(self, tmp_path):
        data = COCOData(
            str(make_coco_people(tmp_path)),
            train_file="annotations/person_keypoints_train2017.json",
            val_file=None,
            keypoints=True,
            num_workers=0,
        )
        for given, expected in ((None, data.keypoint_flip_pairs), ([(0, 1)], ((0, 1),)), ([], ())):
            pipeline = AugmentationPipeline(policies.detection_train(64), keypoint_flip_pairs=given)
            found = preview(data=data, policy=pipeline, count=2, copies=1, cell=64)
            assert found.pipeline.keypoint_flip_pairs == expected
        assert len(data.keypoint_flip_pairs) == 8

    def test_of_learned_ranges(self, tmp_path, capsys):
        """The columns go through the curriculum, each with the ranges that these images need for it."""
        make_folder(tmp_path / "data")
        out = tmp_path / "a.png"
        arguments = ["--data", "FolderData", "--data.root", tmp_path / "data", "--size", 32, "--out", out]
        arguments += ["--policy", "classification_learned", "--policy-args", "{target_psnr: [40, 20]}"]
        assert run(*arguments, "--count", 2, "--copies", 2) == 0
        said = capsys.readouterr().out
        first, second = (line for line in said.splitlines() if line.startswith("column"))
        assert first.endswith("for a target of 40")
        assert second.endswith("for a target of 20")
        assert "then LearnedRanges(brightness 0.97 to 1.03" in said, "the pipeline is as it was"

    @pytest.mark.parametrize(
        ("name", "make", "policy", "rest"),
        [
            ("VOCData", make_voc, "detection_train", []),
            ("YOLOData", make_yolo, "detection_train", []),
            (
                "YOLOData",
                make_yolo_people,
                "detection_train",
                ["--data.keypoints=true", "--data.keypoint_skeleton=[[0,1]]"],
            ),
            ("COCOData", make_coco_people, "detection_train", ["--data.keypoints=true", *PEOPLE]),
            (
                "SegmentationFolderData",
                make_masks,
                "segmentation_train",
                ["--data.num_classes=2", "--data.ignore_label=11"],
            ),
            ("FolderData", make_folder, "classification_strong", []),
        ],
    )
    def test_of_data_and_a_policy(self, tmp_path, name, make, policy, rest):
        make(tmp_path / "data")
        out = tmp_path / "a.png"
        arguments = ["--data", name, "--data.root", tmp_path / "data", *rest, "--policy", policy, "--size", 64]
        assert run(*arguments, "--count", 2, "--copies", 1, "--out", out) == 0
        first = read(out)
        assert run(*arguments, "--count", 2, "--copies", 1, "--out", out) == 0
        assert read(out) == first, "the same seed draws the same"
        assert run(*arguments, "--count", 2, "--copies", 1, "--out", out, "--seed", 1) == 0
        assert read(out) != first

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "(--config RECIPE), or data and a policy (--data CLASS --policy NAME)"),
            (["--data", "VOCData"], "preview needs a folder, a recipe (--config RECIPE)"),
            (
                ["--config", "folder", "--policy", "detection_train"],
                "give a folder or a recipe (--config), or data and a policy (--data, --policy), not both",
            ),
            (["--data", "Voc", "--policy", "detection_train"], "unknown data 'Voc'; available: COCOData, DigitsData"),
            (["--data", "DigitsData", "--policy", "best"], "unknown policy 'best'; available: classification_learned"),
            (["--data", "VOCData", "--policy", "detection_train"], "needs --data.root"),
            (["--data", "DigitsData", "--policy", "detection_train", "--x", "1"], "there is no option --x"),
            (
                ["--data", "DigitsData", "--policy", "detection_train", "--policy-args", "{crop: 1}"],
                "detection_train has no argument crop; it has size, zoom_out",
            ),
            (
                ["--data", "DigitsData", "--policy", "detection_train", "--policy-args", "3"],
                "is not a mapping, such as '{jitter: 0.3}'",
            ),
            (
                ["--data", "DigitsData", "--policy", "detection_train", "--split", "dev"],
                "no split 'dev'; they have train",
            ),
            (["--count", "0"], "count 0 is not at least 1"),
            (["here", "--data.root", "there"], "the images are here, and --data.root is given too"),
            (["here", "there"], "'there' is one argument too many"),
            (["--cell", "-1"], "cell -1 is not at least 1"),
            (["--config", "digits", "--foo", "1"], "there is no option --foo"),
            (["--config", "digits", "--policy-args", "{}"], "give the option --model.policy_args"),
            (
                ["--data", "DigitsData", "--policy", "detection_train", "--policy-args", "{"],
                "policy_args is not YAML",
            ),
            (["--config", "digits", "--out", "."], "out . is a folder"),
            (["--config", "digits", "--out", "a.doc"], "a.doc has no suffix of a picture"),
            (["--config", "digits", "--out", "s3://a/b.png"], "s3://a/b.png is an address"),
        ],
    )
    def test_exception(self, capsys, arguments, message):
        assert run(*arguments) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") <= 1

    def test_pictures_show_the_targets(self, tmp_path):
        """Boxes and masks are drawn on original and augmented images alike."""
        for data, policy, grown in (
            (VOCData(str(make_voc(tmp_path / "a")), storage_size=64), policies.detection_train(64, hue=0.0), 0),
            (
                SegmentationFolderData(str(make_masks(tmp_path / "b")), num_classes=12, storage_size=64),
                policies.segmentation_train(64, short_side=(64, 90)),
                28,
            ),
        ):
            data.setup()
            pipeline = AugmentationPipeline(policy, preprocess=Preprocess((64, 64), mean=(0.5,) * 3, std=(0.5,) * 3))
            sheet = draw_preview(data.splits["train"], pipeline, data.class_names, count=3, copies=2, cell=64)
            assert sheet.size == (3 * (8 + 64 + 14), 8 + 3 * (64 + 14) + grown)
            pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).view(*sheet.size[::-1], 3).int()
            colourful = (pixels.amax(-1) - pixels.amin(-1)) > 60
            for column in colourful[: sheet.height - grown].split(86, 1):
                assert column.any(), "the images are grey, only targets have colours"
