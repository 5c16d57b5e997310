"""What lies exactly on an edge or a bound, and geometry of a single pixel."""

import kornia.augmentation as K
import pytest
import torch

from kornia_mvit import AugmentationPipeline, Batch, Preprocess
from kornia_mvit.augmentation.crops import RandomIoUCrop, RandomScaledCrop, RandomZoomOut
from kornia_mvit.ops.geometry import EDGE_TOLERANCE

# Each shows whole images of H x W pixels.
WHOLE = {
    "horizontal flip": lambda h, w: K.RandomHorizontalFlip(p=1.0),
    "vertical flip": lambda h, w: K.RandomVerticalFlip(p=1.0),
    "half turn": lambda h, w: K.RandomRotation90((2, 2), p=1.0),
    "quarter turn": lambda h, w: K.RandomRotation90((3, 3), p=1.0),
    "rotation": lambda h, w: K.RandomRotation((180.0, 180.0), p=1.0),
    "affine": lambda h, w: K.RandomAffine((180.0, 180.0), p=1.0),
    "shear": lambda h, w: K.RandomShear((0.0, 0.0), p=1.0),
    "translation": lambda h, w: K.RandomTranslate((0.0, 0.0), (0.0, 0.0), p=1.0),
    "perspective": lambda h, w: K.RandomPerspective(0.0, p=1.0),
    "resize": lambda h, w: K.Resize((57, 93), align_corners=False),
    "larger": lambda h, w: K.Resize((500, 700), align_corners=False),
    "smaller, corners aligned": lambda h, w: K.Resize((57, 93)),
    "longest side": lambda h, w: K.LongestMaxSize(77, align_corners=False),
    "shortest side": lambda h, w: K.SmallestMaxSize(77, align_corners=False),
    "resized crop": lambda h, w: K.RandomResizedCrop((48, 48), (1.0, 1.0), (w / h, w / h), align_corners=False),
    "crop": lambda h, w: K.RandomCrop((h, w)),
    "crop by warping": lambda h, w: K.RandomCrop((h, w), cropping_mode="resample"),
    "centre crop": lambda h, w: K.CenterCrop((h, w), cropping_mode="resample"),
    "padded crop": lambda h, w: K.RandomCrop((h + 9, w + 9), padding=9),
    "pad": lambda h, w: K.PadTo((h + 7, w + 9)),
    "zoom out": lambda h, w: RandomZoomOut(3.0, p=1.0),
    "crop by overlap": lambda h, w: RandomIoUCrop((41, 43), overlaps=(None,)),
    "scaled crop": lambda h, w: RandomScaledCrop((h, h), short_side=(h, h)),
}


def boxed(height: int, width: int, *, view: tuple[int, int] | None = None) -> Batch:
    """Boxes along each edge of an image, and keypoints in its corners."""
    h, w = view or (height, width)
    boxes = [[0, 0, w, h], [0, 0, w / 3, h / 7], [w - 9.3, h - 5.1, w, h], [0, h - 3, w, h]]
    return Batch(
        torch.ones(1, 1, height, width),
        boxes=torch.tensor([boxes]),
        box_label=torch.arange(4)[None],
        keypoints=torch.tensor([[[0.0, 0], [w, 0], [w, h], [0, h]]]),
        keypoint_visible=torch.ones(1, 4, dtype=torch.bool),
        size=None if view is None else torch.tensor([view]),
    )


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", WHOLE)
def test_operations_that_show_whole_images_cut_nothing(name, fuse):
    for height, width in [(131, 131), (64, 211)]:
        if height != width and name in ("quarter turn", "scaled crop"):
            continue
        pipeline = AugmentationPipeline([WHOLE[name](height, width)], min_box_visibility=1.0, fuse=fuse)
        out = pipeline(boxed(height, width), seed=0)
        assert out.box_label.tolist() == [[0, 1, 2, 3]]
        assert out.keypoint_visible.all()
        limit = torch.tensor(out.image.shape[:1:-1])
        assert (out.boxes >= 0).all()
        assert (out.boxes <= limit.repeat(2)).all()


@pytest.mark.parametrize("preprocess", [Preprocess((57, 93)), Preprocess(50), Preprocess((57, 93), letterbox=True)])
def test_preprocessing_cuts_nothing(preprocess):
    for batch in (boxed(131, 97), boxed(140, 120, view=(131, 97))):
        pipeline = AugmentationPipeline(preprocess=preprocess, min_box_visibility=1.0)
        for out in (pipeline.prepare(batch)[0], pipeline(batch, seed=0)):
            assert out.box_label.tolist() == [[0, 1, 2, 3]]
            assert out.keypoint_visible.all()


def test_corner_aligned_enlarging_loses_half_a_pixel_of_the_edge():
    """Kornia lays the centre of the first pixel onto that of the first: what lies outside of both is lost."""
    out = AugmentationPipeline([K.Resize((200, 200))], min_box_visibility=0.995)(boxed(20, 20), seed=0)
    assert out.box_label.tolist() == [[-1] * 4]
    assert not out.keypoint_visible.any()


class TestBounds:
    @pytest.mark.parametrize("turn", [0, 1, 2, 3])
    @pytest.mark.parametrize(("right", "kept"), [(10.0, True), (9.99, True), (10.01, False)])
    def test_visibility(self, right, kept, turn):
        """A box that the crop at x = 5 cuts: 5 of 10 pixels are exactly half of it, which is enough."""
        batch = Batch(
            torch.rand(1, 1, 30, 30), boxes=torch.tensor([[[0, 3, right, 27]]]), box_label=torch.zeros(1, 1).int()
        )
        steps = [K.PadTo((30, 5)), K.PadTo((30, 30)), K.RandomRotation90((turn, turn), p=1.0)]
        out = AugmentationPipeline(steps, min_box_visibility=0.5)(batch, seed=0)
        assert (out.box_label.item() == 0) == kept

    @pytest.mark.parametrize("turn", [0, 1, 2, 3])
    @pytest.mark.parametrize(("bound", "kept"), [(12.0, True), (11.99, True), (12.01, False)])
    def test_area(self, bound, kept, turn):
        batch = Batch(
            torch.rand(1, 1, 31, 31), boxes=torch.tensor([[[1.0, 3, 4, 7]]]), box_label=torch.zeros(1, 1).int()
        )
        pipeline = AugmentationPipeline([K.RandomRotation90((turn, turn), p=1.0)], min_box_area=bound)
        assert (pipeline(batch, seed=0).box_label.item() == 0) == kept

    def test_keypoints(self):
        """A point on the edge of a crop is in view, one beyond it is not."""
        x = 10 + EDGE_TOLERANCE * torch.tensor([0.0, 0.5, 2.0])
        points = torch.stack([x, torch.full_like(x, 10.0)], -1)[None]
        batch = Batch(torch.rand(1, 1, 20, 20), keypoints=points, keypoint_visible=torch.ones(1, 3, dtype=torch.bool))
        out = AugmentationPipeline([K.PadTo((10, 10))])(batch, seed=0)
        assert out.keypoint_visible.tolist() == [[True, True, False]]


class TestTies:
    """Pixels of the result whose centres lie exactly between two pixels of the source, or on its edge."""

    @pytest.mark.parametrize("step", [K.RandomRotation90((1, 1), p=1.0), K.Resize((12, 12), align_corners=False)])
    def test_nothing_beside_the_image_is_read(self, step):
        mask = torch.full((1, 24, 24), 7)
        mask[:, :19, :22] = 0
        size = torch.tensor([[19, 22]])
        for rows in (23, 24):  # an odd and an even side turn pixels onto edges
            batch = Batch(torch.rand(1, 1, rows, 24), mask=mask[:, :rows], size=size)
            out = AugmentationPipeline([step])(batch, seed=0)
            assert set(out.mask.unique().tolist()) <= {0, 255}

    def test_masks_are_read_along_straight_lines(self):
        """A quarter turn of 24 x 23 pixels lays each row of the result between two columns."""
        mask = torch.arange(23).expand(1, 24, 23).contiguous()
        out = AugmentationPipeline([K.RandomRotation90((1, 1), p=1.0)])(
            Batch(torch.rand(1, 1, 24, 23), mask=mask), seed=0
        )
        rows = [row[row != 255].unique() for row in out.mask[0]]
        assert all(len(row) <= 1 for row in rows)

    def test_they_do_not_depend_on_the_dtype(self):
        for height, width in [(30, 33), (19, 22), (40, 21)]:
            pipeline = AugmentationPipeline([K.RandomRotation90((1, 1), p=1.0)])
            found = {}
            for dtype in (torch.float32, torch.float64):
                batch = Batch(torch.ones(1, 1, height, width, dtype=dtype), mask=torch.zeros(1, height, width).long())
                out, params = pipeline.augment(batch, seed=0)
                assert torch.equal(out.image[:, 0] == 0, out.mask == 255)
                found[dtype] = out.mask, *(pipeline.inverse(out.image.to(d), params)[1] for d in found | {dtype: 0})
            assert torch.equal(found[torch.float32][0], found[torch.float64][0])
            assert torch.equal(found[torch.float32][1], found[torch.float64][1])
            assert torch.equal(found[torch.float64][1], found[torch.float64][2])


def painted(height: int, width: int, size: torch.Tensor | None = None) -> Batch:
    """An image whose values number its pixels as its mask does, with a box around it and a keypoint in its middle."""
    mask = torch.arange(height * width).view(1, height, width)
    h, w = (height, width) if size is None else size[0].tolist()
    return Batch(
        mask[:, None] / (height * width),
        mask=mask,
        boxes=torch.tensor([[[0.0, 0, w, h]]]),
        box_label=torch.zeros(1, 1).long(),
        keypoints=torch.tensor([[[w / 2, h / 2]]]),
        keypoint_visible=torch.ones(1, 1, dtype=torch.bool),
        size=size,
    )


THIN = {
    "resize": lambda **kw: K.Resize((6, 8), **kw),
    "to a row": lambda **kw: K.Resize((1, 8), **kw),
    "to a column": lambda **kw: K.Resize((5, 1), **kw),
    "longest": lambda **kw: K.LongestMaxSize(20, **kw),
    "shortest": lambda **kw: K.SmallestMaxSize(3, **kw),
    "crop": lambda **kw: K.RandomResizedCrop((6, 8), (1.0, 1.0), (1 / 16, 16.0), **kw),
    "crop by warping": lambda **kw: K.RandomResizedCrop((6, 8), cropping_mode="resample", **kw),
}


@pytest.mark.parametrize("fuse", [True, False])
class TestOnePixel:
    """Images, windows and results that are one pixel wide or high."""

    @pytest.mark.parametrize("settings", [{}, {"align_corners": False}, {"resample": "nearest"}], ids=str)
    @pytest.mark.parametrize("name", THIN)
    def test_masks_are_what_is_shown(self, name, settings, fuse):
        for height, width in [(1, 16), (16, 1), (1, 1)]:
            pipeline = AugmentationPipeline([THIN[name](**settings)], fuse=fuse)
            batch = painted(height, width)
            for seed in range(3):
                out, params = pipeline.augment(batch, seed=seed)
                shown = out.image[:, 0] * (height * width)
                assert ((out.mask - shown).abs() <= 0.51).all()  # rows or columns are numbered in order
                back, valid = pipeline.inverse(out.image, params)
                assert torch.isfinite(back).all()
                assert valid.any()
                if "crop" not in name:
                    assert out.box_label.item() == 0
                assert torch.isfinite(out.boxes).all()
                assert torch.isfinite(out.keypoints).all()

    def test_corner_aligned_rows_show_the_first(self, fuse):
        out = AugmentationPipeline([K.Resize((1, 16))], fuse=fuse)(painted(3, 16), seed=0)
        assert out.mask.tolist() == [[list(range(16))]]
        torch.testing.assert_close(out.image[:, 0] * 48, out.mask.float())

    @pytest.mark.parametrize("mode", ["slice", "resample"])
    def test_windows_of_one_pixel_show_it_alone(self, mode, fuse):
        step = K.RandomResizedCrop((4, 4), (0.001, 0.001), (1.0, 1.0), cropping_mode=mode)
        pipeline = AugmentationPipeline([step], fuse=fuse)
        batch = painted(40, 40)
        for seed in range(3):
            out, params = pipeline.augment(batch, seed=seed)
            (number,) = out.mask.unique().tolist()
            torch.testing.assert_close(out.image, torch.full_like(out.image, number / 1600))
            assert out.boxes.tolist() == [[[0, 0, 4, 4]]]
            assert pipeline.inverse(out.image, params)[1].flatten().nonzero().tolist() == [[number]]

    @pytest.mark.parametrize("settings", [{}, {"align_corners": True}, {"resample": "nearest"}], ids=str)
    def test_warps_of_images_of_one_pixel(self, settings, fuse):
        steps = [
            K.RandomTranslate((0.3, 0.3), (0.3, 0.3), p=1.0, **settings),
            K.RandomRotation((90.0, 90.0), p=1.0, **settings),
            K.RandomAffine((30.0, 40.0), (0.2, 0.2), p=1.0, **settings),
            K.RandomPerspective(0.7, p=1.0, **settings),
            K.RandomCrop((3, 8), cropping_mode="resample", **settings),
            K.RandomCrop((1, 8), cropping_mode="resample", **settings),
        ]
        for step in steps:
            for height, width in [(1, 16), (16, 1), (1, 1)]:
                numbers = torch.arange(height * width).view(1, height, width)
                batch = Batch(torch.stack([torch.ones_like(numbers), numbers], 1) / (height * width), mask=numbers)
                out = AugmentationPipeline([step], fuse=fuse)(batch, seed=1)
                white, shown = (out.image * height * width).unbind(1)
                assert not ((out.mask == 255) & (white > 0.6)).any()
                assert not ((out.mask != 255) & (white < 0.4)).any()
                whole = (out.mask != 255) & (white > 0.999)
                assert ((shown - out.mask).abs()[whole] <= 0.51).all()

    def test_windows_in_view_are_at_least_a_pixel(self, fuse):
        pipeline = AugmentationPipeline([K.RandomResizedCrop((4, 6), (0.01, 0.01), (30.0, 30.0))], fuse=fuse)
        for seed in range(5):
            out = pipeline(painted(8, 12, torch.tensor([[1, 9]])), seed=seed)
            assert (out.mask < 9).all()
            assert out.box_label.item() == 0


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("size", [(10, 30), (26, 12), (30, 32)])
@pytest.mark.parametrize("mode", ["slice", "resample"])
def test_crops_larger_than_the_image_ignore_what_is_black(mode, size, fuse):
    pipeline = AugmentationPipeline([K.RandomCrop(size, cropping_mode=mode)], fuse=fuse)
    batch = Batch(torch.ones(1, 1, 20, 24), mask=torch.zeros(1, 20, 24).long())
    for seed in range(3):
        out, params = pipeline.augment(batch, seed=seed)
        assert out.image.shape[-2:] == size
        black = out.image[:, 0] < 1e-6
        assert torch.equal(black & (out.mask == 0), torch.zeros_like(black))
        assert (out.image[:, 0][out.mask == 255] < 0.5).all()
        back, valid = pipeline.inverse(out.image, params)
        assert (back[valid] > 0.999).all()


class TestHorizon:
    """Kornia's perspectives of a distortion from about 0.8 on, some of which turn the image inside out."""

    @pytest.mark.parametrize("fuse", [True, False])
    @pytest.mark.parametrize("method", ["basic", "area_preserving"])
    def test_boxes_hold_what_is_seen_and_masks_what_is_shown(self, method, fuse):
        step = K.RandomPerspective(1.0, p=1.0, sampling_method=method)
        pipeline = AugmentationPipeline([step], fuse=fuse, min_box_area=0.0)
        mask = torch.zeros(16, 40, 50).long()
        boxes = torch.tensor([[2.0, 2, 10, 9], [30, 25, 47, 38], [4, 28, 22, 36]])
        for number, (left, top, right, bottom) in enumerate(boxes.long().tolist()):
            mask[:, top:bottom, left:right] = number + 1
        labels = torch.arange(3).expand(16, 3)
        batch = Batch(torch.ones(16, 1, 40, 50), mask=mask, boxes=boxes.expand(16, 3, 4), box_label=labels)
        for seed in range(8):
            out, params = pipeline.augment(batch, seed=seed)
            assert not ((out.mask == 255) & (out.image[:, 0] > 0.6)).any()
            assert torch.equal(pipeline.replay(batch, params).image, out.image)
            for b in range(16):
                for number in range(3):
                    seen = (out.mask[b] == number + 1).nonzero()
                    if len(seen):
                        box = out.boxes[b][out.box_label[b] == number].view(2, 2).flip(-1)
                        assert (seen + 0.5 >= box[0] - 1e-3).all()
                        assert (seen + 0.5 <= box[1] + 1e-3).all()

    def test_milder_perspectives_are_kornias_own(self):
        _, params = AugmentationPipeline([K.RandomPerspective(0.7, p=1.0)]).augment(
            Batch(torch.rand(64, 1, 40, 50)), seed=0
        )
        drawn = params["steps"][0]["data"]
        offset = (drawn["end_points"] - drawn["start_points"]).abs() / torch.tensor([49.0, 39.0])
        assert offset.max() > 0.34  # of 0.35
        assert abs(offset.mean() - 0.175) < 0.02
