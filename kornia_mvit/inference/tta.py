"""Test-time augmentation: predict under several transforms, undo each, and merge."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kornia_mvit.augmentation.geometry import Geometry, Step
from kornia_mvit.augmentation.keypoints import inverse_keypoint_order, inverse_keypoints
from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.augmentation.targets import inverse_boxes, inverse_maps, way_back
from kornia_mvit.batch import Batch
from kornia_mvit.extras import needing
from kornia_mvit.ops.geometry import box_iou, constant, scale_matrix, window_matrix
from kornia_mvit.ops.keypoints import Pairs, check_flip_pairs
from kornia_mvit.parsing import check_truths
from kornia_mvit.preprocess import antialiased_resize

__all__ = ["TestTimeAugmentation", "TestTimeTransform"]

Detections = list[dict[str, Tensor]]
Prediction = Tensor | Detections


@dataclass(frozen=True)
class TestTimeTransform:
    """One way to look at an image.

    Args:
        flip: mirror it.
        scale: resize it by this factor; heights and widths are rounded to multiples of ``multiple``.
        angle: turn it counter-clockwise by this many degrees; the corners that become empty are zero.
        crop: None, or ``'top-left'``, ``'top-right'``, ``'bottom-left'``, ``'bottom-right'`` or ``'center'``.
        crop_share: height and width of the crop as shares of the image's, rounded to multiples of ``multiple``, or of
            its half, its quarter and so on where the crop would be as long as the image.
        multiple: what heights and widths of crops and scaled images are multiples of, in pixels; 1 leaves them as they
            come.

    Raises:
        ValueError: for a scale that is not positive, or an unknown crop.
    """

    __test__ = False  # pytest is not to collect it

    flip: bool = False
    scale: float = 1.0
    angle: float = 0.0
    crop: str | None = None
    crop_share: float = 0.875
    multiple: int = 32

    def __post_init__(self) -> None:
        check_truths(flip=self.flip)
        if self.scale <= 0 or not 0 < self.crop_share <= 1 or self.multiple < 1:
            raise ValueError(
                f"scale {self.scale}, crop_share {self.crop_share}, multiple {self.multiple}: expected a positive "
                "factor, a share in (0, 1] and a positive number of pixels"
            )
        if self.crop is not None and self.crop not in _CROPS:
            raise ValueError(f"unknown crop {self.crop!r}; available: {', '.join(map(repr, _CROPS))}")

    def __call__(self, image: Tensor) -> tuple[Tensor, Geometry]:
        """Transform images (B, C, H, W) of any values, and say where their pixels went."""
        size = (int(image.shape[-2]), int(image.shape[-1]))
        geometry = Geometry(size, None, len(image), image.device)
        if self.crop is not None:
            image, size = self._crop(image, geometry), geometry.sizes[-1]
        if self.scale != 1.0:
            target = cast(tuple[int, int], tuple(self._scaled(side) for side in size))
            geometry.append(Step("scale", scale_matrix(len(image), size, target), target, covers=True, aligned=True))
            half = image.dtype in (torch.float16, torch.bfloat16)  # the CPU has no antialiasing in half precision
            image = antialiased_resize(image.float() if half else image, target).to(image.dtype)
            size = target
        if self.angle:
            angle = torch.deg2rad(torch.tensor(self.angle, dtype=torch.float64))
            cos, sin = angle.cos(), angle.sin()
            x, y = size[1] / 2, size[0] / 2
            rows = [[cos, sin, x - cos * x - sin * y], [-sin, cos, y + sin * x - cos * y], [0.0, 0.0, 1.0]]
            geometry.append(Step("angle", torch.tensor(rows, dtype=torch.float64)[None], size))
            last = len(geometry)
            image = geometry.warp_image(image, last - 1, last)
        if self.flip:
            mirror = torch.tensor([[[-1.0, 0, size[1]], [0, 1, 0], [0, 0, 1]]])
            geometry.append(Step("flip", mirror, size, covers=True, aligned=True))
            image = image.flip(-1)
        return image, geometry

    def _crop(self, image: Tensor, geometry: Geometry) -> Tensor:
        (height, width) = geometry.sizes[-1]
        h, w = (self._cropped(side) for side in (height, width))
        down, across = _CROPS[cast(str, self.crop)]
        top, left = round((height - h) * down), round((width - w) * across)
        window = torch.tensor([[left, top, left + w, top + h]])
        geometry.append(Step("crop", window_matrix(window, (h, w)), (h, w), covers=True, aligned=True))
        return image[..., top : top + h, left : left + w]

    def _cropped(self, side: int) -> int:
        step = self.multiple if self.crop_share < 1 else 1
        while step > 1:
            if 0 < (length := round(side * self.crop_share / step) * step) < side:
                return length
            step //= 2
        return max(1, round(side * self.crop_share))

    def _scaled(self, side: int) -> int:
        return max(self.multiple, round(side * self.scale / self.multiple) * self.multiple)


_CROPS = {
    "center": (0.5, 0.5),
    "top-left": (0.0, 0.0),
    "top-right": (0.0, 1.0),
    "bottom-left": (1.0, 0.0),
    "bottom-right": (1.0, 1.0),
}
_SETS: dict[str, list[dict[str, Any]]] = {
    "none": [{}],
    "flip": [{}, {"flip": True}],
    "scale": [{}, {"scale": 0.75}, {"scale": 1.25}],
    "rotation": [{}, {"angle": -10.0}, {"angle": 10.0}],
    "five-crop": [{"crop": name} for name in _CROPS],
    "ten-crop": [{"crop": name, "flip": flip} for flip in (False, True) for name in _CROPS],
}
_MERGES = ("mean", "max", "vote")
_EDGE = 2.0  # pixels; boxes nearer to the edge of a crop may have been cut by it
Transforms = str | Sequence[TestTimeTransform | AugmentationPipeline]


class TestTimeAugmentation(nn.Module):
    """Predict under several transforms, undo each, and merge.

    What is merged follows from what ``predict`` gives:

    - (B, K) class logits or probabilities: merged as they are;
    - (B, K, h, w) dense logits at any stride: each brought back to the image, and merged at every pixel over the
      transforms under which it was in view; zero where it never was;
    - a list with a dictionary of ``boxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,) for each image, boxes in pixels
      of the image that was predicted on: brought back, and those of one class that overlap are merged. Boxes that end
      where a crop does are left to the transforms that see beyond it. Turned boxes grow, for they stay upright. With
      ``keypoints`` (n, K, 2), or (n, K, 3) with one number more for each, these are brought back and merged as their
      boxes are;
    - (B, K, 2) keypoints in pixels of the image that was predicted on: brought back, and averaged.

    Args:
        predict: takes images (B, C, h, w), of sizes that the transforms make, and gives one of the above: a model, or
            any callable.
        transforms: ``'flip'``, ``'scale'``, ``'rotation'``, ``'five-crop'``, ``'ten-crop'``, or several joined by
            ``+`` for every combination, such as ``'flip+scale'``; or a list of transforms, or of augmentation
            pipelines, each of which is drawn with a seed of its own.
        merge: ``'mean'``; ``'max'``; or ``'vote'``, the share of the transforms that chose a class. For boxes:
            weighted fusion, where the score is the mean over all transforms that have the box in view; non-maximum
            suppression; or the fusion of the boxes that at least half of those found.
        iou_threshold: overlap from which boxes of one class are taken to be of one object.
        keypoint_flip_pairs: numbers of keypoints, from 0, that are swapped back where a transform mirrors; dense maps
            are then heatmaps of keypoints, and their channels are swapped.

    Raises:
        ValueError: for an unknown name or merge, or no transform at all.
        ImportError: for boxes, if torchvision is missing.

    References:
        R. Solovyev et al.: Weighted boxes fusion. https://arxiv.org/abs/1910.13302

    Example:
        >>> tta = TestTimeAugmentation(lambda image: image.mean((2, 3)), 'flip')
        >>> image = torch.rand(2, 3, 64, 96)
        >>> torch.allclose(tta(image), image.mean((2, 3)))
        True
    """

    __test__ = False  # pytest is not to collect it

    def __init__(
        self,
        predict: Callable[[Tensor], Any],
        transforms: Transforms = "flip",
        merge: str = "mean",
        *,
        iou_threshold: float = 0.55,
        keypoint_flip_pairs: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__()
        if merge not in _MERGES:
            raise ValueError(f"unknown merge {merge!r}; available: {', '.join(map(repr, _MERGES))}")
        self.predict = predict
        self.transforms: list[TestTimeTransform | AugmentationPipeline] = find_transforms(transforms)
        self.merge = merge
        self.iou_threshold = iou_threshold
        self.keypoint_flip_pairs: Pairs = check_flip_pairs(keypoint_flip_pairs)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Prediction:
        """Predict images (B, C, H, W), preprocessed as ``predict`` wants them; pipelines take them in [0, 1]."""
        if image.ndim != 4 or not image.is_floating_point():
            raise ValueError(f"images are (B, C, H, W) and floating point, got {image.dtype} {tuple(image.shape)}")
        return self._run(image).result(len(self.transforms))

    @torch.no_grad()
    def predict_valid(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Predict dense maps, and say which pixels (B, 1, H, W) were in view under some transform."""
        merger = _DenseMerger(self.merge, self.keypoint_flip_pairs)
        self._run(image, merger)
        return merger.result(len(self.transforms)), cast(Tensor, merger.weight) > 0

    def _run(self, image: Tensor, merger: "_Merger | None" = None) -> "_Merger":
        """Predict under each transform, into a merger that fits what the first prediction is unless one is given."""
        for number, transform in enumerate(self.transforms):
            seen, geometry = _look(transform, image, number)
            given = self.predict(seen)
            if merger is None:
                merger = self._merger(given, image)
            merger.add(given, geometry)
        assert merger is not None
        return merger

    def _merger(self, given: Any, image: Tensor) -> "_Merger":
        if isinstance(given, Tensor) and given.ndim == 2:
            return _ClassMerger(self.merge)
        if isinstance(given, Tensor) and given.ndim == 4:
            return _DenseMerger(self.merge, self.keypoint_flip_pairs)
        if isinstance(given, Tensor) and given.ndim == 3 and given.shape[-1] == 2 and self.merge == "mean":
            return _PointMerger(self.keypoint_flip_pairs)
        if isinstance(given, Sequence) and all(
            isinstance(d, dict) and {"boxes", "scores", "labels"} <= set(d) for d in given
        ):
            size = (image.shape[-2], image.shape[-1])
            return _BoxMerger(self.merge, self.iou_threshold, size, self.keypoint_flip_pairs)
        found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(
            f"predict gave {found}; expected logits (B, K) or (B, K, h, w), keypoints (B, K, 2) with merge='mean', or "
            "a list of dictionaries with boxes, scores and labels"
        )

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"{len(self.transforms)} transforms, merge={self.merge!r}"


def find_transforms(transforms: Transforms) -> list[TestTimeTransform | AugmentationPipeline]:
    """Return the transforms of a name, or check a list of them.

    Example:
        >>> [t.scale for t in find_transforms('flip+scale')]
        [1.0, 0.75, 1.25, 1.0, 0.75, 1.25]
    """
    if isinstance(transforms, str):
        names = [name.strip() for name in transforms.split("+")]
        if unknown := [name for name in names if name not in _SETS]:
            raise ValueError(f"unknown transforms {', '.join(unknown)}; available: {', '.join(_SETS)}, joined by '+'")
        combined = []
        for parts in itertools.product(*(_SETS[name] for name in names)):
            merged: dict[str, Any] = {}
            for part in parts:
                merged |= part
            if (transform := TestTimeTransform(**merged)) not in combined:
                combined.append(transform)
        return list(combined)
    if not transforms:
        raise ValueError("no transforms; name a set such as 'flip', or give at least one")
    if wrong := [type(t).__name__ for t in transforms if not isinstance(t, (TestTimeTransform, AugmentationPipeline))]:
        raise ValueError(f"transforms are TestTimeTransform or AugmentationPipeline, got {', '.join(wrong)}")
    return list(transforms)


def _look(transform: TestTimeTransform | AugmentationPipeline, image: Tensor, number: int) -> tuple[Tensor, Geometry]:
    if isinstance(transform, TestTimeTransform):
        return transform(image)
    out, params = transform.augment(Batch(image), seed=number)
    return out.image, way_back(params, image)


def _combine(total: Tensor, value: Tensor, merge: str) -> Tensor:
    return total.maximum(value) if merge == "max" else total + value


class _ClassMerger:
    """Merge (B, K) logits or probabilities."""

    def __init__(self, merge: str) -> None:
        self.merge = merge
        self.total: Tensor | None = None

    def add(self, given: Any, geometry: Geometry) -> None:
        given = F.one_hot(given.argmax(1), given.shape[1]).to(given.dtype) if self.merge == "vote" else given
        self.total = given.clone() if self.total is None else _combine(self.total, given, self.merge)

    def result(self, count: int) -> Tensor:
        assert self.total is not None
        return self.total if self.merge == "max" else self.total / count


class _DenseMerger:
    """Merge (B, K, h, w) maps at every pixel."""

    def __init__(self, merge: str, pairs: Pairs) -> None:
        self.merge = merge
        self.pairs = pairs
        self.total: Tensor | None = None
        self.weight: Tensor | None = None

    def add(self, given: Any, geometry: Geometry) -> None:
        maps, valid = inverse_maps(given, geometry)
        maps = inverse_keypoint_order(maps, geometry, self.pairs, 1)
        if self.merge == "vote":
            maps = F.one_hot(maps.argmax(1), maps.shape[1]).permute(0, 3, 1, 2).to(maps.dtype) * valid
        elif self.merge == "max":
            maps = maps.masked_fill(~valid, -torch.inf)
        if self.total is None or self.weight is None:
            self.total, self.weight = maps, valid.to(maps.dtype)
        else:
            self.total = _combine(self.total, maps, self.merge)
            self.weight = self.weight + valid

    def result(self, count: int) -> Tensor:
        assert self.total is not None
        assert self.weight is not None
        if self.merge == "max":
            return self.total.masked_fill(self.weight == 0, 0.0)
        return self.total / self.weight.clamp_min(1)


class _PointMerger:
    """Average keypoints (B, K, 2)."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.total: Tensor | None = None

    def add(self, given: Any, geometry: Geometry) -> None:
        points = inverse_keypoints(given, geometry, self.pairs)
        self.total = points if self.total is None else self.total + points

    def result(self, count: int) -> Tensor:
        assert self.total is not None
        return self.total / count


class _BoxMerger:
    """Merge lists of boxes, image by image."""

    def __init__(self, merge: str, iou_threshold: float, size: tuple[int, int], pairs: Pairs) -> None:
        self.merge = merge
        self.pairs = pairs
        self.iou_threshold = iou_threshold
        self.size = size
        self.found: list[Detections] = []
        self.views: list[Tensor] = []  # (4,) each: the part of the image where a transform shows boxes whole

    def add(self, given: Any, geometry: Geometry) -> None:
        count = max((len(d["boxes"]) for d in given), default=0)
        like, (height, width) = given[0]["boxes"], geometry.sizes[-1]
        seen = constant((0, 0, width, height), like.device, like.dtype)
        rows = [torch.cat([seen[None], d["boxes"]]) for d in given]
        boxes = torch.stack([F.pad(row, (0, 0, 0, 1 + count - len(row))) for row in rows])
        boxes = inverse_boxes(boxes, geometry)
        limit = constant((self.size[1], self.size[0]) * 2, boxes.device, boxes.dtype)
        boxes = boxes.clamp_min(0).minimum(limit)
        view, boxes = boxes[0, 0], boxes[:, 1:]
        inside = (view > 0) & (view < limit)  # edges of the view that are none of the image's
        cut = ((boxes - view).abs() < _EDGE) & inside
        points = self._points(given, geometry, count)
        self.views.append(view + _EDGE * inside * constant((1, 1, -1, -1), view.device, view.dtype))
        out = []
        for i, (d, row, lost) in enumerate(zip(given, boxes, cut.any(-1), strict=True)):
            (whole,) = (~lost[: len(d["boxes"])]).nonzero(as_tuple=True)
            moved = {"boxes": row} if points is None else {"boxes": row, "keypoints": points[i]}
            out.append({name: value[whole] for name, value in (d | moved).items()})
        self.found.append(out)

    def _points(self, given: Any, geometry: Geometry, count: int) -> Tensor | None:
        """Bring the keypoints of all boxes back: (B, count, K, 2 or 3), with padding; None where there are none."""
        rows = [d["keypoints"] for d in given if "keypoints" in d]
        if not rows:
            return None
        if len(rows) < len(given) or any(row.ndim != 3 or row.shape[-1] not in (2, 3) for row in rows):
            found = ", ".join(str(tuple(d["keypoints"].shape)) if "keypoints" in d else "none" for d in given)
            raise ValueError(f"predict gave keypoints {found}; expected (n, K, 2) or (n, K, 3) for each image")
        points = torch.stack([F.pad(row, (0, 0, 0, 0, 0, count - len(row))) for row in rows])
        places = inverse_keypoints(points[..., :2], geometry, self.pairs)
        return torch.cat([places, inverse_keypoint_order(points[..., 2:], geometry, self.pairs, -2)], -1)

    def result(self, count: int) -> Detections:
        with needing("merging boxes needs torchvision", "train"):
            from torchvision.ops import batched_nms  # type: ignore[import-untyped]  # it comes without stubs
        out = []
        for looks in zip(*self.found, strict=True):
            names = ("boxes", "scores", "labels", *(["keypoints"] if "keypoints" in looks[0] else []))
            joined = {name: torch.cat([look[name] for look in looks]) for name in names}
            look_of = torch.cat(
                [torch.full((len(look["boxes"]),), i, device=look["boxes"].device) for i, look in enumerate(looks)]
            )
            kept = batched_nms(joined["boxes"], joined["scores"], joined["labels"], self.iou_threshold)
            out.append(
                {name: value[kept] for name, value in joined.items()}
                if self.merge == "max"
                else self._fuse(joined, kept, look_of, count)
            )
        return out

    def _fuse(self, found: dict[str, Tensor], kept: Tensor, look_of: Tensor, count: int) -> dict[str, Tensor]:
        """Average the boxes that overlap each kept one of their class, weighted by their scores."""
        boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
        if not len(kept):
            return found
        overlap = box_iou(boxes, boxes[kept]) * (labels[:, None] == labels[kept])
        best, group = overlap.max(1)
        member = F.one_hot(group, len(kept)).to(scores.dtype) * (best >= self.iou_threshold)[:, None]
        weight = member * scores[:, None]
        total = weight.sum(0).clamp_min(torch.finfo(scores.dtype).tiny)[:, None]
        fused = (weight.T @ boxes) / total
        looks = F.one_hot(look_of, count).to(scores.dtype).T @ member  # how many each look has in each group
        best_of_look = torch.stack([(weight * (look_of == i)[:, None]).amax(0) for i in range(count)])
        shown = self._shown(fused) | (looks > 0)
        score = best_of_look.sum(0) / shown.sum(0)
        order = score.argsort(descending=True)
        if self.merge == "vote":
            order = order[((looks > 0).sum(0) * 2 >= shown.sum(0))[order]]
        out = {"boxes": fused[order], "scores": score[order], "labels": labels[kept][order]}
        if "keypoints" in found:
            points = (weight.T @ found["keypoints"].flatten(1)) / total
            out["keypoints"] = points.view(len(points), *found["keypoints"].shape[1:])[order]
        return out

    def _shown(self, boxes: Tensor) -> Tensor:
        """Return which transforms have boxes (n, 4) in view, whole: (count, n)."""
        views = torch.stack(self.views)[:, None]
        return (boxes[:, :2] >= views[..., :2]).all(-1) & (boxes[:, 2:] <= views[..., 2:]).all(-1)


_Merger = _ClassMerger | _DenseMerger | _PointMerger | _BoxMerger
