import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim

from kornia_mvit import DeepLabV3, MobileViT, load_checkpoint
from kornia_mvit.models.deeplabv3 import ASPP
from kornia_mvit.models.mobilevit import VARIANTS, MobileViTConfig, Stage
from kornia_mvit.testing.strategies import image_sizes
from tests.models.networks import DEEP, TINY, count_parameters, randomize
from tests.models.test_mobilevit_compile import SIZES, run_all_sizes
from tests.tester import BaseTester, GraphCounter
from tests.weights.peers import randomise, transformers_segmentation

# counted on transformers' MobileViTForSemanticSegmentation with 21 classes
PARAMETERS = {"xxs": 1_854_853, "xs": 2_944_069, "s": 6_357_941}


def small(num_classes=3, **arguments):
    """A model with every kind of layer and stages as deep as the published ones, in a hundredth of the time."""
    return DeepLabV3(DEEP, num_classes, **{"aspp_channels": 6, "head_dropout": 0.0, **arguments})


@pytest.fixture
def flush_denormal():
    """Random weights of transformers' class run into denormals, which a CPU is slow at."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


class TestDeepLabV3(BaseTester):
    def test_smoke(self, device, dtype):
        model = small(backbone_dropout=0.1, head_dropout=0.1, drop_path=0.1, aux_channels=5).to(device, dtype)
        outputs = model.forward_with_aux(torch.rand(2, 3, 64, 96, device=device, dtype=dtype))
        for logits in outputs:
            assert (logits.device.type, logits.dtype) == (device.type, dtype)
            assert logits.shape == (2, 3, 64, 96)
        sum(logits.sum() for logits in outputs).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_classes": 0}, "num_classes 0 is not at least 1; count the background"),
            ({"aspp_channels": 0}, "aspp_channels 0 is not at least 1"),
            ({"aux_channels": -1}, "aux_channels -1 is not at least 0"),
            ({"rates": ()}, r"rates \(\) are not one or more dilations of at least 1"),
            ({"rates": (6, 0)}, r"rates \(6, 0\) are not one or more dilations"),
            ({"output_stride": 4}, "output stride 4 is not available; give 8, 16 or 32"),
            ({"mode": "l"}, "unknown mode 'l'; available: 'xxs', 'xs', 's'"),
            ({"mode": MobileViTConfig(4, 1, (Stage(4),), 4), "aux_channels": 4}, "this backbone has one stage"),
        ],
    )
    def test_exception(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            DeepLabV3(**{"mode": DEEP, **arguments})

    def test_exception_of_images(self):
        model = small()
        for image, message in (
            (torch.rand(3, 64, 64), "add the batch dimension"),
            (torch.rand(1, 4, 64, 64), "expected images of 3 channels"),
            (torch.rand(1, 3, 31, 64), "an image of 31x64 pixels is smaller than the network takes"),
        ):
            with pytest.raises(ValueError, match=message):
                model(image)
        with pytest.raises(ValueError, match=r"auxiliary head.*aux_channels"):
            model.forward_with_aux(torch.rand(2, 3, 64, 64))

    def test_one_image_cannot_be_trained_on(self):
        """Unless the statistics of the pooled map are kept, or the batch is spread over devices."""
        model, image = small(), torch.rand(1, 3, 64, 64)
        with pytest.raises(ValueError, match=r"one image.* model\.head\.aspp\.pool\.eval\(\)"):
            model(image)
        model.head.aspp.pool.eval()
        model(image).sum().backward()
        assert model.head.aspp.pool.conv.weight.grad.isfinite().all()
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(small())
        with pytest.raises(ValueError) as error:  # PyTorch's own, of a tensor on the CPU
            synchronised(image)
        assert "batch of one" not in str(error.value)

    @pytest.mark.parametrize("size", [(64, 64), (75, 100), (32, 33), (33, 200)])
    @pytest.mark.parametrize("output_stride", [8, 16, 32])
    def test_cardinality(self, size, output_stride):
        model = small(5, output_stride=output_stride, in_channels=4, aux_channels=3)
        x = torch.rand(2, 4, *size)
        assert model(x).shape == (2, 5, *size)
        assert [y.shape for y in model.forward_with_aux(x)] == [(2, 5, *size)] * 2
        low = model.head(model.backbone(x))
        assert low.shape == (2, 5, *(-(-side // output_stride) for side in size))

    @pytest.mark.parametrize("mode", PARAMETERS)
    def test_parameters(self, mode):
        assert count_parameters(DeepLabV3(mode)) == PARAMETERS[mode]

    @pytest.mark.usefixtures("flush_denormal")
    @pytest.mark.parametrize("mode", PARAMETERS)
    def test_feature(self, mode):
        """The logits of transformers' class with the same weights, at its own size and upsampled."""
        peer = randomise(transformers_segmentation(mode, 21))
        model = DeepLabV3(mode, pad=False).eval()
        load_checkpoint(model, peer.state_dict())
        for size in ((256, 256), (320, 192), (97, 130)):
            x = torch.rand(1, 3, *size)
            with torch.no_grad():
                logits, low = model(x), peer(x).logits
                assert (model.head(model.backbone(x)) - low).abs().max() < 1e-5 * low.abs().max()
            expected = F.interpolate(low, size, mode="bilinear", align_corners=False)
            assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()

    def test_align_corners(self):
        model = randomize(small(align_corners=True)).eval()
        x = torch.rand(1, 3, 64, 96)
        low = model.head(model.backbone(x))
        logits = model(x)
        self.assert_close(logits, F.interpolate(low, (64, 96), mode="bilinear", align_corners=True))
        self.assert_close(logits[..., ::63, ::95], low[..., ::3, ::5])  # the corners are the corners
        model.align_corners = False
        assert not torch.allclose(model(x), logits)

    @pytest.mark.parametrize(("output_stride", "rates"), [(8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))])
    def test_rates_reach_equally_far(self, output_stride, rates):
        model = small(output_stride=output_stride)
        assert model.rates == rates
        assert [conv.conv.dilation for conv in model.head.aspp.atrous] == [(rate, rate) for rate in rates]
        assert small(rates=(2, 5)).rates == (2, 5)

    def test_arguments_reach_the_backbone(self):
        model = DeepLabV3("xxs", 5, variant="kornia", patch_size=4, drop_path=0.1, backbone_dropout=0.2)
        assert isinstance(model.backbone, MobileViT)
        assert model.backbone.config == VARIANTS["kornia"]["xxs"]
        assert isinstance(model.backbone.head_conv, nn.Identity)
        assert model.backbone.stages[-1][-1].patch_size == (4, 4)
        assert model.backbone.stages[-1][-1].transformer[-1].drop_path.rate == pytest.approx(0.1)
        assert model.backbone.stages[-1][-1].transformer[-1].dropout.p == 0.2
        assert (model.head.aspp.dropout.p, model.head.dropout.p) == (0.1, 0.1)

    def test_auxiliary_head(self):
        """It looks at the last stage but one, and changes nothing in the logits."""
        model = randomize(small(aux_channels=5)).eval()
        x = torch.rand(2, 3, 64, 96)
        logits, aux = model.forward_with_aux(x)
        assert torch.equal(logits, model(x))
        fourth = model.forward_features(x, (-2,))[0]
        self.assert_close(aux, F.interpolate(model.aux_head(fourth), (64, 96), mode="bilinear"))

    def test_reset_classifier(self):
        model = small(aux_channels=5).double()
        before = copy.deepcopy(model.state_dict())
        model.reset_classifier(7)
        assert model.num_classes == 7
        x = torch.rand(2, 3, 64, 64).double()
        assert [y.shape for y in model.forward_with_aux(x)] == [(2, 7, 64, 64)] * 2
        changed = [name for name, value in before.items() if value.shape != model.state_dict()[name].shape]
        assert changed == [f"{head}.classifier.{leaf}" for head in ("head", "aux_head") for leaf in ("weight", "bias")]
        with pytest.raises(ValueError, match="num_classes 0"):
            model.reset_classifier(0)

    def test_starts_undecided(self):
        """Whatever the images: a first loss near that of guessing, of either head."""
        model = DeepLabV3("xxs", aux_channels=64)
        with torch.no_grad():
            for logits in model.forward_with_aux(torch.rand(2, 3, 96, 96)):
                assert logits.std() < 0.6

    def test_gradient_checkpointing(self):
        model = randomize(small(aux_channels=4))
        x, grads = torch.rand(2, 3, 64, 64), []
        for enabled in (False, True):
            model.zero_grad()
            model.set_gradient_checkpointing(enabled)
            sum(y.square().sum() for y in model.forward_with_aux(x)).backward()
            grads.append([p.grad.clone() for p in model.parameters()])
        for a, b in zip(*grads, strict=True):
            self.assert_close(a, b, rtol=1e-3, atol=1e-5)

    def test_gradcheck(self):
        model = DeepLabV3(TINY, 2, aspp_channels=3, in_channels=1, rates=(1, 2))
        self.gradcheck_module(randomize(model).eval(), torch.rand(2, 1, 36, 32))

    def test_gradients_reach_every_parameter(self):
        model = randomize(small(aux_channels=4))
        logits, aux = model.forward_with_aux(torch.rand(2, 3, 100, 130))
        ((logits * torch.randn_like(logits)).sum() + (aux * torch.randn_like(aux)).sum()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.count_nonzero() > 0, name

    @pytest.mark.long
    def test_dynamo(self):
        """One graph for all image sizes, as for the backbone."""
        model = randomize(small()).eval()
        assert run_all_sizes(model, (2, 64, 130), GraphCounter("eager")) == 1

    @pytest.mark.parametrize(
        "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
    )
    def test_duplicates(self, duplicate):
        model, x = randomize(small(aux_channels=4)).eval(), torch.rand(1, 3, 64, 64)
        twin = duplicate(model)
        assert torch.equal(twin(x), model(x))
        nn.init.zeros_(twin.head.classifier.weight)
        assert not torch.equal(twin(x), model(x))

    def test_state_dict(self):
        model, x = randomize(small(aux_channels=4)).eval(), torch.rand(1, 3, 64, 64)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other = small(aux_channels=4).eval()
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other(x), model(x))


class TestASPP:
    def test_pooled_branch(self):
        """The mean of the map in every place, as bilinear interpolation of a single value gives it."""
        aspp = randomize(ASPP(4, 3, (1, 2), 0.0)).eval()
        x = torch.rand(2, 4, 5, 7)
        pooled = aspp.pool(x)
        single = F.conv2d(x.mean((2, 3), keepdim=True), aspp.pool.conv.weight)
        expected = F.interpolate(F.relu(aspp.pool.norm(single)), (5, 7), mode="bilinear", align_corners=False)
        BaseTester.assert_close(pooled, expected)

    def test_order_of_branches(self):
        """The projection sees the point, the rates in their order, and the pooled map."""
        aspp = randomize(ASPP(4, 3, (1, 2), 0.0)).eval()
        x = torch.rand(2, 4, 5, 7)
        views = torch.cat((aspp.point(x), aspp.atrous[0](x), aspp.atrous[1](x), aspp.pool(x)), 1)
        BaseTester.assert_close(aspp(x), aspp.project(views))
        assert views.min() == 0, "ReLU, not SiLU"


class TestCompile:
    @pytest.mark.long
    def test_training(self):
        """Gradients and batch statistics; to look whether the batch is of one image breaks nothing."""
        model = randomize(small(aux_channels=4)).double()
        eager = copy.deepcopy(model)
        graphs = GraphCounter("aot_eager")
        compiled = torch.compile(model.forward_with_aux, fullgraph=True, dynamic=True, backend=graphs)
        for shape in ((2, 3, 64, 130), (4, 3, 75, 100)):
            x = torch.rand(shape).double()
            for function in (eager.forward_with_aux, compiled):
                torch.manual_seed(1)
                y = torch.stack(function(x))
                (y * torch.randn_like(y)).sum().backward()
        for ours, theirs in zip(model.parameters(), eager.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)
            if ours.grad is not None:
                BaseTester.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10)
        for ours, theirs in zip(model.buffers(), eager.buffers(), strict=True):
            BaseTester.assert_close(ours, theirs)
        assert graphs.count == 1

    @pytest.mark.long
    def test_square_first(self):
        model = randomize(small()).eval()
        assert run_all_sizes(model, (2, 64, 64), GraphCounter("eager")) <= 2

    @pytest.mark.long
    def test_inductor_for_all_sizes(self):
        model = randomize(small()).eval()
        assert run_all_sizes(model, (2, 64, 130), GraphCounter("inductor")) == 1


class TestExport:
    @pytest.mark.long
    @pytest.mark.parametrize("output_stride", [16, 8])
    def test_dynamic(self, output_stride):
        model = randomize(small(output_stride=output_stride, align_corners=True)).eval()
        dynamic = {"x": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
        run = torch.export.export(model, (torch.rand(2, 3, 96, 128),), dynamic_shapes=dynamic).module()
        with torch.no_grad():
            for batch, *size in [*SIZES, (1, 64, 64), (1, 100, 130), (2, 33, 47)]:
                x = torch.rand(batch, 3, *size)
                assert (run(x) - model(x)).abs().max() < 1e-5, (batch, *size)


sizes = image_sizes(max_side=512)


@pytest.fixture(scope="module")
def trained():
    """A small published size whose statistics and weights differ, so that nothing cancels."""
    return randomize(DeepLabV3("xxs", 3, aspp_channels=8)).eval()


@given(size=sizes, batch=st.integers(1, 2))
@example((32, 32), 1)
@example((32, 512), 1)
@example((511, 33), 2)
def test_output_has_the_size_of_the_input(trained, size, batch):
    with torch.no_grad():
        y = trained(torch.rand(batch, 3, *size))
    assert y.shape == (batch, 3, *size)
    assert y.isfinite().all()


@given(size=image_sizes())
@example((64, 64))
def test_logits_do_not_depend_on_the_neighbours(trained, size):
    x = torch.rand(3, 3, *size)
    with torch.no_grad():
        alone, together = trained(x[:1]), trained(x)[:1]
    assert (alone - together).abs().max() < 1e-5 * alone.abs().max().clamp_min(1)
