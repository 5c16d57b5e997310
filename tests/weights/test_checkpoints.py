"""Loading weights from whoever wrote them, and writing them for whoever reads them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

from kornia_mvit import MobileViT, MobileViTClassifier, MobileViTConfig, fuse, optimize
from kornia_mvit.models.mobilevit import Stage
from kornia_mvit.weights.checkpoints import (
    load_checkpoint,
    read_weights,
    save_checkpoint,
)
from kornia_mvit.weights.files import CARD_KEY, CheckpointError, read_checkpoint
from kornia_mvit.weights.layouts import from_native
from tests.tester import cases
from tests.weights import fuzz
from tests.weights.peers import PEERS, randomise, run

LAYOUTS = ["native", "apple", "timm", "transformers", "kornia"]
SMALL = MobileViTConfig(stem=4, expand=2, stages=(Stage(6, 2), Stage(8, 2, dim=8, depth=1)), head_channels=10)


def ours(layout, mode="xxs", num_classes=7):
    """A model that the layout has names for."""
    if layout == "kornia":
        return randomise(MobileViT(mode, variant="kornia"))
    return randomise(MobileViTClassifier(mode, num_classes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], value) for name, value in b.items())


class TestLoadCheckpoint:
    @pytest.mark.parametrize("mode", ["xxs", "xs", "s"])
    @pytest.mark.parametrize("layout", PEERS)
    def test_peers(self, layout, mode, tmp_path):
        """The peer's weights give the peer's outputs; saved back in its layout, every tensor is equal bit for bit."""
        peer = randomise(PEERS[layout](mode))
        model = ours(layout, mode)
        report = load_checkpoint(model, peer.state_dict())
        assert (report.layout, report.mode) == (layout, mode)
        for size in ((256, 256),) if layout == "kornia" else ((256, 256), (224, 160)):
            image = torch.rand(1, 3, *size)
            with torch.no_grad():
                assert (run(model, image) - run(peer, image)).abs().max() < 1e-4
        save_checkpoint(model, tmp_path / "a.safetensors", layout)
        back, state = read_checkpoint(tmp_path / "a.safetensors"), peer.state_dict()
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], value) for name, value in state.items())

    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_there_and_back_through_a_file(self, layout, suffix, tmp_path):
        model, other = ours(layout), randomise(ours(layout), seed=1)
        save_checkpoint(model, tmp_path / f"a.{suffix}", layout)
        assert not same(model, other)
        report = load_checkpoint(other, tmp_path / f"a.{suffix}")
        assert same(model, other)
        assert report.layout == layout
        assert str(tmp_path / f"a.{suffix}") in str(report)
        assert f"layout '{layout}'" in str(report)

    @cases(16, quick=3)
    @given(
        layout=st.sampled_from(LAYOUTS),
        mode=st.sampled_from(["xxs", "xs", "s"]),
        num_classes=st.integers(1, 20),
        dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
        safe=st.booleans(),
    )
    def test_there_and_back_keeps_every_tensor(self, layout, mode, num_classes, dtype, safe, folder):
        """Of any size, number of classes and dtype; and the report says what it was."""
        model = ours(layout, mode, num_classes).to(dtype)
        other = randomise(ours(layout, mode, num_classes), seed=1).to(dtype)
        path = folder / ("a.safetensors" if safe else "a.pt")
        save_checkpoint(model, path, layout)
        report = load_checkpoint(other, path)
        assert same(model, other)
        assert (report.layout, report.mode) == (layout, mode)
        assert report.num_classes == (0 if layout == "kornia" else num_classes)

    def test_wrappers(self):
        model = ours("native")
        state = ours("timm", num_classes=7).state_dict()
        peer = {name: value for name, value in model.state_dict().items()}
        parallel = nn.DataParallel(model).state_dict()
        averaged = AveragedModel(model)
        averaged.update_parameters(model)
        wrong = {name: torch.zeros_like(value) for name, value in state.items()}
        for wrapped, where in (
            (peer, ""),
            (parallel, "module"),
            ({"state_dict": parallel, "epoch": 3}, "state_dict.module"),
            ({"model": peer, "optimizer": {}}, "model"),
            ({"state_dict": wrong, "state_dict_ema": peer}, "state_dict_ema"),
            ({f"network.{k}": v for k, v in peer.items()} | {"teacher.w": torch.zeros(1)}, "network"),
            ({f"_orig_mod.{k}": v for k, v in peer.items()}, "_orig_mod"),
            (averaged.state_dict(), "module"),
        ):
            other = randomise(ours("native"), seed=1)
            assert load_checkpoint(other, wrapped).wrapper == where
            assert same(model, other)

    def test_numbers_beside_the_weights(self):
        state, one = from_native(ours("native").backbone.state_dict(), "timm"), torch.tensor(76.5)
        bare = {name: value for name, value in state.items() if not name.endswith(("mean", "var", "tracked"))}
        wrong = {name: torch.zeros_like(value) for name, value in state.items()}
        moments = {n: {"step": one, "exp_avg": torch.ones(3)} for n in range(5)}
        for wrapped, where in (
            ({"best_acc1": one, "state_dict": state, "optimizer": {"state": moments}}, "state_dict"),
            ({"scores": torch.ones(3), "net": state, "state_dict": {}, "model": None}, "net"),
            ({**state, "best_acc1": one}, ""),
            ({"epoch": one, "network": {"best": one, "weights": {"module": state}}}, "network.weights.module"),
            ({"ema": {"decay": one, "shadow": state}, "model": wrong}, "ema.shadow"),
            ({"params": wrong, "params_ema": state}, "params_ema"),
            ({"student": wrong, "teacher": {f"module.{k}": v for k, v in state.items()}}, "teacher.module"),
            ({"teacher": wrong, "model": state}, "model"),
            ({"models": [{"w.weight": one}, state]}, "models.1"),
            ({"current_model_state": wrong, "state_dict": state}, "state_dict"),
        ):
            found = read_weights(wrapped)
            assert (found.wrapper, found.layout, found.unknown) == (where, "timm", [])
            assert torch.equal(found.backbone["head_conv.norm.bias"], state["final_conv.bn.bias"])
        with pytest.warns(UserWarning, match=r"under model_ema, but 213 of 277 alone; those under model are taken"):
            assert read_weights({"model": state, "model_ema": bare}).wrapper == "model"

    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_kornia_with_a_head(self, prefix):
        """As the code that Kornia's class came from writes it: a linear layer without bias."""
        backbone, weight = ours("kornia"), torch.randn(5, 320)
        state = {f"{prefix}{name}": value for name, value in from_native(backbone.state_dict(), "kornia").items()}
        state[f"{prefix}fc.weight"] = weight
        model = MobileViTClassifier("xxs", 5, variant="kornia").eval()
        report = load_checkpoint(model, state)
        image = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model(image), backbone(image).mean((2, 3)) @ weight.T)
        assert (report.num_classes, report.notes) == (5, ["its classifier has no bias: zeros"])
        other = randomise(MobileViT("xxs", variant="kornia"), seed=1)
        assert load_checkpoint(other, state).left_out == ["classifier.weight"]
        assert same(other, backbone)
        with pytest.raises(CheckpointError, match="5 classes, the model 7"):
            load_checkpoint(MobileViTClassifier("xxs", 7, variant="kornia"), state)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
    def test_weights_that_are_no_floats(self, dtype):
        model = ours("native")
        state = model.state_dict()
        state["classifier.weight"] = state["classifier.weight"].to(dtype)
        with pytest.raises(CheckpointError, match=rf"classifier\.weight in .* is {str(dtype)[6:]}"):
            load_checkpoint(model, state)

    def test_channel_order(self, tmp_path):
        """Weights for BGR give on RGB what they gave on BGR; saved for BGR they are as they were."""
        peer = randomise(PEERS["transformers"]("xxs"))
        model = ours("transformers")
        report = load_checkpoint(model, peer.state_dict(), channel_order="bgr")
        image = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model(image), run(peer, image.flip(1)))
            assert (model(image) - run(peer, image)).abs().max() > 0.01
        assert "turned from BGR to RGB" in str(report)
        save_checkpoint(model, tmp_path / "a.pt", "transformers", channel_order="bgr")
        assert all(torch.equal(v, peer.state_dict()[k]) for k, v in read_checkpoint(tmp_path / "a.pt").items())

    def test_another_number_of_classes(self):
        model = ours("native", num_classes=3)
        before = {name: value.clone() for name, value in model.classifier.state_dict().items()}
        source = ours("timm").state_dict()
        with pytest.raises(CheckpointError, match=r"has 7 classes, the model 3; pass new_head=True"):
            load_checkpoint(model, source)
        report = load_checkpoint(model, source, new_head=True)
        assert report.fresh == ["classifier.weight", "classifier.bias"]
        assert "left fresh: classifier.weight, classifier.bias" in str(report)
        assert all(torch.equal(value, before[name]) for name, value in model.classifier.state_dict().items())
        assert same(model.backbone, ours("timm").backbone)

    @pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7])
    def test_another_number_of_channels(self, channels):
        """As timm fits them: an image that repeats one grey gives the same map, whatever its channels."""
        source = ours("native").state_dict()
        model = randomise(MobileViTClassifier("xxs", 7, in_channels=channels), seed=1)
        if channels == 3:
            assert load_checkpoint(model, source).notes == []
            return
        with pytest.raises(CheckpointError, match=f"takes images of 3 channels, the model {channels}; pass adapt_stem"):
            load_checkpoint(model, source)
        report = load_checkpoint(model, source, adapt_stem=True)
        assert f"the stem fitted from 3 to {channels} channels" in str(report)
        from timm.models._manipulate import adapt_input_conv

        expected = adapt_input_conv(channels, source["backbone.stem.conv.weight"])
        torch.testing.assert_close(model.backbone.stem.conv.weight.detach(), expected)

    def test_backbones(self):
        classifier = ours("native")
        backbone = randomise(MobileViT("xxs"), seed=1)
        report = load_checkpoint(backbone, classifier.state_dict())
        assert same(backbone, classifier.backbone)
        assert report.left_out == ["classifier.weight", "classifier.bias"]
        with pytest.raises(CheckpointError, match="has no classifier; pass new_head=True"):
            load_checkpoint(classifier, backbone.state_dict())
        load_checkpoint(classifier, backbone.state_dict(), new_head=True)
        headless = MobileViT("xxs", head_conv=False)
        report = load_checkpoint(headless, classifier.state_dict())
        assert len([name for name in report.left_out if name.startswith("head_conv.")]) == 6

    def test_counters_may_be_missing(self):
        state = {k: v for k, v in ours("timm").state_dict().items() if not k.endswith("num_batches_tracked")}
        model = randomise(ours("native"), seed=1)
        load_checkpoint(model, state)
        assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())

    def test_exception(self):
        model = ours("native")
        good = randomise(PEERS["timm"]("xxs")).state_dict()
        xs = randomise(PEERS["timm"]("xs")).state_dict()
        missing = {name: value for name, value in good.items() if name != "stages.2.1.norm.bias"}
        unclosed = {name: value for name, value in good.items() if name != "stages.2.1.norm.weight"}
        renamed = {name.replace("stages.1.2.conv1_1x1.bn", "stages.1.2.conv1_1x1.norm"): v for name, v in good.items()}
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for source, arguments, message in (
            (xs, {}, "is a MobileViT of mode 'xs', variant 'apple'; the model is 'xxs', 'apple'. Build it with ('xs')"),
            (unclosed, {}, "do not fit the model; 1 missing: stages.2.1.norm.weight"),
            (missing, {}, "(layout 'timm') do not fit the model; 1 missing: stages.2.1.norm.bias"),
            ({**good, "stages.2.1.norm2.bias": torch.zeros(1)}, {}, "1 unexpected: stages.2.1.norm2.bias (nearest: "),
            (renamed, {}, "5 unexpected: stages.1.2.conv1_1x1.norm.weight (nearest: stages.1.2.conv1_1x1.bn.weight)"),
            (good, {"layout": "apple"}, "holds no MobileViT in layout 'apple': its 311 names start with stem.conv"),
            ({"a.weight": torch.zeros(1)}, {}, "the state dict holds no MobileViT: its 1 names start with a.weight"),
            ({"epoch": 3}, {}, "holds no weights; its keys are ['epoch']"),
            (good, {"layout": "jax"}, "unknown layout 'jax'; available: 'native'"),
            (good, {"channel_order": "grb"}, "unknown channel order 'grb'; available: 'rgb', 'bgr'"),
            ({**good, "stages.1.2.conv1_1x1.bn.bias": torch.zeros(3)}, {}, "have another shape: stages.1.2.expand"),
        ):
            with pytest.raises(ValueError) as error:
                load_checkpoint(model, source, **arguments)
            assert message in str(error.value)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_misspelt_stem(self, layout, tmp_path):
        """The stem is what layouts are told by; one that is misspelt is named all the same."""
        model = ours(layout)
        save_checkpoint(model, tmp_path / "model.pt", layout=layout)
        state = {name: value for name, value in read_checkpoint(tmp_path / "model.pt").items() if name != CARD_KEY}
        state = state.get("state_dict", state)
        stem = next(name for name, value in state.items() if value.ndim == 4)
        state[f"{stem}s"] = state.pop(stem)
        found = r"1 missing: (\S+weight) .nearest: \1s.; 1 unexpected: \1s "
        with pytest.raises(CheckpointError, match=found):
            load_checkpoint(model, state, channel_order="bgr")


class TestSaveCheckpoint:
    def test_exception(self, tmp_path):
        for model, layout, message in (
            (ours("native"), "jax", "unknown layout 'jax'"),
            (ours("native"), "kornia", "layout 'kornia' has no classifier; save model.backbone"),
            (ours("kornia"), "timm", "has no names for a network of variant 'kornia'; save it as 'native'"),
            (MobileViT(SMALL), "timm", "has no name for "),
        ):
            with pytest.raises(ValueError) as error:
                save_checkpoint(model, tmp_path / "a.pt", layout)
            assert message in str(error.value)
        with pytest.raises(ValueError, match="unknown channel order 'grb'"):
            save_checkpoint(ours("native"), tmp_path / "a.pt", channel_order="grb")
        model = MobileViTClassifier(SMALL, 3).eval()
        for fused in (fuse(model), optimize(model, torch.rand(1, 3, 64, 64), engine="eager")):
            with pytest.raises(ValueError, match="save or load the model that was given to optimize"):
                save_checkpoint(fused, tmp_path / "a.safetensors")
            with pytest.raises(ValueError, match="save or load the model that was given to optimize"):
                load_checkpoint(fused, model.state_dict())
        for network, message in (
            (nn.Linear(2, 2), "Linear is none of this package's models; pass a backbone"),
            ("runs/demo", "'runs/demo' is none of this package's models; from_pretrained reads one"),
            (None, "None is none of this package's models"),
        ):
            with pytest.raises(TypeError, match=message):
                save_checkpoint(network, tmp_path / "a.pt")
            with pytest.raises(TypeError, match=message):
                load_checkpoint(network, model.state_dict())
        assert not list(tmp_path.iterdir())

    def test_peers_read_it(self, tmp_path):
        """Not only equal to what they wrote: their own strict loading takes it."""
        model = ours("native")
        for layout in ("timm", "transformers"):
            save_checkpoint(model, tmp_path / "a.pt", layout)
            peer = PEERS[layout]("xxs")
            peer.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
            image = torch.rand(1, 3, 64, 96)
            with torch.no_grad():
                torch.testing.assert_close(run(peer.eval(), image), model(image))


class TestReadWeights:
    def test_feature(self, tmp_path):
        save_checkpoint(ours("native", num_classes=4), tmp_path / "a.ckpt")
        found = read_weights(tmp_path / "a.ckpt")
        assert (found.layout, found.mode, found.variant, found.num_classes, found.in_channels) == (
            "native",
            "xxs",
            "apple",
            4,
            3,
        )
        assert found.wrapper == "state_dict"
        assert CARD_KEY in read_checkpoint(tmp_path / "a.ckpt")


class TestWrappers:
    def test_slice(self, tmp_path):
        """See :mod:`tests.weights.fuzz`, which runs as many cases as are asked for."""
        assert fuzz.run(fuzz.Models(), 30, seed=5, folder=tmp_path) == {}

    def test_faults_are_found(self, tmp_path, monkeypatch):
        monkeypatch.setattr(fuzz, "load_checkpoint", lambda *arguments, **options: None)
        assert any("weights are others" in fault for fault in fuzz.run(fuzz.Models(), 3, seed=0, folder=tmp_path))
