"""Checkpoints of SSDLite: Apple's and ours, in and out, and on backbones of other tasks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kornia_mvit import MobileViT, MobileViTClassifier, Preprocess, SSDLite
from kornia_mvit.weights import registry
from kornia_mvit.weights.checkpoints import load_checkpoint, read_weights, save_checkpoint
from kornia_mvit.weights.files import CheckpointError, read_checkpoint
from kornia_mvit.weights.registry import class_names, from_pretrained, save_pretrained
from tests.models.networks import DEEP, DETECTION, apple_detector
from tests.tester import cases
from tests.weights.peers import randomise
from tests.weights.test_checkpoints import ours as classifier
from tests.weights.test_checkpoints import same
from tests.weights.test_segmentation import ours as segmenter

NARROW = (16, 8, 8, 8, 8, 4)
LAYOUTS = ["native", "apple"]


def ours(mode="xxs", num_classes=7, seed=0, **arguments):
    return randomise(SSDLite(mode, num_classes, **{"widths": NARROW, **arguments}), seed)


class TestLoadCheckpoint:
    @pytest.mark.parametrize("mode", DETECTION["modes"])
    def test_apple(self, mode, tmp_path):
        """Every name and shape of Apple's; saved back, every tensor is equal bit for bit. Outputs: see the model's."""
        state = apple_detector(mode)
        model = SSDLite(mode).double()
        report = load_checkpoint(model, state)
        assert str(report) == f"the state dict: SSDLite on MobileViT {mode} of 81 classes in layout 'apple'"
        assert (report.mode, report.task, report.fresh, report.left_out) == (mode, "detection", [], [])
        save_checkpoint(model, tmp_path / "a.pt", "apple")
        back = read_checkpoint(tmp_path / "a.pt")
        assert {name: list(value.shape) for name, value in back.items()} == {
            name: shapes[DETECTION["modes"].index(mode)] for name, shapes in DETECTION["keys"].items()
        }
        assert all(torch.equal(back[name], value) for name, value in state.items())

    def test_arguments(self, tmp_path):
        save_checkpoint(ours(), tmp_path / "a.pt", "apple")
        assert read_weights(tmp_path / "a.pt").arguments == {
            "mode": "xxs",
            "variant": "apple",
            "in_channels": 3,
            "num_classes": 7,
            "widths": NARROW,
        }

    @cases(16, quick=3)
    @given(
        layout=st.sampled_from(LAYOUTS),
        mode=st.sampled_from(["xxs", "xs"]),
        num_classes=st.integers(2, 20),
        dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
        wrapper=st.sampled_from(["", "module", "network"]),
    )
    def test_there_and_back_keeps_every_tensor(self, layout, mode, num_classes, dtype, wrapper, tmp_path_factory):
        path = tmp_path_factory.getbasetemp() / "detection.pt"
        model, other = (ours(mode, num_classes, seed).to(dtype) for seed in (0, 1))
        save_checkpoint(model, path, layout)
        saved = read_checkpoint(path)
        state = saved.get("state_dict", saved)
        report = load_checkpoint(other, {f"{wrapper}.{k}": v for k, v in state.items()} if wrapper else saved)
        assert same(model, other)
        assert (report.layout, report.mode, report.num_classes) == (layout, mode, num_classes)
        assert report.fresh == report.left_out == []
        assert report.wrapper.endswith(wrapper)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_another_number_of_classes(self, layout, tmp_path):
        """The classes' layers are fresh, all else is the file's, what the boxes come from too."""
        source, model = ours(), ours(num_classes=3, seed=1)
        save_checkpoint(source, tmp_path / "a.pt", layout)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(CheckpointError, match="7 classes, the model 3; pass new_head=True"):
            load_checkpoint(model, tmp_path / "a.pt")
        report = load_checkpoint(model, tmp_path / "a.pt", new_head=True)
        last = [f"heads.{n}.classifier.{leaf}" for n in range(6) for leaf in ("weight", "bias")]
        assert report.fresh == report.left_out == last
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name] if name in last else source.state_dict()[name]), name

    @pytest.mark.parametrize("layout", ["native", "apple", "timm", "transformers"])
    def test_backbone_of_a_classifier(self, layout, tmp_path):
        source, model = classifier(layout), ours(seed=1)
        save_checkpoint(source, tmp_path / "a.pt", layout)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(CheckpointError, match="detection head; pass new_head=True"):
            load_checkpoint(model, tmp_path / "a.pt")
        report = load_checkpoint(model, tmp_path / "a.pt", new_head=True)
        expected = source.backbone.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in model.backbone.state_dict().items())
        for name, value in model.state_dict().items():
            assert name.startswith("backbone.") or torch.equal(value, before[name]), name
        assert {name.partition(".")[0] for name in report.fresh} == {"extras", "heads"}
        assert {name.partition(".")[0] for name in report.left_out} == {"head_conv", "classifier"}

    def test_other_tasks(self):
        """A segmenter's backbone under a detector, a detector's under a segmenter, and alone."""
        source, detector = segmenter(), ours(seed=1)
        load_checkpoint(detector, source.state_dict(), "native", new_head=True, name="a.pt")
        assert same(detector.backbone, source.backbone)
        detector, target, backbone = ours(seed=2), segmenter(), MobileViT("xxs", head_conv=False)
        load_checkpoint(target, detector.state_dict(), new_head=True)
        report = load_checkpoint(backbone, detector.state_dict())
        assert same(detector.backbone, target.backbone)
        assert same(detector.backbone, backbone)
        assert "left out: extras" in str(report)
        message = "5 missing: head_conv.conv.* a detection model has no last 1x1 convolution; build the backbone with"
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(MobileViTClassifier("xxs", 7), detector.state_dict(), new_head=True)

    def test_exception(self):
        model = SSDLite("xxs").double()
        good = apple_detector()
        last = "ssd_heads.1.loc_cls_layer.pw_conv.block.conv.weight"
        norm = "extra_layers.os_64.pw_conv.block.norm"
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for source, message in (
            ({k: v for k, v in good.items() if k != f"{norm}.bias"}, f"do not fit the model; 1 missing: {norm}.bias"),
            ({k: v for k, v in good.items() if k != last}, f"2 missing: {last}"),
            ({**good, f"{norm}2.bias": torch.zeros(1)}, f"1 unexpected: {norm}2.bias (nearest: {norm}"),
            ({**good, last: torch.zeros(510, 9, 1, 1)}, "heads.1.box.weight (24, 9, 1, 1) instead of (24, 256, 1, 1)"),
            ({**good, last: torch.zeros(511, 256, 1, 1)}, f"{last} (511, 256, 1, 1) is not four rows and one a class"),
            (apple_detector("xs"), "of mode 'xs', variant 'apple'; the model is"),
            (ours(num_classes=81).state_dict(), "weights in the state dict have another shape: "),
        ):
            with pytest.raises(CheckpointError) as error:
                load_checkpoint(model, source)
            assert message in str(error.value)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class TestSaveCheckpoint:
    def test_exception(self, tmp_path):
        three = [(2, 3), (2, 3), (2, 3, 4), (2, 3), (2, 3), (2,)]
        for model, layout, message in (
            (ours(), "timm", "layout 'timm' has no detection head; save model.backbone"),
            (ours(), "transformers", "layout 'transformers' has no detection head; save model.backbone"),
            (ours(), "kornia", "layout 'kornia' has no detection head; save model.backbone"),
            (ours(variant="kornia"), "apple", "has no names for a network of variant 'kornia'; save it as 'native'"),
            (ours(aspect_ratios=three), "apple", "has no name for 'heads.2.box' of this model; save it as 'native'"),
        ):
            with pytest.raises(ValueError) as error:
                save_checkpoint(model, tmp_path / "a.pt", layout)
            assert message in str(error.value)
        assert not list(tmp_path.iterdir())


class TestFromPretrained:
    @pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
    @pytest.mark.parametrize("mode", ["xxs", DEEP])
    def test_smoke(self, mode, suffix, tmp_path):
        """Our own files say all that outputs and anchors depend on."""
        model = ours(mode, 4, scales=(0.2, 0.9), aspect_ratios=[(2,), (), (2, 3), (2,), (2,), (2,)])
        model.class_names, model.preprocess = ("a", "b", "c"), Preprocess((64, 64))
        save_checkpoint(model, tmp_path / f"a.{suffix}")
        again = from_pretrained(tmp_path / f"a.{suffix}")
        image = torch.rand(1, 3, 70, 90)
        with torch.no_grad():
            for one, two in zip(again(image), model(image), strict=True):
                assert torch.equal(one, two)
        assert torch.equal(again.anchors((70, 90)), model.anchors((70, 90)))
        assert again.class_names == ("a", "b", "c")
        assert again.preprocess == Preprocess((64, 64))
        assert not again.training

    def test_another_number_of_classes_and_channels(self, tmp_path):
        model = ours()
        save_checkpoint(model, tmp_path / "a.pt")
        again = from_pretrained(tmp_path / "a.pt", num_classes=3, in_channels=1, drop_path=0.1)
        assert again(torch.rand(2, 1, 64, 64))[0].shape[-1] == 3
        assert again.class_names is None
        assert same(again.extras, model.extras)
        assert same(again.heads[3].box, model.heads[3].box)

    def test_apple(self, tmp_path):
        model = ours()
        save_checkpoint(model, tmp_path / "a.pt", "apple")
        with pytest.warns(UserWarning, match=r"preprocessing.*size=\(320, 320\)"):
            again = from_pretrained(tmp_path / "a.pt")
        assert same(model, again)
        assert again.preprocess == Preprocess((320, 320))

    def test_published(self, tmp_path, monkeypatch):
        """By their names, from a file as Apple has it: for BGR, and with COCO's classes, the background left out."""
        model = ours(num_classes=81, widths=(512, 256, 256, 128, 128, 64))
        save_checkpoint(model, tmp_path / "a.pt", "apple", channel_order="bgr")
        monkeypatch.setattr(registry, "_fetch", lambda record: tmp_path / "a.pt")
        again = from_pretrained("ssdlite_mobilevit_xxs.apple_coco")
        assert same(model, again)
        assert again.class_names == class_names("coco")
        assert len(again.class_names) == again.num_classes - 1
        assert again.preprocess == Preprocess((320, 320))

    def test_save_pretrained(self, tmp_path):
        model = ours(num_classes=3)
        model.class_names, model.preprocess = ("a", "b"), Preprocess((64, 64))
        save_pretrained(model, tmp_path / "new")
        again = from_pretrained(tmp_path / "new")
        assert same(model, again)
        assert again.class_names == ("a", "b")
