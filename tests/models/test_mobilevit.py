import copy

import kornia.augmentation as K
import pytest
import torch
from kornia.augmentation.container import ImageSequential
from kornia.models.vit_mobile import MobileViT as KorniaMobileViT
from torch import nn

from kornia_mvit.models.layers import DropPath, InvertedResidual
from kornia_mvit.models.mobilevit import (
    VARIANTS,
    MobileViT,
    MobileViTClassifier,
    MobileViTConfig,
    Stage,
    TransformerLayer,
    fold,
    unfold,
)
from tests.models.networks import (
    CONVOLUTIONAL,
    TINY,
    count_parameters,
    kornia_state,
    randomize,
    randomize_norms,
)
from tests.tester import BaseTester, GraphCounter

MODES = ("xxs", "xs", "s")
ALL_WIDTHS = {  # the paper's table: five stages and the last 1x1 convolution
    "xxs": (16, 24, 48, 64, 80, 320),
    "xs": (32, 48, 64, 80, 96, 384),
    "s": (32, 64, 96, 128, 160, 640),
}
# counted on Apple's own code, and on kornia.models.vit_mobile.MobileViT
PARAMETERS = {
    "apple": {"xxs": 951_024, "xs": 1_932_848, "s": 4_937_632},
    "kornia": {"xxs": 1_011_472, "xs": 1_998_944, "s": 4_996_720},
}


class TestUnfold(BaseTester):
    def test_smoke(self, device, dtype):
        tokens = unfold(torch.rand(2, 3, 4, 6, device=device, dtype=dtype), (2, 2))
        assert (tokens.device.type, tokens.dtype) == (device.type, dtype)

    @pytest.mark.parametrize("size", [(5, 6), (4, 5), (1, 6)])
    def test_exception(self, size):
        h, w = size
        rounded = rf"{-(-h // 2) * 2}x{-(-w // 3) * 3}"
        with pytest.raises(ValueError, match=rf"2x3 patch.*{h}x{w} map; resize it to {rounded}"):
            unfold(torch.rand(1, 1, h, w), (2, 3))

    @pytest.mark.parametrize("patch", [(1, 1), (2, 2), (3, 2), (1, 4), (6, 4)])
    def test_cardinality(self, patch):
        ph, pw = patch
        assert unfold(torch.rand(2, 3, 6, 8), patch).shape == (2, ph * pw, (6 // ph) * (8 // pw), 3)

    def test_feature(self):
        """Every token against the definition, one pixel at a time."""
        x, (ph, pw) = torch.rand(2, 3, 6, 8), (3, 2)
        tokens = unfold(x, (ph, pw))
        for i in range(6):
            for j in range(8):
                pixel, patch = i % ph * pw + j % pw, i // ph * (8 // pw) + j // pw
                assert torch.equal(tokens[:, pixel, patch], x[:, :, i, j])

    def test_either_memory_layout(self):
        x = torch.rand(2, 3, 4, 6)
        assert torch.equal(unfold(x.to(memory_format=torch.channels_last), (2, 2)), unfold(x, (2, 2)))

    def test_gradcheck(self):
        self.gradcheck(lambda x: unfold(x, (2, 3)), [torch.rand(2, 2, 4, 6)])

    def test_dynamo(self):
        x = torch.rand(2, 3, 4, 6)
        assert torch.equal(torch.compile(unfold, fullgraph=True, backend=GraphCounter())(x, (2, 3)), unfold(x, (2, 3)))


class TestFold(BaseTester):
    def test_smoke(self, device, dtype):
        x = fold(torch.rand(2, 4, 6, 3, device=device, dtype=dtype), (2, 2), (4, 6))
        assert (x.device.type, x.dtype) == (device.type, dtype)

    @pytest.mark.parametrize(
        ("shape", "patch", "size"),
        [((1, 4, 6, 2), (2, 2), (4, 5)), ((1, 4, 6, 2), (2, 3), (4, 6)), ((1, 4, 6, 2), (2, 2), (4, 8))],
    )
    def test_exception(self, shape, patch, size):
        message = rf"4 x 6 tokens do not make a 4x{size[1]} map of 2x{patch[1]} patches"
        with pytest.raises(ValueError, match=message):
            fold(torch.rand(shape), patch, size)

    @pytest.mark.parametrize("patch", [(1, 1), (2, 2), (3, 2), (1, 4), (6, 4)])
    def test_cardinality(self, patch):
        ph, pw = patch
        assert fold(torch.rand(2, ph * pw, 48 // (ph * pw), 3), patch, (6, 8)).shape == (2, 3, 6, 8)

    def test_feature(self):
        tokens = torch.arange(8.0).view(1, 4, 2, 1)  # four pixels of two patches
        expected = torch.tensor([[0.0, 2.0, 1.0, 3.0], [4.0, 6.0, 5.0, 7.0]])
        assert torch.equal(fold(tokens, (2, 2), (2, 4))[0, 0], expected)

    def test_gives_channels_last(self):
        assert fold(torch.rand(2, 4, 6, 3), (2, 2), (4, 6)).is_contiguous(memory_format=torch.channels_last)

    def test_gradcheck(self):
        self.gradcheck(lambda x: fold(x, (2, 3), (4, 6)), [torch.rand(2, 6, 4, 2)])

    def test_dynamo(self):
        x = torch.rand(2, 6, 4, 3)
        compiled = torch.compile(fold, fullgraph=True, backend=GraphCounter())
        assert torch.equal(compiled(x, (2, 3), (4, 6)), fold(x, (2, 3), (4, 6)))


class TestMobileViTConfig:
    def test_table_has_every_mode_in_both_variants(self):
        assert {variant: tuple(table) for variant, table in VARIANTS.items()} == {"apple": MODES, "kornia": MODES}

    @pytest.mark.parametrize("mode", MODES)
    def test_is_accepted_for_a_mode(self, mode):
        torch.manual_seed(1)
        by_config = MobileViTClassifier(VARIANTS["kornia"][mode], 3).eval()
        torch.manual_seed(1)
        by_name = MobileViTClassifier(mode, 3, variant="kornia").eval()
        x = torch.rand(1, 3, 64, 64)
        assert torch.equal(by_config(x), by_name(x))

    def test_custom(self):
        model = MobileViT(TINY, in_channels=1)
        assert model.feature_channels == (4, 6, 8)
        assert model.feature_strides == (2, 4, 8)
        assert model(torch.rand(2, 1, 40, 64)).shape == (2, 10, 5, 8)

    def test_exception(self):
        with pytest.raises(ValueError, match="give at least one Stage"):
            MobileViT(MobileViTConfig(stem=4, expand=2, stages=(), head_channels=8))
        with pytest.raises(ValueError, match=r"width 10.*4 heads; give head_dim"):
            MobileViT(MobileViTConfig(stem=4, expand=2, stages=(Stage(4, dim=10, depth=1),), head_channels=8))

    def test_head_dim_frees_the_token_width(self):
        config = MobileViTConfig(stem=4, expand=2, stages=(Stage(4, dim=10, depth=1),), head_channels=8, head_dim=3)
        model = MobileViT(config)
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 8, 16, 16)
        assert model.stages[0][-1].transformer[0].attn.qkv.weight.shape == (3 * 4 * 3, 10)


class TestResidualLayers:
    """What is dropped is the branch, so that nothing but the input is left."""

    def test_dropout(self):
        layer, x = TransformerLayer(8, 16, 2, 4, True, dropout=1.0, drop_path=0.0), torch.rand(2, 4, 6, 8)
        assert torch.equal(layer(x), x)
        assert not torch.equal(layer.eval()(x), x)

    @pytest.mark.parametrize(
        ("layer", "shape"),
        [
            (TransformerLayer(8, 16, 2, 4, True, 0.0, 0.5), (2, 4, 6, 8)),
            (InvertedResidual(8, 8, 1, 2, drop_path=0.5), (2, 8, 6, 4)),
        ],
        ids=["transformer", "inverted"],
    )
    def test_drop_path(self, layer, shape):
        layer.drop_path.rate = 1 - 1e-9  # one branch in a thousand million is kept
        x = torch.rand(shape)
        assert torch.equal(layer(x), x)
        assert not torch.equal(layer.eval()(x), x)


class TestMobileViT(BaseTester):
    def test_smoke(self, device, dtype):
        model, x = randomize(MobileViT("xxs")).eval(), torch.rand(2, 3, 64, 96)
        exact = model.double()(x.double())
        y = model.to(device, dtype)(x.to(device, dtype))
        assert (y.device.type, y.dtype) == (device.type, dtype)
        tolerance = {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
        assert (y.cpu().double() - exact).norm() < tolerance * exact.norm()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"mode": "m"}, r"unknown mode 'm'; available: 'xxs', 'xs', 's', or pass a MobileViTConfig"),
            ({"variant": "timm"}, r"unknown variant 'timm'; available: 'apple', 'kornia'"),
            ({"patch_size": 0}, r"patch size 0 is not one or two numbers of at least 1"),
            ({"patch_size": (2, 2, 2)}, r"patch size \(2, 2, 2\) is not one or two numbers"),
            ({"output_stride": 4}, r"output stride 4 is not available; give 8, 16 or 32"),
            ({"drop_path": 1.0}, r"drop path rate 1.0 is not in \[0, 1\)"),
        ],
    )
    def test_exception(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            MobileViT(**arguments)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((2, 4, 64, 64), r"images of 3 channels, got \(2, 4, 64, 64\); .*in_channels=4"),
            ((3, 64, 64), r"shape \(B, 3, H, W\), got \(3, 64, 64\); add the batch dimension with image\[None\]"),
            ((64, 64), r"shape \(B, 3, H, W\), got \(64, 64\)$"),
            ((1, 1, 3, 64, 64), r"shape \(B, 3, H, W\), got \(1, 1, 3, 64, 64\)$"),
            ((1, 3, 31, 64), r"31x64 pixels is smaller than the network takes; .* at least 32"),
            ((1, 3, 64, 31), r"64x31 pixels is smaller than the network takes; .* at least 32"),
        ],
    )
    @pytest.mark.parametrize("method", ["forward", "forward_features"])
    def test_image_exception(self, shape, message, method):
        with pytest.raises(ValueError, match=message):
            getattr(MobileViT(TINY), method)(torch.rand(shape))

    @pytest.mark.parametrize("dtype_given", [torch.uint8, torch.int64, torch.bool])
    def test_dtype_exception(self, dtype_given):
        with pytest.raises(TypeError, match=rf"got {dtype_given}; .*image.float\(\) / 255"):
            MobileViT(TINY)(torch.ones(1, 3, 64, 64, dtype=dtype_given))

    @pytest.mark.parametrize("mode", MODES)
    def test_cardinality(self, mode):
        model = MobileViT(mode).eval()
        x = torch.rand(1, 3, 96, 160)
        assert [*model.feature_channels, model.out_channels] == list(ALL_WIDTHS[mode])
        assert model.feature_strides == (2, 4, 8, 16, 32)
        sizes = [(c, 96 // s, 160 // s) for c, s in zip(model.feature_channels, model.feature_strides, strict=True)]
        assert [f.shape[1:] for f in model.forward_features(x)] == sizes
        assert model(x).shape == (1, model.out_channels, 3, 5)

    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("mode", MODES)
    def test_parameters(self, mode, variant):
        assert count_parameters(MobileViT(mode, variant=variant)) == PARAMETERS[variant][mode]

    def test_smallest_image(self):
        assert MobileViT("xxs").eval()(torch.rand(1, 3, 32, 32)).shape == (1, 320, 1, 1)

    @pytest.mark.parametrize(("mode", "size"), [("xxs", (128, 192)), ("xs", (64, 128)), ("s", (64, 64))])
    def test_feature(self, device, mode, size):
        """The outputs of Kornia's own class with the same weights: as it initialises them, and all drawn at random."""
        x = torch.rand(2, 3, *size, device=device)
        theirs = randomize_norms(KorniaMobileViT(mode)).to(device).eval()
        ours = MobileViT(mode, variant="kornia").to(device).eval()
        ours.load_state_dict(dict(zip(ours.state_dict(), kornia_state(theirs), strict=True)))
        with torch.no_grad():
            assert theirs(x).std() > 0.05
            assert (ours(x) - theirs(x)).abs().max() < 1e-5

        randomize(theirs).double()
        ours.double().load_state_dict(dict(zip(ours.state_dict(), kornia_state(theirs), strict=True)))
        with torch.no_grad():
            assert theirs(x.double()).std() > 0.5
            assert (ours(x.double()) - theirs(x.double())).abs().max() < 1e-10

    def test_variants_differ(self):
        """Weights aside: Kornia's order of concatenation and its norms are not Apple's."""
        apple, kornia = MobileViT("xxs"), MobileViT("xxs", variant="kornia")
        block = kornia.stages[3][-1]
        assert block.transformer[0].attn.qkv.weight.shape == (3 * 4 * 8, 80)
        assert block.transformer[0].attn.qkv.bias is None
        assert [stage[-1].transformer[0].fc1.out_features for stage in kornia.stages[2:]] == [128, 320, 384]
        assert isinstance(block.norm, nn.Identity)
        assert isinstance(block.proj_in.norm, nn.BatchNorm2d)
        block = apple.stages[3][-1]
        assert block.transformer[0].attn.qkv.weight.shape == (3 * 80, 80)
        assert [stage[-1].transformer[0].fc1.out_features for stage in apple.stages[2:]] == [128, 160, 192]
        assert isinstance(block.norm, nn.LayerNorm)
        assert isinstance(block.proj_in.norm, nn.Identity)

    @pytest.mark.parametrize("size", [(32, 32), (37, 45)])  # the second one is resized before the transformer
    @pytest.mark.parametrize("training", [False, True])
    def test_gradcheck(self, size, training):
        model = randomize(MobileViT(TINY, in_channels=1)).train(training)
        self.gradcheck_module(model, torch.rand(2, 1, *size))

    @pytest.mark.long
    def test_dynamo(self, device):
        model = MobileViT(TINY).to(device).eval()
        x = torch.rand(2, 3, 64, 70, device=device)
        self.assert_close(torch.compile(model, fullgraph=True, backend=GraphCounter("eager"))(x), model(x))

    @pytest.mark.parametrize("indices", [(4,), (-1,), (0, 2), (2, 0), (1, -1), (-5, -4, -3, -2, -1)])
    def test_out_indices(self, indices):
        model, x = MobileViT("xxs").eval(), torch.rand(1, 3, 64, 64)
        features = model.forward_features(x)
        expected = [features[i] for i in sorted(i % 5 for i in indices)]
        chosen = model.forward_features(x, indices)
        assert len(chosen) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(chosen, expected, strict=True))

    def test_out_indices_stop_the_computation(self):
        model = MobileViT("xxs").eval()
        model.stages[2].register_forward_hook(lambda *_: pytest.fail("stage 2 ran"))
        assert len(model.forward_features(torch.rand(1, 3, 64, 64), (0, 1))) == 2

    @pytest.mark.parametrize("indices", [(5,), (-6,), (), (0, 7)])
    def test_out_indices_exception(self, indices):
        with pytest.raises(ValueError, match="5 stages, -5 to 4"):
            MobileViT("xxs").forward_features(torch.rand(1, 3, 64, 64), indices)

    def test_without_head_conv(self):
        model, x = MobileViT("xs", head_conv=False).eval(), torch.rand(1, 3, 64, 64)
        assert model.out_channels == 96
        assert torch.equal(model(x), model.forward_features(x)[-1])
        assert not [name for name, _ in model.named_parameters() if name.startswith("head_conv")]

    @pytest.mark.parametrize(
        ("output_stride", "strides", "dilated"),
        # Apple's rule: a stage that keeps its size leaves its own first convolution at the dilation so far,
        # so that only what follows a second such stage is spread
        [(32, (2, 4, 8, 16, 32), {}), (16, (2, 4, 8, 16, 16), {}), (8, (2, 4, 8, 8, 8), {"stages.4.0.depthwise": 2})],
    )
    def test_output_stride(self, output_stride, strides, dilated):
        model = MobileViT("xs", output_stride=output_stride).eval()
        assert model.feature_strides == strides
        x = torch.rand(1, 3, 100, 70)
        sizes = [(-(-100 // s), -(-70 // s)) for s in strides]
        assert [f.shape[2:] for f in model.forward_features(x)] == sizes
        assert model(x).shape == (1, 384, *sizes[-1])
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                dilation = dilated.get(name.removesuffix(".conv"), 1)
                assert module.dilation == (dilation, dilation), name

    @pytest.mark.parametrize("output_stride", [8, 16])
    @pytest.mark.parametrize("size", [(64, 96), (75, 101)])
    def test_dilation_keeps_what_strides_saw(self, output_stride, size):
        """Without attention, a dilated network's map holds the strided one's values at every step of its stride."""
        strided = randomize(MobileViT(CONVOLUTIONAL, output_stride=32)).double().eval()
        dilated = MobileViT(CONVOLUTIONAL, output_stride=output_stride).double().eval()
        dilated.load_state_dict(strided.state_dict())
        assert (strided.feature_strides[-1], dilated.feature_strides[-1]) == (32, output_stride)
        x = torch.rand(1, 3, *size).double()
        step = 32 // output_stride
        self.assert_close(dilated(x)[..., ::step, ::step], strided(x))

    def test_gradient_checkpointing(self):
        """The same outputs, gradients and batch statistics, random layers included."""
        plain = MobileViT("xxs", dropout=0.1, drop_path=0.1)
        saving = copy.deepcopy(plain)
        saving.set_gradient_checkpointing()
        assert (plain.gradient_checkpointing, saving.gradient_checkpointing) == ("", "stages")
        x, runs = torch.rand(2, 3, 64, 96), []
        for model in (plain, saving):
            torch.manual_seed(3)
            y = model(x)
            y.square().sum().backward()
            runs.append([y.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))

    def test_activation_checkpointing(self):
        """Gradients and batch statistics to rounding: the normalised map is computed again in another order."""
        plain = randomize(MobileViT(TINY)).double()
        saving = copy.deepcopy(plain)
        saving.set_gradient_checkpointing("activations")
        x, runs = torch.rand(2, 3, 64, 96).double(), []
        for model in (plain, saving):
            image = x.clone().requires_grad_()
            y = model(image)
            y.square().sum().backward()
            runs.append([y.detach(), image.grad, *(p.grad for p in model.parameters()), *model.buffers()])
        for one, other in zip(*runs, strict=True):
            self.assert_close(one, other, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("cast", [False, True], ids=["weights", "autocast"])
    def test_activation_checkpointing_in_half_precision(self, cast):
        plain = randomize(MobileViT(TINY))
        plain = plain if cast else plain.bfloat16()
        saving, grads = copy.deepcopy(plain), []
        saving.set_gradient_checkpointing("activations")
        x = torch.rand(2, 3, 64, 96, dtype=torch.float32 if cast else torch.bfloat16)
        for model in (plain, saving):
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                y = model(x)
            y.float().square().mean().backward()
            grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]).float())
        assert (grads[0] - grads[1]).norm() < 0.05 * grads[0].norm()

    def test_activation_checkpointing_keeps_less(self):
        sizes = []
        for kind in (False, "activations"):
            model = MobileViT(CONVOLUTIONAL)
            model.set_gradient_checkpointing(kind)
            kept: dict[int, int] = {}

            def note(tensor, kept=kept):
                kept[tensor.data_ptr()] = tensor.numel()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                y = model(torch.rand(2, 3, 64, 64))
            sizes.append(sum(kept.values()))
            del y
        assert sizes[1] < 0.8 * sizes[0]

    def test_unknown_checkpointing(self):
        with pytest.raises(ValueError, match=r"'all'.*give True, False, 'stages'"):
            MobileViT(TINY).set_gradient_checkpointing("all")

    def test_batch_counts_once(self):
        """Also where attention begins in the first stage, so that none comes before it."""
        config = MobileViTConfig(
            stem=4, expand=1, stages=(Stage(4, stride=2, dim=4, depth=1),), head_channels=4, heads=2
        )
        for model in (MobileViT(config), MobileViT(TINY)):
            model(torch.rand(2, 3, 64, 64))
            counts = [b for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
            assert all(count == 1 for count in counts)

    def test_gradient_checkpointing_recomputes(self):
        model = MobileViT(TINY)
        calls = []
        model.stages[2].register_forward_pre_hook(lambda *_: calls.append(1))
        for enabled, expected in ((True, 2), (False, 1)):
            model.set_gradient_checkpointing(enabled)
            calls.clear()
            model(torch.rand(2, 3, 32, 32)).sum().backward()
            assert len(calls) == expected

    def test_initialisation(self):
        """Apple's: the fan-out of the last convolution is 320 numbers, and linear layers are 0.02 wide."""
        model = MobileViT("xxs")
        assert abs(model.head_conv.conv.weight.std().item() / (2 / 320) ** 0.5 - 1) < 0.05
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                assert abs(layer.weight.std().item() / 0.02 - 1) < 0.05
                assert layer.bias.count_nonzero() == 0

    def test_drop_path(self):
        model = MobileViT("xxs", drop_path=0.3)
        rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
        assert len(rates) == 1 + 3 + (1 + 2) + (1 + 4) + (1 + 3)
        torch.testing.assert_close(rates, torch.linspace(0, 0.3, 16).tolist())
        x = torch.rand(2, 3, 64, 64)
        assert not torch.equal(model(x), model(x))
        model.eval()
        plain = MobileViT("xxs").eval()
        plain.load_state_dict(model.state_dict())
        assert torch.equal(model(x), plain(x))

    def test_dropout(self):
        model, x = MobileViT("xxs", dropout=0.2), torch.rand(2, 3, 64, 64)
        assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.2}
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))

    def test_patch_size(self):
        model = MobileViT("xxs", patch_size=3).eval()
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 320, 2, 2)
        pair = MobileViT("xxs", patch_size=(3, 3)).eval()
        pair.load_state_dict(model.state_dict())
        x = torch.rand(1, 3, 96, 64)
        assert torch.equal(pair(x), model(x))

    def test_kornia_container(self):
        pipeline = ImageSequential(K.RandomHorizontalFlip(), K.ColorJitter(0.1, 0.1, 0.1, 0.1), MobileViT("xs"))
        y = pipeline(torch.rand(2, 3, 224, 160))
        assert y.shape == (2, 384, 7, 5)
        assert y.isfinite().all()
