"""Checkpoints of DeepLabV3: of transformers, Apple and ours, in and out, and on backbones of other tasks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image

from kornia_mvit import DeepLabV3, MobileViT, MobileViTClassifier, MobileViTConfig, Preprocess
from kornia_mvit.models.mobilevit import Stage
from kornia_mvit.weights import registry
from kornia_mvit.weights.checkpoints import load_checkpoint, read_weights, save_checkpoint
from kornia_mvit.weights.files import CheckpointError, read_checkpoint
from kornia_mvit.weights.registry import class_names, from_pretrained, save_pretrained
from tests.tester import cases
from tests.weights.peers import PEERS, randomise, transformers_segmentation
from tests.weights.test_checkpoints import ours as classifier
from tests.weights.test_checkpoints import same
from tests.weights.test_heads import apple_names

LAYOUTS = ["native", "apple", "transformers"]
SMALL = MobileViTConfig(stem=4, expand=2, stages=(Stage(6, 2), Stage(8, 2, dim=8, depth=1)), head_channels=10)


def ours(mode="xxs", num_classes=7, seed=0, **arguments):
    return randomise(DeepLabV3(mode, num_classes, **{"aspp_channels": 32, **arguments}), seed)


def as_apple(model, folder, *, later=False):
    """A model's weights under Apple's names, of its first release or later ones."""
    save_checkpoint(model, folder / "apple.pt", "apple")
    state = read_checkpoint(folder / "apple.pt")
    if later:
        for first, name in (("classifier.classifier", "classifier"), ("aux_projection", "0"), ("aux_classifier", "2")):
            state = {key.replace(first, name): value for key, value in state.items()}
    return state


class TestLoadCheckpoint:
    @pytest.mark.parametrize("mode", ["xxs", "xs", "s"])
    def test_transformers(self, mode, tmp_path):
        """Its weights give its outputs, see the model's tests; saved back, every tensor is equal bit for bit."""
        peer = randomise(transformers_segmentation(mode)).state_dict()
        model = DeepLabV3(mode, 7)
        report = load_checkpoint(model, peer)
        assert (report.layout, report.mode, report.task, report.num_classes) == (
            "transformers",
            mode,
            "segmentation",
            7,
        )
        assert str(report) == f"the state dict: DeepLabV3 on MobileViT {mode} of 7 classes in layout 'transformers'"
        save_checkpoint(model, tmp_path / "a.safetensors", "transformers")
        back = read_checkpoint(tmp_path / "a.safetensors")
        assert back.keys() == peer.keys()
        assert all(torch.equal(back[name], value) for name, value in peer.items())

    @pytest.mark.parametrize("aux", [False, True])
    @pytest.mark.parametrize("later", [False, True])
    def test_apple(self, later, aux, tmp_path):
        """The names are Apple's, all of them, of either release; its own are written."""
        model = ours(aux_channels=8 * aux)
        state = as_apple(model, tmp_path, later=later)
        assert state.keys() == apple_names(later=later, aux=aux)
        other = ours(seed=1, aux_channels=8 * aux)
        assert load_checkpoint(other, state).layout == "apple"
        assert same(model, other)
        assert read_weights(state).arguments == {
            "mode": "xxs",
            "variant": "apple",
            "in_channels": 3,
            "num_classes": 7,
            "aspp_channels": 32,
            "pad": False,
            **({"aux_channels": 8} if aux else {}),
        }

    @cases(16, quick=3)
    @given(
        layout=st.sampled_from(LAYOUTS),
        mode=st.sampled_from(["xxs", "xs"]),
        num_classes=st.integers(1, 20),
        channels=st.integers(1, 16),
        dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
        wrapper=st.sampled_from(["", "module", "network"]),
    )
    def test_there_and_back_keeps_every_tensor(
        self, layout, mode, num_classes, channels, dtype, wrapper, tmp_path_factory
    ):
        path = tmp_path_factory.getbasetemp() / "segmentation.pt"
        model = ours(mode, num_classes, aspp_channels=channels).to(dtype)
        other = ours(mode, num_classes, 1, aspp_channels=channels).to(dtype)
        save_checkpoint(model, path, layout)
        saved = read_checkpoint(path)
        state = saved.get("state_dict", saved)
        report = load_checkpoint(other, {f"{wrapper}.{k}": v for k, v in state.items()} if wrapper else saved)
        assert same(model, other)
        assert (report.layout, report.mode, report.num_classes) == (layout, mode, num_classes)
        assert report.fresh == report.left_out == []
        assert report.wrapper.endswith(wrapper)
        save_checkpoint(other, path, layout)
        again = read_checkpoint(path)
        again = again.get("state_dict", again)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[name], value) for name, value in state.items())

    def test_another_number_of_classes(self, tmp_path):
        """The last layers are fresh, the pyramid is the file's."""
        source, model = ours(aux_channels=8), ours(num_classes=3, seed=1, aux_channels=8)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(CheckpointError, match="7 classes, the model 3; pass new_head=True"):
            load_checkpoint(model, source.state_dict())
        report = load_checkpoint(model, source.state_dict(), new_head=True)
        last = [f"{head}.classifier.{leaf}" for head in ("head", "aux_head") for leaf in ("weight", "bias")]
        assert report.fresh == report.left_out == last
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name] if name in last else source.state_dict()[name]), name

    @pytest.mark.parametrize("layout", ["native", "apple", "timm", "transformers"])
    def test_backbone_of_a_classifier(self, layout, tmp_path):
        """Of any layout, by way of the backbone or of the model with a new head; what was left is told."""
        source = classifier(layout)
        save_checkpoint(source, tmp_path / "a.pt", layout)
        model = ours(seed=1)
        head = {name: value.clone() for name, value in model.head.state_dict().items()}
        report = load_checkpoint(model.backbone, tmp_path / "a.pt")
        expected = source.backbone.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in model.backbone.state_dict().items())
        assert {name.partition(".")[0] for name in report.left_out} == {"head_conv", "classifier"}
        model = ours(seed=1)
        with pytest.raises(CheckpointError, match="segmentation head; pass new_head=True"):
            load_checkpoint(model, tmp_path / "a.pt")
        report = load_checkpoint(model, tmp_path / "a.pt", new_head=True)
        assert all(torch.equal(value, expected[name]) for name, value in model.backbone.state_dict().items())
        assert all(torch.equal(value, head[name]) for name, value in model.head.state_dict().items())
        assert "left fresh: head (38 weights); left out: head_conv.conv.weight" in str(report)
        assert str(report).endswith("classifier.weight, classifier.bias")

    def test_auxiliary_head_of_one_side(self):
        """In training only, so that it may be missing on either."""
        plain, aided = ours(), ours(seed=1, aux_channels=8)
        names = [name for name in aided.state_dict() if name.startswith("aux_head.")]
        before = {name: value.clone() for name, value in aided.aux_head.state_dict().items()}
        assert load_checkpoint(aided, plain.state_dict()).fresh == names
        assert same(aided.head, plain.head)
        assert all(torch.equal(value, before[name]) for name, value in aided.aux_head.state_dict().items())
        report = load_checkpoint(plain, ours(seed=2, aux_channels=8).state_dict())
        assert report.left_out == names
        assert "left out: aux_head (8 weights)" in str(report)

    def test_backbone_from_segmentation(self):
        """A backbone for another head: without its last convolution, which segmentation files do not have."""
        source = ours()
        backbone = MobileViT("xxs", head_conv=False)
        report = load_checkpoint(backbone, source.state_dict())
        assert same(backbone, source.backbone)
        assert "left out: head (38 weights)" in str(report)
        message = "5 missing: head_conv.conv.* has no last 1x1 convolution; build the backbone with head_conv=False"
        for model in (MobileViT("xxs"), MobileViTClassifier("xxs", 7)):
            with pytest.raises(CheckpointError, match=message):
                load_checkpoint(model, source.state_dict(), new_head=True)

    def test_exception(self):
        model = ours()
        good = randomise(transformers_segmentation("xxs", aspp_out_channels=32)).state_dict()
        project = "segmentation_head.aspp.project.convolution.weight"
        pool = "segmentation_head.aspp.convs.4.conv_1x1.normalization"
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for source, message in (
            ({k: v for k, v in good.items() if k != f"{pool}.bias"}, f"do not fit the model; 1 missing: {pool}.bias"),
            ({k: v for k, v in good.items() if "head.classifier" not in k}, "2 missing: segmentation_head.classifier"),
            ({**good, f"{pool}2.bias": torch.zeros(1)}, f"1 unexpected: {pool}2.bias (nearest: {pool}"),
            ({**good, project: torch.zeros(32, 4, 1, 1)}, "head.aspp.project.conv.weight (32, 4, 1, 1) instead of"),
            (randomise(transformers_segmentation("xs")).state_dict(), "of mode 'xs', variant 'apple'; the model is"),
            (ours(aspp_channels=16).state_dict(), "weights in the state dict have another shape: head.aspp"),
            (randomise(PEERS["timm"]("xxs")).state_dict(), "has no segmentation head"),
        ):
            with pytest.raises(CheckpointError) as error:
                load_checkpoint(model, source)
            assert message in str(error.value)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class TestSaveCheckpoint:
    def test_exception(self, tmp_path):
        for model, layout, message in (
            (ours(), "timm", "layout 'timm' has no segmentation head; save model.backbone"),
            (ours(), "kornia", "layout 'kornia' has no segmentation head; save model.backbone"),
            (ours(variant="kornia"), "apple", "has no names for a network of variant 'kornia'; save it as 'native'"),
            (ours(rates=(1, 2, 3, 4)), "apple", "has no name for 'head.aspp.atrous.3.conv' of this model"),
            (ours(aux_channels=4), "transformers", "no names for an auxiliary head; load the weights into a model wi"),
        ):
            with pytest.raises(ValueError) as error:
                save_checkpoint(model, tmp_path / "a.pt", layout)
            assert message in str(error.value)
        assert not list(tmp_path.iterdir())

    def test_transformers_reads_it(self, tmp_path):
        model = ours(aspp_channels=256)
        save_checkpoint(model, tmp_path / "a.pt", "transformers")
        peer = transformers_segmentation("xxs")
        peer.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
        image = torch.rand(1, 3, 64, 96)
        with torch.no_grad():
            low = model.head(model.backbone(image))
            torch.testing.assert_close(peer.eval()(image).logits, low, rtol=1e-4, atol=1e-5)


class TestBuild:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_feature(self, layout, tmp_path):
        model = ours(aux_channels=0 if layout == "transformers" else 8)
        save_checkpoint(model, tmp_path / "a.pt", layout)
        built = read_weights(tmp_path / "a.pt").build()
        load_checkpoint(built, tmp_path / "a.pt")
        assert same(model, built)

    def test_exception(self):
        with pytest.raises(CheckpointError, match="of no size in the table"):
            read_weights(ours(SMALL).state_dict()).build()


class TestFromPretrained:
    @pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
    @pytest.mark.parametrize("mode", ["xxs", SMALL])
    def test_smoke(self, mode, suffix, tmp_path):
        """Our own files say all that outputs depend on."""
        model = ours(mode, 3, output_stride=8, rates=(2, 3), align_corners=True, aux_channels=4)
        model.class_names, model.preprocess = ("a", "b", "c"), Preprocess((64, 64))
        save_checkpoint(model, tmp_path / f"a.{suffix}")
        again = from_pretrained(tmp_path / f"a.{suffix}")
        image = torch.rand(1, 3, 70, 90)
        with torch.no_grad():
            assert torch.equal(again(image), model(image))
        assert again.class_names == ("a", "b", "c")
        assert again.preprocess == Preprocess((64, 64))
        assert not again.training

    def test_another_number_of_classes_and_channels(self, tmp_path):
        model = ours()
        model.class_names, model.preprocess = tuple("abcdefg"), Preprocess((64, 64))
        save_checkpoint(model, tmp_path / "a.pt")
        again = from_pretrained(tmp_path / "a.pt", num_classes=3, in_channels=1, head_dropout=0.3)
        assert again(torch.rand(2, 1, 64, 64)).shape == (2, 3, 64, 64)
        assert again.class_names is None
        assert again.head.dropout.p == 0.3
        assert same(again.head.aspp, model.head.aspp)

    @pytest.mark.parametrize("layout", ["apple", "transformers"])
    def test_reads_files_of_others(self, layout, tmp_path):
        model = ours()
        save_checkpoint(model, tmp_path / "a.pt", layout)
        with pytest.warns(UserWarning, match=r"preprocessing.*size=\(512, 512\)"):
            again = from_pretrained(tmp_path / "a.pt")
        assert same(model, again)
        assert again.preprocess == Preprocess((512, 512))

    @pytest.mark.parametrize("layout", ["apple", "transformers"])
    def test_published(self, layout, tmp_path, monkeypatch):
        """By their names, from a file as Apple or transformers have it: for BGR, and with VOC's classes."""
        model = ours(num_classes=21, aspp_channels=256)
        save_checkpoint(model, tmp_path / "a.pt", layout, channel_order="bgr")
        monkeypatch.setattr(registry, "_fetch", lambda record: tmp_path / "a.pt")
        again = from_pretrained(f"deeplabv3_mobilevit_xxs.{layout}_voc")
        assert same(model, again)
        assert again.class_names == class_names("voc")
        assert again.preprocess == Preprocess((512, 512))
        assert again.backbone.feature_strides[-1] == 16

    @pytest.mark.parametrize(("output_stride", "rates"), [(16, (6, 12, 18)), (8, (6, 12, 18)), (8, (12, 24, 36))])
    def test_a_folder_of_transformers(self, output_stride, rates, tmp_path):
        """On a photo, with transformers' own processor and model, whatever stride and rates its file names."""
        from transformers import MobileViTImageProcessor

        peer = randomise(transformers_segmentation("xxs", 5, output_stride, atrous_rates=rates, aspp_out_channels=32))
        peer.config.id2label = {i: name for i, name in enumerate("vwxyz")}
        peer.save_pretrained(tmp_path)
        processor = MobileViTImageProcessor(
            size={"shortest_edge": 144}, crop_size={"height": 128, "width": 128}, resample=2, do_flip_channel_order=True
        )
        processor.save_pretrained(tmp_path)
        photo = torch.tensor(load_sample_image("china.jpg"))[:400, :600].permute(2, 0, 1)
        model = from_pretrained(tmp_path)
        with torch.no_grad():
            expected = peer(**processor(photo, return_tensors="pt")).logits
            logits = model.head(model.backbone(model.preprocess.module()(photo[None])))
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
        assert model.class_names == tuple("vwxyz")

    def test_save_pretrained(self, tmp_path):
        model = ours(num_classes=3)
        model.class_names, model.preprocess = ("a", "b", "c"), Preprocess((64, 64))
        save_pretrained(model, tmp_path / "new")
        again = from_pretrained(tmp_path / "new")
        assert same(model, again)
        assert again.class_names == ("a", "b", "c")


@pytest.mark.network
class TestPublished:
    """The published weights themselves."""

    @pytest.mark.parametrize(
        ("mode", "expected"),
        [
            ("xxs", ((6.9811, 6.9743, 7.3123), (-10.5536, -10.2332, -10.2924), (-3.4938, -3.0631, -2.8620))),
            ("xs", ((5.4449, 5.5733, 5.6314), (-9.4423, -9.7766, -9.6714), (-7.7721, -7.3716, -7.1583))),
            ("s", ((6.2065, 6.1292, 6.2070), (-6.9253, -6.8653, -7.0398), (-4.4723, -4.4348, -4.3769))),
        ],
    )
    @pytest.mark.parametrize("source", ["apple", "transformers"])
    def test_transformers_image(self, source, mode, expected, tmp_path):
        """Logits that transformers' conversion checks, on image 39769 of val2017: three classes' first pixels."""
        from kornia_mvit.data.reading import read_image

        address = "http://images.cocodataset.org/val2017/000000039769.jpg"
        torch.hub.download_url_to_file(address, str(tmp_path / "cats.jpg"), progress=False)
        model = from_pretrained(f"deeplabv3_mobilevit_{mode}.{source}_voc")
        image = Preprocess(544, crop=512).module()(read_image(tmp_path / "cats.jpg")[None])
        with torch.no_grad():
            logits = model.head(model.backbone(image))
        torch.testing.assert_close(logits[0, :3, 0, :3], torch.tensor(expected), atol=1e-4, rtol=1e-4)
