"""The second version: Apple's own outputs, timm's class with the same weights, and what the first version promises."""

import copy
import functools

import pytest
import timm
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from kornia_mvit import DeepLabV3, MobileViT, MobileViTV2, MobileViTV2Classifier, SSDLite, load_checkpoint
from kornia_mvit.models.layers import DropPath
from kornia_mvit.models.mobilevitv2 import (
    WIDTHS,
    MobileViTV2Block,
    SampleNorm,
    SeparableAttention,
    SeparableLayer,
    mode_name,
    mode_width,
)
from kornia_mvit.models.modes import MODES, build_backbone, build_classifier, find_mode
from kornia_mvit.testing.strategies import image_sizes
from tests.models.networks import SECOND, TINY, Stage, apple_image, apple_second, count_parameters, randomize
from tests.ops.test_boxes import check_golden
from tests.tester import BaseTester, GraphCounter
from tests.weights.peers import randomise, timm_second

NARROW = 0.1  # channels 16 to 48, in a moment
# counted on Apple's own code: the backbone, a classifier of 1,000 classes, SSDLite of 81, DeepLabV3 of 21 classes
# without and with its auxiliary head
PARAMETERS = {
    0.5: (1_113_593, 1_370_593, 2_035_395, 6_242_318, 6_466_467),
    0.75: (2_481_009, 2_866_009, 3_584_955, 9_510_278, 9_845_019),
    1.0: (4_388_841, 4_901_841, 5_608_883, 13_318_654, 13_763_987),
    1.25: (6_837_089, 7_478_089, 8_173_227, 17_667_446, 18_223_371),
    1.5: (9_825_753, 10_594_753, 11_277_987, 22_556_654, 23_306_483),
    1.75: (13_354_833, 14_251_833, 14_923_163, 27_986_278, 29_006_227),
    2.0: (17_424_329, 18_449_329, 19_108_755, 33_956_318, 35_287_859),
}
CHANNELS = {  # stem, stages and width of the tokens
    0.5: (16, 32, 64, 128, 192, 256, 64, 96, 128),
    0.75: (24, 48, 96, 192, 288, 384, 96, 144, 192),
    1.0: (32, 64, 128, 256, 384, 512, 128, 192, 256),
    1.25: (40, 80, 160, 320, 480, 640, 160, 240, 320),
    1.5: (48, 96, 192, 384, 576, 768, 192, 288, 384),
    1.75: (56, 112, 224, 448, 672, 896, 224, 336, 448),
    2.0: (64, 128, 256, 512, 768, 1024, 256, 384, 512),
}

seeds = st.integers(0, 2**32 - 1)
widths = st.sampled_from([0.05, 0.1, 0.2, 0.33])
patches = st.tuples(st.integers(1, 4), st.integers(1, 4))
sizes = image_sizes(max_side=100)


def cases(task):
    return pytest.mark.parametrize("case", SECOND[task]["cases"], ids=lambda case: "x".join(map(str, case["shape"])))


def image_of(case, device="cpu"):
    return torch.from_numpy(apple_image(case["seed"], case["shape"])).to(device)


class TestSampleNorm:
    def test_feature(self):
        """Mean and variance of all tokens and channels of a sample; scale and shift of each channel."""
        norm, x = randomize(SampleNorm(3)), torch.randn(2, 4, 5, 3) + 2
        flat = x.flatten(1)
        mean, std = flat.mean(1), (flat.var(1, correction=0) + 1e-5).sqrt()
        expected = (x - mean.view(2, 1, 1, 1)) / std.view(2, 1, 1, 1) * norm.weight + norm.bias
        torch.testing.assert_close(norm(x), expected)


class TestSeparableAttention:
    def test_feature(self):
        """Each pixel of the patch apart: scores of the tokens, their mean key, and ReLU of each value times it."""
        attention, x = randomize(SeparableAttention(3)), torch.randn(2, 4, 5, 3)
        qkv = x @ attention.qkv.weight.T + attention.qkv.bias
        expected = torch.empty(2, 4, 5, 3)
        for b in range(2):
            for p in range(4):
                weights = qkv[b, p, :, 0].exp() / qkv[b, p, :, 0].exp().sum()
                context = sum(weights[n] * qkv[b, p, n, 1:4] for n in range(5))
                for n in range(5):
                    expected[b, p, n] = qkv[b, p, n, 4:].clamp(min=0) * context
        torch.testing.assert_close(attention(x), expected @ attention.proj.weight.T + attention.proj.bias)

    def test_tokens_have_no_order(self):
        attention, x = randomize(SeparableAttention(4)).double(), torch.randn(2, 4, 6, 4).double()
        order = torch.randperm(6)
        torch.testing.assert_close(attention(x[:, :, order]), attention(x)[:, :, order])

    def test_gradcheck(self):
        BaseTester.gradcheck_module(randomize(SeparableAttention(3)), torch.randn(2, 2, 3, 3))


class TestSeparableLayer:
    @pytest.mark.parametrize("rates", [(1.0, 0.0), (0.0, 1 - 1e-9)], ids=["dropout", "drop_path"])
    def test_what_is_dropped_is_the_branch(self, rates):
        layer, x = SeparableLayer(8, 16, *rates), torch.rand(2, 4, 6, 8)
        assert torch.equal(layer(x), x)
        assert not torch.equal(layer.eval()(x), x)


class TestMobileViTV2Block:
    @pytest.mark.parametrize("size", [(6, 8), (7, 8), (6, 5), (7, 5), (1, 1)])
    def test_the_map_stays_as_it_was_resized(self, size):
        block = MobileViTV2Block(Stage(8, dim=8, depth=1), (2, 2), 1, 0.0, [0.0]).eval()
        expected = tuple(side + side % 2 for side in size)
        assert block(torch.rand(2, 8, *size)).shape == (2, 8, *expected)

    def test_resize_keeps_the_corners(self):
        block = MobileViTV2Block(Stage(8, dim=8, depth=1), (2, 2), 1, 0.0, [0.0]).eval()
        seen = []
        block.local.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        x = torch.rand(1, 8, 5, 3)
        block(x)
        assert seen[0].shape[-2:] == (6, 4)
        torch.testing.assert_close(seen[0][..., ::5, ::3], x[..., ::4, ::2])

    @pytest.mark.parametrize("size", [(4, 4), (3, 5)])
    @pytest.mark.parametrize("training", [False, True])
    def test_gradcheck(self, size, training):
        block = randomize(MobileViTV2Block(Stage(4, dim=3, depth=1), (2, 2), 1, 0.0, [0.0])).train(training)
        BaseTester.gradcheck_module(block, torch.rand(2, 4, *size))

    def test_no_skip(self):
        """With zeros in the last normalisation nothing of the input is left."""
        block = MobileViTV2Block(Stage(8, dim=8, depth=1), (2, 2), 1, 0.0, [0.0]).eval()
        nn.init.zeros_(block.proj_out.norm.weight)
        assert block(torch.rand(1, 8, 4, 4)).count_nonzero() == 0


class TestModes:
    def test_names(self):
        assert MODES == ("xxs", "xs", "s", "v2-0.5", "v2-0.75", "v2-1.0", "v2-1.25", "v2-1.5", "v2-1.75", "v2-2.0")

    @given(st.integers(1, 800).map(lambda n: n / 100))
    def test_a_name_tells_its_width(self, width):
        assert mode_width(mode_name(width)) == width

    @pytest.mark.parametrize("mode", ["v2-1", "v2-1.0", "v2-1.00"])
    def test_short_forms(self, mode):
        assert find_mode(build_backbone(mode)) == ("v2-1.0", "apple")

    @pytest.mark.parametrize(
        "mode", ["v2", "v2-", "v2-x", "v3-1.0", "v2-1.0.0", "v2--1", "v2-1e1", "V2-1.0", " v2-1.0"]
    )
    def test_exception(self, mode):
        for build in (build_backbone, build_classifier):
            with pytest.raises(ValueError, match=rf"unknown mode '{mode}'; available: 'xxs'.*'v2-0\.5'"):
                build(mode)

    @pytest.mark.parametrize("build", [build_backbone, build_classifier, DeepLabV3, SSDLite])
    def test_variant(self, build):
        with pytest.raises(ValueError, match=r"'v2-0\.5' has no variant 'kornia'; leave variant out"):
            build("v2-0.5", variant="kornia")

    @pytest.mark.parametrize("build", [build_backbone, build_classifier, DeepLabV3, SSDLite])
    def test_widths_have_bounds(self, build):
        with pytest.raises(ValueError, match=r"width 9\.0 is not above 0 and at most 8; the published ones are 0\.5"):
            build("v2-9.0")

    def test_the_first_version(self):
        assert find_mode(MobileViT("xs", variant="kornia")) == ("xs", "kornia")
        assert find_mode(MobileViT(TINY)) is None

    def test_classes(self):
        assert type(build_classifier("v2-0.1", 3)) is MobileViTV2Classifier
        assert [type(head("v2-0.1").backbone) for head in (DeepLabV3, SSDLite)] == [MobileViTV2] * 2


class TestMobileViTV2(BaseTester):
    def test_smoke(self, device, dtype):
        model, x = randomize(MobileViTV2(NARROW)).eval(), torch.rand(2, 3, 64, 96)
        exact = model.double()(x.double())
        y = model.to(device, dtype)(x.to(device, dtype))
        assert (y.device.type, y.dtype) == (device.type, dtype)
        tolerance = {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
        assert (y.cpu().double() - exact).norm() < tolerance * exact.norm()

    @pytest.mark.parametrize(
        ("arguments", "kind", "message"),
        [
            ({"width": 0}, ValueError, r"width 0 is not above 0 and at most 8; .* 0\.5, 0\.75"),
            ({"width": -1.0}, ValueError, r"width -1\.0 is not above 0"),
            ({"width": float("nan")}, ValueError, "width nan is not above 0"),
            ({"width": "v2-0.5"}, TypeError, r"width 'v2-0\.5' is not a number; give one such as 0\.5"),
            ({"width": True}, TypeError, "width True is not a number"),
            ({"patch_size": 0}, ValueError, "patch size 0 is not one or two numbers of at least 1"),
            ({"patch_size": (2, 2, 2)}, ValueError, r"patch size \(2, 2, 2\) is not one or two numbers"),
            ({"output_stride": 4}, ValueError, "output stride 4 is not available; give 8, 16 or 32"),
            ({"drop_path": 1.0}, ValueError, r"drop path rate 1\.0 is not in \[0, 1\)"),
        ],
    )
    def test_exception(self, arguments, kind, message):
        with pytest.raises(kind, match=message):
            MobileViTV2(**arguments)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((2, 4, 64, 64), r"images of 3 channels, got \(2, 4, 64, 64\); .*in_channels=4"),
            ((3, 64, 64), r"got \(3, 64, 64\); add the batch dimension with image\[None\]"),
            ((1, 3, 31, 64), r"31x64 pixels is smaller than the network takes; .* at least 32"),
        ],
    )
    def test_image_exception(self, shape, message):
        with pytest.raises(ValueError, match=message):
            MobileViTV2(NARROW)(torch.rand(shape))
        with pytest.raises(TypeError, match=r"got torch\.uint8; .*image\.float\(\) / 255"):
            MobileViTV2(NARROW)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))

    @pytest.mark.parametrize("width", WIDTHS)
    def test_cardinality(self, width):
        with torch.device("meta"):
            model = MobileViTV2(width)
            x = torch.empty(1, 3, 128, 192)
        stages = model.config.stages
        assert (model.config.stem, *model.feature_channels, *(s.dim for s in stages[2:])) == CHANNELS[width]
        assert model.feature_strides == (2, 4, 8, 16, 32)
        assert model.out_channels == model.feature_channels[-1]
        sizes = [(c, 128 // s, 192 // s) for c, s in zip(model.feature_channels, model.feature_strides, strict=True)]
        assert [f.shape[1:] for f in model.eval().forward_features(x)] == sizes

    @pytest.mark.parametrize("width", WIDTHS)
    def test_parameters(self, width):
        with torch.device("meta"):
            mode, c4 = mode_name(width), MobileViTV2(width).feature_channels[3]
            models = [
                MobileViTV2(width),
                MobileViTV2Classifier(width),
                SSDLite(mode),
                DeepLabV3(mode),
                DeepLabV3(mode, aux_channels=max(c4 // 4, 128)),
            ]
        assert tuple(map(count_parameters, models)) == PARAMETERS[width]

    def test_smallest_image(self):
        model = MobileViTV2(NARROW).eval()
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 48, 2, 2)

    @pytest.mark.parametrize("output_stride", [32, 16, 8])
    @pytest.mark.parametrize(
        "width", [0.5, pytest.param(1.0, marks=pytest.mark.long), pytest.param(2.0, marks=pytest.mark.long)]
    )
    def test_feature(self, device, width, output_stride):
        """The maps of timm's class with the same weights and statistics, where patches divide them and where not."""
        options = {} if output_stride == 32 else {"output_stride": output_stride}
        theirs = randomise(timm_second(width, 0, features_only=True, **options)).to(device)
        ours = MobileViTV2(width, output_stride=output_stride).to(device).eval()
        state = dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True))
        ours.load_state_dict({name: state[name].reshape(value.shape) for name, value in ours.state_dict().items()})
        for size in ((256, 256), (224, 160)):
            x = torch.rand(1, 3, *size, device=device)
            with torch.no_grad():
                maps, expected = ours.forward_features(x), theirs(x)
            assert [tuple(m.shape[-2:]) for m in maps] == ours.feature_sizes(size)
            for one, other in zip(maps, expected, strict=True):
                assert other.std() > 0.3
                assert (one - other).abs().max() < 1e-4

    @pytest.mark.parametrize("training", [False, True])
    def test_gradcheck(self, training):
        """By the image, of a size that is resized before the blocks; by the weights see the block."""
        model = randomize(MobileViTV2(0.05, in_channels=1)).double().train(training)
        self.gradcheck(model, [torch.rand(2, 1, 37, 45)])

    def test_dynamo(self, device):
        """The last stage; see the classifier for the whole."""
        model = randomize(MobileViTV2(0.05)).to(device).eval().stages[4]
        x = torch.rand(2, 24, 6, 5, device=device)
        self.assert_close(torch.compile(model, fullgraph=True, backend=GraphCounter("eager"))(x), model(x))

    @pytest.mark.parametrize("indices", [(4,), (-1,), (2, 0), (1, -1)])
    def test_out_indices(self, indices):
        model, x = MobileViTV2(NARROW).eval(), torch.rand(1, 3, 64, 64)
        features = model.forward_features(x)
        chosen = model.forward_features(x, indices)
        assert all(map(torch.equal, chosen, [features[i] for i in sorted(i % 5 for i in indices)]))
        with pytest.raises(ValueError, match="5 stages, -5 to 4"):
            model.forward_features(x, (5,))

    @pytest.mark.parametrize(
        ("output_stride", "strides", "dilated"),
        # Apple's rule: a residual that keeps the size has the dilation so far, and the block after it the new one
        [
            (32, (2, 4, 8, 16, 32), {}),
            (16, (2, 4, 8, 16, 16), {"stages.4.1.local": 2}),
            (8, (2, 4, 8, 8, 8), {"stages.3.1.local": 2, "stages.4.0.depthwise": 2, "stages.4.1.local": 4}),
        ],
    )
    def test_output_stride(self, output_stride, strides, dilated):
        model = MobileViTV2(NARROW, output_stride=output_stride)
        assert model.feature_strides == strides
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                dilation = dilated.get(name.removesuffix(".conv"), 1)
                assert module.dilation == (dilation, dilation), name

    def test_gradient_checkpointing(self):
        """The same outputs, gradients and batch statistics, random layers included."""
        plain = MobileViTV2(NARROW, dropout=0.1, drop_path=0.1)
        saving = copy.deepcopy(plain)
        saving.set_gradient_checkpointing()
        x, runs = torch.rand(2, 3, 64, 96), []
        for model in (plain, saving):
            torch.manual_seed(3)
            y = model(x)
            y.square().sum().backward()
            runs.append([y.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))

    def test_activation_checkpointing(self):
        plain = randomize(MobileViTV2(0.05)).double()
        saving = copy.deepcopy(plain)
        saving.set_gradient_checkpointing("activations")
        x, runs = torch.rand(2, 3, 64, 96).double(), []
        for model in (plain, saving):
            y = model(x)
            y.square().sum().backward()
            runs.append([y.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
        for one, other in zip(*runs, strict=True):
            self.assert_close(one, other, rtol=1e-8, atol=1e-10)

    def test_initialisation(self):
        """Apple's: all that it convolves by its fan-out, the linear layers of the blocks too; biases zero."""
        model = MobileViTV2(0.5)
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear):
                assert abs(layer.weight.std().item() / (2 / layer.out_features) ** 0.5 - 1) < 0.05, name
                assert layer.bias.count_nonzero() == 0
        assert abs(model.stages[4][1].proj_in.conv.weight.std().item() / (2 / 128) ** 0.5 - 1) < 0.05

    def test_dropout_and_drop_path(self):
        model, x = MobileViTV2(NARROW, dropout=0.2, drop_path=0.3), torch.rand(2, 3, 64, 64)
        assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.2}
        rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
        torch.testing.assert_close(rates, torch.linspace(0, 0.3, 1 + 2 + 3 + 9).tolist())
        assert not torch.equal(model(x), model(x))
        plain = MobileViTV2(NARROW).eval()
        plain.load_state_dict(model.state_dict())
        assert torch.equal(model.eval()(x), plain(x))

    def test_patch_size(self):
        model = MobileViTV2(NARROW, patch_size=3).eval()
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 48, 3, 3)
        pair = MobileViTV2(NARROW, patch_size=(3, 3)).eval()
        pair.load_state_dict(model.state_dict())
        x = torch.rand(1, 3, 96, 64)
        assert torch.equal(pair(x), model(x))


class TestProperties:
    @given(
        width=widths,
        batch=st.integers(1, 3),
        channels=st.integers(1, 5),
        patch=patches,
        size=sizes,
        output_stride=st.sampled_from([8, 16, 32]),
    )
    @example(0.1, 1, 3, (2, 2), (32, 32), 32)
    @example(0.05, 2, 1, (3, 2), (64, 33), 8)
    def test_maps_are_finite_and_of_the_stated_shape(self, width, batch, channels, patch, size, output_stride):
        model = randomize(MobileViTV2(width, channels, patch, output_stride=output_stride)).eval()
        with torch.no_grad():
            maps = model.forward_features(torch.rand(batch, channels, *size))
        shapes = zip(model.feature_channels, model.feature_sizes(size), strict=True)
        assert [tuple(m.shape) for m in maps] == [(batch, c, *s) for c, s in shapes]
        assert all(m.isfinite().all() for m in maps)

    @given(width=widths, patch=patches, size=sizes, neighbours=st.integers(1, 2), seed=seeds)
    @example(0.1, (2, 2), (64, 64), 1, 0)
    def test_neighbours_and_memory_layout_do_not_matter(self, width, patch, size, neighbours, seed):
        torch.manual_seed(seed)
        model = randomize(MobileViTV2Classifier(width, 10, patch_size=patch)).double().eval()
        x = torch.rand(1 + neighbours, 3, *size).double()
        with torch.no_grad():
            expected = model(x)
            close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
            close(model(x[:1]), expected[:1])
            close(model(x.to(memory_format=torch.channels_last)), expected)

    @given(width=widths, size=image_sizes(min_side=65, max_side=100), seed=seeds)
    @example(0.1, (96, 128), 0)
    def test_gradients_reach_every_parameter(self, width, size, seed):
        torch.manual_seed(seed)
        model = randomize(MobileViTV2Classifier(width, 10)).double()
        x = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
        logits = model(x)
        (logits * torch.randn_like(logits)).sum().backward()
        for name, parameter in [("the image", x), *model.named_parameters()]:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.count_nonzero() > 0, name


class TestMobileViTV2Classifier(BaseTester):
    def test_smoke(self, device, dtype):
        model = MobileViTV2Classifier(NARROW, 5, backbone_dropout=0.1, head_dropout=0.1, drop_path=0.1)
        logits = model.to(device, dtype)(torch.rand(2, 3, 64, 96, device=device, dtype=dtype))
        assert (logits.device.type, logits.dtype) == (device.type, dtype)
        logits.sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_exception(self):
        with pytest.raises(ValueError, match=r"num_classes -1.*give 0 for pooled features"):
            MobileViTV2Classifier(NARROW, num_classes=-1)
        with pytest.raises(ValueError, match=r"width 9 is not above 0 and at most 8"):
            MobileViTV2Classifier(9)

    @pytest.mark.parametrize("num_classes", [0, 1, 7])
    def test_cardinality(self, num_classes):
        model = MobileViTV2Classifier(NARROW, num_classes, in_channels=4).eval()
        assert model(torch.rand(3, 4, 40, 50)).shape == (3, num_classes or 48)
        model.reset_classifier(2)
        assert model(torch.rand(3, 4, 40, 50)).shape == (3, 2)

    @cases("classification")
    def test_feature(self, device, case):
        """The outputs of Apple's own implementation, with its weights read by their names."""
        model = MobileViTV2Classifier(0.5).double().eval()
        load_checkpoint(model, apple_second("classification"))
        model.to(device)
        x = image_of(case, device)
        with torch.no_grad():
            for values, expected in zip(model.forward_features(x), case["features"].values(), strict=True):
                check_golden(values.cpu(), expected)
            check_golden(model(x).cpu(), case["logits"])

    def test_gradcheck(self):
        model = randomize(MobileViTV2Classifier(0.05, 3, in_channels=1)).double().eval()
        self.gradcheck(model, [torch.rand(2, 1, 36, 32)])

    @pytest.mark.long
    def test_dynamo(self, device):
        model = randomize(MobileViTV2Classifier(NARROW, 5)).to(device).eval()
        x = torch.rand(2, 3, 70, 64, device=device)
        self.assert_close(torch.compile(model, fullgraph=True, backend=GraphCounter("eager"))(x), model(x))

    @pytest.mark.parametrize("size", [(256, 256), (224, 160)])
    def test_timm(self, size):
        """timm's class with the same weights, batch statistics in training and gradients too."""
        theirs = randomise(timm.create_model("mobilevitv2_050", num_classes=7))
        ours = MobileViTV2Classifier(0.5, 7).eval()
        load_checkpoint(ours, theirs.state_dict())
        x = torch.rand(2, 3, *size)
        with torch.no_grad():
            assert (ours(x) - theirs(x)).abs().max() < 1e-4
        if size == (224, 160):
            for model in (ours.double(), theirs.double()):
                model.train()(x.double()).square().sum().backward()
            for name in ("stem.conv", "stages.4.1.layers.2.fc2", "stages.2.1.layers.0.attn.qkv"):
                there = name.replace("layers", "transformer").replace("fc2", "mlp.fc2").replace("qkv", "qkv_proj")
                grad = theirs.get_submodule(there).weight.grad
                mine = ours.backbone.get_submodule(name).weight.grad
                self.assert_close(mine, grad.reshape(mine.shape), rtol=1e-6, atol=1e-8)
