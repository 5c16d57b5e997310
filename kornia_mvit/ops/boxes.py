"""Anchors, and what ties boxes to them: pure functions of whole batches.

Boxes are left, top, right and bottom, anchors centre x and y, width and height, both in shares of the image's width and
height. Classes are counted from 1, 0 is the background; a row of label -1 is padding.

References:
    SSD: Single Shot MultiBox Detector (arXiv 1512.02325).
"""

# B batch, M boxes of an image with padding, A anchors

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from kornia_mvit.ops.geometry import constant

__all__ = [
    "VARIANCES",
    "Anchors",
    "Matches",
    "assign_targets",
    "assign_weighted_targets",
    "center_boxes",
    "corner_boxes",
    "decode_boxes",
    "encode_boxes",
    "fit_anchors",
    "make_anchors",
    "masks_to_boxes",
    "match_anchors",
    "pairwise_iou",
]

VARIANCES = (0.1, 0.2)  # what offsets of the centre and of the side are divided by, so that they are near one


# ----------------------------------------------------------------------------------------------------------- anchors


def make_anchors(
    map_sizes: Sequence[tuple[int, int]],
    aspect_ratios: Sequence[Sequence[float]],
    scales: tuple[float, float] = (0.1, 1.05),
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Return the anchors of all places of several maps.

    Scales rise linearly from the first to the last, which would be that of one map more. A place has a square of its
    map's scale s, one of :math:`\sqrt{s s'}` with the next map's scale, and two of scale s for each ratio, wide and
    tall. No side is longer than the image's, though an anchor may reach beyond it.

    Args:
        map_sizes: height and width of each map.
        aspect_ratios: for each map, ratios of the sides above 1.
        scales: the first map's and the one after the last's, in shares of the image's side.
        device: where to.
        dtype: of the result.

    Returns:
        (A, 4): maps in their order, of a map places row by row, of a place the anchors as above.

    Raises:
        ValueError: if there are not as many maps as lists of ratios.

    Example:
        >>> make_anchors([(1, 2)], [()], (0.25, 1.0))
        tensor([[0.2500, 0.5000, 0.2500, 0.2500],
                [0.2500, 0.5000, 0.5000, 0.5000],
                [0.7500, 0.5000, 0.2500, 0.2500],
                [0.7500, 0.5000, 0.5000, 0.5000]])
    """
    if len(map_sizes) != len(aspect_ratios):
        raise ValueError(
            f"{len(map_sizes)} maps and {len(aspect_ratios)} lists of aspect ratios; give one for each map"
        )
    out = []
    sides_of_maps = anchor_shapes(aspect_ratios, scales)
    if device is None:
        shapes = [torch.tensor(sides, dtype=dtype) for sides in sides_of_maps]
    else:
        shapes = [constant(tuple(sides), torch.device(device), dtype) for sides in sides_of_maps]
    for (height, width), side in zip(map_sizes, shapes, strict=True):
        y, x = (((torch.arange(n, device=device) + 0.5) / n).to(dtype) for n in (height, width))
        place = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
        grid = (height, width, len(side), 2)
        out.append(torch.cat([place[:, :, None].expand(grid), side.expand(grid)], -1).flatten(0, 2))
    return torch.cat(out)


def anchor_shapes(
    aspect_ratios: Sequence[Sequence[float]], scales: tuple[float, float]
) -> list[list[tuple[float, float]]]:
    """Return width and height of the anchors of a place, for each map; see :func:`make_anchors`."""
    first, last = scales
    steps = [first + (last - first) * n / len(aspect_ratios) for n in range(len(aspect_ratios) + 1)]
    out = []
    for n, ratios in enumerate(aspect_ratios):
        scale, between = steps[n], (steps[n] * steps[n + 1]) ** 0.5
        shapes = [(scale, scale), (between, between)]
        for ratio in ratios:
            root = ratio**0.5
            shapes += [(scale * root, scale / root), (scale / root, scale * root)]
        out.append([(min(1.0, width), min(1.0, height)) for width, height in shapes])
    return out


class Anchors(NamedTuple):
    """The shapes of a detector's anchors, as :func:`make_anchors` takes them.

    Args:
        scales: sides of the first map's anchors, and of those after the last map's, in shares of the image's sides.
        aspect_ratios: for each map, ratios of the sides above 1.
    """

    scales: tuple[float, float]
    aspect_ratios: tuple[tuple[float, ...], ...]


_APPLE = Anchors((0.1, 1.05), ((2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,)))
# What fit_anchors tries: first scales up to 0.76, scales after the last, and ratios.
_FIRST = tuple(round(0.02 * 1.15**n, 3) for n in range(27))
_AFTER = tuple(round(0.15 * n, 3) for n in range(1, 9))
_RATIOS = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0)
_MOST = 2000  # boxes that are looked at
_GAIN = 1e-3  # in overlap, for which other shapes are taken


@torch.no_grad()
def fit_anchors(boxes: Tensor, map_sizes: Sequence[tuple[int, int]], start: Anchors = _APPLE) -> Anchors:
    """Propose scales and aspect ratios of anchors for a dataset's boxes.

    They make the mean over the boxes of the largest overlap (intersection over union) with an anchor large, at the
    places where the anchors are. Scales and ratios are searched on a grid, in turn, and stay as they are where others
    are no better.

    Args:
        boxes: (N, 4) left, top, right and bottom, in shares of the image's width and height, as the network sees it.
            Those without an area are left out. Of more than 2,000, as many are taken evenly.
        map_sizes: height and width of each map, see :func:`make_anchors` and
            :meth:`SSDLite.map_sizes <kornia_mvit.SSDLite.map_sizes>`.
        start: where the search begins, Apple's unless given. The result has as many ratios for each map, so that a
            detector has as many weights as with these.

    Raises:
        ValueError: for boxes that are not (N, 4), reach outside the image or have no area, and if there are not as many
            maps as lists of ratios.

    Example:
        >>> boxes = torch.tensor([[0.05, 0.05, 0.37, 0.37], [0.6, 0.5, 0.95, 0.85]])
        >>> fit_anchors(boxes, [(6, 6), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)]).scales
        (0.053, 0.9)
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes have shape {tuple(boxes.shape)}; give (N, 4)")
    if len(map_sizes) != len(start.aspect_ratios):
        raise ValueError(
            f"{len(map_sizes)} maps and {len(start.aspect_ratios)} lists of aspect ratios; give one for each map"
        )
    boxes = center_boxes(boxes.double().cpu())
    boxes = boxes[(boxes[:, 2:] > 0).all(1)]
    if not len(boxes):
        raise ValueError("none of the boxes has an area; give some that have")
    if not (-0.01 <= corner_boxes(boxes).min() and corner_boxes(boxes).max() <= 1.01):
        raise ValueError(
            f"boxes reach from {float(corner_boxes(boxes).min()):.4g} to {float(corner_boxes(boxes).max()):.4g}; give "
            "shares of the image's width and height, from 0 to 1"
        )
    boxes = boxes[torch.linspace(0, len(boxes) - 1, min(len(boxes), _MOST)).long()]
    centre, sides = boxes[:, :2], boxes[:, 2:]
    distances = [_to_nearest_place(centre, size) for size in map_sizes]

    def score(anchors: Anchors) -> float:
        """Return the mean of the largest overlap, which an anchor of the nearest place of a map has."""
        shapes = anchor_shapes(anchors.aspect_ratios, anchors.scales)
        found = [_overlap(sides, distance, shape) for distance, shape in zip(distances, shapes, strict=True)]
        return float(torch.cat(found, 1).amax(1).mean())

    best, reached = start, score(start)
    counts = [len(ratios) for ratios in start.aspect_ratios]
    scales = [(first, after) for first in _FIRST for after in _AFTER if first <= after]
    most = max(counts, default=0)
    ratios = [tuple(some[:count] for count in counts) for some in combinations(_RATIOS, most)]
    for _ in range(3):
        before = reached
        for by_ratios in (False, True):
            tried = [Anchors(best.scales, some) for some in ratios] if by_ratios else []
            tried = tried or [Anchors(pair, best.aspect_ratios) for pair in scales]
            gain, other = max((score(one), one) for one in tried)
            if gain > reached + _GAIN:
                best, reached = other, gain
        if reached == before:
            break
    return best


def _to_nearest_place(centre: Tensor, size: tuple[int, int]) -> Tensor:
    """Return how far (N, 2) centres are from the nearest place of a map, in x and in y."""
    count = centre.new_tensor([size[1], size[0]])
    place = (centre * count).floor().clamp_min(0).minimum(count - 1)
    return (centre - (place + 0.5) / count).abs()


def _overlap(sides: Tensor, distance: Tensor, shapes: Sequence[tuple[float, float]]) -> Tensor:
    """Return intersection over union of N boxes and S shapes whose centres are (N, 2) apart: (N, S)."""
    own, other = sides[:, None], sides.new_tensor(shapes)[None]
    shared = torch.minimum((own + other) / 2 - distance[:, None], torch.minimum(own, other)).clamp_min(0).prod(-1)
    return shared / (own.prod(-1) + other.prod(-1) - shared)


# -------------------------------------------------------------------------------------------------------------- forms


def corner_boxes(boxes: Tensor) -> Tensor:
    """Bring centre x, y, width and height to left, top, right and bottom: (..., 4) -> (..., 4).

    Example:
        >>> corner_boxes(torch.tensor([3.0, 2.0, 4.0, 2.0]))
        tensor([1., 1., 5., 3.])
    """
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def center_boxes(boxes: Tensor) -> Tensor:
    """Bring left, top, right and bottom to centre x, y, width and height: (..., 4) -> (..., 4).

    Example:
        >>> center_boxes(torch.tensor([1.0, 1.0, 5.0, 3.0]))
        tensor([3., 2., 4., 2.])
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Return the tight boxes around masks, by the edges of their outermost pixels: (..., H, W) -> (..., 4).

    The box of a mask of one pixel is one pixel wide and high; torchvision's function of this name gives the outermost
    pixels' numbers, and so no width.

    Args:
        masks: (..., H, W), zero or False beside the object.

    Returns:
        (..., 4) left, top, right and bottom in pixels, float32; zeros for a mask without a pixel.

    Raises:
        ValueError: for masks of no height or width.

    Example:
        >>> masks_to_boxes(torch.tensor([[[0, 0, 0], [0, 1, 1]]]))
        tensor([[1., 1., 3., 2.]])
    """
    if masks.ndim < 2 or 0 in masks.shape[-2:]:
        raise ValueError(f"expected masks of shape (..., H, W), with pixels, got {tuple(masks.shape)}")
    masks = masks.view(torch.uint8) if masks.dtype == torch.bool else masks
    masks = masks if masks.dtype == torch.uint8 else (masks != 0).to(torch.uint8)
    columns, rows = ((masks.amax(axis) != 0).to(torch.uint8) for axis in (-2, -1))
    first = [side.argmax(-1) for side in (columns, rows)]
    last = [side.shape[-1] - side.flip(-1).argmax(-1) for side in (columns, rows)]
    return torch.stack([*first, *last], -1).float() * columns.amax(-1, keepdim=True)


def encode_boxes(boxes: Tensor, anchors: Tensor, variances: tuple[float, float] = VARIANCES) -> Tensor:
    """Say how boxes depart from anchors; undone by :func:`decode_boxes`.

    Args:
        boxes: (..., A, 4), of positive width and height.
        anchors: (A, 4).
        variances: what offsets of the centre, and logarithms of the ratio of the sides, are divided by.

    Returns:
        (..., A, 4): offsets x and y in sides of the anchor, and logarithms of the ratios.

    Example:
        >>> encode_boxes(torch.tensor([[0.25, 0.25, 0.75, 0.75]]), torch.tensor([[0.25, 0.5, 0.5, 0.5]]))
        tensor([[5., 0., 0., 0.]])
    """
    boxes = center_boxes(boxes)
    offset = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:]
    return torch.cat([offset / variances[0], (boxes[..., 2:] / anchors[..., 2:]).log() / variances[1]], -1)


def decode_boxes(deltas: Tensor, anchors: Tensor, variances: tuple[float, float] = VARIANCES) -> Tensor:
    """Return the boxes that depart from anchors by what :func:`encode_boxes` says.

    Args:
        deltas: (..., A, 4), as :func:`encode_boxes` gives them, or a network.
        anchors: (A, 4), centre x and y, width and height.
        variances: see :func:`encode_boxes`.

    Returns:
        (..., A, 4): left, top, right and bottom.

    Example:
        >>> decode_boxes(torch.tensor([[5.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.25, 0.5, 0.5, 0.5]]))
        tensor([[0.2500, 0.2500, 0.7500, 0.7500]])
    """
    centre = deltas[..., :2] * variances[0] * anchors[..., 2:] + anchors[..., :2]
    return corner_boxes(torch.cat([centre, (deltas[..., 2:] * variances[1]).exp() * anchors[..., 2:]], -1))


@torch.no_grad()
def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return intersection over union of boxes, for many of them: (..., N, 4), (..., M, 4) -> (..., N, M).

    As :func:`kornia_mvit.ops.geometry.box_iou`, in a fraction of its time and memory, and without a gradient.

    Args:
        a: (..., N, 4), left, top, right and bottom.
        b: (..., M, 4), likewise.

    Example:
        >>> pairwise_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]])).item()
        0.5
    """
    left, top, right, bottom = (side[..., None] for side in a.unbind(-1))
    left2, top2, right2, bottom2 = (side[..., None, :] for side in b.unbind(-1))
    shared = torch.minimum(right, right2).sub_(torch.maximum(left, left2)).clamp_min_(0)
    shared *= torch.minimum(bottom, bottom2).sub_(torch.maximum(top, top2)).clamp_min_(0)
    area = ((right - left).clamp_min(0) * (bottom - top).clamp_min(0), (right2 - left2) * (bottom2 - top2))
    union = (area[0] + area[1].clamp_min(0)).sub_(shared).clamp_min_(torch.finfo(shared.dtype).tiny)
    return shared.div_(union)


# ----------------------------------------------------------------------------------------------------------- matching


class Matches(NamedTuple):
    """What the anchors of a batch are to find.

    Args:
        labels: (B, A) class of each anchor's box, 0 for the background, -1 for an anchor that does not count.
        box: (B, A) its number among the M of the image; of other anchors that which they overlap most.
    """

    labels: Tensor
    box: Tensor


@torch.no_grad()
def match_anchors(
    anchors: Tensor, boxes: Tensor, labels: Tensor, ignore: Tensor | None = None, iou_threshold: float = 0.5
) -> Matches:
    """Say which box each anchor is to find.

    An anchor takes the box that it overlaps most, if by the threshold or more. Besides, each box claims an anchor: the
    one that it overlaps most of all, whatever the threshold. Of boxes that claim the same one, that which overlaps it
    more has it, and the others claim their next best. So a box is left without an anchor only where other boxes hold
    all that it overlaps, as in a crowd of more boxes than there are anchors. Neither the order of the boxes nor padding
    among them changes what anchors find.

    Args:
        anchors: (A, 4).
        boxes: (B, M, 4). One without width or height counts as padding.
        labels: (B, M) classes from 1; -1 for padding.
        ignore: (B, M) boxes that are neither to be found nor to be missed, as crowds and difficult objects are:
            anchors that overlap one of them most, by the threshold or more, do not count. They claim none.
        iou_threshold: intersection over union from which on an anchor is to find a box.

    Example:
        >>> anchors = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])
        >>> boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.9], [0.0, 0.0, 0.0, 0.0]]])
        >>> match_anchors(anchors, boxes, torch.tensor([[7, -1]])).labels
        tensor([[7, 0]])
    """
    count, (batch, total) = len(anchors), labels.shape
    if ignore is None:
        ignore = torch.zeros_like(labels, dtype=torch.bool)
    valid = (labels > 0) & (boxes[..., 2:] > boxes[..., :2]).all(-1)
    order = _sort(valid, labels, ignore, boxes)
    if not total:
        return Matches(labels.new_zeros(batch, count), order.new_zeros(batch, count))
    if order.device.type == "cpu" and batch:  # an accelerator would have to be waited for
        # what the longest image has; one row more where none has any, for there to be something to reduce over
        order = order[:, : max(1, int(valid.sum(1).max()))]
    valid, ignore, labels = (rows.gather(1, order) for rows in (valid, ignore, labels))
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))

    iou = pairwise_iou(boxes, corner_boxes(anchors).to(boxes.dtype))
    iou.masked_fill_(~valid[..., None], -1.0)
    overlap, index = iou.max(1)
    # of boxes that an anchor does not touch, the first, whichever that is
    found = torch.where(ignore, -1, labels).gather(1, index)
    found = torch.where(overlap >= iou_threshold, found, 0)
    holder = _claim(iou, valid & ~ignore)
    claimed = holder >= 0
    index = torch.where(claimed, holder, index)
    found = torch.where(claimed, labels.gather(1, index), found)
    return Matches(found, torch.where(overlap > 0, order.gather(1, index), 0))


def _sort(valid: Tensor, labels: Tensor, ignore: Tensor, boxes: Tensor) -> Tensor:
    """Return an order of the boxes of each image that does not depend on the one they have, padding last: (B, M)."""
    keys = [*boxes.unbind(-1), ignore, labels, ~valid]
    order = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    for key in keys:
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order


def _claim(iou: Tensor, claiming: Tensor) -> Tensor:
    """Return each box an anchor of its own, by deferred acceptance (Gale and Shapley).

    On the CPU, boxes that lost an anchor bid for their next best, until none has lost. An accelerator would have to be
    waited for to know: there, in each of as many rounds as there are boxes, every box bids for the best of the anchors
    that no better box holds. The largest overlap of all is settled by the first round, the largest of the others by the
    second, and so on; the result is the same.

    Args:
        iou: (B, M, A), changed in place.
        claiming: (B, M) boxes that take part.

    Returns:
        (B, A) the box that holds an anchor, -1 for none. A box that overlaps no anchor has none.
    """
    batch, rows, count = iou.shape
    number = torch.arange(rows, device=iou.device).expand(batch, rows)
    best, anchor = iou.max(2)
    on_cpu = iou.device.type == "cpu"
    for _ in range(rows * count + 1 if on_cpu else rows):  # a box loses an anchor once
        active = claiming & (best > 0)
        bid = torch.where(active, best, 0)
        highest = bid.new_zeros(batch, count).scatter_reduce(1, anchor, bid, "amax")
        wins = active & (bid == highest.gather(1, anchor))
        holder = number.new_full((batch, count), rows)
        holder = holder.scatter_reduce(1, anchor, torch.where(wins, number, rows), "amin")
        if on_cpu:
            image, box = (active & (holder.gather(1, anchor) != number)).nonzero(as_tuple=True)
            if not len(image):
                break
            iou[image, box, anchor[image, box]] = 0
            best[image, box], anchor[image, box] = iou[image, box].max(1)
        else:
            highest, other = highest[:, None], holder[:, None]
            better = (highest > iou) | ((highest == iou) & (other < number[..., None]))
            best, anchor = iou.masked_fill(better, 0).max(2)
    return torch.where(holder < rows, holder, -1)


@torch.no_grad()
def assign_targets(
    anchors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    ignore: Tensor | None = None,
    iou_threshold: float = 0.5,
    variances: tuple[float, float] = VARIANCES,
) -> tuple[Tensor, Tensor]:
    """Say what a detector's head is to give: the targets of :func:`kornia_mvit.ops.losses.multibox_loss`.

    Args:
        anchors: (A, 4).
        boxes: (B, M, 4).
        labels: (B, M) classes from 1; -1 for padding.
        ignore: see :func:`match_anchors`.
        iou_threshold: see :func:`match_anchors`.
        variances: see :func:`encode_boxes`.

    Returns:
        (B, A) classes, 0 for the background and -1 for what does not count, and (B, A, 4) how boxes depart from the
        anchors; zeros for those that have none to find.
    """
    return _targets_of(match_anchors(anchors, boxes, labels, ignore, iou_threshold), anchors, boxes, variances)


@torch.no_grad()
def assign_weighted_targets(
    anchors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    weights: Tensor,
    ignore: Tensor | None = None,
    iou_threshold: float = 0.5,
    variances: tuple[float, float] = VARIANCES,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the targets of :func:`assign_targets`, and the weight (B, A) of the box that each anchor is to find.

    Args:
        anchors: (A, 4).
        boxes: (B, M, 4).
        labels: (B, M) classes from 1; -1 for padding.
        weights: (B, M) of the boxes.
        ignore: see :func:`match_anchors`.
        iou_threshold: see :func:`match_anchors`.
        variances: see :func:`encode_boxes`.

    Returns:
        What :func:`assign_targets` does, and the weights; 1 for anchors that have no box to find.

    Example:
        >>> anchors = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])
        >>> boxes, labels = torch.tensor([[[0.0, 0.0, 0.5, 0.9]]]), torch.tensor([[7]])
        >>> assign_weighted_targets(anchors, boxes, labels, torch.tensor([[0.25]]))[2]
        tensor([[0.2500, 1.0000]])
    """
    matches = match_anchors(anchors, boxes, labels, ignore, iou_threshold)
    targets = _targets_of(matches, anchors, boxes, variances)
    if not boxes.shape[1]:
        return *targets, weights.new_ones(matches.labels.shape)
    return *targets, torch.where(matches.labels > 0, weights.gather(1, matches.box), 1.0)


def _targets_of(
    matches: Matches, anchors: Tensor, boxes: Tensor, variances: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return classes (B, A) and offsets (B, A, 4) of what anchors are to find."""
    if not boxes.shape[1]:
        return matches.labels, boxes.new_zeros(*matches.labels.shape, 4)
    deltas = encode_boxes(boxes.gather(1, matches.box[..., None].expand(-1, -1, 4)), anchors, variances)
    return matches.labels, torch.where(matches.labels[..., None] > 0, deltas, 0)
