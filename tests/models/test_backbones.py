"""Heads on networks of timm, and on any module that says what it gives."""

import builtins
import copy
import pickle

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kornia_mvit import DeepLabV3, MobileViT, MobileViTClassifier, Preprocess, SSDLite, fuse, predict
from kornia_mvit.exporters import load_torchexport, to_torchexport
from kornia_mvit.models.backbones import TimmBackbone, as_backbone, backbone_name
from kornia_mvit.testing.strategies import image_sizes
from kornia_mvit.training.networks import find_layers
from tests.models.networks import DEEP
from tests.tester import BaseTester

NAMES = ("timm:resnet18", "timm:mobilenetv3_small_100")


class Halves(nn.Module):
    """A backbone of a user's own: five convolutions that halve the map."""

    feature_channels, feature_strides = (4, 4, 6, 6, 8), (2, 4, 8, 16, 32)
    out_channels = 8

    def __init__(self, in_channels=3):
        super().__init__()
        self.in_channels = in_channels
        widths = (in_channels, *self.feature_channels)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(widths[n], widths[n + 1], 3, 2, 1), nn.BatchNorm2d(widths[n + 1]), nn.ReLU())
            for n in range(5)
        )

    def forward_features(self, x, out_indices=None):
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps if out_indices is None else [maps[i] for i in sorted(i % 5 for i in out_indices)]

    def forward(self, x):
        return self.forward_features(x)[-1]


@pytest.fixture(scope="module")
def small():
    return as_backbone("timm:mobilenetv3_small_050").eval()


class TestAsBackbone(BaseTester):
    def test_smoke(self, device, dtype):
        backbone = as_backbone("timm:mobilenetv3_small_050", 1).to(device, dtype)
        out = backbone(torch.rand(2, 1, 64, 96, device=device, dtype=dtype))
        assert (out.shape, out.dtype) == ((2, backbone.out_channels, 2, 3), dtype)

    def test_exception(self):
        for name, message in (
            ("resnet18", "unknown backbone 'resnet18'; give a module, or a name of timm"),
            ("timm:resnet19", "timm has no model 'resnet19'; near it: "),
            ("timm:nothing", "timm has no model 'nothing'; timm.list_models"),
            ("timm:hf-hub:timm/resnet18.a1_in1k", "unknown backbone 'timm:hf-hub:timm/resnet18"),
            ("timm:hf_hub:timm/resnet18", "unknown backbone"),
            ("timm:local-dir:/tmp/x", "unknown backbone"),
            ("timm:a/b", "unknown backbone 'timm:a/b'"),
            ("timm:https://example.org/resnet18", "unknown backbone"),
            ("timm:", "unknown backbone 'timm:'"),
            ("timm:resnet18\n", "unknown backbone"),
            ("torchvision.models.resnet18", "unknown backbone"),
            ("timm:vit_tiny_patch16_224", "cannot be a backbone: an image of 128x192 is refused"),
        ):
            with pytest.raises(ValueError) as error:
                as_backbone(name)
            assert message in str(error.value)
        with pytest.raises(TypeError, match="Linear is no backbone: it lacks in_channels, feature_channels"):
            as_backbone(nn.Linear(1, 1))
        with pytest.raises(ValueError, match="output stride 4 is not available"):
            as_backbone("timm:resnet18", output_stride=4)
        with pytest.raises(ValueError, match="pretrained is for a network of timm by its name"):
            as_backbone(Halves(), pretrained=True)

    def test_nothing_is_fetched(self, monkeypatch):
        """Of a name with weights, and of one that would be an address, unless weights are asked for."""

        def refuse(*_, **__):
            raise AssertionError("fetched")

        for module in ("timm.models._builder", "timm.models._hub"):
            for name in ("load_state_dict_from_hf", "load_model_config_from_hf", "download_cached_file"):
                monkeypatch.setattr(f"{module}.{name}", refuse, raising=False)
        assert as_backbone("timm:resnet10t.c3_in1k").name == "timm:resnet10t"
        for name in ("timm:hf-hub:timm/resnet10t", "timm:timm/resnet10t"):
            with pytest.raises(ValueError, match="unknown backbone"):
                as_backbone(name)
        with pytest.raises(ValueError, match="as a backbone: fetched"):
            as_backbone("timm:resnet10t.c3_in1k", pretrained=True)

    def test_without_timm(self, monkeypatch):
        real = builtins.__import__

        def without(name, *args, **kwargs):
            if name.partition(".")[0] == "timm":
                raise ImportError("no timm", name="timm")
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(ImportError, match="timm:resnet18 needs timm; pip install timm"):
            DeepLabV3(backbone="timm:resnet18")

    def test_cardinality(self):
        for module in (Halves(), MobileViT(DEEP)):
            assert as_backbone(module) is module
        plain = timm.create_model("resnet10t", features_only=True, in_chans=2)
        wrapped = as_backbone(plain, 2)
        assert isinstance(wrapped, TimmBackbone)
        assert wrapped.feature_strides == (2, 4, 8, 16, 32)
        assert (backbone_name(wrapped), backbone_name(Halves()), backbone_name(MobileViT(DEEP))) == (None, None, None)
        assert backbone_name(as_backbone(NAMES[1])) == NAMES[1]

    @pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "mobilevitv2_050", "efficientvit_b0"])
    def test_maps_have_the_sizes_that_the_strides_say(self, name):
        """Of networks that round up and of those that round down, at sizes that their strides do not divide."""
        backbone = as_backbone(f"timm:{name}").eval()
        for size in ((33, 64), (100, 75), (128, 96)):
            with torch.no_grad():
                maps = backbone.forward_features(torch.rand(1, 3, *size))
            strides = backbone.feature_strides
            assert [tuple(m.shape[2:]) for m in maps] == [(-(-size[0] // s), -(-size[1] // s)) for s in strides]
            assert [m.shape[1] for m in maps] == list(backbone.feature_channels)

    def test_dilated(self):
        """Where timm can; a network that it cannot dilate keeps its stride."""
        assert as_backbone("timm:mobilenetv3_small_050", output_stride=8).feature_strides == (2, 4, 8, 8, 8)
        assert as_backbone("timm:ghostnet_050", output_stride=8).feature_strides == (2, 4, 8, 16, 32)

    def test_feature(self):
        """The maps are timm's own; some of them, by their numbers."""
        backbone = as_backbone("timm:resnet10t").eval()
        x = torch.rand(2, 3, 64, 96)
        with torch.no_grad():
            expected = backbone.network(x)
            found = backbone.forward_features(x, (-1, 1))
        assert torch.equal(found[0], expected[1])
        assert torch.equal(found[1], expected[4])
        for indices in ((), (5,), (-6,)):
            with pytest.raises(ValueError, match="are not among the 5 stages, -5 to 4"):
                backbone.forward_features(x, indices)
        with pytest.raises(ValueError, match="31x40 pixels is smaller"):
            backbone(torch.rand(1, 3, 31, 40))

    def test_gradcheck(self):
        """Gradient checkpointing gives the same gradients, and a network that has none says so."""
        model, grads = DeepLabV3(num_classes=2, aspp_channels=4, backbone=NAMES[1], head_dropout=0.0), []
        x = torch.rand(2, 3, 64, 64)
        for enabled in (False, True):
            model.zero_grad()
            model.set_gradient_checkpointing(enabled)
            model(x).square().sum().backward()
            grads.append([p.grad.clone() for p in model.parameters()])
        for one, other in zip(*grads, strict=True):
            self.assert_close(one, other, rtol=1e-3, atol=1e-4)
        own = DeepLabV3(num_classes=2, aspp_channels=4, backbone=Halves())
        own.set_gradient_checkpointing(False)
        with pytest.raises(ValueError, match="Halves has no gradient checkpointing; leave it off"):
            own.set_gradient_checkpointing(True)

    @pytest.mark.long
    def test_dynamo(self, small, tmp_path):
        """A model on it is exported, and decodes in the graph."""
        model = SSDLite(num_classes=3, widths=(8,) * 6, backbone=small).eval()
        run = load_torchexport(to_torchexport(model, tmp_path / "m.pt2", size=(64, 80), with_decode=True))
        x = torch.rand(1, 3, 64, 80)
        with torch.no_grad():
            boxes, scores = model.locate(*model(x), (64, 80))
        assert (run(x)[0] - boxes).abs().max() < 1e-2
        assert (run(x)[1] - scores.amax(-1)).abs().max() < 1e-4


@pytest.mark.parametrize("backbone", [*NAMES, Halves()], ids=["resnet18", "mobilenetv3", "module"])
class TestHeads:
    def test_outputs(self, backbone):
        x = torch.rand(2, 3, 100, 75)
        assert DeepLabV3(num_classes=4, aspp_channels=8, aux_channels=4, backbone=backbone)(x).shape == (2, 4, 100, 75)
        assert MobileViTClassifier(num_classes=4, backbone=backbone)(x).shape == (2, 4)
        model = SSDLite(num_classes=4, widths=(8,) * 6, backbone=backbone).eval()
        logits, deltas = model(x)
        assert logits.shape[:2] == deltas.shape[:2] == (2, len(model.anchors((100, 75))))
        assert len(model.decode(logits, deltas, (100, 75))) == 2

    def test_arguments_of_mobilevit(self, backbone):
        for build, arguments, name in (
            (DeepLabV3, {"mode": "s"}, "mode"),
            (SSDLite, {"variant": "kornia"}, "variant"),
            (DeepLabV3, {"drop_path": 0.1}, "drop_path"),
            (MobileViTClassifier, {"patch_size": 4}, "patch_size"),
            (MobileViTClassifier, {"head_conv": False}, "head_conv"),
            (SSDLite, {"backbone_dropout": 0.1}, "backbone_dropout"),
        ):
            with pytest.raises(ValueError, match=f"{name} is for MobileViT, and a backbone is given"):
                build(**arguments, backbone=backbone)

    def test_layers(self, backbone):
        """Learning rates by layer, and a frozen backbone, see its layers, and the head apart."""
        layers = find_layers(DeepLabV3(num_classes=4, aspp_channels=8, backbone=backbone))
        assert len(layers) >= 5
        assert all(name.startswith("head.") for name in layers[-1])
        assert all(name.startswith("backbone.") for layer in layers[:-1] for name in layer)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), fuse])
    def test_copies(self, backbone, copied):
        model, x = DeepLabV3(num_classes=4, aspp_channels=8, backbone=backbone).eval(), torch.rand(1, 3, 64, 80)
        with torch.no_grad():
            assert (copied(model)(x) - model(x)).abs().max() < 1e-4

    def test_predict(self, backbone):
        model = DeepLabV3(num_classes=4, aspp_channels=8, backbone=backbone).eval()
        model.preprocess = Preprocess(64)
        assert predict(model, torch.rand(3, 90, 75))[0].label_map.shape == (90, 75)


def test_channels():
    assert DeepLabV3(num_classes=2, in_channels=1, backbone="timm:resnet10t").backbone.in_channels == 1
    assert DeepLabV3(num_classes=2, backbone=Halves(1)).backbone.in_channels == 1
    with pytest.raises(ValueError, match="takes images of 1 channels, not 4"):
        DeepLabV3(num_classes=2, in_channels=4, backbone=Halves(1))


def test_segmentation_is_dilated_and_detection_is_not():
    assert DeepLabV3(num_classes=2, backbone=NAMES[0], output_stride=8).backbone.feature_strides[-1] == 8
    assert SSDLite(num_classes=2, backbone=NAMES[0]).backbone.feature_strides[-1] == 32
    with pytest.raises(
        ValueError, match=r"no stage of the backbone has stride 32; its strides are \(2, 4, 8, 16, 16\)"
    ):
        SSDLite(num_classes=2, backbone=as_backbone(NAMES[1], output_stride=16))


@given(size=image_sizes(max_side=160), batch=st.integers(1, 2))
def test_any_size(small, size, batch):
    assert small(torch.rand(batch, 3, *size)).shape == (batch, small.out_channels, -(-size[0] // 32), -(-size[1] // 32))
