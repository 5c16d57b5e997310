"""Arguments of 0.1.0 that have other names now."""

import inspect

import pytest

from kornia_mvit import DeepLabV3, MobileViTClassifier, SSDLite


class TestRenamedArguments:
    @pytest.mark.parametrize("old", [{"args": ((2, 2), 0.2)}, {"kwargs": {"dropout": 0.2}}])
    def test_classifier(self, old):
        with pytest.warns(DeprecationWarning, match="backbone_dropout=.*0.3"):
            model = MobileViTClassifier("xxs", 5, 3, *old.get("args", ()), **old.get("kwargs", {}))
        assert model.backbone.stages[-1][-1].transformer[-1].dropout.p == 0.2
        assert model.dropout.p == 0.0

    def test_deeplabv3_by_position(self):
        with pytest.warns(DeprecationWarning, match="output_stride= by name, aspp_channels= by name"):
            model = DeepLabV3("xxs", 5, 8, 12, 0.3, 1)
        assert model.backbone.feature_strides[-1] == 8
        assert (model.aspp_channels, model.backbone.in_channels, model.head.dropout.p) == (12, 1, 0.3)

    def test_deeplabv3_by_name(self):
        with pytest.warns(DeprecationWarning, match="head_dropout= in place of dropout="):
            model = DeepLabV3("xxs", 5, dropout=0.3)
        assert model.head.dropout.p == 0.3
        assert model.backbone.stages[-1][-1].transformer[-1].dropout.p == 0.0

    @pytest.mark.parametrize("kind", [DeepLabV3, SSDLite])
    def test_default_mode(self, kind):
        """That of 0.1.0, until 0.3."""
        with pytest.warns(DeprecationWarning, match="mode='s'"):
            model = kind(num_classes=3)
        assert model.backbone.feature_channels[-1] == 160

    def test_exception(self):
        with pytest.warns(DeprecationWarning), pytest.raises(TypeError, match="head_dropout twice"):
            DeepLabV3("xxs", 5, dropout=0.3, head_dropout=0.3)

    def test_signatures_are_alike(self):
        shared = ("mode", "num_classes", "in_channels", "patch_size", "backbone_dropout", "drop_path", "variant")
        for kind in (MobileViTClassifier, DeepLabV3, SSDLite):
            parameters = inspect.signature(kind).parameters
            assert [name for name in parameters if name in shared] == list(shared)
            assert parameters["mode"].default == "xxs"
