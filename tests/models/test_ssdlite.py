import builtins
import copy
import io
import pickle

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim
from torchvision.ops import box_iou

from kornia_mvit import MobileViT, SSDLite, load_checkpoint
from kornia_mvit.models.mobilevit import VARIANTS, MobileViTConfig, Stage
from kornia_mvit.models.ssdlite import Detections
from kornia_mvit.ops.boxes import assign_targets, decode_boxes, encode_boxes
from kornia_mvit.ops.losses import multibox_loss
from kornia_mvit.testing.strategies import image_sizes
from tests.models.networks import DEEP, DETECTION, apple_detector, apple_image, count_parameters, randomize
from tests.ops.test_boxes import IDS, check_golden, truth
from tests.tester import BaseTester, GraphCounter

# of Apple's code with 80 outputs, as the paper rounds them: 1.8, 2.7 and 5.7 million
PARAMETERS = {"xxs": 1_747_080, "xs": 2_734_072, "s": 5_730_856}
CASES = pytest.mark.parametrize("case", DETECTION["cases"], ids=IDS)


def small(num_classes=4, **arguments):
    """A model with every kind of layer, in a hundredth of the time."""
    return SSDLite(DEEP, num_classes, **{"widths": (10, 8, 8, 8, 6, 5), **arguments})


@pytest.fixture(scope="module")
def golden():
    model = SSDLite("xxs").double()
    load_checkpoint(model, apple_detector())
    return model.eval()


def image_of(case):
    return torch.from_numpy(apple_image(case["seed"], case["shape"]))


class TestSSDLite(BaseTester):
    def test_smoke(self, device, dtype):
        model = small(backbone_dropout=0.1, drop_path=0.1).to(device, dtype)
        logits, deltas = model(torch.rand(2, 3, 64, 96, device=device, dtype=dtype))
        for output in (logits, deltas):
            assert (output.device.type, output.dtype) == (device.type, dtype)
        (logits.sum() + deltas.sum()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_classes": 1}, "num_classes 1 is not at least 2; count the background"),
            ({"widths": (8, 8, 8)}, r"widths \(8, 8, 8\) are not six numbers of at least 1"),
            ({"widths": (8, 8, 8, 8, 8, 0)}, "are not six numbers of at least 1"),
            ({"aspect_ratios": [(2,)]}, "are not six lists of positive numbers"),
            ({"aspect_ratios": [(0,)] * 6}, "are not six lists of positive numbers"),
            ({"scales": (0.9, 0.1)}, r"scales \(0.9, 0.1\) are not two numbers above 0, the smaller one first"),
            ({"mode": "l"}, "unknown mode 'l'; available: 'xxs', 'xs', 's'"),
            ({"mode": MobileViTConfig(4, 1, (Stage(4, 2), Stage(4, 2)), 4)}, "no stage of the backbone has stride 16"),
        ],
    )
    def test_exception(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            SSDLite(**{"mode": DEEP, **arguments})

    def test_exception_of_images(self):
        model = small()
        for image, message in (
            (torch.rand(3, 64, 64), "add the batch dimension"),
            (torch.rand(1, 4, 64, 64), "expected images of 3 channels"),
            (torch.rand(1, 3, 31, 64), "an image of 31x64 pixels is smaller than the network takes"),
            (torch.rand(1, 3, 64, 256), "cannot train on a batch of one image of 64x256 pixels"),
        ):
            with pytest.raises(ValueError, match=message):
                model(image)
        model(torch.rand(1, 3, 64, 257))[0].sum().backward()
        model.extras.eval()
        model.heads.eval()
        model(torch.rand(1, 3, 64, 256))[0].sum().backward()

    @pytest.mark.parametrize("size", [(64, 64), (75, 100), (32, 33), (33, 300)])
    def test_cardinality(self, size):
        model = small(5, in_channels=4, aspect_ratios=[(2,), (), (2, 3), (2,), (2,), (3,)])
        logits, deltas = model(torch.rand(2, 4, *size))
        count = len(model.anchors(size))
        assert logits.shape == (2, count, 5)
        assert deltas.shape == (2, count, 4)

    @pytest.mark.parametrize("mode", PARAMETERS)
    def test_parameters(self, mode):
        model = SSDLite(mode, 80)
        assert count_parameters(model) == PARAMETERS[mode]
        assert len(model.anchors((320, 320))) == 3232

    @CASES
    def test_feature(self, golden, case):
        """Apple's outputs, of the features to the boxes, with the golden weights read by their names."""
        image = image_of(case)
        with torch.no_grad():
            maps = golden.forward_features(image, golden.levels)
            for extra in golden.extras:
                maps.append(extra(maps[-1]))
            logits, deltas = golden(image)
        for values, expected in zip(maps, case["features"].values(), strict=True):
            check_golden(values, expected)
        check_golden(logits, case["confidences"])
        check_golden(deltas, case["locations"])
        size = tuple(image.shape[-2:])
        anchors = golden.anchors(size, dtype=torch.float64)
        check_golden(anchors[None], case["anchors"])
        check_golden(decode_boxes(deltas, anchors), case["boxes"])
        check_golden(logits.softmax(-1), case["scores"])

    @CASES
    def test_loss(self, golden, case):
        image = image_of(case)
        with torch.no_grad():
            logits, deltas = golden(image)
        anchors = golden.anchors(tuple(image.shape[-2:]), dtype=torch.float64)
        loss = multibox_loss(logits, deltas, *assign_targets(anchors, *truth(case)))
        for name, value in zip(("total_loss", "cls_loss", "reg_loss"), loss, strict=True):
            assert abs(value.item() - case["loss"][name]) < 1e-4

    def test_padding_beside_others(self, golden):
        """The loss of two images is Apple's of each, weighted by their positives, and padding is none."""
        boxes, classes = truth(DETECTION["cases"][0])
        more = torch.cat([boxes, torch.zeros(1, 9, 4)], 1), torch.cat([classes, torch.full((1, 9), -1)], 1)
        anchors = golden.anchors((64, 64), dtype=torch.float64)
        logits, deltas = golden(torch.rand(1, 3, 64, 64, dtype=torch.float64))
        one = multibox_loss(logits, deltas, *assign_targets(anchors, boxes, classes))
        two = multibox_loss(logits, deltas, *assign_targets(anchors, *more))
        assert torch.equal(one.total, two.total)

    def test_arguments_reach_the_backbone(self):
        model = SSDLite("xxs", 5, variant="kornia", patch_size=4, drop_path=0.1, backbone_dropout=0.2)
        assert isinstance(model.backbone, MobileViT)
        assert model.backbone.config == VARIANTS["kornia"]["xxs"]
        assert isinstance(model.backbone.head_conv, nn.Identity)
        assert model.backbone.stages[-1][-1].patch_size == (4, 4)
        assert model.backbone.stages[-1][-1].transformer[-1].drop_path.rate == pytest.approx(0.1)
        assert model.backbone.stages[-1][-1].transformer[-1].dropout.p == 0.2

    def test_reset_classifier(self):
        model = small().double().eval()
        before = copy.deepcopy(model.state_dict())
        model.reset_classifier(7)
        assert model.num_classes == 7
        logits, _ = model(torch.rand(2, 3, 64, 64).double())
        assert logits.shape[-1] == 7
        assert logits.dtype == torch.float64
        after = model.state_dict()
        changed = [name for name, value in before.items() if value.shape != after[name].shape]
        assert changed == [f"heads.{n}.classifier.{leaf}" for n in range(6) for leaf in ("weight", "bias")]
        assert all(torch.equal(value, after[name]) for name, value in before.items() if name not in changed)
        with pytest.raises(ValueError, match="num_classes 1"):
            model.reset_classifier(1)

    def test_initialisation(self):
        """Xavier's uniform rule in the heads; the last two layers by the widths of the one that they are with Apple."""

        def check(layer, fans):
            bound = (6 / fans) ** 0.5
            assert 0.97 * bound < layer.weight.abs().max() <= bound * (1 + 1e-6)
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
            assert layer.bias is None or not layer.bias.any()

        model = SSDLite("xxs")
        head = model.heads[0]
        check(head.project.conv, 64 + 512)
        check(head.depthwise.conv, 9 + 9 * 512)
        for layer in (head.box, head.classifier):
            check(layer, 512 + 6 * 85)
        check(model.heads[5].classifier, 64 + 4 * 85)
        model.reset_classifier(5)
        check(head.box, 512 + 6 * 85)
        check(head.classifier, 512 + 6 * 9)
        extra = model.extras[0].pointwise.conv.weight  # Kaiming's normal rule
        assert extra.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)

    def test_starts_near_guessing(self):
        """A first cross-entropy near that of equal odds."""
        model = SSDLite("xxs").eval()
        with torch.no_grad():
            logits, _ = model(torch.rand(2, 3, 320, 320))
        assert abs(logits.logsumexp(-1).mean() - logits.mean() - torch.tensor(81.0).log()) < 1

    def test_gradient_checkpointing(self):
        model = randomize(small())
        x, grads = torch.rand(2, 3, 64, 64), []
        for enabled in (False, True):
            model.zero_grad()
            model.set_gradient_checkpointing(enabled)
            sum(y.square().sum() for y in model(x)).backward()
            grads.append([p.grad.clone() for p in model.parameters()])
        for a, b in zip(*grads, strict=True):
            self.assert_close(a, b, rtol=1e-3, atol=1e-5)

    @pytest.mark.long
    def test_gradcheck(self):
        model = small(2, in_channels=1, widths=(4, 4, 4, 4, 4, 4), aspect_ratios=[()] * 6)
        joined = nn.Sequential(randomize(model).eval(), Join())
        self.gradcheck_module(joined, torch.rand(1, 1, 36, 32))

    def test_gradients_reach_every_parameter(self):
        model = randomize(small())
        logits, deltas = model(torch.rand(2, 3, 300, 270))
        ((logits * torch.randn_like(logits)).sum() + (deltas * torch.randn_like(deltas)).sum()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.count_nonzero() > 0, name

    @pytest.mark.long
    def test_dynamo(self):
        """One graph for all sizes above 256 px, below which some map has one place."""
        model = randomize(small()).eval()
        graphs = GraphCounter("eager")
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
        with torch.no_grad():
            for shape in ((2, 3, 320, 290), (3, 3, 300, 384), (2, 3, 257, 513)):
                x = torch.rand(shape)
                for ours, theirs in zip(compiled(x), model(x), strict=True):
                    self.assert_close(ours, theirs)
        assert graphs.count == 1

    @pytest.mark.parametrize(
        "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
    )
    def test_duplicates(self, duplicate):
        model, x = randomize(small()).eval(), torch.rand(1, 3, 64, 64)
        twin = duplicate(model)
        assert torch.equal(twin(x)[0], model(x)[0])
        nn.init.zeros_(twin.heads[0].classifier.weight)
        assert not torch.equal(twin(x)[0], model(x)[0])

    def test_state_dict(self):
        model, x = randomize(small()).eval(), torch.rand(1, 3, 64, 64)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other = small().eval()
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other(x)[1], model(x)[1])


class Join(nn.Module):
    def forward(self, outputs):
        return torch.cat(outputs, -1)


class Locate(nn.Module):
    """A network and what comes before the suppression of overlaps, as one graph."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.locate(*self.model(x), x.shape[-2:])


def planted(model, size, rows):
    """Raw outputs that say nothing but what is planted: for each row a box in pixels, its class from 0, its logit."""
    anchors = model.anchors(size)
    logits = torch.zeros(1, len(anchors), model.num_classes)
    logits[..., 0] = 20.0
    deltas = torch.zeros(1, len(anchors), 4)
    height, width = size
    for place, (box, label, logit) in enumerate(rows):
        logits[0, place, label + 1] = 20.0 + logit
        share = torch.tensor(box) / torch.tensor([width, height, width, height])
        deltas[0, place] = encode_boxes(share[None], anchors[place, None])[0]
    return logits, deltas


class TestLocate:
    @CASES
    def test_feature(self, golden, case):
        """Boxes in pixels, cut at the image's edge, and Apple's scores without the background."""
        image = image_of(case)
        height, width = image.shape[-2:]
        with torch.no_grad():
            logits, deltas = golden(image)
            boxes, scores = golden.locate(logits, deltas, (height, width))
        expected = decode_boxes(deltas, golden.anchors((height, width), dtype=torch.float64))
        sides = torch.tensor([width, height, width, height])
        torch.testing.assert_close(boxes, expected.clamp(0, 1) * sides)
        torch.testing.assert_close(scores, logits.softmax(-1)[..., 1:])
        assert (expected < 0).any(), "or nothing was cut"

    def test_extremes(self):
        """Half precision is computed in float32, and what overflows is the whole image."""
        model = small()
        logits, deltas = planted(model, (64, 96), [])
        deltas[0, 0] = 3e4
        boxes, scores = model.locate(logits.half(), deltas.half(), (64, 96))
        assert (boxes.dtype, scores.dtype) == (torch.float32, torch.float32)
        assert boxes.isfinite().all()


class TestDecode:
    def test_feature(self):
        """Overlaps of a class are one object, of two classes two; the surest first; what is unsure is none."""
        model = small()
        one, near, far = (10.0, 10.0, 40.0, 50.0), (12.0, 11.0, 41.0, 50.0), (60.0, 20.0, 90.0, 60.0)
        rows = [(one, 0, 1.0), (near, 0, 2.0), (near, 2, 0.5), (far, 0, 3.0), (one, 1, -8.0)]
        found = model.decode(*planted(model, (64, 96), rows), (64, 96))
        assert len(found) == 1
        assert isinstance(found[0], Detections)
        boxes, scores, labels = found[0]
        torch.testing.assert_close(boxes, torch.tensor([far, near, near]), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(scores, torch.tensor([3.0, 2.0, 0.5]).sigmoid(), rtol=1e-4, atol=1e-4)
        assert labels.tolist() == [0, 0, 2]

    def test_limits(self):
        model = small()
        rows = [((8.0 * n, 4.0, 8.0 * n + 6, 20.0), 0, 1.0 + n) for n in range(6)]
        outputs = planted(model, (64, 96), rows)
        count = lambda **limits: len(model.decode(*outputs, (64, 96), **limits)[0].scores)  # noqa: E731
        assert count() == 6
        assert count(max_detections=4) == 4
        assert count(top_k=3) == 3
        assert count(score_threshold=torch.tensor(3.5).sigmoid().item()) == 3
        assert count(score_threshold=1.0) == 0
        scores = model.decode(*outputs, (64, 96))[0].scores
        assert count(score_threshold=scores[3].item()) == 3  # exclusive
        best = model.decode(*outputs, (64, 96), max_detections=1)[0]
        torch.testing.assert_close(best.boxes, torch.tensor([rows[-1][0]]), rtol=1e-4, atol=1e-3)

    @given(size=image_sizes(max_side=320), seed=st.integers(0, 2**31))
    def test_properties(self, size, seed):
        """Within the image, surest first, no two of a class that overlap, each the box and score of an anchor."""
        model = small()
        generator = torch.Generator().manual_seed(seed)
        count = len(model.anchors(size))
        logits = torch.randn(2, count, 4, generator=generator) * 3
        deltas = torch.randn(2, count, 4, generator=generator)
        located = model.locate(logits, deltas, size)
        for b, (boxes, scores, labels) in enumerate(model.decode(logits, deltas, size, 0.3, 0.4, 50, 30)):
            assert len(boxes) == len(scores) == len(labels) <= 30
            assert boxes.min() >= 0
            assert (boxes[:, 2:].amax(0) <= torch.tensor([size[1], size[0]])).all()
            assert (scores > 0.3).all()
            assert (scores.diff() <= 0).all()
            overlap = box_iou(boxes, boxes).fill_diagonal_(0)
            assert (overlap[labels[:, None] == labels] <= 0.4 + 1e-6).all()
            for box, score, label in zip(boxes, scores, labels, strict=True):
                same = (located[1][b, :, label] == score) & (located[0][b] == box).all(-1)
                assert same.any()

    def test_exception(self):
        model = small()
        logits, deltas = planted(model, (64, 96), [])
        with pytest.raises(ValueError, match=r"320x320.*3232 anchors.*208"):
            model.decode(logits, deltas, (320, 320))

    def test_without_torchvision(self, monkeypatch):
        model = small()
        load = builtins.__import__

        def missing(name, *args):
            if name.startswith("torchvision"):
                raise ImportError(name)
            return load(name, *args)

        monkeypatch.setattr(builtins, "__import__", missing)
        with pytest.raises(ImportError, match=r"torchvision; install kornia-mvit\[train\]"):
            model.decode(*planted(model, (64, 96), []), (64, 96))


class TestExport:
    def test_static(self):
        model = randomize(small()).eval()
        x = torch.rand(1, 3, 320, 320)
        run = torch.export.export(model, (x,)).module()
        with torch.no_grad():
            for ours, theirs in zip(run(x), model(x), strict=True):
                BaseTester.assert_close(ours, theirs)

    @pytest.mark.long
    def test_dynamic(self):
        """With boxes and scores in the graph, for any batch and size above 256 px."""
        model = Locate(randomize(small())).eval()
        dynamic = {"x": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
        run = torch.export.export(model, (torch.rand(2, 3, 576, 640),), dynamic_shapes=dynamic).module()
        with torch.no_grad():
            for batch, *size in ((1, 320, 320), (2, 257, 400), (3, 300, 513), (1, 640, 264)):
                x = torch.rand(batch, 3, *size)
                for ours, theirs in zip(run(x), model(x), strict=True):
                    assert (ours - theirs).abs().max() < 1e-3, (batch, *size)


sizes = image_sizes(max_side=400)


@pytest.fixture(scope="module")
def trained():
    return randomize(small()).eval()


@given(size=sizes, batch=st.integers(1, 2))
@example((32, 32), 1)
@example((32, 512), 1)
@example((511, 33), 2)
def test_every_output_has_an_anchor(trained, size, batch):
    """Maps of whatever size have the anchors that go with them."""
    with torch.no_grad():
        logits, deltas = trained(torch.rand(batch, 3, *size))
    assert logits.shape == (batch, len(trained.anchors(size)), 4)
    assert deltas.shape == (batch, len(trained.anchors(size)), 4)
    boxes, _ = trained.locate(logits, deltas, size)
    assert boxes.isfinite().all()


@given(size=image_sizes())
@example((64, 64))
def test_outputs_do_not_depend_on_the_neighbours(trained, size):
    x = torch.rand(3, 3, *size)
    with torch.no_grad():
        for alone, together in zip(trained(x[:1]), trained(x), strict=True):
            assert (alone - together[:1]).abs().max() < 1e-5 * alone.abs().max().clamp_min(1)
