"""What the models for a task have in common: preprocessing, and arguments of 0.1.0 that have other names now."""

import copy
import inspect
import pickle

import pytest
import torch

from kornia_mvit import DeepLabV3, MobileViTClassifier, Preprocess, SSDLite


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


class TestPreprocess:
    RECORD = Preprocess(72, crop=64)

    def build(self, in_channels=3):
        model = MobileViTClassifier("xxs", 2, in_channels).eval()
        model.preprocess = self.RECORD
        return model

    def test_record(self):
        model = self.build()
        assert MobileViTClassifier("xxs", 2).preprocess is None
        for record in (model.preprocess, copy.deepcopy(model).preprocess, pickle.loads(pickle.dumps(model)).preprocess):
            assert record == self.RECORD
            assert hash(record) == hash(self.RECORD)
            assert record.to_dict() == self.RECORD.to_dict()

    def test_call_gives_what_the_model_takes(self):
        model = self.build()
        image = torch.randint(0, 256, (1, 80, 90), dtype=torch.uint8)
        x = model.preprocess(image)
        assert torch.equal(x, self.RECORD(image.expand(3, -1, -1)))
        assert model(x).shape == (1, 2)

    def test_device(self):
        """Where the model is, wherever the image is."""
        model = self.build().to("meta")
        assert model.preprocess(torch.zeros(3, 80, 90, dtype=torch.uint8)).device.type == "meta"

    def test_exception(self):
        with pytest.raises(ValueError, match=r"3 channels.*takes 1"):
            self.build(in_channels=1).preprocess(torch.rand(3, 80, 90))
