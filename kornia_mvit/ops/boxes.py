"""Boxes, and what ties them to anchors: pure functions of whole batches.

Boxes are left, top, right and bottom, anchors centre x and y, width and height, both in shares of the image's width and
height. Classes are counted from 1, 0 is the background; a row of label -1 is padding.

References:
    SSD: Single Shot MultiBox Detector (arXiv 1512.02325).
"""

# B batch, M boxes of an image with padding, A anchors

from typing import NamedTuple

import torch
from torch import Tensor

from kornia_mvit.ops.anchors import Anchors, fit_anchors, make_anchors
from kornia_mvit.ops.geometry import center_boxes, corner_boxes

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
    "have_pixels",
    "make_anchors",
    "masks_to_boxes",
    "match_anchors",
    "pairwise_iou",
]

VARIANCES = (0.1, 0.2)  # what offsets of the centre and of the side are divided by, so that they are near one


# -------------------------------------------------------------------------------------------------------------- forms


def have_pixels(masks: Tensor) -> Tensor:
    """Tell which masks are not empty: (B, N, H, W) -> (B, N).

    Args:
        masks: bool, or uint8.

    Example:
        >>> have_pixels(torch.tensor([[[[False, True]], [[False, False]]]]))
        tensor([[ True, False]])
    """
    return masks.view(torch.uint8).flatten(2).amax(-1) > 0  # any() takes thirty times as long


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
    if _is_of_eights(masks):
        columns, rows = _byte_sides(masks)
    else:
        masks = masks.view(torch.uint8) if masks.dtype == torch.bool else masks
        masks = masks if masks.dtype == torch.uint8 else (masks != 0).to(torch.uint8)
        columns, rows = (masks.amax(axis) != 0 for axis in (-2, -1))
    (left, right), (top, bottom) = (_ends(side) for side in (columns, rows))
    return torch.stack([left, top, right, bottom], -1).float() * columns.any(-1, keepdim=True)


def _is_of_eights(masks: Tensor) -> bool:
    """Tell whether eight pixels of masks can be read as one number; in a compiled graph, none are."""
    if torch.compiler.is_compiling() or masks.dtype != torch.bool or masks.shape[-1] % 8:
        return False
    return masks.is_contiguous() and int(masks.storage_offset()) % 8 == 0


def _byte_sides(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Tell which columns (..., W) and rows (..., H) of bool masks (..., H, W) have pixels, in half of the time.

    Eight pixels are read as one number. W is a multiple of eight.
    """
    numbers = masks.view(torch.int64)
    parts = torch.split(numbers, 255, -2)  # of so many rows, the sums of the pixels stay within their bytes
    columns = torch.stack([part.sum(-2).view(torch.uint8) > 0 for part in parts]).any(0)
    return columns, numbers.amax(-1) > 0


def _ends(side: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers of the first of the entries (..., n) that are set, and of the one after the last."""
    side = side.to(torch.uint8)
    return side.argmax(-1), side.shape[-1] - side.flip(-1).argmax(-1)


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
