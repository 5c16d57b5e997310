"""A fused copy gives the results of its model, in every task, form and number type."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kornia_mvit import DeepLabV3, MobileViT, MobileViTClassifier, SSDLite, fuse, load_checkpoint, save_checkpoint
from kornia_mvit.inference.engines.fuse import FusedConv2d
from kornia_mvit.models.layers import ConvNormAct, DropPath
from kornia_mvit.models.mobilevit import MobileViTConfig, Stage
from tests.models.networks import (
    APPLE,
    CONVOLUTIONAL,
    DEEP,
    DETECTION,
    apple_detector,
    apple_image,
    load_apple_weights,
    randomize,
)
from tests.tester import GraphCounter, cases
from tests.weights.peers import PEERS, randomise, run

MODELS = {
    "classifier": lambda: MobileViTClassifier("xxs", 10, backbone_dropout=0.1, head_dropout=0.1, drop_path=0.1),
    "kornia": lambda: MobileViT("xs", variant="kornia"),
    "dilated": lambda: MobileViT(DEEP, output_stride=8),
    "convolutional": lambda: MobileViT(CONVOLUTIONAL),
    "segmentation": lambda: DeepLabV3("xxs", 5, head_dropout=0.1),
    "detection": lambda: SSDLite("xxs", 4),
}


def outputs(model, x):
    y = model(x)
    return y if isinstance(y, tuple) else (y,)


def assert_equal(ours, theirs, tolerance=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert (a.float() - b.float()).abs().max() <= tolerance * b.float().abs().max()


@pytest.fixture(params=MODELS)
def model(request):
    return randomize(MODELS[request.param]()).eval()


class TestFuse:
    @pytest.mark.parametrize("shape", [(1, 64, 96), (3, 97, 75)], ids=str)
    @torch.inference_mode()
    def test_equal(self, model, shape):
        x = torch.rand(shape[0], 3, *shape[1:])
        assert_equal(outputs(fuse(model), x), outputs(model, x))

    def test_layers(self, model):
        fused = fuse(model)
        gone = nn.BatchNorm2d | nn.Dropout | nn.Dropout2d | DropPath
        assert not any(isinstance(module, gone) for module in fused.modules())
        convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
        assert sum(type(module) is FusedConv2d for module in fused.modules()) == convolutions
        assert not any(p.requires_grad for p in fused.parameters())
        assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())

    def test_model_stays_as_it_is(self):
        model = randomize(MobileViTClassifier("xxs", 10)).train()
        before = copy.deepcopy(model.state_dict())
        model(torch.rand(2, 3, 64, 64)).sum().backward()
        model.load_state_dict(before)
        fused = fuse(model)
        assert model.training
        assert not fused.training
        assert all(p.grad is not None and p.requires_grad for p in model.parameters())
        assert all(p.grad is None for p in fused.parameters())
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in fused.parameters()}
        assert not shared

    def test_apples_values(self):
        """The golden outputs of Apple's own code, through the fused network."""
        model = MobileViTClassifier("xxs").double()
        load_apple_weights(model)
        fused = fuse(model.float())
        for case in APPLE["cases"]:
            x = torch.from_numpy(apple_image(case["seed"], case["shape"])).float()
            with torch.inference_mode():
                sample = fused(x).flatten()[case["logits"]["sample_index"]]
            assert_equal((sample,), (torch.tensor(case["logits"]["sample"]),), 1e-4)

    def test_maps(self):
        model = randomize(MobileViT("xxs")).eval()
        x = torch.rand(2, 3, 96, 64)
        with torch.inference_mode():
            assert_equal(fuse(model).forward_features(x, (0, 2)), model.forward_features(x, (0, 2)))

    def test_of_a_runs_folder(self, tmp_path):
        model = randomize(MobileViTClassifier(DEEP, 4)).eval()
        save_checkpoint(model, tmp_path / "last.ckpt")
        x = torch.rand(1, 3, 64, 64)
        for folder in (tmp_path, str(tmp_path)):
            assert_equal(outputs(fuse(folder), x), outputs(model, x))
        with pytest.raises(TypeError, match="the model is 5; pass a module, a checkpoint"):
            fuse(5)

    def test_twice(self, model):
        x = torch.rand(1, 3, 64, 64)
        with torch.inference_mode():
            assert_equal(outputs(fuse(fuse(model)), x), outputs(model, x))

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
    def test_copies_after_use(self, copied):
        model = fuse(randomize(MobileViT(DEEP)))
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            expected = model(x)
            assert torch.equal(copied(model)(x), expected)

    def test_new_weights_after_use(self):
        """The order of the weights that is kept for the kernel is not that of weights that are gone."""
        first, second = (fuse(randomize(MobileViT(DEEP))) for _ in range(2))
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            first(x)
            first.load_state_dict(second.state_dict())
            assert torch.equal(first(x), second(x))

    def test_gradient_of_the_image(self):
        model = randomize(MobileViT(DEEP)).eval()
        grads = []
        for network in (model, fuse(model)):
            x = torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64).requires_grad_()
            network(x).square().sum().backward()
            grads.append(x.grad)
        assert_equal(grads[1:], grads[:1], 1e-4)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.05)], ids=str)
    def test_dtypes(self, dtype, tolerance):
        model = randomize(MobileViT(DEEP)).eval()
        x = torch.rand(2, 3, 64, 96, dtype=dtype)
        with torch.inference_mode():
            expected = model.to(torch.float64)(x.double())
            assert_equal((fuse(model).to(dtype)(x),), (expected,), tolerance)

    def test_autocast(self):
        model = randomize(MobileViT(DEEP)).eval()
        x = torch.rand(2, 3, 64, 96)
        with torch.inference_mode():
            expected = model(x)
            with torch.autocast("cpu", torch.bfloat16):
                y = fuse(model)(x)
        assert_equal((y,), (expected,), 0.05)

    def test_inside_another_module(self):
        model = nn.Sequential(nn.Upsample(scale_factor=2), randomize(MobileViT(DEEP))).eval()
        x = torch.rand(1, 3, 40, 40)
        with torch.inference_mode():
            assert_equal((fuse(model)(x),), (model(x),))

    def test_without_running_statistics(self):
        """Statistics of the batch cannot be folded: the normalisation stays."""
        layer = ConvNormAct(3, 4)
        layer.norm = nn.BatchNorm2d(4, track_running_stats=False)
        x = torch.rand(2, 3, 8, 8)
        with torch.inference_mode():
            assert_equal((fuse(nn.Sequential(layer))(x),), (layer.eval()(x),))

    def test_wrong_channels(self):
        with pytest.raises(ValueError, match="3 channels"):
            fuse(MobileViT(DEEP))(torch.rand(1, 1, 64, 64))

    @pytest.mark.long
    def test_compile(self):
        model = randomize(MobileViTClassifier(DEEP, 10)).eval()
        graphs = GraphCounter("eager")
        compiled = torch.compile(fuse(model), fullgraph=True, dynamic=True, backend=graphs)
        with torch.no_grad():
            for batch, *size in [(2, 64, 64), (3, 224, 160), (2, 100, 130), (2, 320, 192)]:
                x = torch.rand(batch, 3, *size)
                assert_equal((compiled(x),), (model(x),))
        assert graphs.count <= 2

    def test_export(self):
        model = randomize(MobileViT(DEEP)).eval()
        x = torch.rand(2, 3, 64, 70)
        exported = torch.export.export(fuse(model), (x,))
        names = {str(node.target) for node in exported.graph.nodes}
        assert not any("batch_norm" in name or "mkldnn" in name for name in names)
        assert_equal((exported.module()(x),), (model(x),))

    @pytest.mark.parametrize("peer", ["timm", "transformers"])
    def test_peers(self, peer):
        """The logits of the peers' own classes, from their weights."""
        theirs = randomise(PEERS[peer]("xxs"))
        model = MobileViTClassifier("xxs", 7)
        load_checkpoint(model, theirs.state_dict())
        x = torch.rand(2, 3, 256, 256)
        with torch.inference_mode():
            assert_equal((fuse(model)(x),), (run(theirs, x),), 1e-4)

    def test_apples_detector(self):
        model = SSDLite("xxs", 81).eval()
        load_checkpoint(model, apple_detector(), layout="apple")
        case = DETECTION["cases"][0]
        x = torch.from_numpy(apple_image(case["seed"], case["shape"])).float()
        with torch.inference_mode():
            assert_equal(outputs(fuse(model), x), outputs(model, x), 1e-4)


SMALL = MobileViTConfig(
    stem=4,
    expand=4,
    stages=(Stage(4), Stage(6, 2, 2), Stage(8, stride=2, dim=8, depth=1)),
    head_channels=4,
    heads=2,
)


class TestSlices:
    """Without gradients, a CPU takes large batches through the early stages by slices."""

    @pytest.fixture
    def model(self, monkeypatch):
        monkeypatch.setattr("kornia_mvit.models.fast.SLICE_BYTES", 1)
        return randomize(MobileViT(SMALL)).eval()

    @staticmethod
    def watch(model, monkeypatch):
        """Count the images of each run of the stem, without a hook."""
        seen = []
        kind = type(model.stem)
        forward = kind.forward
        monkeypatch.setattr(
            kind, "forward", lambda self, x: (self is model.stem and seen.append(len(x)), forward(self, x))[1]
        )
        return seen

    @cases(20)
    @given(batch=st.integers(1, 9), height=st.integers(32, 80), width=st.integers(32, 80), fused=st.booleans())
    def test_equal(self, batch, height, width, fused):
        model = randomize(MobileViT(SMALL)).eval()
        x = torch.rand(batch, 3, height, width)
        expected = model.forward_features(x)
        with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("kornia_mvit.models.fast.SLICE_BYTES", 1)
            patch.setattr("torch.get_num_threads", lambda: 2)
            assert_equal((fuse(model) if fused else model).forward_features(x), expected)

    @pytest.mark.parametrize("fused", [False, True])
    def test_sizes(self, model, monkeypatch, fused):
        model = fuse(model) if fused else model
        monkeypatch.setattr("torch.get_num_threads", lambda: 2)
        seen = self.watch(model, monkeypatch)
        x = torch.rand(5, 3, 32, 32)
        with torch.no_grad():
            model(x)
        assert seen == [2, 2, 1]
        seen.clear()
        model(x.requires_grad_())
        assert seen == [5]

    def test_hooks_see_whole_batches(self, model):
        seen = []
        model.stages[1].register_forward_hook(lambda _m, _x, y: seen.append(len(y)))
        with torch.no_grad():
            model(torch.rand(5, 3, 32, 32))
        assert seen == [5]

    def test_batch_statistics_are_of_whole_batches(self, model, monkeypatch):
        """Where a part of a model in eval mode is in training mode."""
        model.stages[0].train()
        seen = self.watch(model, monkeypatch)
        with torch.no_grad():
            model(torch.rand(5, 3, 32, 32))
        assert seen == [5]


class TestConvNormActInference:
    """Without gradients, eval mode folds the normalisation as it goes."""

    @pytest.mark.parametrize("act", [nn.SiLU, nn.ReLU, None])
    def test_equal(self, act):
        layer = randomize(ConvNormAct(3, 8, 3, stride=2, act=act)).double().eval()
        x = torch.rand(2, 3, 9, 10).double()
        expected = layer(x)
        with torch.no_grad():
            assert_equal((layer(x),), (expected,), 1e-13)

    def test_hooks_fire(self):
        layer, seen = ConvNormAct(3, 4).eval(), []
        layer.conv.register_forward_hook(lambda *_: seen.append("conv"))
        layer.norm.register_forward_hook(lambda *_: seen.append("norm"))
        with torch.no_grad():
            layer(torch.rand(1, 3, 8, 8))
        assert seen == ["conv", "norm"]

    @pytest.mark.parametrize(
        "change",
        [
            lambda layer: setattr(layer, "conv", nn.Conv2d(3, 4, 3, padding=1)),
            lambda layer: setattr(layer, "conv", nn.Conv2d(3, 4, 3, padding=1, bias=False, padding_mode="reflect")),
            lambda layer: setattr(layer, "norm", nn.BatchNorm2d(4, affine=False)),
            lambda layer: setattr(layer, "norm", nn.BatchNorm2d(4, track_running_stats=False)),
            lambda layer: setattr(layer, "norm", nn.GroupNorm(2, 4)),
        ],
        ids=["bias", "padding", "affine", "statistics", "norm"],
    )
    def test_changed_layers(self, change):
        """What a user puts in place of a layer counts, folded or not."""
        layer = ConvNormAct(3, 4)
        change(layer)
        randomize(layer).eval()
        x = torch.rand(2, 3, 8, 8)
        expected = layer.act(layer.norm(layer.conv(x)))
        with torch.no_grad():
            assert_equal((layer(x),), (expected,))
            assert_equal((fuse(nn.Sequential(layer))(x),), (expected,))
        layer.recompute_act = True
        layer.train()(x).sum().backward()

    def test_a_convolution_of_another_kind_runs(self):
        class Doubled(nn.Conv2d):
            def forward(self, x):
                return 2 * super().forward(x)

        layer = ConvNormAct(3, 4).eval()
        layer.conv = Doubled(3, 4, 3, padding=1, bias=False)
        x = torch.rand(1, 3, 8, 8)
        expected = layer(x)
        with torch.no_grad():
            assert torch.equal(layer(x), expected)
            assert_equal((fuse(nn.Sequential(layer))(x),), (expected,))
