"""Oriented boxes and further images of random samples: what they hold, and what must come of them."""

import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kornia_mvit import Batch, Extra
from kornia_mvit.ops.oriented import oriented_corners
from tests.damage.faults import Fault, check_error, same

MAPS = ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "float16", "bfloat16", "float32", "float64")
NAMES = ("next", "depth", "heat", "flow")
Truth = dict[str, Extra]


# --- truths ---


def make_oriented(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Draw oriented boxes (count, 5) in and around an image, some of them without area."""
    middle = rng.integers(-8, 4 * max(height, width), (count, 2)) / 4
    return np.hstack([middle, rng.integers(0, 25, (count, 2)) / 4, rng.integers(-32, 33, (count, 1)) / 8])


def choose_kinds(r: random.Random, dtype: Any, channels: int) -> dict[str, dict[str, Any]]:
    """Choose what the samples of a batch have as further images: kind, dtype, channels, mode and fill, by name."""
    out = {}
    for name in r.sample(NAMES, r.randint(0, 3)):
        kind = r.choice(["image", "values", "values", "vectors"])
        own = {"image": np.dtype(dtype).name, "vectors": r.choice(["float32", "float64", "float16"])}
        told: dict[str, Any] = {"kind": kind, "dtype": own.get(kind, r.choice(MAPS)), "channels": r.randint(1, 3)}
        told["channels"] = {"image": channels, "vectors": 2}.get(kind, told["channels"])
        if kind != "image":
            smooth = "float" in told["dtype"]
            told["mode"] = r.choice([None, "nearest", "bilinear"] if smooth else [None, "nearest"])
            told["fill"] = r.choice([0.0, 1.0, -1.0, float("nan")] if smooth else [0.0, 1.0])
        out[name] = told
    return out


def make_extra(rng: np.random.Generator, kinds: dict[str, dict[str, Any]], height: int, width: int) -> Truth:
    """Draw the further images of a sample."""
    out = {}
    for name, told in kinds.items():
        dtype = getattr(torch, told["dtype"])
        numbers = torch.from_numpy(
            rng.integers(0, 2 if dtype == torch.bool else 100, (told["channels"], height, width))
        )
        value = numbers / 100 if told["kind"] == "image" and dtype.is_floating_point else numbers
        rest = {key: told[key] for key in ("mode", "fill") if key in told}
        out[name] = Extra(value.to(dtype), kind=told["kind"], **rest)
    return out


def write_extra(r: random.Random, given: Truth) -> Truth:
    """Write further images down as arrays, or as tensors in a memory layout of many."""
    out = {}
    for name, one in given.items():
        value: Any = one.tensor
        if r.random() < 0.3 and value.dtype != torch.bfloat16:
            value = value.numpy()
        elif r.random() < 0.5:
            value = value.mT.contiguous().mT
        elif value.is_floating_point() and r.random() < 0.3:
            value = value.clone().requires_grad_()
        out[name] = one.replace(value)
    return out


# --- what is refused ---


def wrong_oriented(a: np.ndarray) -> list[Any]:
    rows = np.array([[3.0, 3, 2, 2, 0.5]] * 3)
    bad = [rows.ravel(), rows.T[:4], rows[None], rows[:, :4], np.hstack([rows, rows[:, :1]]), rows > 0, [[1] * 5, [3]]]
    return bad + ([np.vstack([a, a[:1]]), a[1:]] if len(a) else [])


def wrong_extra(given: Truth) -> list[Any]:
    bad: list[Any] = [None, "word", [1, 2], 3, torch.zeros(2), {1: 2}, given | {"one": torch.zeros(1, 5, 5)}]
    for name, one in given.items():
        t = one.tensor
        for value in (t[None], t[:, 1:], t[..., :-1], t.repeat(1, 1, 2)):
            bad.append(given | {name: Extra(value, kind=one.kind)})
        bad += [given | {name: t}, given | {name: None}]
    return bad


# --- what must come of them ---


def check_extra(found: dict[str, Extra], wanted: Truth, i: int) -> None:
    """Raise where the further images of image ``i`` are not those of its sample, with their fill around them."""
    if found.keys() != wanted.keys():
        raise Fault("names of extra differ")
    for name, one in wanted.items():
        got, (h, w) = found[name], one.tensor.shape[1:]
        if not (got.kind == one.kind and got.mode == one.mode and same_number(got.fill, one.fill)):
            raise Fault(f"extra[{name!r}] says that it is {got}, not {one}")
        value = got.tensor[i]
        if value.dtype != one.tensor.dtype or not same(value[:, :h, :w], one.tensor):
            raise Fault(f"extra[{name!r}] differs")
        for pad in (value[:, h:], value[:, :h, w:]):
            if not same(pad, torch.full(pad.shape, one.fill, dtype=torch.float64)):
                raise Fault(f"padding of extra[{name!r}] is not {one.fill}")


def same_number(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def check_flipped_extra(found: dict[str, Extra], given: dict[str, Extra], inside: Tensor, *, flipped: bool) -> None:
    """Raise where further images are not those of a flip, or of its inverse.

    ``inside`` (B, H, W) tells where images are. These may be uint8, and from 0 to 1 in what was found. What they
    show in padding is not looked at.
    """
    for name, one in given.items():
        got, mask, fill = found[name].tensor, inside[:, None], one.fill
        value = one.tensor.detach().double()
        if one.kind == "image":
            value = value / 255 if one.tensor.dtype == torch.uint8 else value
            got = got.double().masked_fill(~(mask.flip(-1) if flipped else mask), 0)
        elif got.dtype != one.tensor.dtype:
            raise Fault(f"extra[{name!r}] of the flip is {got.dtype}")
        if one.kind == "vectors" and flipped:
            value = value * torch.tensor([-1.0, 1.0])[:, None, None]
        value = torch.where(mask, value, fill)
        value = value.flip(-1) if flipped else value
        near = torch.isclose(got.double(), value, atol=0.2 if "float16" in str(got.dtype) else 1e-3, equal_nan=True)
        if not bool(near.all()):
            place = near.logical_not().nonzero()[0].tolist()
            raise Fault(f"extra[{name!r}] of the flip, or its inverse, {one.kind} of {one.tensor.dtype}, at {place}")


def check_flipped_oriented(found: Tensor, given: Tensor, width: int, flipped: bool) -> None:
    """Raise where oriented boxes (N, 5) do not have the corners of others that are flipped."""
    corners = oriented_corners(given.double())
    if flipped:
        corners = torch.stack([width - corners[..., 0], corners[..., 1]], -1)
    apart = torch.cdist(oriented_corners(found[: len(given)].double()), corners)
    if len(given) and not bool((apart.amin(-1) < 1e-3).all() and (apart.amin(-2) < 1e-3).all()):
        raise Fault("oriented_boxes of the flip")
    if bool((found[len(given) :] != 0).any()):
        raise Fault("oriented_boxes of padding after the flip")


def check_oriented_rows(out: Batch, told: str) -> None:
    """Raise where oriented boxes of a result are not finite, have an angle out of range, or go on in padding."""
    live, rows = out.box_label >= 0, out.oriented_boxes.detach()
    if bool((rows[~live] != 0).any()):
        raise Fault(f"oriented_boxes of padding {told}")
    one = rows[live]
    if not bool(one.isfinite().all() and (one[:, 2:4] >= 0).all()):
        raise Fault(f"oriented_boxes are not finite, or have negative sides {told}")


def check_change_of_extra(r: random.Random, batch: Batch) -> None:
    """Give a batch other further images; raise where that is taken and is not right, or right ones are refused."""
    if not batch.extra:
        return
    name = r.choice(list(batch.extra))
    one = batch.extra[name]
    try:
        wrong = [one.replace(t) for t in (one.tensor[:, :, 1:], torch.cat([one.tensor] * 2), one.tensor[0])]
    except Exception as error:
        raise Fault(f"an Extra refuses its own {tuple(one.tensor.shape)}: {str(error)[:150]}") from error
    changed = r.choice([one, *wrong, one.tensor, 3, "word", None])
    try:
        kept = batch.replace(extra=batch.extra | {name: changed}).extra[name]
    except Exception as error:
        check_error(error, "extra")
        if changed is one:
            raise Fault(f"extra is refused: {str(error)[:150]}") from error
        return
    if changed is not one or not same(kept.tensor, one.tensor):
        raise Fault("a wrong extra is taken by Batch, or a right one changed")
