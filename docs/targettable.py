"""The table of which operation carries which target, made by running each with each: ``python docs/targettable.py``.

It writes the rows into ``docs/targets.rst``. Of every operation of ``kornia.augmentation`` for images, and of this
package's, each target is augmented, replayed and brought back, and compared with where a map of coordinates says that
its pixels went.
"""

import inspect
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import torch
from kornia.augmentation.auto import AutoAugment, RandAugment, TrivialAugment
from torch import Tensor, nn

from kornia_mvit import AugmentationPipeline, Batch, CopyPaste, CutMix, Extra, Mix, MixUp, Mosaic
from kornia_mvit.augmentation.auto import PerImageRandAugment, PerImageTrivialAugment
from kornia_mvit.augmentation.choices import OneOf, SomeOf
from kornia_mvit.augmentation.color import RandomColorTwist
from kornia_mvit.augmentation.crops import RandomCropKeepingBoxes, RandomIoUCrop, RandomScaledCrop, RandomZoomOut
from kornia_mvit.augmentation.rotations import RandomExpandedRotation
from kornia_mvit.ops.oriented import oriented_bounds, oriented_corners

SIZE = (33, 41)
MARK = ".. csv-table::"
BACK, KEPT, ONCE, REFUSED = "●", "○", "◐", "✕"
TARGETS = (
    *("image", "label", "boxes", "oriented_boxes", "instance_masks", "fields", "mask", "keypoints"),
    *("extra: image", "values", "vectors"),
)
ENDS = torch.tensor([-0.2, 0.2])
# What has to be given where Kornia has no default, or one that does nothing.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "CenterCrop": {"size": (21, 25)},
    "ColorJiggle": {"brightness": 0.2, "contrast": 0.2},
    "ColorJitter": {"brightness": 0.2, "contrast": 0.2},
    "Denormalize": {"mean": 0.1, "std": 0.5},
    "LongestMaxSize": {"max_size": 29},
    "Normalize": {"mean": 0.1, "std": 0.5},
    "PadTo": {"size": (40, 50)},
    "PatchMix": {"patch_size": 8},
    "RandomAffine": {"degrees": 20.0, "translate": (0.1, 0.1), "scale": (0.8, 1.2), "shear": 5.0},
    "RandomBrightness": {"brightness": (0.7, 1.3)},
    "RandomClahe": {"grid_size": (2, 2)},
    "RandomContrast": {"contrast": (0.7, 1.3)},
    "RandomCrop": {"size": (21, 25)},
    "RandomElasticTransform": {"kernel_size": (21, 21), "sigma": (9.0, 9.0)},
    "RandomFisheye": {"center_x": ENDS, "center_y": ENDS, "gamma": torch.tensor([0.9, 1.1])},
    "RandomGamma": {"gamma": (0.7, 1.3)},
    "RandomGaussianBlur": {"kernel_size": (3, 3), "sigma": (0.5, 1.0)},
    "RandomHue": {"hue": (-0.2, 0.2)},
    "RandomMotionBlur": {"kernel_size": 3, "angle": 20.0, "direction": 0.3},
    "RandomPerspective": {"distortion_scale": 0.3},
    "RandomRain": {"drop_height": (3, 6), "drop_width": (-2, 2), "number_of_drops": (5, 9)},
    "RandomResizedCrop": {"size": (21, 25), "scale": (0.5, 1.0)},
    "RandomRotation": {"degrees": 20.0},
    "RandomRotation90": {"times": (1, 1)},
    "RandomSaturation": {"saturation": (0.7, 1.3)},
    "RandomShear": {"shear": 10.0},
    "RandomThinPlateSpline": {"scale": 0.1},
    "RandomTranslate": {"translate_x": (0.1, 0.2), "translate_y": (0.1, 0.2)},
    "Resize": {"size": (25, 30)},
    "SmallestMaxSize": {"max_size": 25},
}
LEFT_OUT = ("RandomDissolving",)  # it is made with a diffusion model, whose weights would have to be fetched
WARPS = (K.RandomElasticTransform, K.RandomThinPlateSpline, K.RandomFisheye)


def find_operations() -> dict[str, Callable[[], nn.Module]]:
    """Return what makes each operation, by the heading of its group and its name, as ``group/name``."""
    out: dict[str, Callable[[], nn.Module]] = {}
    mixes: dict[str, Callable[[], nn.Module]] = {}
    for name, kind in sorted(vars(K).items()):
        if not inspect.isclass(kind) or name.endswith("3D") or "Base" in name or name in LEFT_OUT:
            continue
        arguments = ARGUMENTS.get(name, {})
        if issubclass(kind, K.AugmentationBase2D):
            if "p" in inspect.signature(kind).parameters:
                arguments = {"p": 1.0} | arguments
            out[name] = lambda kind=kind, arguments=arguments: kind(**arguments)
        elif issubclass(kind, K.MixAugmentationBaseV2):
            mixes[name] = lambda kind=kind, arguments=arguments: kind(**arguments)
    flip = K.RandomHorizontalFlip
    turn = K.RandomRotation
    out |= {
        "AutoAugment": AutoAugment,
        "ImageSequential": lambda: K.ImageSequential(flip(p=1.0), turn(20.0, p=1.0)),
        "PatchSequential of colours": lambda: K.PatchSequential(K.RandomGamma((0.7, 1.3)), patchwise_apply=False),
        "PatchSequential of geometry": lambda: K.PatchSequential(flip(p=1.0), patchwise_apply=False),
        "RandAugment": lambda: RandAugment(2, 9),
        "TrivialAugment": TrivialAugment,
        "*OneOf": lambda: OneOf(flip(p=1.0), turn(20.0, p=1.0), K.RandomInvert(p=1.0)),
        "*PerImageRandAugment": lambda: PerImageRandAugment(2, 9),
        "*PerImageTrivialAugment": PerImageTrivialAugment,
        "*RandomColorTwist": lambda: RandomColorTwist(0.2, 0.2, 0.2),
        "*RandomCropKeepingBoxes": lambda: RandomCropKeepingBoxes((27, 31)),
        "*RandomExpandedRotation": lambda: RandomExpandedRotation(20.0, p=1.0),
        "*RandomIoUCrop": lambda: RandomIoUCrop((27, 31)),
        "*RandomScaledCrop": lambda: RandomScaledCrop((27, 31), short_side=(30, 40)),
        "*RandomZoomOut": lambda: RandomZoomOut(2.0, p=1.0),
        "*SomeOf": lambda: SomeOf((1, 2), flip(p=1.0), turn(20.0, p=1.0), K.RandomInvert(p=1.0)),
    }
    ours = {"*CopyPaste": CopyPaste, "*CutMix": CutMix, "*Mix": Mix, "*MixUp": MixUp, "*Mosaic": Mosaic}
    return out | mixes | {name: lambda kind=kind: kind(num_classes=3) for name, kind in ours.items()}


# --- what is augmented ---


def ramp() -> Tensor:
    """Return where each pixel is: (1, 2, H, W), x and y of its centre."""
    y, x = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    return torch.stack([x, y])[None]


def make_targets() -> dict[str, dict[str, Any]]:
    """Return the fields of a batch of two images for each target."""
    x, y = ramp()[0]
    oriented = torch.tensor([[[17.0, 14, 9, 6, 0.3], [25, 20, 7, 8, -0.5]], [[20, 16, 8, 8, 0.0], [0, 0, 0, 0, 0]]])
    label = torch.tensor([[0, 2], [1, -1]])
    boxes = {"boxes": oriented_bounds(oriented) * (label >= 0)[..., None], "box_label": label}
    inside = torch.stack([x, y], -1)
    masks = ((inside >= boxes["boxes"][:, :, None, None, :2]) & (inside < boxes["boxes"][:, :, None, None, 2:])).all(-1)
    to_point = torch.tensor([13.5, 12.5])[:, None, None] - ramp()
    points = torch.tensor([[18.5, 14.5], [22.5, 18.5], [21.0, 12.0]]).repeat(2, 1, 1)
    rest: dict[str, Any] = {
        "image": {},
        "label": {"label": torch.tensor([0, 2])},
        "boxes": boxes,
        "oriented_boxes": boxes | {"oriented_boxes": oriented},
        "instance_masks": boxes | {"instance_masks": masks},
        "fields": boxes | {"fields": {"track": torch.tensor([[7, 8], [9, 0]])}},
        "mask": {"mask": ((x // 7) + 6 * (y // 7)).long().repeat(2, 1, 1)},
        "keypoints": {"keypoints": points, "keypoint_visible": torch.ones(2, 3, dtype=torch.bool)},
        "values": {"extra": {"own": Extra(ramp().repeat(2, 1, 1, 1), kind="values", fill=-99.0)}},
        "vectors": {"extra": {"own": Extra(to_point.repeat(2, 1, 1, 1), kind="vectors")}},
    }
    image = make_image()
    return rest | {"extra: image": {"extra": {"own": Extra(image, kind="image")}}}


def make_image() -> Tensor:
    """Return smooth images (2, 3, H, W)."""
    x, y = ramp()[0] / SIZE[1]
    images = torch.stack([x, y, (x + y) / 2]).repeat(2, 1, 1, 1)
    return images * torch.tensor([1.0, 0.8])[:, None, None, None]


# --- what becomes of it ---


class Wrong(Exception):
    """An operation fails in another's words, or a target is not where it should be."""


def refusal(error: Exception, name: str, target: str) -> str:
    """Return the sign of a target that is refused by name.

    Raises:
        Wrong: for an error of another kind, of several lines, or without the operation's name or the target's.
    """
    text = str(error)
    words = (
        name.lstrip("*").partition(" ")[0],
        target.partition(":")[0],
        "extra" if target in TARGETS[-3:] else target,
    )
    if type(error) not in (ValueError, TypeError) or "\n" in text or not any(word in text for word in words):
        raise Wrong(f"{name}, {target}: {type(error).__name__}: {text}") from error
    return REFUSED


def try_target(name: str, make: Callable[[], nn.Module], target: str, given: dict[str, Any], seed: int = 3) -> str:
    """Augment, replay and bring back one target; return the sign for what was done.

    Raises:
        Wrong: where something else is raised than a refusal, or a result is wrong.
    """
    torch.manual_seed(0)
    module = make()
    mixes = not isinstance(module, K.MixAugmentationBaseV2) and hasattr(module, "num_classes")
    batch = Batch(make_image(), **(needed(module, target) if mixes else {}) | given)
    if mixes and target == "keypoints" and batch.boxes is not None:
        batch = batch.replace(
            keypoints=batch.keypoints[:, None].repeat(1, 2, 1, 1),
            keypoint_visible=(batch.box_label >= 0)[..., None].repeat(1, 1, 3),
        )
    try:
        pipeline = AugmentationPipeline([] if mixes else [module], module if mixes else None, min_box_area=0.0)
        out, params = pipeline.augment(batch, seed=seed)
    except Exception as error:  # the kind is looked at
        return refusal(error, name, target)
    try:
        again = pipeline.replay(batch, params)
    except Exception as error:
        raise Wrong(f"{name}, {target}: replay raises {type(error).__name__}: {error}") from error
    for field, value in flat(out).items():
        if not torch.equal(value.nan_to_num(7.0), flat(again)[field].nan_to_num(7.0)):
            raise Wrong(f"{name}, {target}: {field} of the replay is not the same")
    if target in ("label", "fields"):
        check_kept(name, batch, out, mixes)
        return KEPT
    if not mixes:
        tracked = batch.replace(extra=(batch.extra or {}) | {"ramp": make_targets()["values"]["extra"]["own"]})
        try:
            where = pipeline.replay(tracked, params).extra["ramp"].tensor
        except ValueError as error:
            if target != "image":
                raise Wrong(f"{name}, {target}: {error}") from error
            where = None
        if where is not None:
            moves = isinstance(module, (K.GeometricAugmentationBase2D, *WARPS))
            check_places(name, target, batch, out, where, moves=moves)
    try:
        check_back(name, target, pipeline, batch, out, params)
    except Wrong:
        raise
    except Exception as error:
        refusal(error, name, "mixed" if mixes else target)
        return ONCE
    return BACK


def needed(mix: nn.Module, target: str) -> dict[str, Any]:
    """Return what a mix needs beside a target: labels, masks to copy by, and boxes of keypoints."""
    targets = make_targets()
    out = dict(targets["label"])
    if isinstance(mix, CopyPaste):
        out |= targets["instance_masks"]
    if target == "keypoints" and not isinstance(mix, Mix):
        out |= targets["boxes"]
    return out


def flat(batch: Batch) -> dict[str, Tensor]:
    """Return all tensors of a batch by name."""
    own = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return own | (batch.fields or {}) | {name: one.tensor for name, one in (batch.extra or {}).items()}


def check_kept(name: str, batch: Batch, out: Batch, mixes: bool) -> None:
    """Raise where a label was changed, or fields do not follow their boxes."""
    if batch.label is not None and not mixes and not torch.equal(out.label, batch.label):
        raise Wrong(f"{name}: label changed")
    if batch.label is not None and mixes and not torch.allclose(out.label.sum(1), torch.ones(2)):
        raise Wrong(f"{name}: labels do not sum to one")
    if batch.fields is None:
        return
    image, place = (out.box_label >= 0).nonzero().unbind(1)
    source = image if out.box_source is None else out.box_source[image, place]
    if not torch.equal(out.fields["track"][image, place], batch.fields["track"][source, out.box_index[image, place]]):
        raise Wrong(f"{name}: fields do not follow their boxes")


def check_places(name: str, target: str, batch: Batch, out: Batch, where: Tensor, *, moves: bool = False) -> None:
    """Raise where a target is not where its pixels are.

    Args:
        name: of the operation.
        target: that is looked at.
        batch: what was given.
        out: what came of it.
        where: (B, 2, h, w), x and y of what each pixel of the result shows; negative for nothing.
        moves: the operation leaves the values of images alone, so that these show where their pixels are from.
    """
    known, (x, y) = where[:, 0] > 0, where.unbind(1)
    height, width = where.shape[2:]
    row, column = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    wrong = []
    if target == "image" and moves:
        shown = out.image[:, :2] * SIZE[1] / torch.tensor([1.0, 0.8]).view(2, 1, 1, 1)
        inner = -torch.nn.functional.max_pool2d(-known.float()[:, None], 5, 1, 2)[:, 0] > 0
        wrong = [~inner.any(), ((shown - where).abs().amax(1) > 0.3)[inner].any()]
    if target == "mask":
        rim = ((x / 7).frac() * 7 - 3.5).abs().clamp_min(((y / 7).frac() * 7 - 3.5).abs()) > 2.7
        wanted = ((x // 7) + 6 * (y // 7)).long()
        wrong = [(out.mask != wanted)[known & ~rim].any(), (out.mask[~known] != 255).any()]
    if target == "values":
        wrong = [((out.extra["own"].tensor - where).abs() > 1e-3).any()]
    if target == "extra: image":
        wrong = [((out.extra["own"].tensor - out.image).abs() > 1e-6).any()]
    if target == "keypoints":
        for i, j in out.keypoint_visible.nonzero().tolist():
            px, py = out.keypoints[i, j].tolist()
            near = where[i, :, min(int(py), height - 1), min(int(px), width - 1)]
            wrong.append(bool(near[0] > 0) and (near - batch.keypoints[i, j]).abs().max() > 1.2)
        there = (where[:, None] - batch.keypoints[..., None, None]).abs().amax(2) < 0.6
        wrong.append((there.flatten(2).any(2) & ~out.keypoint_visible)[..., None].any())
    if target == "vectors":
        at = (where - torch.tensor([13.5, 12.5])[:, None, None]).square().sum(1)
        moved = torch.stack([column.expand(height, width), row.expand(height, width)]) + out.extra["own"].tensor
        for i in range(len(at)):
            if float(at[i].min()) < 1.0:
                ends = moved[i][:, known[i]]
                place = divmod(int(at[i].argmin()), width)
                wanted = torch.tensor([place[1] + 0.5, place[0] + 0.5])
                wrong.append((ends.median(1).values - wanted).abs().max() > 1.5)
    if target in ("boxes", "oriented_boxes", "instance_masks"):
        wrong = [*rows_off(batch, out, where)]
    if any(bool(one) for one in wrong):
        raise Wrong(f"{name}: {target} is not where its pixels are")


def rows_off(batch: Batch, out: Batch, where: Tensor) -> list[bool]:
    """Tell of each box whether it, its oriented box or its mask is not where the pixels of its object are."""
    height, width = where.shape[2:]
    row, column = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    found = []
    for i, j in (out.box_label >= 0).nonzero().tolist():
        number = int(out.box_index[i, j])
        left, top, right, bottom = batch.boxes[i, number].tolist()
        x, y = where[i]
        core = (x > left + 1) & (x < right - 1) & (y > top + 1) & (y < bottom - 1)
        x0, y0, x1, y1 = out.boxes[i, j].tolist()
        boxed = (column > x0 - 0.5) & (column < x1 + 0.5) & (row > y0 - 0.5) & (row < y1 + 0.5)
        found.append(bool((core & ~boxed).any()))
        if out.instance_masks is not None:
            around = (x > left - 1) & (x < right + 1) & (y > top - 1) & (y < bottom + 1)
            mask = out.instance_masks[i, j]
            found.append(bool((core & ~mask).any() | (mask & ~around).any()))
        if out.oriented_boxes is not None:
            before, after = batch.oriented_boxes[i, number], out.oriented_boxes[i, j]
            u, v = turned(before, where[i].permute(1, 2, 0))
            core = (u.abs() < before[2] / 2 - 1) & (v.abs() < before[3] / 2 - 1)
            u, v = turned(after, torch.stack([column.expand(height, width), row.expand(height, width)], -1))
            found.append(bool((core & ~((u.abs() < after[2] / 2 + 0.5) & (v.abs() < after[3] / 2 + 0.5))).any()))
    return found


def turned(box: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far points (..., 2) are from the middle of an oriented box, along its width and its height."""
    x, y = (points - box[:2]).unbind(-1)
    cos, sin = box[4].cos(), box[4].sin()
    return x * cos + y * sin, y * cos - x * sin


def check_back(
    name: str, target: str, pipeline: AugmentationPipeline, batch: Batch, out: Batch, params: dict[str, Any]
) -> None:
    """Bring a target back, and raise where it is not what it was."""
    wrong: list[Any] = []
    if target in ("image", "mask", "instance_masks"):
        maps = {"image": out.image, "mask": None, "instance_masks": None}[target]
        if target == "mask":
            maps = (out.mask[:, None] == torch.arange(36)[:, None, None]).float()
        elif target == "instance_masks":
            maps = out.instance_masks.float()
        back, valid = pipeline.inverse(maps, params)
        wrong.append(back.shape[2:] != SIZE or not bool(valid.any()))
        if target == "mask":
            wrong.append((back.argmax(1) != batch.mask)[valid[:, 0]].float().mean() > 0.25)
    elif target == "boxes":
        back = pipeline.inverse_boxes(out.boxes, params)
        wrong = boxes_off(back, out, batch)
    elif target == "oriented_boxes":
        back = pipeline.inverse_oriented_boxes(out.oriented_boxes, params)
        live = (out.box_label >= 0).nonzero()
        for i, j in live.tolist():
            before = batch.oriented_boxes[i, int(out.box_index[i, j])]
            u, v = turned(back[i, j], oriented_corners(before))
            wrong.append(bool(((u.abs() > back[i, j, 2] / 2 + 1) | (v.abs() > back[i, j, 3] / 2 + 1)).any()))
    elif target == "keypoints":
        back = pipeline.inverse_keypoints(out.keypoints, params)
        wrong.append(((back - batch.keypoints).abs().amax(-1) > 0.5)[out.keypoint_visible].any())
    else:
        back, valid = pipeline.inverse_extra(out.extra, params)
        off = (back["own"].tensor - batch.extra["own"].tensor).abs().amax(1)
        wrong.append(not bool(valid.any()))
        if target != "extra: image":
            wrong.append(off[valid[:, 0]].median() > 1.0)
    if any(bool(one) for one in wrong):
        raise Wrong(f"{name}: {target} is brought back to where it was not")


def boxes_off(back: Tensor, out: Batch, batch: Batch) -> list[bool]:
    """Tell of each box that was cut at no edge whether it does not hold what it held before."""
    height, width = out.image.shape[2:]
    found = []
    for i, j in (out.box_label >= 0).nonzero().tolist():
        left, top, right, bottom = out.boxes[i, j].tolist()
        if left > 0 and top > 0 and right < width and bottom < height:
            before = batch.boxes[i, int(out.box_index[i, j])]
            found.append(bool((back[i, j, :2] > before[:2] + 1).any() or (back[i, j, 2:] < before[2:] - 1).any()))
    return found


# --- the table ---


def make_rows(names: Collection[str] | None = None) -> list[tuple[str, ...]]:
    """Return each operation's name and its signs.

    Args:
        names: of the operations to try; None for all.

    Raises:
        Wrong: with all that was found wrong.
    """
    rows, faults = [], []
    targets = make_targets()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in find_operations().items():
            if names is not None and name.lstrip("*") not in names:
                continue
            signs = []
            for target in TARGETS:
                try:
                    signs.append(try_target(name, make, target, targets[target]))
                except Wrong as fault:
                    faults.append(str(fault))
            rows.append((name.lstrip("*"), *signs))
    if faults:
        raise Wrong("\n".join(faults))
    return rows


def write_table(rows: list[tuple[str, ...]]) -> str:
    """Write the rows as a table of RST."""
    head = ("operation", *(target.replace("_", " ") for target in TARGETS))
    lines = [MARK, f"   :header: {', '.join(head)}", f"   :widths: 30{' 7' * len(TARGETS)}", ""]
    return "\n".join(lines + [f"   {', '.join(row)}" for row in rows]) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    page = Path(__file__).with_name("targets.rst")
    head, _, _ = page.read_text(encoding="utf-8").partition(MARK)
    page.write_text(head + write_table(make_rows()), encoding="utf-8")
