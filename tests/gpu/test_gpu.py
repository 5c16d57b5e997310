"""What a device computes beside what the CPU does: networks, losses, matching, the pipeline, test-time augmentation.

`make gpu` runs these on a GPU, and `pytest -m gpu` anywhere: the device is that of KORNIA_MVIT_DEVICE, or a GPU that is
there, or the CPU, against which only what runs differently by layout or precision can then fail.
"""

import copy
import os

import pytest
import torch
import torch.nn.functional as F
from torch.nn.modules.dropout import _DropoutNd

from kornia_mvit import (
    AugmentationPipeline,
    Batch,
    DeepLabV3,
    MobileViT,
    MobileViTClassifier,
    Preprocess,
    SSDLite,
    TestTimeAugmentation,
    fuse,
    optimize,
    policies,
)
from kornia_mvit.augmentation.mix import Mix
from kornia_mvit.ops.boxes import assign_targets, match_anchors
from kornia_mvit.ops.losses import multibox_loss, pixel_cross_entropy, pixel_dice, pixel_lovasz

pytestmark = pytest.mark.gpu

NAME = os.environ.get("KORNIA_MVIT_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
SIZE = (96, 128)
NETWORKS = {
    "backbone": lambda: MobileViT("xxs"),
    "classifier": lambda: MobileViTClassifier("xs", num_classes=7),
    "segmentation": lambda: DeepLabV3("xxs", num_classes=5),
    "segmentation, stride 8": lambda: DeepLabV3("xxs", num_classes=5, output_stride=8),
    "detection": lambda: SSDLite("xxs", num_classes=4),
}
POLICIES = {
    "classification_train": lambda: policies.classification_train(64, jitter=0.2),
    "classification_strong": lambda: policies.classification_strong(64),
    "segmentation_train": lambda: policies.segmentation_train(64, short_side=(60, 140), rotate=25.0, jitter=0.2),
    "detection_train": lambda: policies.detection_train(64),
}


@pytest.fixture(autouse=True)
def _exact():
    """Float32 is to be float32, and a step is to be done before the next test."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def there():
    return torch.device(NAME)


def build(name):
    """Return a network with statistics of its own, in eval mode, and images."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for value in (buffer for key, buffer in network.named_buffers() if key.endswith("running_var")):
        value.uniform_(0.5, 1.5)
    return network.eval(), torch.rand(2, 3, *SIZE)


def flat(out):
    """Return the tensors of a network's output as one vector on the CPU."""
    parts = out if isinstance(out, tuple) else (out,)
    return torch.cat([part.detach().float().cpu().flatten() for part in parts])


def close(found, expected, share):
    """Whether two vectors differ by at most a share of the largest value."""
    return bool((found - expected).abs().max() <= share * expected.abs().max())


def batch_of(device="cpu"):
    """Return images of a pattern with labels, boxes, masks and keypoints."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(4, 3, 6, 8, generator=generator) * 255
    corner = torch.rand(4, 5, 2, generator=generator) * torch.tensor([80.0, 50.0])
    sides = 15 + 30 * torch.rand(4, 5, 2, generator=generator)
    batch = Batch(
        F.interpolate(coarse, SIZE, mode="bilinear").to(torch.uint8),
        torch.arange(4),
        boxes=torch.cat([corner, corner + sides], -1),
        box_label=torch.randint(0, 3, (4, 5), generator=generator),
        mask=F.interpolate(torch.rand(4, 1, 6, 8, generator=generator) * 4, SIZE)[:, 0].long(),
        keypoints=corner + sides / 2,
        keypoint_visible=torch.ones(4, 5, dtype=torch.bool),
    )
    return batch.to(device)


class TestNetworks:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_outputs(self, name, there):
        network, images = build(name)
        with torch.no_grad():
            expected = flat(network(images))
            found = flat(network.to(there)(images.to(there)))
        assert close(found, expected, 1e-4)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_channels_last(self, name, there):
        network, images = build(name)
        with torch.no_grad():
            expected = flat(network(images))
            network = network.to(there, memory_format=torch.channels_last)
            found = flat(network(images.to(there, memory_format=torch.channels_last)))
        assert close(found, expected, 1e-4)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_mixed_precision(self, name, there):
        network, images = build(name)
        with torch.no_grad():
            expected = flat(network(images))
            with torch.autocast(there.type, torch.bfloat16):
                found = flat(network.to(there)(images.to(there)))
        assert torch.isfinite(found).all()
        assert close(found, expected, 0.1)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_gradients(self, name, there):
        network, images = build(name)
        other = copy.deepcopy(network).to(there)
        flat_loss(network.train(), images).backward()
        flat_loss(other.train(), images.to(there)).backward()
        largest = max(float(value.grad.abs().max()) for value in network.parameters() if value.grad is not None)
        for (key, mine), theirs in zip(network.named_parameters(), other.parameters(), strict=True):
            if mine.grad is not None:
                difference = float((theirs.grad.cpu() - mine.grad).abs().max())
                assert difference <= 2e-3 * max(largest, float(mine.grad.abs().max())), key

    @pytest.mark.parametrize("name", NETWORKS)
    def test_fused(self, name, there):
        network, images = build(name)
        with torch.no_grad():
            expected = flat(network(images))
            found = flat(fuse(network.to(there))(images.to(there)))
        assert close(found, expected, 2e-4)

    def test_optimized(self, there):
        network, images = build("classifier")
        with torch.no_grad():
            expected = flat(network(images))
            mode = "eager" if there.type == "cpu" else "auto"
            found = flat(optimize(network.to(there), images.to(there), engine=mode)(images.to(there)))
        assert close(found, expected, 2e-4)


def flat_loss(network, images):
    """Return a scalar of all outputs, without the randomness of dropout."""
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.eval()
    out = network(images)
    return sum(part.float().square().mean() for part in (out if isinstance(out, tuple) else (out,)))


class TestLosses:
    @pytest.mark.parametrize("loss", [pixel_cross_entropy, pixel_dice, pixel_lovasz])
    def test_pixels(self, loss, there):
        logits = torch.randn(2, 4, 20, 24)
        target = torch.randint(0, 4, (2, 20, 24))
        target[:, :5] = 255
        self.compare(lambda x: loss(x, target.to(x.device)), logits, there)

    def test_boxes(self, there):
        detector = SSDLite("xxs", num_classes=4)
        anchors = detector.anchors(SIZE)
        batch = batch_of()
        boxes = batch.boxes / torch.tensor([SIZE[1], SIZE[0]] * 2)
        deltas = torch.randn(4, len(anchors), 4)

        def loss(logits):
            place = logits.device
            targets = assign_targets(anchors.to(place), boxes.to(place), batch.box_label.to(place) + 1)
            return multibox_loss(logits, deltas.to(place), *targets).total

        self.compare(loss, torch.randn(4, len(anchors), 4), there)

    def test_matching(self, there):
        anchors = SSDLite("xxs", num_classes=4).anchors(SIZE)
        boxes, labels = batch_of().boxes / torch.tensor([SIZE[1], SIZE[0]] * 2), batch_of().box_label + 1
        expected = match_anchors(anchors, boxes, labels)
        found = match_anchors(anchors.to(there), boxes.to(there), labels.to(there))
        assert torch.equal(found.labels.cpu(), expected.labels)
        assert torch.equal(found.box.cpu(), expected.box)

    @staticmethod
    def compare(loss, logits, there):
        mine, theirs = (logits.detach().clone().to(place).requires_grad_() for place in ("cpu", there))
        expected, found = loss(mine), loss(theirs)
        expected.backward()
        found.backward()
        assert found.item() == pytest.approx(expected.item(), rel=1e-4)
        assert close(theirs.grad.cpu(), mine.grad, 1e-4)


class TestPipeline:
    """One seed gives one augmentation, wherever it is applied."""

    @pytest.fixture(params=POLICIES)
    def pipeline(self, request):
        return AugmentationPipeline(POLICIES[request.param](), preprocess=Preprocess((64, 64), mean=(0.4,) * 3))

    @pytest.mark.parametrize("seed", range(3))
    def test_augment(self, pipeline, seed, there):
        expected, params = pipeline.augment(batch_of(), seed=seed)
        found, same = copy.deepcopy(pipeline).to(there).augment(batch_of(there), seed=seed)
        self.compare(found, expected)
        again = copy.deepcopy(pipeline).to(there).replay(batch_of(there), same)
        assert torch.equal(again.image, found.image)
        maps = torch.rand(4, 2, 16, 16)
        there_maps, there_seen = pipeline.inverse(maps.to(there), same)
        here_maps, here_seen = pipeline.inverse(maps, params)
        both = here_seen & there_seen.cpu()
        assert float((here_seen != there_seen.cpu()).float().mean()) < 1e-2
        assert float(((there_maps.cpu() - here_maps).abs() * both).quantile(0.99)) < 1e-3

    def test_compiled(self, there):
        """As one graph, without the compiler that makes kernels of it."""
        pipeline = AugmentationPipeline(POLICIES["detection_train"](), preprocess=Preprocess((64, 64)))
        compiled = torch.compile(copy.deepcopy(pipeline).to(there), backend="aot_eager")
        for seed in range(3):
            self.compare(compiled(batch_of(there), seed=seed), pipeline(batch_of(), seed=seed))

    def test_prepare(self, pipeline, there):
        expected, _ = pipeline.prepare(batch_of())
        found, _ = copy.deepcopy(pipeline).to(there).prepare(batch_of(there))
        self.compare(found, expected)

    def test_mix(self, there):
        pipeline = AugmentationPipeline(
            policies.classification_train(64), mix=Mix(5), preprocess=Preprocess((64, 64), mean=(0.4,) * 3)
        )
        batch = Batch(batch_of().image, batch_of().label)
        expected, _ = pipeline.augment(batch, seed=1)
        found, _ = copy.deepcopy(pipeline).to(there).augment(batch.to(there), seed=1)
        assert close(found.label.cpu(), expected.label, 1e-5)
        assert float((found.image.cpu() - expected.image).abs().quantile(0.99)) < 0.02

    @staticmethod
    def compare(found, expected):
        """Pixels at an edge may fall to either side, and operations on whole values by one of 255."""
        assert found.image.shape == expected.image.shape
        differences = (found.image.cpu() - expected.image).abs().flatten()
        assert float(differences[:: max(1, len(differences) // 100_000)].quantile(0.98)) < 0.02
        assert torch.equal(found.box_label.cpu(), expected.box_label)
        assert torch.allclose(found.boxes.cpu(), expected.boxes, atol=1e-2)
        assert float((found.mask.cpu() != expected.mask).float().mean()) < 1e-2
        assert torch.allclose(found.keypoints.cpu(), expected.keypoints, atol=1e-2)


class TestLooks:
    @pytest.mark.parametrize("name", ["classifier", "segmentation"])
    def test_augmentation_at_test_time(self, name, there):
        network, images = build(name)
        with torch.no_grad():
            expected = flat(TestTimeAugmentation(network, "flip+scale")(images))
            found = flat(TestTimeAugmentation(network.to(there), "flip+scale")(images.to(there)))
        assert close(found, expected, 1e-3)

    def test_decode(self, there):
        network, images = build("detection")
        with torch.no_grad():
            logits, deltas = network(images)
            (expected, _), (found, _) = (
                network.decode(logits.to(place), deltas.to(place), SIZE, max_detections=20) for place in ("cpu", there)
            )
        assert torch.allclose(found.boxes.cpu(), expected.boxes, atol=1e-2)
        assert torch.equal(found.labels.cpu(), expected.labels)
