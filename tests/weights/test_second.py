"""Checkpoints of the second version: of Apple, timm, transformers and ours, in and out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit import (
    DeepLabV3,
    MobileViT,
    MobileViTClassifier,
    MobileViTV2,
    MobileViTV2Classifier,
    Preprocess,
    SSDLite,
    convert,
    from_pretrained,
    info,
    load_checkpoint,
    save_checkpoint,
    save_pretrained,
)
from kornia_mvit.models.modes import build_classifier
from kornia_mvit.weights.checkpoints import read_weights
from kornia_mvit.weights.files import CARD_KEY, CheckpointError, read_checkpoint
from kornia_mvit.weights.layouts import find_prefix, from_native, module_map, to_native, versions_of
from tests.models.networks import SECOND as APPLE
from tests.models.networks import apple_second
from tests.tester import cases
from tests.weights.peers import (
    SECOND,
    randomise,
    run,
    timm_second,
    transformers_second_segmentation,
)

LAYOUTS = ["native", "apple", "timm", "transformers"]
NARROW = "v2-0.05"
HEADS = {"classification": build_classifier, "segmentation": DeepLabV3, "detection": SSDLite}
# Layouts, and the tasks that they have names for.
TASKS = [
    (layout, task)
    for layout in LAYOUTS
    for task in HEADS
    if task == "classification" or layout in ("native", "apple") or (layout, task) == ("transformers", "segmentation")
]


def ours(task="classification", mode=NARROW, num_classes=7, seed=0, **arguments):
    return randomise(HEADS[task](mode, num_classes, **arguments), seed)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], value) for name, value in b.items())


def state_in(path):
    held = read_checkpoint(path)
    return held.get("state_dict", held)


class TestLayouts:
    def test_kornia_has_none(self, tmp_path):
        assert [versions_of(layout) for layout in (*LAYOUTS, "kornia")] == [[1, 2]] * 4 + [[1]]
        with pytest.raises(
            ValueError, match="layout 'kornia' has no names for a MobileViTV2; available: 'native', 'ap"
        ):
            save_checkpoint(ours().backbone, tmp_path / "a.pt", "kornia")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_every_module_has_a_name_of_its_own(self, layout):
        names = list(module_map(layout, 2).values())
        assert len({*names}) == len(names)
        with torch.device("meta"):
            modules = {name.rpartition(".")[0] for name in MobileViTV2(0.05).state_dict()}
        assert set(module_map(layout, 2)) == modules

    @pytest.mark.parametrize("task", APPLE)
    def test_apple(self, task):
        """Every name of Apple's weights, and no other."""
        with torch.device("meta"):
            model = HEADS[task]("v2-0.5", {"classification": 1000, "segmentation": 21, "detection": 81}[task])
        found = read_weights(apple_second(task))
        held = found.backbone | {key: value for key, value in found.head.items() if not key.startswith("aux_head.")}
        assert found.unknown == []
        expected = {key.removeprefix("backbone."): value.shape for key, value in model.state_dict().items()}
        assert {key: value.shape for key, value in held.items()} == expected

    @given(layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 2**16))
    def test_there_and_back(self, layout, seed):
        state = ours(seed=seed).backbone.state_dict()
        theirs = from_native(state, layout, 2)
        back, unknown = to_native(theirs, layout, 2)
        assert not unknown
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], value) for name, value in state.items())

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_versions_are_told_apart(self, layout):
        first, second = MobileViT("xxs"), ours().backbone
        for version, state in ((1, first.state_dict()), (2, second.state_dict())):
            names = list(from_native(state, layout, version))
            assert find_prefix(names, layout, version) == ("", len(names))
            assert find_prefix(names, layout, 3 - version)[1] < len(names)


class TestLoadCheckpoint:
    @pytest.mark.parametrize("width", [0.5, *(pytest.param(w, marks=pytest.mark.long) for w in (0.75, 1.25, 2.0))])
    @pytest.mark.parametrize("layout", SECOND)
    def test_peers(self, layout, width, tmp_path):
        """The peer's weights give the peer's outputs; saved back in its layout, every tensor is equal bit for bit."""
        peer = randomise(SECOND[layout](width))
        model = ours(mode=f"v2-{width}", seed=1)
        report = load_checkpoint(model, peer.state_dict())
        assert (report.layout, report.mode, report.version) == (layout, f"v2-{width}", 2)
        assert str(report) == f"the state dict: MobileViTV2 v2-{width} of 7 classes in layout '{layout}'"
        # transformers leaves out what a patch does not divide
        for size in ((256, 256), (224, 160) if layout == "timm" else (128, 192)):
            image = torch.rand(1, 3, *size)
            with torch.no_grad():
                assert (run(model, image) - run(peer, image)).abs().max() < 1e-4
        save_checkpoint(model, tmp_path / "a.safetensors", layout)
        back, state = read_checkpoint(tmp_path / "a.safetensors"), peer.state_dict()
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], value) for name, value in state.items())
        peer.load_state_dict(back)  # strictly

    def test_transformers_segmentation(self, tmp_path):
        """Its weights in our network, which is Apple's: see the model's tests; saved back, every tensor is equal."""
        peer = randomise(transformers_second_segmentation(0.5)).state_dict()
        model = DeepLabV3("v2-0.5", 7)
        report = load_checkpoint(model, peer)
        assert str(report) == "the state dict: DeepLabV3 on MobileViTV2 v2-0.5 of 7 classes in layout 'transformers'"
        save_checkpoint(model, tmp_path / "a.safetensors", "transformers")
        back = read_checkpoint(tmp_path / "a.safetensors")
        assert back.keys() == peer.keys()
        assert all(torch.equal(back[name], value) for name, value in peer.items())

    @cases(16, quick=3)
    @given(
        case=st.sampled_from(TASKS),
        num_classes=st.integers(2, 20),
        dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
        wrapper=st.sampled_from(["", "module", "network"]),
        safe=st.booleans(),
    )
    def test_there_and_back_through_a_file(self, case, num_classes, dtype, wrapper, safe, tmp_path_factory):
        layout, task = case
        path = tmp_path_factory.getbasetemp() / ("second.safetensors" if safe else "second.pt")
        arguments = {"widths": (8,) * 6} if task == "detection" else {}
        model, other = (ours(task, "v2-0.5", num_classes, seed, **arguments).to(dtype) for seed in (0, 1))
        save_checkpoint(model, path, layout)
        held = {f"{wrapper}.{key}": value for key, value in state_in(path).items()} if wrapper else path
        report = load_checkpoint(other, held)
        assert same(model, other)
        assert (report.layout, report.mode, report.task, report.num_classes) == (layout, "v2-0.5", task, num_classes)
        assert report.fresh == report.left_out == []

    def test_exception(self, tmp_path):
        first, second = MobileViTClassifier("xxs", 7), MobileViTV2Classifier(0.5, 7)
        theirs = timm_second(0.75).state_dict()
        with pytest.raises(
            CheckpointError, match=r"MobileViTV2 of mode 'v2-0\.75'.*the model is 'v2-0\.5'.*'v2-0\.75'"
        ):
            load_checkpoint(second, theirs)
        with pytest.raises(CheckpointError, match=r"MobileViTV2 of mode 'v2-0\.75'.*the model is 'xxs'"):
            load_checkpoint(first, theirs)
        with pytest.raises(CheckpointError, match=r"MobileViT of mode 'xxs'.*the model is 'v2-0\.5'"):
            load_checkpoint(second, first.state_dict())
        with pytest.raises(CheckpointError, match=r"no MobileViT in layout 'kornia'"):
            load_checkpoint(second, theirs, "kornia")
        state = timm_second(0.5).state_dict()
        name = "stages.2.1.transformer.0.attn.qkv_proj.weight"
        state[f"{name}s"] = state.pop(name)
        with pytest.raises(CheckpointError, match=rf"1 missing: {name} .nearest: {name}s.; 1 unexpected: {name}s "):
            load_checkpoint(second, state)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_backbone_of_a_classifier(self, layout, tmp_path):
        source = ours(mode="v2-0.5")
        save_checkpoint(source, tmp_path / "a.pt", layout)
        model = ours("segmentation", "v2-0.5", seed=1)
        report = load_checkpoint(model, tmp_path / "a.pt", new_head=True)
        assert same(model.backbone, source.backbone)
        assert report.left_out == ["classifier.weight", "classifier.bias"]

    def test_channels(self, tmp_path):
        peer = randomise(SECOND["transformers"](0.5))
        model = ours(mode="v2-0.5", seed=1)
        load_checkpoint(model, peer.state_dict(), channel_order="bgr")
        image = torch.rand(1, 3, 128, 128)
        with torch.no_grad():
            torch.testing.assert_close(model(image), run(peer, image.flip(1)), atol=1e-4, rtol=1e-4)
        grey = ours(mode="v2-0.5", in_channels=1)
        load_checkpoint(grey, peer.state_dict(), adapt_stem=True)
        sums = peer.state_dict()["mobilevitv2.conv_stem.convolution.weight"].sum(1, keepdim=True)
        torch.testing.assert_close(grey.backbone.stem.conv.weight.detach(), sums)


class TestCards:
    @pytest.mark.parametrize("task", HEADS)
    @pytest.mark.parametrize("mode", ["v2-0.5", "v2-0.05"])
    def test_from_pretrained(self, task, mode, tmp_path):
        """What a checkpoint says of itself builds the same network, of any width."""
        more = {"segmentation": {"aspp_channels": 8, "align_corners": True}, "detection": {"scales": (0.2, 0.9)}}
        model = ours(task, mode, 4, patch_size=(2, 4), **more.get(task, {})).eval()
        model.preprocess = Preprocess((64, 96))
        save_checkpoint(model, tmp_path / "a.pt")
        card = read_checkpoint(tmp_path / "a.pt")[CARD_KEY]
        assert (card["model"]["mode"], card["model"]["variant"]) == (mode, "apple")
        assert "head_conv" not in card["model"]
        again = from_pretrained(tmp_path / "a.pt")
        assert type(again) is type(model)
        assert same(again, model)
        assert again.preprocess == Preprocess((64, 96))
        image = torch.rand(1, 3, 64, 96)
        with torch.no_grad():
            for one, other in zip(again(image), model(image), strict=True):
                assert torch.equal(one, other)

    @pytest.mark.parametrize("mode", ["v2-99.0", "v2-0", "v2-", "v2-8.0001", "v2-1e3"])
    def test_modes_that_cannot_be(self, mode, tmp_path):
        save_checkpoint(ours(), tmp_path / "a.pt")
        held = read_checkpoint(tmp_path / "a.pt")
        held[CARD_KEY]["model"]["mode"] = mode
        torch.save(held, tmp_path / "b.pt")  # the first one's weights are read as they are needed
        with pytest.raises(CheckpointError, match=r"b\.pt tells of cannot be built"):
            from_pretrained(tmp_path / "b.pt")

    def test_a_width_larger_than_the_file(self, tmp_path):
        save_checkpoint(ours(), tmp_path / "a.pt")
        held = read_checkpoint(tmp_path / "a.pt")
        held[CARD_KEY]["model"]["mode"] = "v2-8.0"
        torch.save(held, tmp_path / "b.pt")
        with pytest.raises(CheckpointError, match=r"it has [\d,]+ weights, and the file holds [\d,]+ bytes"):
            from_pretrained(tmp_path / "b.pt")

    @pytest.mark.parametrize("layout", ["apple", "timm", "transformers"])
    def test_files_of_others(self, layout, tmp_path):
        model = ours(mode="v2-0.5")
        save_checkpoint(model, tmp_path / "a.pt", layout)
        with pytest.warns(UserWarning, match="assuming Apple's"):
            again = from_pretrained(tmp_path / "a.pt")
        assert type(again) is MobileViTV2Classifier
        assert same(again, model)

    def test_apples_segmentation_ends_at_the_corners(self, tmp_path):
        """As the code that made its files has it; transformers' end within the pixels."""
        model = ours("segmentation", "v2-0.5", aspp_channels=8)
        for layout, aligned in (("apple", True), ("transformers", False)):
            save_checkpoint(model, tmp_path / f"{layout}.pt", layout)
            with pytest.warns(UserWarning, match="assuming Apple's"):
                again = from_pretrained(tmp_path / f"{layout}.pt")
            assert (again.align_corners, again.aspp_channels) == (aligned, 8)

    def test_save_pretrained(self, tmp_path):
        backbone = ours().backbone
        save_pretrained(backbone, tmp_path / "backbone")
        again = from_pretrained(tmp_path / "backbone")
        assert type(again) is MobileViTV2Classifier
        assert same(again.backbone, backbone)
        assert "MobileViTV2 backbone, size v2-0.05" in (tmp_path / "backbone" / "README.md").read_text()
        save_pretrained(ours("segmentation", aspp_channels=4), tmp_path / "segmentation")
        assert "DeepLabV3 on MobileViTV2, size v2-0.05" in (tmp_path / "segmentation" / "README.md").read_text()

    @pytest.mark.parametrize("to", LAYOUTS)
    def test_convert(self, to, tmp_path):
        model = ours(mode="v2-0.5")
        save_checkpoint(model, tmp_path / "a.pt", "timm")
        done = convert(tmp_path / "a.pt", tmp_path / "b.pt", to=to)
        assert done.report.mode == "v2-0.5"
        other = ours(mode="v2-0.5", seed=1)
        assert load_checkpoint(other, tmp_path / "b.pt").layout == to
        assert same(other, model)

    def test_info(self, tmp_path):
        save_checkpoint(ours(mode="v2-0.5"), tmp_path / "a.pt", "apple")
        told = info(tmp_path / "a.pt")
        assert (told.mode, told.version, told.layout, told.parameters) == ("v2-0.5", 2, "apple", 1_115_392)
        assert "MobileViTV2 v2-0.5" in str(told)
