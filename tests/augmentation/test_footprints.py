import kornia.augmentation as K
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit import AugmentationPipeline, Batch
from kornia_mvit.augmentation.crops import RandomScaledCrop, RandomZoomOut
from kornia_mvit.augmentation.footprints import count_samples, find_reach, spread_points


def crop(size: int, scale: float = 1.0) -> K.RandomResizedCrop:
    return K.RandomResizedCrop((size, size), scale=(scale, scale), ratio=(1.0, 1.0), p=1.0)


def build(*operations, antialias: bool = True, **options) -> AugmentationPipeline:
    return AugmentationPipeline(list(operations), antialias=antialias, **options).train()


def smooth_noise(count: int, size: int) -> Tensor:
    """Noise with as much of each frequency as photographs have, roughly."""
    torch.manual_seed(0)
    layers = [F.interpolate(torch.rand(count, 3, n, n), (size, size), mode="bilinear") for n in (4, 16, size)]
    return torch.stack(layers).mean(0)


class TestSpreadPoints:
    @pytest.mark.parametrize("count", [2, 4])
    def test_variance(self, count):
        """Of s^2 / 6 less 1/6 along each axis, about the point, as a triangle s times as wide less one has."""
        x, y = 3.0 * torch.arange(4)[None, None, :] + 0.5, 1.5 * torch.arange(5)[None, :, None] + 0.5
        points = spread_points(x, y, count)
        assert len(points) == count**2
        for values, centre, step in (
            (torch.stack(v), c, s) for v, c, s in zip(zip(*points, strict=True), (x, y), (3.0, 1.5), strict=True)
        ):
            torch.testing.assert_close(values.mean(0), centre)
            variance = torch.full_like(centre, (step**2 - 1) / 6)
            torch.testing.assert_close(values.var(0, correction=0), variance)

    def test_turned(self):
        """Steps of (1.5, 2) along rows are 2.5 long."""
        row, column = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
        x, y = (1.5 * column - 0.2 * row)[None], (2 * column + 0.1 * row)[None]
        xs, ys = (torch.stack(v) for v in zip(*spread_points(x, y, 2), strict=True))
        sigma = ((2.5**2 - 1) / 6) ** 0.5
        torch.testing.assert_close(xs.std(0, correction=0), torch.full_like(x, sigma * 1.5 / 2.5))
        torch.testing.assert_close(ys.std(0, correction=0), torch.full_like(y, sigma * 2.0 / 2.5))

    def test_torn(self):
        """At a tear the step that does not lead across counts, and what is nowhere is left there."""
        x = torch.tensor([[[0.5, 1.5, 50.5, 51.5, torch.nan]]]).expand(1, 2, 5)
        y = torch.tensor([[[0.5], [1.5]]]).expand(1, 2, 5)
        for at_x, at_y in spread_points(x, y, 2):
            torch.testing.assert_close(at_x, x, equal_nan=True)
            torch.testing.assert_close(at_y, y)

    def test_single_pixel(self):
        point = torch.tensor([[[7.0]]])
        assert all(torch.equal(v, point) for pair in spread_points(point, point, 2) for v in pair)


class TestFindReach:
    @pytest.mark.parametrize(
        ("module", "size", "reach"),
        [
            (K.RandomHorizontalFlip(), (96, 120), 1.0),
            (K.RandomCrop((32, 32)), (32, 32), 1.0),
            (K.RandomRotation(90.0), (96, 120), 1.0),
            (K.RandomResizedCrop((32, 30)), (32, 30), 4.0),
            (K.LongestMaxSize(60), (48, 60), 2.0),
            (K.RandomAffine(0.0), (96, 120), 1.0),
            (K.RandomAffine(0.0, scale=(0.4, 2.0)), (96, 120), 2.5),
            (K.RandomAffine(0.0, scale=(0.5, 2.0, 0.2, 1.0)), (96, 120), 5.0),
            (K.RandomPerspective(0.75), (96, 120), 4.0),
            (RandomZoomOut(3.0), (96, 120), 3.0),
            (RandomScaledCrop((32, 32), short_side=(24, 200)), (32, 32), 4.0),
        ],
    )
    def test_values(self, module, size, reach):
        assert find_reach(module, (96, 120), size) == pytest.approx(reach)
        assert count_samples(reach) == (2 if reach <= 2 else 4)


class TestAntialias:
    @pytest.mark.parametrize("degrees", [0.0, 30.0])
    @pytest.mark.parametrize("share", [0.75, 0.5, 0.33, 0.25])
    def test_on_a_canvas_that_stays(self, degrees, share):
        """White noise has the spread that an antialiased resize leaves it, as near as turning lets it."""
        torch.manual_seed(0)
        image = torch.rand(1, 3, 240, 240)
        expected = F.interpolate(image, scale_factor=share, mode="bilinear", antialias=True)[..., 4:-4, 4:-4].std()
        shrink = K.RandomAffine((degrees, degrees), scale=(share, share), p=1.0)
        out = build(shrink, ignore_index=0)(Batch(image, mask=torch.ones(1, 240, 240, dtype=torch.int64)), seed=0)
        inner = F.max_pool2d(1.0 - out.mask[:, None], 7, 1, 3)[0, 0] == 0
        assert inner.sum() > 400
        assert out.image[0, :, inner].std().item() == pytest.approx(expected.item(), rel=0.2)

    def test_alone_where_operations_are_composed(self):
        with pytest.raises(ValueError, match=r"fuse=False lets Kornia resample"):
            build(crop(32), fuse=False)

    @pytest.mark.parametrize(("given", "size", "within"), [(128, 100, 0.02), (128, 64, 0.03), (120, 40, 0.03)])
    def test_is_near_an_antialiased_resize(self, given, size, within):
        image = smooth_noise(4, given)
        expected = F.interpolate(image, (size, size), mode="bilinear", antialias=True)
        far, near = (
            (build(crop(size), antialias=antialias)(image, seed=0) - expected).square().mean().sqrt().item()
            for antialias in (False, True)
        )
        assert near < within
        assert near < far / 1.7

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
    def test_fine_stripes_become_grey(self, dtype):
        """Stripes one pixel wide, of which every third is at the centre of a pixel of the result."""
        stripes = (torch.arange(96) % 2).expand(1, 3, 96, 96)
        image = (stripes * 255).to(torch.uint8) if dtype == torch.uint8 else stripes.to(dtype)
        assert build(crop(32), antialias=False)(image, seed=0).std() > 0.25
        inner = build(crop(32))(image, seed=0)[..., 1:-1]
        assert (inner - 0.5).abs().max() < 0.05

    def test_both_paths_are_equal(self):
        """Aligned and general: a rotation by nothing has columns and rows mix."""
        image = torch.rand(3, 3, 96, 80)
        operations = [K.RandomResizedCrop((32, 32), scale=(0.5, 1.0), p=1.0), K.RandomHorizontalFlip(p=0.5)]
        aligned = build(*operations)(image, seed=3)
        general = build(*operations, K.RandomRotation((0.0, 0.0), p=1.0))(image, seed=3)
        torch.testing.assert_close(general, aligned, rtol=0, atol=1 / 255)

    def test_what_grows_is_as_ever(self):
        image = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
        for operations in ([crop(40, 0.3)], [crop(40, 0.3), K.RandomRotation(20.0, p=1.0)]):
            off, on = (build(*operations, antialias=antialias)(image, seed=1) for antialias in (False, True))
            torch.testing.assert_close(on, off, rtol=0, atol=1e-6)

    def test_each_image_by_itself(self):
        """A batch of more than a slice, of which some images shrink and some grow: none hangs on the others."""
        image = torch.rand(12, 3, 160, 160)
        pipeline = build(K.RandomResizedCrop((96, 96), scale=(0.1, 1.0), p=1.0), K.RandomAffine(20.0, p=0.5))
        out, params = pipeline.augment(Batch(image), seed=5)
        assert torch.equal(pipeline.replay(Batch(image), params).image, out.image)
        alone = pipeline.replay(Batch(torch.cat([image[:1], torch.zeros_like(image[1:])])), params).image
        torch.testing.assert_close(alone[0], out.image[0], rtol=0, atol=1e-6)

    def test_targets_are_as_ever(self):
        image, mask = torch.rand(2, 3, 96, 96), torch.randint(0, 5, (2, 96, 96))
        boxes, labels = torch.tensor([[[8.0, 8.0, 60.0, 70.0]]] * 2), torch.zeros(2, 1, dtype=torch.int64)
        batch = Batch(image, mask=mask, boxes=boxes, box_label=labels)
        operations = [crop(32, 0.8), K.RandomRotation(30.0, p=1.0)]
        off, on = (build(*operations, antialias=antialias)(batch, seed=2) for antialias in (False, True))
        assert torch.equal(off.mask, on.mask)
        assert torch.equal(off.boxes, on.boxes)
        assert not torch.equal(off.image, on.image)

    def test_reads_no_padding(self):
        """Beside dark images that do not fill their canvas all is white."""
        image = torch.ones(2, 3, 96, 96)
        image[:, :, :60, :48] = 0.25
        batch = Batch(image, size=torch.tensor([[60, 48]] * 2))
        for operations in ([K.Resize((32, 32))], [K.Resize((32, 32)), K.RandomRotation(30.0, p=1.0)]):
            assert build(*operations)(batch, seed=0).image.max() < 0.2501

    def test_is_off_by_default(self):
        image = torch.rand(2, 3, 96, 96)
        default = AugmentationPipeline([crop(32)]).train()
        assert torch.equal(default(image, seed=0), build(crop(32), antialias=False)(image, seed=0))
