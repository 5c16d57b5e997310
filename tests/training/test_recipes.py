"""Recipes: found by name, and each is a whole configuration."""

import pytest
import yaml

from kornia_mvit import MobileViTClassifier, save_checkpoint
from kornia_mvit.training import (
    ClassificationTask,
    DetectionTask,
    LastCheckpoint,
    SegmentationTask,
    find_recipe,
    list_recipes,
)
from kornia_mvit.training.recipe_cli import build_cli
from tests.data.test_datamodules import make_folder
from tests.training.shapes import make_coco, make_pairs, make_voc_boxes, make_voc_masks, make_yolo

QUICK = ("bccd", "camvid", "digits", "imagenet-xs")  # one for each task, and one for other networks
EVERY_SHARE = pytest.mark.long(every_share=True)


class TestFindRecipe:
    def test_smoke(self, tmp_path):
        assert list_recipes()[:3] == ["bccd", "camvid", "coco-ssdlite"]
        assert find_recipe("digits").name == "digits.yaml"
        own = tmp_path / "own.yaml"
        own.touch()
        assert find_recipe(str(own)) == own

    def test_exception(self):
        with pytest.raises(ValueError, match="'digit'; recipes: bccd, camvid, coco-ssdlite"):
            find_recipe("digit")

    @pytest.mark.parametrize("name", list_recipes())
    def test_a_recipe_states_its_command_and_its_promise(self, name):
        text = find_recipe(name).read_text()
        head = [line for line in text.splitlines() if line.startswith("#")]
        assert any(f"kornia-mvit fit --config {name}" in line for line in head)
        assert any("reached" in line.lower() or "not yet measured" in line.lower() for line in head)
        assert set(yaml.safe_load(text)) == {"model", "data", "trainer"}

    @pytest.mark.filterwarnings("ignore:You passed .*16-mixed:UserWarning")  # meant for a GPU
    @pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[] if name in QUICK else EVERY_SHARE) for name in list_recipes()]
    )
    def test_a_recipe_builds_what_it_names(self, name, tmp_path):
        arguments = ["--config", name, "--trainer.accelerator=cpu"]
        if name == "voc-deeplabv3":
            arguments += ["--data.root", str(make_voc_masks(tmp_path))]
        elif name in ("camvid", "folder-segmentation"):
            arguments += ["--data.root", str(make_pairs(tmp_path))]
            arguments += ["--data.num_classes", "4"] if name == "folder-segmentation" else []
        elif name in ("bccd", "voc-ssdlite"):
            arguments += ["--data.root", str(make_voc_boxes(tmp_path))]
        elif name == "coco-ssdlite":
            arguments += ["--data.root", str(make_coco(tmp_path))]
        elif name == "folder-detection":
            arguments += ["--data.root", str(make_yolo(tmp_path))]
        elif name != "digits":
            arguments += ["--data.root", str(make_folder(tmp_path / "images"))]
        if name in ("finetune", "linear-probe", "voc-deeplabv3", "voc-ssdlite", "coco-ssdlite"):
            save_checkpoint(MobileViTClassifier("xxs", 3), tmp_path / "start.pt")
            arguments += ["--model.weights", str(tmp_path / "start.pt")]
        cli = build_cli(arguments, run=False)
        assert isinstance(cli.model, ClassificationTask | DetectionTask | SegmentationTask)
        background = isinstance(cli.model, DetectionTask)
        assert cli.model.network.num_classes == cli.datamodule.num_classes + background
        assert any(isinstance(callback, LastCheckpoint) for callback in cli.trainer.callbacks)
