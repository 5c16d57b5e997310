"""Elastic transforms, thin plate splines and fisheyes: every target is carried, against what was painted, and back."""

import random

import kornia.augmentation as K
import pytest
import torch
from torch import Tensor

from kornia_mvit import AugmentationPipeline, Batch
from kornia_mvit.augmentation.free_warps import sampled_places
from kornia_mvit.extra_images import Extra
from kornia_mvit.ops.geometry import sample_bilinear
from kornia_mvit.ops.warps import find_points, show_points
from tests.augmentation.scenes import scene, smooth_maps

QUICK, ALL = range(20), pytest.param(range(200), marks=pytest.mark.long, id="200 cases")


def elastic(pick: random.Random) -> K.RandomElasticTransform:
    sigma = (pick.uniform(7, 14), pick.uniform(7, 14))
    alpha, corners = (pick.uniform(1, 3), pick.uniform(1, 3)), pick.random() < 0.5
    return K.RandomElasticTransform((31, 25), sigma, alpha, align_corners=corners, p=0.8)


def spline(pick: random.Random) -> K.RandomThinPlateSpline:
    return K.RandomThinPlateSpline(pick.uniform(0.05, 0.25), align_corners=pick.random() < 0.5, p=0.8)


def fisheye(pick: random.Random) -> K.RandomFisheye:
    ends = torch.tensor([-pick.uniform(0.05, 0.4), pick.uniform(0.05, 0.4)])
    return K.RandomFisheye(ends, ends, torch.tensor([0.8, 1.4]), p=0.8)


WARPS = {"elastic": elastic, "spline": spline, "fisheye": fisheye}


def drawn_case(name: str, case: int) -> tuple[random.Random, int, int]:
    pick = random.Random(f"{name} {case}")
    return pick, 2 * pick.randint(16, 36) + 1, 2 * pick.randint(16, 36) + 1


def centres(height: int, width: int) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return x, y


def boxed(case: int, height: int, width: int, padded: bool = False) -> Batch:
    """A scene with instance masks that fill the boxes."""
    batch = scene(case, height=height, width=width, padded=padded)
    (x, y), (left, top, right, bottom) = centres(height, width), batch.boxes[..., None, None].unbind(2)
    masks = (x > left) & (x < right) & (y > top) & (y < bottom) & (batch.box_label >= 0)[..., None, None]
    return batch.replace(instance_masks=masks)


def find_dots(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the middles of dots (B, C, H, W), of their pixels of some brightness, and how bright they are."""
    bright = image.amax((-2, -1), keepdim=True)
    weight = image * (image > 0.3 * bright)
    total = weight.sum((-2, -1)).clamp_min(1e-9)
    dots = [(weight * v).sum((-2, -1)) / total for v in centres(int(image.shape[-2]), int(image.shape[-1]))]
    return torch.stack(dots, -1), bright[..., 0, 0]


def look(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps (B, C, H, W) at points (B, N, 2): (B, N, C)."""
    return sample_bilinear(maps, points[:, None, :, 0], points[:, None, :, 1])[:, :, 0].mT


def tight_boxes(masks: Tensor) -> Tensor:
    sides = []
    for axis in (-2, -1):
        line = masks.any(axis).float()
        sides.append((line.argmax(-1), line.shape[-1] - line.flip(-1).argmax(-1)))
    return torch.stack([sides[0][0], sides[1][0], sides[0][1], sides[1][1]], -1).float()


@pytest.mark.parametrize("cases", [pytest.param(QUICK, id="20 cases"), ALL])
@pytest.mark.parametrize("name", WARPS)
class TestWarps:
    def test_what_was_painted_is_where_its_keypoint_is(self, name, cases):
        """Half a pixel apart at most, alone and behind a rotation.

        Each pixel is painted with its own place, so that a keypoint of the result lies on its place of before; dots
        agree wherever they are not drawn out. One that is well in view is visible.
        """
        apart = []
        for case in cases:
            pick, height, width = drawn_case(name, case)
            limit = torch.tensor([width, height])
            points = torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(case)) * limit
            x, y = centres(height, width)
            away = (x - points[..., 0, None, None]).square() + (y - points[..., 1, None, None]).square()
            places = torch.stack([x / width, y / height, torch.ones_like(x)]).expand(2, -1, -1, -1)
            steps = [WARPS[name](pick), *([K.RandomRotation(20.0, p=1.0)] if case % 2 else [])]
            pipeline = AugmentationPipeline(steps)
            batch = Batch(
                torch.cat([(-away / 2).exp(), places], 1),
                keypoints=points,
                keypoint_visible=torch.ones(2, 4, dtype=torch.bool),
            )
            out, params = pipeline.augment(batch, seed=case)
            inside = (points > 3) & (points < limit - 3) & (out.keypoints > 3) & (out.keypoints < limit - 3)
            ends = [out.keypoints + torch.tensor(shift) for shift in ([0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5])]
            east, west, south, north = (look(out.image[:, 4:], end) for end in ends)
            whole = torch.stack([east, west, south, north])[..., 2].amin(0) > 0.999
            sure = out.keypoint_visible & inside.all(-1) & whole
            slope = torch.stack([east - west, south - north], -1)[..., :2, :] * limit[:, None]
            error = look(out.image[:, 4:], out.keypoints)[..., :2] * limit - points
            off = torch.linalg.solve(slope[sure], error[sure])
            assert (off.norm(dim=-1) < 0.5).all(), (case, off)
            dots, bright = find_dots(out.image[:, :4])
            apart += (out.keypoints - dots).norm(dim=-1)[sure].tolist()
            clear = (bright > 0.7) & (dots > 3).all(-1) & (dots < limit - 3).all(-1) & (points > 2).all(-1)
            assert out.keypoint_visible[clear & (points < limit - 2).all(-1)].all()
            back = pipeline.inverse_keypoints(out.keypoints, params)
            assert ((back - points).norm(dim=-1)[out.keypoint_visible] < 0.01).all()
        assert len(apart) > 2 * len(cases)
        assert torch.tensor(apart).quantile(0.98) < 0.5

    def test_boxes_are_around_what_was_painted(self, name, cases):
        """Within a pixel of the instance mask on every side; padded batches too."""
        told = 0
        for case in cases:
            pick, height, width = drawn_case(name, case)
            batch = boxed(case, height, width, padded=case % 3 == 0)
            pipeline = AugmentationPipeline([WARPS[name](pick)], min_box_area=0.0)
            out, params = pipeline.augment(batch, seed=case)
            some = out.instance_masks.flatten(2).any(-1)
            assert not (some & (out.box_label < 0)).any()
            off = (out.boxes - tight_boxes(out.instance_masks)).abs().amax(-1)[some]
            assert (off < 1.2).all(), (case, off)
            known = out.mask != 255
            rim = (out.image[:, 0] == 0) & known
            assert rim.sum() <= 2  # masks end where the images do
            whole = (out.boxes[..., :2] > 1).all(-1) & (out.boxes[..., 2:] < torch.tensor([width - 1, height - 1])).all(
                -1
            )
            given = batch.boxes.gather(1, out.box_index.clamp_min(0)[..., None].expand(-1, -1, 4))
            back = pipeline.inverse_boxes(out.boxes, params)  # around what is around them: larger
            covers = (back[..., :2] <= given[..., :2] + 0.5) & (back[..., 2:] >= given[..., 2:] - 0.5)
            assert covers.all(-1)[whole & some].all()
            told += int(some.sum())
        assert told > len(cases)

    def test_inverse_shows_the_image_where_it_is_valid(self, name, cases):
        """Smooth images come back; a white one is white where it is valid; a still view is told by the places."""
        for case in list(cases)[::4]:
            pick, height, width = drawn_case(name, case)
            maps = smooth_maps(2, height, width)
            pipeline = AugmentationPipeline([WARPS[name](pick), *([K.RandomHorizontalFlip(p=1.0)] if case % 8 else [])])
            out, params = pipeline.augment(Batch(torch.cat([maps, torch.ones_like(maps)], 1)), seed=case)
            back, valid = pipeline.inverse(out.image, params)
            assert (back[:, 3:][valid.expand(-1, 3, -1, -1)] > 0.998).all()
            assert ((back[:, :3] - maps).abs().amax(1, keepdim=True)[valid]).quantile(0.95) < 0.03
            assert (back.masked_select(~valid) == 0).all()
            assert valid.float().mean() > 0.4
            numbers = torch.arange(1, height * width + 1).view(1, height, width).expand(2, -1, -1)
            seen = pipeline.replay(Batch(out.image.new_zeros(2, 3, height, width), mask=numbers + 999), params).mask
            shown = torch.zeros(2, height * width + 1, dtype=torch.bool)
            shown.scatter_(1, (seen - 999).where(seen > 255, 0).flatten(1), True)
            unseen = torch.nn.functional.max_pool2d((~shown[:, 1:]).float().view(2, 1, height, width), 5, 1, 2) > 0
            if (~unseen).sum() > 200:  # a fisheye shows no five by five pixels whole
                assert valid[~unseen].float().mean() > 0.9


@pytest.mark.parametrize("name", WARPS)
class TestEachWarp:
    def test_images_are_kornias(self, name):
        """As Kornia has them, all but the outermost half pixel, which Kornia fades; not fused, to the bit."""
        for case in range(4):
            pick, height, width = drawn_case(name, case)
            step, image = WARPS[name](pick), torch.rand(3, 3, height, width)
            out, params = AugmentationPipeline([step]).augment(Batch(image), seed=case)
            drawn = params["steps"][0]["data"]
            wanted = step(image, params=drawn)
            (x, y) = sampled_places(step, drawn, image.shape, image.device).unbind(1)
            inner = (x > 0.5) & (x < width - 0.5) & (y > 0.5) & (y < height - 0.5)
            torch.testing.assert_close(out.image.movedim(1, -1)[inner], wanted.movedim(1, -1)[inner], rtol=0, atol=1e-4)
            assert torch.equal(AugmentationPipeline([step], fuse=False)(image, seed=case), wanted)

    def test_images_that_did_not_draw_it_stay(self, name):
        """With all their targets, which stay to the bit."""
        step = WARPS[name](random.Random(0))
        batch = boxed(4, 41, 51)
        pipeline = AugmentationPipeline([step], min_box_area=0.0)
        still = [pipeline.augment(batch, seed=seed) for seed in range(40)]
        mixed = [(out, p) for out, p in still if p["steps"][0]["data"]["batch_prob"].tolist() in ([0, 1], [1, 0])]
        assert mixed
        for out, params in mixed:
            row = params["steps"][0]["data"]["batch_prob"].tolist().index(0)
            torch.testing.assert_close(out.image[row], batch.image[row], rtol=0, atol=1e-4)
            for field in ("boxes", "mask", "keypoints", "keypoint_visible", "instance_masks", "box_label"):
                assert torch.equal(getattr(out, field)[row], getattr(batch, field)[row]), field

    @pytest.mark.parametrize("fuse", [True, False])
    def test_replay_is_exact(self, name, fuse, tmp_path):
        batch = boxed(2, 41, 51)
        steps = [K.RandomAffine(15.0, p=1.0), WARPS[name](random.Random(0)), K.RandomHorizontalFlip()]
        pipeline = AugmentationPipeline(steps, fuse=fuse)
        out, params = pipeline.augment(batch, seed=3)
        torch.save(params, tmp_path / "params.pt")
        again = pipeline.replay(batch, torch.load(tmp_path / "params.pt", weights_only=True))
        for field, value in vars(out).items():
            if isinstance(value, Tensor):
                assert torch.equal(value, getattr(again, field)), field

    @pytest.mark.parametrize("method", ["ellipse", "mask"])
    def test_other_ways_to_measure_boxes(self, name, method):
        for case in range(10):
            pick, height, width = drawn_case(name, case)
            batch = boxed(case, height, width)
            (x, y), (left, top, right, bottom) = centres(height, width), batch.boxes[..., None, None].unbind(2)
            across, down = (2 * x - left - right) / (right - left), (2 * y - top - bottom) / (bottom - top)
            batch.instance_masks &= across.square() + down.square() <= 1
            pipeline = AugmentationPipeline([WARPS[name](pick)], box_method=method, min_box_area=0.0)
            out, params = pipeline.augment(batch, seed=case)
            some = out.instance_masks.flatten(2).any(-1) & (out.box_label >= 0)
            off = (out.boxes - tight_boxes(out.instance_masks)).abs().amax(-1)[some]
            assert (off <= (0 if method == "mask" else 1.5)).all()
            assert pipeline.inverse_boxes(out.boxes, params).shape == out.boxes.shape

    def test_vectors_lead_to_where_their_ends_go(self, name):
        """A field of vectors is that of the keypoints at its starts and ends, and comes back."""
        step, told = WARPS[name](random.Random(2)), 0
        step.p = 1.0
        for seed in range(4):
            x, y = centres(61, 71)
            field = torch.stack([3 * torch.sin(y / 11 + seed), 3 * torch.cos(x / 13)]).expand(2, -1, -1, -1).clone()
            pipeline = AugmentationPipeline([step, K.RandomHorizontalFlip(p=1.0)])
            batch = Batch(torch.rand(2, 3, 61, 71), extra={"flow": Extra(field, kind="vectors")})
            out, params = pipeline.augment(batch, seed=seed)

            starts = torch.rand(2, 40, 2) * torch.tensor([71, 61])
            points = batch.replace(extra=None, keypoints=starts, keypoint_visible=torch.ones(2, 40, dtype=torch.bool))
            one = pipeline.replay(points, params)
            other = pipeline.replay(points.replace(keypoints=starts + look(field, starts)), params)
            inner = (one.keypoints > 2) & (one.keypoints < torch.tensor([69, 59]))
            sure = inner.all(-1) & one.keypoint_visible & other.keypoint_visible
            flow = out.extra["flow"].tensor
            deep = (starts > 6) & (starts < torch.tensor([65, 55]))  # with nothing but the image around them
            error = (look(flow, one.keypoints) - other.keypoints + one.keypoints).norm(dim=-1)[sure & deep.all(-1)]
            assert (error < 0.5).all()
            told += len(error)
            back, known = pipeline.inverse_extra(out.extra, params)
            assert (back["flow"].tensor - field).norm(dim=1)[known[:, 0]].quantile(0.9) < 0.15
        assert told > 40

    def test_visibility_is_the_share_in_view(self, name):
        """A box of which the warp leaves less in view than asked for is dropped, as its instance mask tells."""
        warp = {
            "elastic": K.RandomElasticTransform((31, 31), (12.0, 12.0), (5.0, 5.0), p=1.0),
            "spline": K.RandomThinPlateSpline(0.4, p=1.0),
            "fisheye": K.RandomFisheye(*[torch.tensor([-0.3, 0.3])] * 2, torch.tensor([0.9, 1.0]), p=1.0),
        }[name]
        kept = 0
        for case in range(12):
            batch = boxed(case, 61, 71)
            out, params = AugmentationPipeline([warp], min_box_area=0.0).augment(batch, seed=case)
            numbers = torch.arange(1000, 1000 + 61 * 71).view(1, 61, 71).expand(2, -1, -1)
            pipeline = AugmentationPipeline([warp], min_box_area=0.0, min_box_visibility=0.5)
            less = pipeline.replay(batch.replace(mask=numbers), params)
            x, y = params["geometry"]["steps"][0]["places"].unbind(1)
            slope = torch.stack([*torch.gradient(x, dim=(2, 1)), *torch.gradient(y, dim=(2, 1))])
            area = (slope[0] * slope[3] - slope[1] * slope[2]).abs()  # of what each pixel shows
            for row in range(2):
                names = less.box_index[row].tolist()
                for place, number in enumerate(out.box_index[row].tolist()):
                    if number >= 0:
                        left, top, right, bottom = batch.boxes[row, number].tolist()
                        share = (area[row] * out.instance_masks[row, place]).sum() / ((right - left) * (bottom - top))
                        if share > 0.6 or share < 0.4:
                            assert (number in names) == (share > 0.5), (case, row, number, share)
                            kept += number in names
        assert kept > 5

    @pytest.mark.long
    def test_one_graph(self, name):
        steps = [K.RandomRotation(20.0, p=1.0), WARPS[name](random.Random(0)), K.RandomHorizontalFlip(p=1.0)]
        batch = boxed(1, 41, 51).replace(instance_masks=None)
        steps[1].p = 1.0
        eager = AugmentationPipeline(steps)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(AugmentationPipeline(steps).train(), backend="aot_eager")
        for seed in range(2):
            out, wanted = compiled(batch, seed=seed), eager(batch, seed=seed)
            for field in ("image", "boxes", "keypoints", "keypoint_visible", "mask"):
                torch.testing.assert_close(getattr(out, field), getattr(wanted, field), rtol=0, atol=1e-5)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        torch._dynamo.reset()

    def test_sides_of_one_pixel(self, name):
        for height, width in ((1, 9), (7, 1), (1, 1), (2, 3)):
            step = WARPS[name](random.Random(1))
            step.p = 1.0
            batch = Batch(
                torch.rand(2, 3, height, width),
                mask=torch.ones(2, height, width, dtype=torch.long),
                keypoints=torch.full((2, 1, 2), 0.5),
                keypoint_visible=torch.ones(2, 1, dtype=torch.bool),
                boxes=torch.tensor([[[0.0, 0, width, height]]] * 2),
                box_label=torch.zeros(2, 1, dtype=torch.long),
            )
            pipeline = AugmentationPipeline([step])
            out, params = pipeline.augment(batch, seed=0)
            assert out.image.shape == batch.image.shape
            assert out.image.isfinite().all()
            assert pipeline.inverse(out.image, params)[0].isfinite().all()
            assert pipeline.augment(batch[:0], seed=0)[0].boxes.shape == (0, 1, 4)
            none = batch.replace(boxes=batch.boxes[:, :0], box_label=batch.box_label[:, :0])
            assert pipeline.augment(none, seed=0)[0].boxes.shape == (2, 0, 4)


class TestUnknownPlaces:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_rows_of_padding_may_hold_anything(self, value):
        x, y = centres(9, 11)
        places = torch.stack([x + 0.5, y])[None]
        given = torch.tensor([[[3.0, 4.0], [value, 4.0], [value, value]]])
        place, found = find_points(places, given)
        assert found.tolist() == [[True, False, False]]
        assert place[0, 0].tolist() == pytest.approx([2.5, 4.0], abs=1e-3)
        shown = show_points(places, given)
        assert shown[0, 0].tolist() == [3.5, 4.0] and not shown[0, 1:, 0].isfinite().any()


class TestFoldingWarps:
    def test_what_is_visible_is_where_it_is_said_to_be(self):
        """A rough elastic transform shows points several times or never: each is invisible, or at one of its places."""
        shown, found = 0, 0
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            places = torch.rand(2, 2, 45, 57, generator=generator) * 24 - 12
            places = torch.nn.functional.avg_pool2d(places, 5, 1, 2)
            x, y = centres(45, 57)
            places = places + torch.stack([x, y])
            points = torch.rand(2, 30, 2, generator=generator, dtype=torch.float64) * torch.tensor([57, 45])
            place, there = find_points(places, points)
            error = (show_points(places, place) - points).norm(dim=-1)
            assert (error[there] < 0.3).all()
            near = (places[:, None] - points[..., None, None]).square().sum(2).sqrt().flatten(2).amin(-1) < 0.5
            shown, found = shown + int(near.sum()), found + int((near & there).sum())
        assert found > 0.75 * shown


class TestUnknownWarps:
    """A subclass of a user's may do anything: masks follow, what needs places is refused by name."""

    class Bent(K.RandomElasticTransform):
        pass

    def test_is_refused(self):
        pipeline = AugmentationPipeline([self.Bent(p=1.0)])
        with pytest.raises(ValueError, match="Bent cannot carry boxes and keypoints along"):
            pipeline.augment(scene(0))
        _, params = pipeline.augment(Batch(torch.rand(2, 3, 32, 32)))
        with pytest.raises(ValueError, match=r"Bent.*inverted"):
            pipeline.inverse(torch.rand(2, 1, 8, 8), params)

    def test_masks_follow(self):
        mask = scene(3).mask
        image = (mask.float() / 8)[:, None].expand(-1, 3, -1, -1).contiguous()
        out, _ = AugmentationPipeline([self.Bent((9, 9), (4.0, 4.0), p=1.0)]).augment(Batch(image, mask=mask), seed=3)
        known = out.mask != 255
        assert (((out.image[:, 0] * 8 - out.mask).abs() > 0.51) & known).float().mean() < 0.06


@pytest.mark.parametrize("padding", ["border", "reflection"])
def test_mirrored_borders_are_no_image(padding):
    """Targets go by the grid, whatever Kornia puts around the image."""
    step = K.RandomElasticTransform((31, 31), (9.0, 9.0), (5.0, 5.0), padding_mode=padding, p=1.0)
    batch = boxed(2, 41, 51)
    out, params = AugmentationPipeline([step]).augment(batch, seed=1)
    plain, _ = AugmentationPipeline([K.RandomElasticTransform((31, 31), (9.0, 9.0), (5.0, 5.0), p=1.0)]).augment(
        batch, seed=1
    )
    assert (out.image[out.mask[:, None].expand_as(out.image) == 255] > 0).any()
    for field in ("boxes", "mask", "keypoints", "keypoint_visible"):
        assert torch.equal(getattr(out, field), getattr(plain, field)), field
    assert params["geometry"]["steps"][0]["rim"] == 0.0
