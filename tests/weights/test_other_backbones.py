"""Checkpoints of models on networks of timm and on modules of a user's own."""

import json

import pytest
import torch

from kornia_mvit import (
    DeepLabV3,
    MobileViTClassifier,
    Preprocess,
    SSDLite,
    convert,
    from_pretrained,
    info,
    load_checkpoint,
    save_checkpoint,
)
from kornia_mvit.weights.cards import from_card, model_card
from kornia_mvit.weights.files import CARD_KEY, CheckpointError, read_checkpoint
from tests.models.networks import randomize
from tests.models.test_backbones import Halves

NAME = "timm:mobilenetv3_small_050"
BUILD = {
    "classification": lambda backbone, **more: MobileViTClassifier(num_classes=3, backbone=backbone, **more),
    "segmentation": lambda backbone, **more: DeepLabV3(num_classes=3, aspp_channels=8, backbone=backbone, **more),
    "detection": lambda backbone, **more: SSDLite(
        num_classes=4, widths=(8,) * 6, scales=(0.2, 0.9), backbone=backbone, **more
    ),
}
TASKS = tuple(BUILD)


def build(task, backbone=NAME, **more):
    torch.manual_seed(0)
    model = randomize(BUILD[task](backbone, **more)).eval()
    model.class_names, model.preprocess = ("a", "b", "c"), Preprocess(64)
    return model


def same(one, other, size=(64, 80)):
    x = torch.rand(1, one.backbone.in_channels, *size)
    with torch.no_grad():
        first, second = one(x), other(x)
    pairs = zip(first, second, strict=True) if isinstance(first, tuple) else [(first, second)]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("task", TASKS)
class TestFromPretrained:
    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    def test_by_name(self, task, suffix, tmp_path):
        model = build(task, in_channels=2)
        path = tmp_path / f"a.{suffix}"
        save_checkpoint(model, path)
        again = from_pretrained(path)
        assert (type(again), again.backbone.name, again.class_names) == (type(model), NAME, ("a", "b", "c"))
        assert again.backbone.feature_strides == model.backbone.feature_strides
        assert same(model, again)
        told = str(info(path))
        assert f"on {NAME}, " in told
        assert "2 channels" in told

    def test_a_folder_for_the_hub(self, task, tmp_path):
        model = build(task)
        model.save_pretrained(tmp_path / "a")
        assert same(model, from_pretrained(tmp_path / "a"))
        assert json.loads((tmp_path / "a" / "config.json").read_text())["model"]["backbone"] == NAME
        assert f"size {NAME}" in (tmp_path / "a" / "README.md").read_text()

    def test_a_module_is_passed_again(self, task, tmp_path):
        model = build(task, Halves())
        save_checkpoint(model, tmp_path / "a.pt")
        with pytest.raises(
            CheckpointError, match=r"on a backbone that is none of timm's; build .* pass it as backbone="
        ):
            from_pretrained(tmp_path / "a.pt")
        assert same(model, from_pretrained(tmp_path / "a.pt", backbone=Halves()))
        with pytest.raises(CheckpointError, match=r"do not fit the model; .* missing"):
            from_pretrained(tmp_path / "a.pt", backbone=NAME)
        text = json.dumps(read_checkpoint(tmp_path / "a.pt")[CARD_KEY])
        assert "Halves" not in text
        assert "tests" not in text

    @pytest.mark.long
    def test_another_number_of_classes(self, task, tmp_path):
        model = build(task)
        save_checkpoint(model, tmp_path / "a.pt")
        again = from_pretrained(tmp_path / "a.pt", num_classes=6)
        assert again.num_classes == 6
        for name, value in model.backbone.state_dict().items():
            assert torch.equal(value, again.backbone.state_dict()[name]), name

    @pytest.mark.long
    def test_convert(self, task, tmp_path):
        model = build(task)
        save_checkpoint(model, tmp_path / "a.pt")
        convert(tmp_path / "a.pt", tmp_path / "b.safetensors", to="native")
        assert same(model, from_pretrained(tmp_path / "b.safetensors"))
        for layout in ("timm", "apple"):
            with pytest.raises(
                ValueError, match=f"layout {layout!r} has no names for a TimmBackbone; save it as 'native"
            ):
                convert(tmp_path / "a.pt", tmp_path / "c.pt", to=layout)
        with pytest.raises(ValueError, match="leave channel_order at 'rgb'"):
            save_checkpoint(model, tmp_path / "c.pt", channel_order="bgr")

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("timm:resnet19x", "timm has no model 'resnet19x'"),
            ("timm:hf-hub:timm/resnet18", "backbone is 'timm:hf-hub:timm/resnet18', not a name of timm"),
            ("timm:hf_hub:resnet18", "not a name of timm"),
            ("timm:timm/resnet18.a1_in1k", "not a name of timm"),
            ("timm:resnet18.a1_in1k", "not a name of timm"),
            ("timm:resnet18\n", "not a name of timm"),
            ("timm:local-dir:/tmp", "not a name of timm"),
            ("timm:https://example.org/a.pt", "not a name of timm"),
            ("torchvision.models.resnet18", "not a name of timm"),
            ("os.system", "not a name of timm"),
            ({"class_path": "os.system"}, "not a name of timm"),
            (["timm:resnet18"], "not a name of timm"),
            (None, "not a name of timm"),
            ("timm:resnet152", "weights, and the file holds"),
        ],
    )
    def test_damaged_cards(self, task, value, message, tmp_path):
        card = model_card(build(task), None, None)
        card["model"]["backbone"] = value
        with pytest.raises(CheckpointError, match=message):
            from_card({CARD_KEY: card}, "a.pt")

    def test_a_mode_beside_the_backbone(self, task):
        card = model_card(build(task), None, None)
        card["model"]["mode"] = "xxs"
        with pytest.raises(CheckpointError, match="both the mode and the backbone"):
            from_card({CARD_KEY: card}, "a.pt")
        del card["model"]["mode"], card["model"]["backbone"]
        with pytest.raises(CheckpointError, match="does not say the mode"):
            from_card({CARD_KEY: card}, "a.pt")


class TestLoadCheckpoint:
    def test_backbone_of_another_task(self, tmp_path):
        source = build("classification")
        save_checkpoint(source, tmp_path / "a.pt")
        model = build("segmentation", output_stride=32)
        with pytest.raises(CheckpointError, match="has no segmentation head; pass new_head=True"):
            load_checkpoint(model, tmp_path / "a.pt")
        report = load_checkpoint(model, tmp_path / "a.pt", new_head=True)
        assert {name.partition(".")[0] for name in report.left_out} == {"classifier"}
        for name, value in source.backbone.state_dict().items():
            assert torch.equal(value, model.backbone.state_dict()[name]), name

    def test_exception(self):
        model = build("segmentation")
        state = model.state_dict()
        first = next(iter(state))
        for source, message in (
            ({}, "holds no weights of a model on a backbone"),
            ({"state_dict": 5}, "holds no weights"),
            ({name: value for name, value in state.items() if name != first}, "1 missing: "),
            ({**state, "backbone.network.other.weight": torch.zeros(1)}, "1 unexpected: "),
            ({**state, first: torch.zeros(1)}, "1 weights in the state dict have another shape"),
            ({**state, first: state[first].to_sparse()}, "is no plain tensor in memory"),
        ):
            with pytest.raises(CheckpointError, match=message):
                load_checkpoint(model, source)
        for options in ({"layout": "timm"}, {"channel_order": "bgr"}):
            with pytest.raises(ValueError, match="are of MobileViT, not of TimmBackbone"):
                load_checkpoint(model, state, **options)
