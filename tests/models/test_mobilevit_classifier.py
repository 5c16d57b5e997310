import copy
import io
import pickle

import pytest
import torch
from torch import nn

from kornia_mvit.models.mobilevit import VARIANTS, MobileViTClassifier
from tests.models.networks import APPLE, TINY, apple_image, count_parameters, load_apple_weights, randomize
from tests.tester import BaseTester, GraphCounter

# counted on Apple's own code
PARAMETERS = {"xxs": 1_272_024, "xs": 2_317_848, "s": 5_578_632}


class TestMobileViTClassifier(BaseTester):
    def test_smoke(self, device, dtype):
        model = MobileViTClassifier("xxs", 5, backbone_dropout=0.1, head_dropout=0.1, drop_path=0.1).to(device, dtype)
        logits = model(torch.rand(2, 3, 64, 96, device=device, dtype=dtype))
        assert (logits.device.type, logits.dtype) == (device.type, dtype)
        logits.sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_exception(self):
        with pytest.raises(ValueError, match=r"num_classes -1.*give 0 for pooled features"):
            MobileViTClassifier("xxs", num_classes=-1)
        with pytest.raises(ValueError, match="mode 'l'; available: 'xxs', 'xs', 's'"):
            MobileViTClassifier("l")
        with pytest.raises(ValueError, match="variant 'a'; available: 'apple', 'kornia'"):
            MobileViTClassifier("s", variant="a")
        with pytest.raises(ValueError, match=r"add the batch dimension"):
            MobileViTClassifier(TINY)(torch.rand(3, 64, 64))

    @pytest.mark.parametrize("num_classes", [0, 1, 7])
    def test_cardinality(self, num_classes):
        model = MobileViTClassifier(TINY, num_classes, in_channels=4).eval()
        assert model.num_classes == num_classes
        assert model(torch.rand(3, 4, 40, 50)).shape == (3, num_classes or 10)

    @pytest.mark.parametrize("mode", PARAMETERS)
    def test_parameters(self, mode):
        assert count_parameters(MobileViTClassifier(mode)) == PARAMETERS[mode]

    @pytest.mark.parametrize("case", APPLE["cases"], ids=lambda case: "x".join(map(str, case["shape"])))
    def test_feature(self, device, case):
        """The outputs of Apple's own implementation, whose softmax runs in float32; see ``apple_array``."""
        model = MobileViTClassifier("xxs").double().eval()
        load_apple_weights(model)
        model.to(device)
        x = torch.from_numpy(apple_image(case["seed"], case["shape"])).to(device)
        with torch.no_grad():
            outputs = {f"out_l{i}": f for i, f in enumerate(model.forward_features(x), start=1)}
            outputs |= {"expanded": model.backbone(x), "logits": model(x)}
        expected = case["features"] | {name: case[name] for name in ("expanded", "logits")}
        assert list(outputs) == list(expected)
        for name, golden in expected.items():
            y = outputs[name].cpu()
            assert list(y.shape) == golden["shape"], name
            sample = y.flatten()[golden["sample_index"]]
            assert (sample - torch.tensor(golden["sample"], dtype=torch.float64)).abs().max() < 2e-5, name
            assert abs(y.mean().item() - golden["mean"]) < 2e-5, name
            assert abs(y.std(correction=0).item() - golden["std"]) < 2e-5, name

    def test_gradcheck(self):
        self.gradcheck_module(randomize(MobileViTClassifier(TINY, 3, in_channels=1)).eval(), torch.rand(2, 1, 36, 32))

    def test_dynamo(self, device):
        model = MobileViTClassifier(TINY, 5).to(device).eval()
        x = torch.rand(2, 3, 70, 64, device=device)
        self.assert_close(torch.compile(model, fullgraph=True, backend=GraphCounter("eager"))(x), model(x))

    def test_head(self):
        model, x = MobileViTClassifier("xxs", 5).eval(), torch.rand(2, 3, 64, 96)
        final = model.backbone(x)
        pooled = model.forward_head(final, pre_logits=True)
        self.assert_close(pooled, final.mean((2, 3)))
        self.assert_close(model.get_classifier()(pooled), model(x))
        self.assert_close(model.forward_head(final), model(x))

    def test_without_classes(self):
        model, x = MobileViTClassifier("xxs", 0).eval(), torch.rand(2, 3, 64, 64)
        assert isinstance(model.get_classifier(), nn.Identity)
        self.assert_close(model(x), model.backbone(x).mean((2, 3)))

    def test_reset_classifier(self):
        model = MobileViTClassifier("xxs", 5).double()
        before = copy.deepcopy(model.backbone.state_dict())
        model.reset_classifier(7)
        assert model.num_classes == 7
        assert model.get_classifier().weight.dtype == torch.float64
        assert abs(model.get_classifier().weight.std().item() / 0.02 - 1) < 0.1
        assert model(torch.rand(2, 3, 64, 64).double()).shape == (2, 7)
        model.reset_classifier(0)
        assert model(torch.rand(2, 3, 64, 64).double()).shape == (2, 320)
        assert all(
            a.shape == b.shape for a, b in zip(before.values(), model.backbone.state_dict().values(), strict=True)
        )

    def test_features_are_the_backbones(self):
        model, x = MobileViTClassifier("xxs", 5).eval(), torch.rand(1, 3, 64, 64)
        for ours, backbones in zip(
            model.forward_features(x, (1, 3)), model.backbone.forward_features(x, (1, 3)), strict=True
        ):
            assert torch.equal(ours, backbones)

    def test_head_dropout(self):
        model, x = MobileViTClassifier("xxs", 5, head_dropout=0.5), torch.rand(2, 320, 2, 2)
        dropped = model.forward_head(x, pre_logits=True)
        assert 200 < (dropped == 0).sum() < 440  # of 640
        model.eval()
        self.assert_close(model.forward_head(x, pre_logits=True), x.mean((2, 3)))

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_output_stride_and_variant_reach_the_backbone(self, variant):
        model = MobileViTClassifier("xxs", 5, variant=variant, output_stride=16, patch_size=4)
        assert model.backbone.config == VARIANTS[variant]["xxs"]
        assert model.backbone.feature_strides == (2, 4, 8, 16, 16)
        assert model.backbone.stages[-1][-1].patch_size == (4, 4)

    @pytest.mark.parametrize(
        "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
    )
    def test_duplicates(self, duplicate):
        model, x = randomize(MobileViTClassifier("xxs", 5)).eval(), torch.rand(1, 3, 64, 64)
        twin = duplicate(model)
        assert torch.equal(twin(x), model(x))
        nn.init.zeros_(twin.classifier.weight)
        assert not torch.equal(twin(x), model(x))

    def test_state_dict(self):
        model, x = randomize(MobileViTClassifier("xxs", 5)).eval(), torch.rand(1, 3, 64, 64)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other = MobileViTClassifier("xxs", 5).eval()
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other(x), model(x))
