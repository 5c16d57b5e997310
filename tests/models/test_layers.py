import pytest
import torch
from torch import nn

from kornia_mvit.models.layers import ConvNormAct, DropPath, SeparableConv, init_weights, recompute
from tests.tester import BaseTester, GraphCounter


class TestConvNormAct(BaseTester):
    def test_smoke(self, device, dtype):
        y = ConvNormAct(3, 8).to(device, dtype)(torch.rand(2, 3, 9, 7, device=device, dtype=dtype))
        assert (y.device.type, y.dtype) == (device.type, dtype)
        assert y.isfinite().all()

    def test_exception(self):
        with pytest.raises(RuntimeError, match="channels"):
            ConvNormAct(3, 8)(torch.rand(1, 4, 8, 8))

    @pytest.mark.parametrize("kernel_size", [1, 3, 5])
    @pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
    def test_cardinality(self, kernel_size, stride, dilation):
        y = ConvNormAct(4, 6, kernel_size, stride, dilation=dilation, groups=2)(torch.rand(2, 4, 11, 8))
        assert y.shape == (2, 6, -(-11 // stride), -(-8 // stride))

    def test_feature(self):
        layer = ConvNormAct(1, 1, 3).eval()
        nn.init.ones_(layer.conv.weight)
        layer.norm.running_mean.fill_(1.0)
        layer.norm.running_var.fill_(4.0 - layer.norm.eps)
        x = torch.ones(1, 1, 3, 3)
        # nine, six or four ones under the kernel, less the mean 1, over the deviation 2, through x * sigmoid(x)
        sums = torch.tensor([[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]])[None, None]
        z = (sums - 1) / 2
        self.assert_close(layer(x), z / (1 + (-z).exp()))

    @pytest.mark.parametrize("act", [nn.SiLU, None])
    def test_inference_without_gradients(self, act):
        """Where the normalisation is folded into the weights, with variances as small as what is added to them."""
        layer = ConvNormAct(3, 8, stride=2, act=act).double().eval()
        for values, low, high in (
            (layer.norm.weight, 0.5, 1.5),
            (layer.norm.bias, -2, 2),
            (layer.norm.running_mean, -2, 2),
            (layer.norm.running_var, 1e-6, 1e-4),
        ):
            nn.init.uniform_(values, low, high)
        x = torch.rand(2, 3, 9, 7, dtype=torch.float64)
        with torch.no_grad():
            folded = layer(x)
        self.assert_close(folded, layer(x), rtol=1e-9, atol=1e-9)

    def test_without_norm_and_act_it_is_a_bare_convolution(self):
        layer = ConvNormAct(3, 4, 1, norm=False, act=None)
        assert [name for name, _ in layer.named_parameters()] == ["conv.weight"]
        x = torch.rand(1, 3, 5, 5)
        self.assert_close(layer(x), torch.einsum("oi,bihw->bohw", layer.conv.weight[:, :, 0, 0], x))

    def test_gradcheck(self):
        self.gradcheck_module(ConvNormAct(2, 3, stride=2), torch.rand(2, 2, 5, 4))

    def test_dynamo(self):
        layer, x = ConvNormAct(3, 8).eval(), torch.rand(2, 3, 9, 7)
        self.assert_close(torch.compile(layer, fullgraph=True, backend=GraphCounter())(x), layer(x))


class TestDropPath(BaseTester):
    def test_smoke(self, device, dtype):
        y = DropPath(0.5)(torch.ones(8, 2, 3, device=device, dtype=dtype))
        assert (y.device.type, y.dtype) == (device.type, dtype)

    @pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
    def test_exception(self, rate):
        with pytest.raises(ValueError, match=rf"drop path rate {rate}.*\[0, 1\)"):
            DropPath(rate)

    @pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2, 5)])
    def test_cardinality(self, shape):
        assert DropPath(0.5)(torch.ones(shape)).shape == shape

    def test_feature(self):
        y = DropPath(0.25)(torch.ones(4000, 2, 3))
        kept = y[:, 0, 0] != 0
        assert torch.equal(y, (kept / 0.75)[:, None, None].expand_as(y))  # whole samples, scaled to keep the mean
        assert abs(kept.float().mean().item() - 0.75) < 0.03  # more than four standard deviations

    def test_leaves_the_input_alone(self):
        x = torch.rand(2, 3)
        assert DropPath(0.5).eval()(x) is x
        assert DropPath(0.0).train()(x) is x

    def test_gradcheck(self):
        layer = DropPath(0.5)

        def draw_same(x):
            torch.manual_seed(1)
            return layer(x)

        self.gradcheck(draw_same, [torch.rand(6, 3)])

    def test_dynamo(self):
        layer, x = DropPath(0.5), torch.ones(64, 3)
        y = torch.compile(layer, fullgraph=True, backend=GraphCounter())(x)
        assert set(y.unique().tolist()) == {0.0, 2.0}

    def test_repr(self):
        assert repr(DropPath(0.1)) == "DropPath(rate=0.1)"


class TestInitWeights:
    def test_feature(self):
        """Standard deviations of Kaiming's rule over the fan-out, and 0.02 cut at two of itself for linear layers."""
        conv, linear = nn.Conv2d(32, 64, 3), nn.Linear(300, 200)
        nn.Sequential(conv, linear).apply(init_weights)
        assert abs(conv.weight.std().item() / (2 / (64 * 9)) ** 0.5 - 1) < 0.03
        assert abs(linear.weight.std().item() / 0.02 - 1) < 0.03
        assert conv.bias.count_nonzero() == 0
        assert linear.bias.count_nonzero() == 0

    def test_leaves_norms_alone(self):
        norm = nn.Sequential(nn.BatchNorm2d(4), nn.LayerNorm(4)).apply(init_weights)
        assert [p.tolist() for p in norm.parameters()] == [[1.0] * 4, [0.0] * 4] * 2


class TestSeparableConv:
    @pytest.mark.parametrize("stride", [1, 2])
    def test_feature(self, stride):
        """A linear 3x3 of each channel, then a 1x1, normalised both, and ReLU at the end alone."""
        layer = SeparableConv(4, 6, stride).eval()
        x = torch.randn(2, 4, 5, 7)
        depthwise, pointwise = layer.depthwise, layer.pointwise
        y = depthwise.norm(nn.functional.conv2d(x, depthwise.conv.weight, stride=stride, padding=1, groups=4))
        assert (y < 0).any()
        y = pointwise.norm(nn.functional.conv2d(y, pointwise.conv.weight)).relu()
        torch.testing.assert_close(layer(x), y)
        assert layer(x).shape == (2, 6, -(-5 // stride), -(-7 // stride))
        assert not any("bias" in name for name, _ in layer.named_parameters() if "conv" in name.split("."))

    def test_act(self):
        x = torch.randn(2, 4, 5, 7)
        assert (SeparableConv(4, 6, act=None)(x) < 0).any()
        assert (SeparableConv(4, 6)(x) >= 0).all()


class TestRecompute:
    @pytest.mark.parametrize("training", [False, True])
    def test_feature(self, training):
        """Outputs, gradients and statistics of a plain run."""
        runs = []
        for run in (lambda module, x: module(x), recompute):
            torch.manual_seed(0)
            module = nn.Sequential(ConvNormAct(3, 8), nn.Dropout(0.5), nn.SyncBatchNorm(8).eval(), nn.BatchNorm2d(8))
            module[0].train(training)
            x = torch.rand(2, 3, 5, 4, requires_grad=True)
            y = run(module, x)
            y.square().sum().backward()
            runs.append([y.detach(), x.grad, *(p.grad for p in module.parameters()), *module.buffers()])
            assert module[0].norm.momentum == 0.1
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))

    def test_dynamo(self):
        module, x = ConvNormAct(3, 8), torch.rand(2, 3, 5, 4)
        compiled = torch.compile(lambda x: recompute(module, x), fullgraph=True, backend=GraphCounter())
        compiled(x).sum().backward()
        assert module.norm.num_batches_tracked == 1
        assert module.conv.weight.grad is not None
