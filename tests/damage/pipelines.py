"""Random pipelines over random batches: what belongs to a box stays with it, through rotations, crops and mixes."""

import random
from typing import Any

import torch
from kornia.augmentation import (
    CenterCrop,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    RandomThinPlateSpline,
)
from torch import Tensor, nn

from kornia_mvit import AugmentationPipeline, Batch, CopyPaste, CutMix, MixUp, Mosaic
from kornia_mvit.augmentation.crops import RandomIoUCrop, RandomZoomOut
from kornia_mvit.augmentation.target_mix import TargetMix
from kornia_mvit.ops.boxes import masks_to_boxes
from tests.damage.checks import tensors_of
from tests.damage.faults import Fault, same
from tests.damage.further import check_oriented_rows

STEPS = {
    "flip": lambda: RandomHorizontalFlip(p=0.5),
    "rotation": lambda: RandomRotation(180.0, p=0.7),
    "affine": lambda: RandomAffine(30.0, (0.2, 0.2), (0.5, 1.5), 10.0, p=0.7),
    "crop": lambda: RandomCrop((4, 4)),
    "middle": lambda: CenterCrop((4, 4)),
    "overlap": lambda: RandomIoUCrop((8, 16)),
    "zoom out": lambda: RandomZoomOut(2.0),
    "spline": lambda: RandomThinPlateSpline(0.1, p=0.7),
}
MIXES = {"mosaic": Mosaic, "mixup": MixUp, "cutmix": CutMix, "copy_paste": CopyPaste}


def check_pipeline(r: random.Random, batch: Batch) -> None:
    """Raise where a random pipeline parts a box from what is bound to it, or a replay is not the same to the bit."""
    names = r.sample(list(STEPS), r.randint(0, 3))
    kinds = choose_mixes(r, batch)
    method = r.choice(["corners", "ellipse", "mask" if batch.instance_masks is not None else "corners"])
    given = batch.replace(box_source=None) if kinds else batch  # of which mixes make their own
    told = f"of {[*names, *kinds]}, {method}"
    least = r.choice([0.0, 1.0])
    arguments: dict[str, Any] = {
        "box_method": method,
        "min_box_area": least,
        "min_box_visibility": r.choice([0.0, 0.3]),
        "fuse": r.random() < 0.7,
    }
    steps: list[nn.Module] = [STEPS[name]() for name in names]
    classes = None if batch.label is None or batch.label.is_floating_point() else 10
    mixes: list[TargetMix] = [MIXES[kind](0.7, num_classes=classes) for kind in kinds]
    pipeline = AugmentationPipeline(steps, mixes, **arguments)
    try:
        out, params = pipeline.augment(given, seed=r.randrange(1000))
        again = pipeline.replay(given, params)
    except Exception as error:
        raise Fault(f"{type(error).__name__} {told}: {str(error)[:150]}") from error
    for name, value in tensors_of(out).items():
        if not same(value, tensors_of(again)[name]):
            raise Fault(f"{name} of the replay {told}")
    if out.boxes is not None:
        check_rows(out, given, told, weighed="mixup" in kinds)
    if out.oriented_boxes is not None:
        check_oriented_rows(out, told)
    if out.instance_masks is not None:
        check_masks(out, given, told, tight=method == "mask" and not kinds)
        if not kinds and given.instance_masks.shape[1]:
            check_one_mask(r, out, given, pipeline, params)


def choose_mixes(r: random.Random, batch: Batch) -> list[str]:
    """Return the names of none, one or two mixes that take a batch's targets."""
    if batch.keypoints is not None and (batch.boxes is None or batch.keypoints.ndim == 3):
        return []
    able = [kind for kind, mix in MIXES.items() if not any(getattr(batch, name) is not None for name in mix.refuses)]
    further = {one.kind for one in (batch.extra or {}).values()}
    able = [kind for kind in able if further <= {*MIXES[kind].carries}]
    able = [kind for kind in able if kind != "copy_paste" or batch.instance_masks is not None]
    return r.sample(able, min(len(able), r.choice([0, 0, 1, 1, 2])))


def check_rows(out: Batch, given: Batch, told: str, *, weighed: bool) -> None:
    """Compare what is bound to each box with what it was in the row that ``box_index`` names."""
    live = out.box_label >= 0
    if not torch.equal(out.box_index >= 0, live) or bool((out.box_index[~live] != -1).any()):
        raise Fault(f"box_index of padding {told}")
    if not torch.equal(live, live.int().sort(1, descending=True).values.bool()):
        raise Fault(f"padding is not last {told}")
    height, width = out.image.shape[2:]
    boxes = out.boxes.detach()[live]
    limit = torch.tensor([width, height, width, height])
    if not bool(((boxes >= 0) & (boxes <= limit)).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise Fault(f"boxes outside or without area {told}")
    image, place = live.nonzero().unbind(1)
    number = out.box_index[live]
    if (source := out.box_source) is not None and given.box_source is None:
        image_of = source[live]
        if not bool(((image_of >= 0) & (image_of < len(given))).all()):
            raise Fault(f"box_source {told}")
    else:
        image_of = image
    before, after = (
        {name: value for name, value in tensors_of(one).items() if name.startswith(("box_", "fields["))}
        for one in (given, out)
    )
    for name, value in before.items():
        if name in ("box_index", "box_weight" if weighed else "") or name not in after:
            continue
        if not same(after[name][image, place], value[image_of, number]):
            raise Fault(f"{name} does not follow its box {told}")
        fill = -1 if name in ("box_label", "box_source") else 0
        if bool((after[name][~live] != fill).any()):
            raise Fault(f"{name} of padding {told}")
    if before.keys() - after.keys():
        raise Fault(f"{', '.join(before.keys() - after.keys())} lost {told}")


def check_masks(out: Batch, given: Batch, told: str, *, tight: bool) -> None:
    """Raise where masks of padding show anything, or boxes around masks are not."""
    masks, live = out.instance_masks, out.box_label >= 0
    if masks.dtype != given.instance_masks.dtype or masks.shape != (*live.shape, *out.image.shape[2:]):
        raise Fault(f"instance_masks are {masks.dtype} {tuple(masks.shape)} {told}")
    if bool(masks[~live].any()) or (masks.numel() and int(masks.max()) > 1):
        raise Fault(f"instance_masks of padding {told}")
    image, place = live.nonzero().unbind(1)
    known = given.instance_masks[image, out.box_index[live]].bool().flatten(1).any(1)
    found: Tensor = masks_to_boxes(masks[image, place].long())
    if tight and not same(found[known], out.boxes.detach()[image, place][known]):
        raise Fault(f"boxes are not around their masks {told}")


def check_one_mask(
    r: random.Random, out: Batch, given: Batch, pipeline: AugmentationPipeline, params: dict[str, Any]
) -> None:
    """Compare the masks of one row with a semantic mask of the same pixels, which goes another way."""
    number = r.randrange(given.instance_masks.shape[1])
    alone = Batch(given.image, mask=given.instance_masks[:, number].long(), size=given.size)
    moved = (
        AugmentationPipeline(pipeline.stack, ignore_index=0, fuse=pipeline._settings.fuse).replay(alone, params).mask
    )
    for image, place in (out.box_index == number).nonzero().tolist():
        if not torch.equal(out.instance_masks[image, place].long(), moved[image]):
            raise Fault("an instance mask is not as a semantic mask of its pixels")
