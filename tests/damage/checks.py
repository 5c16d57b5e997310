"""What must come of random samples: the batch that they say, and one line of error that names what is wrong."""

import random
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from kornia.augmentation import RandomHorizontalFlip
from torch import Tensor

from kornia_mvit import AugmentationPipeline, Batch
from tests.damage.faults import Fault, check_error, same
from tests.damage.further import check_extra, check_flipped_extra, check_flipped_oriented
from tests.damage.truths import DTYPES

OPTIONAL = ("keypoint_index", "box_ignore", "box_weight", "box_source", "box_index", "instance_masks", "fields")
OPTIONAL += ("oriented_boxes",)
PARTS = {
    **dict.fromkeys(("box_label", *OPTIONAL[1:]), "boxes"),
    **dict.fromkeys(("keypoint_visible", "keypoint_index"), "keypoints"),
}
FILLS = dict.fromkeys(("box_label", "box_source", "box_index", "keypoint_index"), -1)  # of padding, where not 0


def check_batch(batch: Batch, truths: list[dict[str, Any]], ignore_index: int) -> None:
    """Raise where a batch is not what its samples say."""
    uneven = len({truth["image"].shape for truth in truths}) > 1
    for i, truth in enumerate(truths):
        for name in truth:
            if name == "fields":
                check_own_fields(batch.fields, truth["fields"], i)
                continue
            if name == "extra":
                check_extra(batch.extra, truth["extra"], i)
                continue
            check_field(name, getattr(batch, name)[i], truth, ignore_index)
        if (
            uneven
            and "size" not in truth
            and (batch.size is None or batch.size[i].tolist() != [*truth["image"].shape[1:]])
        ):
            raise Fault("size is not that of the image")


def check_own_fields(found: dict[str, Tensor], wanted: dict[str, Tensor], i: int) -> None:
    """Raise where the fields of image ``i`` are not those of its sample, in its dtypes, with zeros after them."""
    if found.keys() != wanted.keys():
        raise Fault("names of fields differ")
    for name, value in wanted.items():
        rows = found[name][i].detach()
        if len(value) and (rows.dtype != value.dtype or not same(rows[: len(value)], value)):
            raise Fault(f"fields[{name!r}] differs")
        if bool((rows[len(value) :] != 0).any()):
            raise Fault(f"padding of fields[{name!r}] is not 0")


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """Return all tensors of a batch by name."""
    own = {name: value.detach() for name, value in vars(batch).items() if isinstance(value, Tensor)}
    own |= {f"fields[{name!r}]": value.detach() for name, value in (batch.fields or {}).items()}
    return own | {f"extra[{name!r}]": one.tensor.detach() for name, one in (batch.extra or {}).items()}


def check_field(name: str, value: Any, truth: dict[str, Any], ignore_index: int) -> None:
    """Raise where a field of an image is not what its sample says, with padding after it."""
    a, (h, w) = truth[name], truth["image"].shape[1:]
    if name == "meta":
        if value != a:
            raise Fault("meta differs")
        return
    got, fill = value.detach().double(), FILLS.get(name, 0)
    if name == "mask":
        fill = ignore_index
    if name in ("image", "mask"):
        pad = got.clone()
        pad[..., :h, :w] = fill
        got = got[..., :h, :w]
    elif name in ("label", "size", "original_size"):
        pad = got[:0] if got.ndim else got[None][:0]
    else:
        got, pad = got[: len(a)], got[len(a) :]
    if name == "instance_masks":
        if bool(got[:, h:].any()) or bool(got[..., w:].any()):
            raise Fault("instance_masks show padding")
        got = got[:, :h, :w]
    if name == "keypoint_visible" and a.dtype == bool:  # True is 2 where another sample has numbers, 1 as a number
        got = (got > 0).double()
    if not got.numel() == a.size == 0 and not np.array_equal(got.numpy(), a.astype(np.float64), equal_nan=True):
        raise Fault(f"{name} differs")
    if not bool((pad == fill).all()):
        raise Fault(f"padding of {name} is not {fill}")


def seen_points(batch: Batch, limit: Tensor, keep: Tensor | None) -> Tensor:
    """Return the visibility of what lies within its image; of instances, in the rows of the boxes that are kept."""
    limit = limit if batch.keypoints.ndim == 3 else limit[..., None, :]
    seen = batch.keypoint_visible * ((batch.keypoints >= 0) & (batch.keypoints <= limit)).all(-1)
    if seen.ndim == 2 or keep is None:
        return seen
    order = keep.logical_not().byte().argsort(dim=1, stable=True)
    return (seen * keep[..., None]).gather(1, order[..., None].expand_as(seen))


def check_flip(r: random.Random, batch: Batch, ignore_index: int) -> None:
    """Raise where a flipped batch is not what a batch flipped by hand would be, or shares memory with it."""
    before = {name: value.clone() for name, value in tensors_of(batch).items()}
    flipped = r.random() < 0.5
    steps = [RandomHorizontalFlip(p=float(flipped))]
    pipeline = AugmentationPipeline(steps, ignore_index=ignore_index, min_box_area=0.0)
    out, params = pipeline.augment(batch, seed=np.int64(r.randrange(100)))
    size = batch.size if batch.size is not None else torch.tensor([batch.image.shape[2:]]).expand(len(batch), 2)
    limit = size.flip(-1).double()[:, None]  # of x and y, of each image
    keep = None
    if batch.boxes is not None:
        keep = check_flipped_boxes(out, batch, size, flipped)
    rows, columns = (torch.arange(n) for n in batch.image.shape[2:])
    inside = (columns < size[:, 1:])[:, None, :] & (rows < size[:, :1])[:, :, None]
    if batch.extra:
        check_flipped_extra(out.extra, batch.extra, inside, flipped=flipped)
        check_flipped_extra(pipeline.inverse_extra(out.extra, params)[0], batch.extra, inside, flipped=False)
    if batch.mask is not None:
        mask = batch.mask.double().masked_fill(~inside, ignore_index)
        if not torch.equal(out.mask.double(), mask.flip(-1) if flipped else mask):
            raise Fault("mask of the flip")
    if batch.keypoints is not None:
        seen = seen_points(batch, limit, keep)
        if not torch.equal(out.keypoint_visible, seen):
            raise Fault("keypoint_visible of the flip")
    for value in tensors_of(out).values():
        value.fill_(1)
    for name, value in tensors_of(batch).items():
        if not same(value, before[name]):
            raise Fault(f"{name} is changed by writing to the result")


def check_flipped_boxes(out: Batch, batch: Batch, size: Tensor, flipped: bool) -> Tensor:
    """Raise where boxes and what is bound to them are not those of a flip; return which are kept, (B, N)."""
    width, limit = batch.image.shape[-1], size.flip(-1).double()[:, None]
    left, top, right, bottom = batch.boxes.double().clamp_min(0).minimum(limit.repeat(1, 1, 2)).unbind(-1)
    keep = (batch.box_label >= 0) & (right > left) & (bottom > top)
    boxes = torch.stack([width - right, top, width - left, bottom] if flipped else [left, top, right, bottom], -1)
    for i, kept in enumerate(keep):
        labels = batch.box_label[i][kept].tolist()
        if out.box_label[i].tolist() != labels + [-1] * (len(kept) - len(labels)):
            raise Fault("box_label of the flip")
        if not torch.allclose(out.boxes[i, : len(labels)].double(), boxes[i][kept]):
            raise Fault("boxes of the flip")
        if out.box_index[i].tolist() != kept.nonzero()[:, 0].tolist() + [-1] * (len(kept) - len(labels)):
            raise Fault("box_index of the flip")
        if batch.oriented_boxes is not None:
            check_flipped_oriented(out.oriented_boxes[i], batch.oriented_boxes[i].detach()[kept], width, flipped)
        if batch.fields is not None:
            own = {name: value[i].detach()[kept] for name, value in batch.fields.items()}
            check_own_fields(out.fields, own, i)
    if batch.instance_masks is not None:
        check_flipped_masks(out.instance_masks, batch.instance_masks, keep, size, flipped)
    return keep


def check_flipped_masks(found: Tensor, given: Tensor, keep: Tensor, size: Tensor, flipped: bool) -> None:
    """Raise where masks (B, N, H, W) of single objects are not those that are kept, cut to their images, flipped."""
    if found.dtype != given.dtype:
        raise Fault("dtype of instance_masks of the flip")
    for i, kept in enumerate(keep):
        masks = given[i][kept].clone()
        masks[:, int(size[i, 0]) :], masks[..., int(size[i, 1]) :] = 0, 0
        if not torch.equal(found[i, : len(masks)], masks.flip(-1) if flipped else masks):
            raise Fault("instance_masks of the flip")
        if bool(found[i, len(masks) :].any()):
            raise Fault("instance_masks of padding after the flip")


def check_change(r: random.Random, batch: Batch) -> None:
    """Change a field of a batch, its dtype, rank, length or type; raise where that is taken and is not right."""
    name = r.choice([f.name for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)])
    value: Tensor = getattr(batch, name).detach()
    narrow = value[0] if name in ("label", "image") or not value.shape[-1] else value[..., :-1]
    other = value.to(r.choice(DTYPES))
    changed = r.choice([value[None], narrow, torch.cat([value, value]), value.tolist(), 3, "word", other, other, other])
    if name == "instance_masks" and other.dtype != torch.bool and not same(other, value.bool()):
        other = changed = value
    try:
        kept = getattr(batch.replace(**{name: changed}), name)
    except Exception as error:
        check_error(error, name, PARTS.get(name, name))
        return
    if changed is not other:
        raise Fault(f"a wrong {name} is taken by Batch")
    if not same(kept, other):
        raise Fault(f"{name} is changed by Batch")


def check_change_of_fields(r: random.Random, batch: Batch) -> None:
    """Give a batch other fields than go with its boxes; raise where that is taken, or right ones are refused."""
    if not batch.fields:
        return
    name = r.choice(list(batch.fields))
    value = batch.fields[name].detach()
    wrong = [value[None], torch.cat([value, value]), torch.cat([value, value], 1), value.tolist(), 3, "word", None]
    changed = r.choice([value, value.to(torch.float64) if not value.is_complex() else value, *wrong])
    right = isinstance(changed, Tensor) and changed.shape[:2] == value.shape[:2]
    try:
        kept = batch.replace(fields=batch.fields | {name: changed}).fields[name]
    except Exception as error:
        check_error(error, "fields")
        if right:
            raise Fault(f"fields are refused: {str(error)[:150]}") from error
        return
    if not right:
        raise Fault("wrong fields are taken by Batch")
    if kept.dtype != changed.dtype or not same(kept, changed):
        raise Fault("fields are changed by Batch")
