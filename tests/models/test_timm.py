"""The backbones in timm's list of models."""

import pytest
import timm
import torch

from kornia_mvit import MobileViTClassifier, MobileViTV2Classifier, load_checkpoint, register_in_timm
from kornia_mvit.models.mobilevitv2 import WIDTHS
from tests.weights.peers import randomise

SECOND = {f"kornia_mvit_v2_{round(100 * width):03d}": width for width in WIDTHS}
NAMES = ["kornia_mvit_s", *SECOND, "kornia_mvit_xs", "kornia_mvit_xxs"]


@pytest.fixture(scope="module", autouse=True)
def registered():
    before = {name: timm.models.model_entrypoint(name) for name in timm.list_models()}
    register_in_timm()
    register_in_timm()  # without a warning
    return before


def create(name="kornia_mvit_xxs", **options):
    return timm.create_model(name, **options).eval()


class TestRegisterInTimm:
    def test_names(self, registered):
        assert timm.list_models("kornia_mvit*") == NAMES
        assert all(timm.models.model_entrypoint(name) is entry for name, entry in registered.items())
        assert {*timm.list_models()} == {*registered, *NAMES}

    @pytest.mark.parametrize("mode", ["xxs", "xs", "s"])
    def test_the_network(self, mode):
        """The names and outputs of MobileViTClassifier."""
        model, ours = create(f"kornia_mvit_{mode}", num_classes=5, in_chans=1), MobileViTClassifier(mode, 5, 1).eval()
        ours.load_state_dict(model.state_dict())
        image = torch.rand(2, 1, 64, 96)
        with torch.no_grad():
            torch.testing.assert_close(model(image), ours(image))

    @pytest.mark.parametrize("name", SECOND)
    def test_the_second_version(self, name):
        with torch.device("meta"):
            state = create(name, num_classes=5).state_dict()
            ours = MobileViTV2Classifier(SECOND[name], 5).state_dict()
        assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in ours.items()}

    def test_maps_of_the_second_version(self):
        model = create("kornia_mvit_v2_050", features_only=True, in_chans=1, output_stride=16)
        assert model.feature_info.channels() == [32, 64, 128, 192, 256]
        assert model.feature_info.reduction() == [2, 4, 8, 16, 16]
        with torch.no_grad():
            assert [m.shape[1] for m in model(torch.rand(1, 1, 64, 96))] == [32, 64, 128, 192, 256]

    def test_weights_of_timm_for_the_second_version(self, tmp_path):
        theirs = randomise(timm.create_model("mobilevitv2_050", num_classes=1000)).eval()
        torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
        place = {"file": str(tmp_path / "theirs.pt"), "hf_hub_id": None}
        model = create("kornia_mvit_v2_050", pretrained=True, pretrained_cfg_overlay=place)
        image = torch.rand(1, 3, 64, 96)
        with torch.no_grad():
            torch.testing.assert_close(model(image), theirs(image), atol=1e-4, rtol=1e-4)

    def test_weights_of_timm(self, tmp_path):
        theirs = randomise(timm.create_model("mobilevit_xxs", num_classes=1000)).eval()
        torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
        image = torch.rand(1, 3, 64, 96)
        place = {"file": str(tmp_path / "theirs.pt"), "hf_hub_id": None}
        model = create(pretrained=True, pretrained_cfg_overlay=place)
        features = create(pretrained=True, pretrained_cfg_overlay=place, features_only=True, out_indices=(1, 4))
        grey = create(pretrained=True, pretrained_cfg_overlay=place, in_chans=1, num_classes=3)
        with torch.no_grad():
            torch.testing.assert_close(model(image), theirs(image), atol=1e-4, rtol=1e-4)
            expected = model.backbone.forward_features(image, (1, 4))
            assert all(map(torch.equal, features(image), expected))
            assert grey(image[:, :1]).shape == (1, 3)
        sums = model.backbone.stem.conv.weight.sum(1, keepdim=True)
        torch.testing.assert_close(grey.backbone.stem.conv.weight, sums)

    def test_a_checkpoint_trained_in_timm_loads_here(self):
        model, ours = randomise(create(num_classes=5)), MobileViTClassifier("xxs", 5)
        assert load_checkpoint(ours, model.state_dict()).layout == "native"
        assert all(map(torch.equal, ours.state_dict().values(), model.state_dict().values()))


class TestFeatures:
    @pytest.mark.parametrize(
        ("stride", "reduction"), [(32, [2, 4, 8, 16, 32]), (16, [2, 4, 8, 16, 16]), (8, [2, 4] + 3 * [8])]
    )
    def test_maps(self, stride, reduction):
        options = {} if stride == 32 else {"output_stride": stride}
        model = create(features_only=True, in_chans=1, **options)
        assert model.feature_info.channels() == [16, 24, 48, 64, 80]
        assert model.feature_info.reduction() == reduction
        with torch.no_grad():
            maps = model(torch.rand(2, 1, 64, 96))
        shapes = [(2, c, 64 // r, 96 // r) for c, r in zip([16, 24, 48, 64, 80], reduction, strict=True)]
        assert [tuple(features.shape) for features in maps] == shapes

    @pytest.mark.parametrize("indices", [(0, 2), (1,), (-2, -1), 2])
    def test_indices(self, indices):
        whole, some = create(features_only=True), create(features_only=True, out_indices=indices)
        some.load_state_dict(whole.state_dict(), strict=False)
        image = torch.rand(1, 3, 64, 64)
        wanted = [i % 5 for i in (indices if isinstance(indices, tuple) else (3, 4))]
        with torch.no_grad():
            maps = whole(image)
            assert all(map(torch.equal, some(image), [maps[i] for i in wanted]))
        assert some.feature_info.channels() == [whole.feature_info.channels()[i] for i in wanted]
        assert len(some.model.backbone.stages) == max(wanted) + 1  # what lies behind is gone

    def test_forward_intermediates(self):
        model = create(num_classes=4)
        image = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            final, maps = model.forward_intermediates(image)
            assert torch.equal(final, model.forward_features(image))
            assert torch.equal(model.forward_head(final), model(image))
            assert len(maps) == 5
            last, middle = model.forward_intermediates(image, indices=[2])
            assert torch.equal(last, final)
            assert [tuple(m.shape) for m in middle] == [tuple(maps[2].shape)]
            assert len(model.forward_intermediates(image, indices=2, intermediates_only=True)) == 2

    def test_exception(self):
        model = create()
        with pytest.raises(ValueError, match=r"\(7,\).*5 stages"):
            model.forward_intermediates(torch.rand(1, 3, 64, 64), indices=[7])
        with pytest.raises(ValueError, match=r"'NLC'.*'NCHW'"):
            model.forward_intermediates(torch.rand(1, 3, 64, 64), output_fmt="NLC")


class TestClassifier:
    def test_reset(self):
        model = create(num_classes=7, drop_rate=0.2, drop_path_rate=0.1)
        image = torch.rand(2, 3, 64, 64)
        assert model.get_classifier().out_features == model.num_classes == 7
        model.reset_classifier(3)
        with torch.no_grad():
            assert model(image).shape == (2, 3)
            model.reset_classifier(0)
            assert model(image).shape == model.forward_head(model.forward_features(image), pre_logits=True).shape
            assert model(image).shape == (2, 320)
            model.reset_classifier(0, "")
            assert model(image).shape == (2, 320, 2, 2)
            model.reset_classifier(4, "catavgmax")
            assert model(image).shape == (2, 4)

    def test_pooling(self):
        image = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            assert create(num_classes=0, global_pool="").forward(image).shape == (2, 320, 2, 2)
            model = create(num_classes=0, global_pool="max")
            assert torch.equal(model(image), model.forward_features(image).amax((2, 3)))

    def test_training(self):
        model = create(num_classes=3).train()
        model.set_grad_checkpointing()
        model(torch.rand(2, 3, 64, 64)).sum().backward()
        assert model.backbone.stem.conv.weight.grad.abs().sum() > 0
