"""What checkpoints of ours say of themselves."""

import json

import pytest
from torch import nn

from kornia_mvit import DeepLabV3, MobileViT, MobileViTClassifier, MobileViTConfig, Preprocess, SSDLite
from kornia_mvit.models.mobilevit import Stage
from kornia_mvit.weights.cards import from_card, model_card, read_card, task_of
from kornia_mvit.weights.files import CARD_KEY, CheckpointError

SHALLOW = MobileViTConfig(stem=4, expand=1, stages=(Stage(4), Stage(4, dim=4, depth=1)), head_channels=4, heads=2)
STRIDED = MobileViTConfig(
    stem=4,
    expand=1,
    stages=(Stage(4, 2), Stage(4, 2), Stage(4, 2), Stage(4, 2, dim=4, depth=1)),
    head_channels=4,
    heads=2,
)
MODELS = [
    MobileViTClassifier("xxs", 3, in_channels=4, patch_size=(2, 3), output_stride=16),
    MobileViTClassifier("xxs", 0, variant="kornia"),
    MobileViTClassifier(SHALLOW, 3),
    DeepLabV3("xxs", 3),
    DeepLabV3(
        "xs",
        4,
        output_stride=8,
        aspp_channels=32,
        in_channels=1,
        patch_size=3,
        rates=(1, 2),
        align_corners=True,
        aux_channels=8,
        pad=False,
    ),
    DeepLabV3(SHALLOW, 3, aspp_channels=4, aux_channels=4),
    SSDLite("xxs", 4, widths=(8, 8, 8, 8, 8, 4), scales=(0.2, 0.9), aspect_ratios=[(2,), (), (2, 3), (2,), (2,), (2,)]),
    SSDLite(STRIDED, 2, 1, patch_size=3, widths=(4, 4, 4, 4, 4, 4)),
]


class TestModelCard:
    @pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
    def test_there_and_back(self, model):
        """Through JSON, it builds a model of the same weights and settings."""
        names = list("abcd")[: model.num_classes - isinstance(model, SSDLite)]
        card = json.loads(json.dumps(model_card(model, names, Preprocess(40, crop=32))))
        again = from_card({CARD_KEY: card}, "a.pt")
        assert type(again) is type(model)
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in model.state_dict().items()
        }
        assert again.backbone.feature_strides == model.backbone.feature_strides
        assert again.backbone.patch_size == model.backbone.patch_size
        for name in (
            *("rates", "align_corners", "aux_channels", "aspp_channels", "pad", "num_classes"),
            *("widths", "aspect_ratios", "scales"),
        ):
            assert getattr(again, name, None) == getattr(model, name, None)
        assert again.class_names == (tuple(names) or None)
        assert again.preprocess == Preprocess(40, crop=32)

    def test_feature(self):
        assert model_card(MODELS[3], None, None)["task"] == "segmentation"
        assert model_card(MODELS[0], None, None)["task"] == "classification"
        assert model_card(MODELS[-1], None, None)["task"] == "detection"
        card = model_card(nn.Linear(1, 1), None, None, "segmentation")
        assert (card["task"], card["model"], card["class_names"], card["preprocess"]) == ("segmentation", *[None] * 3)

    def test_a_card_that_does_not_say_is_of_a_network_without_padding(self):
        card = model_card(DeepLabV3("xxs", 3), None, None)
        assert card["model"]["pad"]
        assert from_card({CARD_KEY: card}, "a.pt").pad
        del card["model"]["pad"]  # as earlier versions wrote it
        assert not from_card({CARD_KEY: card}, "a.pt").pad
        assert from_card({CARD_KEY: card}, "a.pt", pad=True).pad
        card["model"]["pad"] = 1
        with pytest.raises(CheckpointError, match=r"model\.pad is 1, not true or false"):
            from_card({CARD_KEY: card}, "a.pt")

    def test_overrides(self):
        card = model_card(DeepLabV3("xxs", 3, aux_channels=8), None, None)
        model = from_card({CARD_KEY: card}, "a.pt", num_classes=5, aux_channels=0, drop_path=0.1)
        assert (model.num_classes, model.aux_head) == (5, None)

    def test_exception(self):
        good = model_card(MODELS[3], None, None)
        for card, message in (
            (None, "a.pt does not say what model it holds"),
            (good | {"format": 2, "version": "9.0"}, "a.pt has format 2, written by 9.0; update"),
            (good | {"task": "depth", "version": "9.0"}, "a.pt is for depth, written by 9.0; update"),
            (good | {"model": None}, "holds a network of its own.* use SegmentationTask.load_from_checkpoint"),
        ):
            with pytest.raises(CheckpointError, match=message):
                from_card({CARD_KEY: card}, "a.pt")
        assert read_card({CARD_KEY: good}, "a.pt") is good


def test_task_of():
    assert [task_of(model) for model in (MODELS[0], MODELS[3], MODELS[-1], MobileViT(), nn.Linear(1, 1))] == [
        "classification",
        "segmentation",
        "detection",
        None,
        None,
    ]
