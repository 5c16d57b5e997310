"""Batches of random fields: shapes and dtypes, layouts of memory, lists, NumPy, TVTensors, numbers that are not finite.

``python -m tests.damage.targets --cases 20000`` makes them. Where every field is right, the batch must hold what the
fields held, and a flip of it too; where one is wrong, a ``ValueError`` or ``TypeError`` of one line must name it.
"""

import argparse
import collections
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kornia.augmentation import RandomHorizontalFlip
from PIL import Image
from torch import Tensor

from kornia_mvit import AugmentationPipeline, Batch

try:
    from torchvision import tv_tensors
except ImportError:
    tv_tensors = None

LONGEST = 500  # characters of a message
NAN, INF = float("nan"), float("inf")
INTEGERS = [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint32, np.uint64]
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn),
]
OPTIONAL = ("box_ignore", "box_weight", "box_source")
PARTS = {**dict.fromkeys(("box_label", *OPTIONAL), "boxes"), "keypoint_visible": "keypoints"}
UNKNOWN = ("box_index", "instance_masks", "fields", "keypoint_index")  # of which no truths are made here
Make = Callable[[random.Random, np.ndarray], Any]


class Fault(Exception):
    """What came of a case is not what should; the message says where."""


# --- ways to write down numbers that are right ---


def as_list(r: random.Random, a: np.ndarray) -> Any:
    return a.tolist()


def as_array(r: random.Random, a: np.ndarray) -> Any:
    """An array in a memory layout of many: read-only, backwards, columns first, cut from a larger one."""
    way = r.randrange(5)
    if way == 0:
        a = a.copy()
        a.setflags(write=False)
    elif way == 1 and a.ndim:
        a = np.flip(np.flip(a, -1).copy(), -1)
    elif way == 2 and a.ndim:
        a = np.asfortranarray(a)
    elif way == 3 and a.ndim:
        a = np.repeat(a, 2, axis=-1)[..., ::2]
    return a


def as_tensor(r: random.Random, a: np.ndarray) -> Any:
    """A tensor in a memory layout of many."""
    value = torch.from_numpy(np.array(a))
    way = r.randrange(4)
    if way == 0 and value.ndim > 1:
        value = value.mT.contiguous().mT
    elif way == 1 and value.ndim:
        value = value.repeat_interleave(2, -1)[..., ::2]
    elif way == 2 and value.is_floating_point():
        value = value.requires_grad_()
    return value


def in_dtypes(*dtypes: Any) -> Make:
    """Write numbers in one of the dtypes that hold them, as an array or a tensor."""

    def make(r: random.Random, a: np.ndarray) -> Any:
        chosen = [d for d in dtypes if np.array_equal(a.astype(d).astype(np.float64), a.astype(np.float64))]
        return r.choice([as_array, as_tensor])(r, a.astype(r.choice(chosen)) if chosen else a)

    return make


FLOATS = in_dtypes(np.float16, np.float32, np.float64)
WHOLE = in_dtypes(*INTEGERS)


def write_tv_rows(r: random.Random, name: str, a: np.ndarray, size: tuple[int, int]) -> Any:
    """Torchvision's boxes and keypoints, in a format and on a canvas of their own."""
    if tv_tensors is None or len(a) == 0:
        return a.tolist()
    factor = r.choice([1, 2])
    canvas, rows = (size[0] * factor, size[1] * factor), a.astype(np.float64) * factor
    if name == "keypoints":
        return tv_tensors.KeyPoints(rows, canvas_size=canvas)
    low, high = rows[:, :2], rows[:, 2:]
    forms = {"XYXY": (low, high), "XYWH": (low, high - low), "CXCYWH": ((low + high) / 2, high - low)}
    form = r.choice(list(forms))
    return tv_tensors.BoundingBoxes(np.hstack(forms[form]), format=form, canvas_size=canvas)


# --- samples ---


def make_truth(r: random.Random, names: list[str], count: int, dtype: Any, channels: int) -> list[dict[str, Any]]:
    """Draw what samples say, as arrays of one form."""
    rng = np.random.default_rng(r.randrange(1 << 30))
    even, classes = r.random() < 0.5, r.randint(2, 4)
    shape = (r.randint(5, 12), r.randint(5, 12))
    soft, states, instances = r.random() < 0.3, r.random() < 0.5, r.choice([0, 0, 0, 1, 3])
    out = []
    for _ in range(count):
        h, w = shape if even else (r.randint(5, 12), r.randint(5, 12))
        n, m = r.randint(0, 3), r.randint(0, 3)
        pixels = rng.integers(0, 256, (channels, h, w))
        truth: dict[str, Any] = {
            "image": pixels.astype(np.uint8) if dtype == np.uint8 else (pixels / 255).astype(dtype)
        }
        low = rng.integers(0, 4 * min(h, w) - 8, (n, 2)) / 4
        boxes = np.hstack([low, low + rng.integers(0, 9, (n, 2)) / 4])
        box_label = rng.integers(-1, 3, n)
        rows = (n if "boxes" in names else m, instances) if instances else (m,)
        points, visible = rng.integers(-8, 4 * min(h, w), (*rows, 2)) / 4, rng.random(rows) < 0.6
        if states:
            visible = visible * rng.integers(1, 3, rows)
        if r.random() < 0.3:
            boxes[box_label < 0] = r.choice([NAN, INF, -1.0])
            points[visible == 0] = r.choice([NAN, INF, -1.0])
        every = {
            "label": rng.random(classes).astype(np.float32) if soft else np.array(r.randrange(classes)),
            "boxes": boxes,
            "box_label": box_label,
            "box_ignore": rng.random(n) < 0.5,
            "box_weight": rng.integers(0, 9, n) / 4,
            "box_source": rng.integers(-1, 3, n),
            "mask": rng.integers(0, 4, (h, w)),
            "keypoints": points,
            "keypoint_visible": visible,
            "size": np.array([r.randint(1, h), r.randint(1, w)]),
            "original_size": rng.integers(1, 3000, 2),
            "meta": {"path": f"{r.randrange(100)}.png"},
        }
        truth |= {name: every[name] for name in names}
        out.append(truth)
    return out


def write_image(r: random.Random, a: np.ndarray) -> Any:
    if tv_tensors is not None and r.random() < 0.2:
        return tv_tensors.Image(torch.from_numpy(a))
    if len(a) in (1, 3, 4) and r.random() < 0.2:
        return as_array(r, a).transpose(1, 2, 0)
    if len(a) == 3 and a.dtype == np.uint8 and r.random() < 0.2:
        return Image.fromarray(np.ascontiguousarray(a.transpose(1, 2, 0)))
    return r.choice([as_array, as_tensor])(r, a)


def write_mask(r: random.Random, a: np.ndarray) -> Any:
    if tv_tensors is not None and r.random() < 0.2:
        return tv_tensors.Mask(torch.from_numpy(a))
    if r.random() < 0.2:
        return Image.fromarray(a.astype(np.int32))
    if r.random() < 0.2:
        a = a[None]
    return in_dtypes(*INTEGERS)(r, a)


def write_label(r: random.Random, a: np.ndarray) -> Any:
    return as_tensor(r, a) if a.ndim else r.choice([as_list, WHOLE])(r, a)


def any_of(*ways: Make) -> Make:
    """Write in one of several ways."""
    return lambda r, a: r.choice(ways)(r, a)


WAYS: dict[str, Make] = {
    "image": write_image,
    "label": write_label,
    "mask": write_mask,
    "boxes": any_of(as_list, FLOATS),
    "keypoints": any_of(as_list, FLOATS),
    "box_label": any_of(as_list, WHOLE, FLOATS),
    "box_ignore": any_of(as_list, as_array, as_tensor, WHOLE),
    "box_weight": any_of(as_list, FLOATS),
    "box_source": any_of(as_list, WHOLE, FLOATS),
    "keypoint_visible": lambda r, a: r.choice([as_list, as_array, as_tensor, WHOLE] if a.dtype == bool else [WHOLE])(
        r, a
    ),
    "size": any_of(as_list, WHOLE, FLOATS),
    "original_size": any_of(as_list, WHOLE, FLOATS),
    "meta": lambda r, a: dict(a),
}


def write(r: random.Random, name: str, truth: dict[str, Any]) -> Any:
    """Write a field down in one of the ways that are taken."""
    a = truth[name]
    if name in ("boxes", "keypoints") and r.random() < 0.3 and np.isfinite(a).all():
        return write_tv_rows(r, name, a, truth["image"].shape[1:])
    return WAYS[name](r, a)


# --- numbers that are wrong ---


def wrong_images(a: np.ndarray) -> list[Any]:
    _, h, w = a.shape
    bad = [a[None], a[0], a.astype(np.int64), a > 0, a[:, :0], a[:0], np.full(a.shape, NAN, np.float32)]
    bad += [np.full(a.shape, INF, np.float32), a.astype(np.float32) * 300 + 2, a.astype(np.float32) - 9]
    bad += [Image.new("F", (w, h)), torch.zeros(3, h, w).to(torch.float8_e4m3fn)]
    if len(a) in (1, 3, 4):
        bad += [torch.from_numpy(a).permute(1, 2, 0)]
    return bad


def wrong_rows(a: np.ndarray) -> list[Any]:
    if a.ndim == 3:
        rows = np.ones((len(a) + 1, *a.shape[1:]))
        return [rows, rows[:, :, :1], rows.ravel(), rows[None], rows > 0, np.ones((*a.shape[:2], 3)), rows[:, 1:]]
    rows = np.array([[1.0, 1, 2, 2]] * 3)[:, : a.shape[1]]
    bad = [rows.ravel(), rows.T, rows[None], np.hstack([rows, rows[:, :1]]), rows > 0, [[1, 2], [3]]]
    return bad + ([np.vstack([a, a[:1]]), a[1:]] if len(a) else [])


def wrong_flags(a: np.ndarray) -> list[Any]:
    if a.ndim == 2:
        ones = np.ones(a.shape)
        bad = [np.ones((len(a) + 1, a.shape[1])), ones.ravel() if a.size > 1 else [1, 1], ones[None], [10**30]]
        return bad + ([ones * 1.5, ones * -2, ones * 3, ones * NAN] if len(a) else [])
    ones = np.ones(len(a) + 1)
    bad: list[Any] = [ones, ones[:, None], [10**30]]
    if len(a):
        bad += [ones[1:] * 1.5, ones[1:] * -2, ones[1:] * NAN, ones[1:] * INF, ones[2:], ones[None, 1:]]
        bad += [np.full(len(a), 2**64 - 1, np.uint64)]
    return bad


def wrong_weights(a: np.ndarray) -> list[Any]:
    ones = np.ones(len(a) + 1)
    bad: list[Any] = [ones, ones[:, None]]
    return bad + ([ones[1:] * -2, ones[1:] * NAN, ones[1:] * INF, ones[2:], ones[None, 1:]] if len(a) else [])


def wrong_masks(a: np.ndarray) -> list[Any]:
    h, w = a.shape
    sizes = [(h * 2, w * 2), (h // 2, w // 2), (h + 1, w), (h, w - 1), (2, h, w), (h, w, 1), (0, w), (h * w,)]
    bad = [np.zeros(s, np.int64) for s in sizes] + [a + 0.5, a > 0, Image.new("RGB", (w, h))]
    return bad + ([np.full(a.shape, 2**64 - 1, np.uint64)] if h == w else [a.T])


def wrong_sizes(a: np.ndarray) -> list[Any]:
    return [a[:1], a[None], a + 0.5, a * 0, a * -1, a > 0, np.append(a, 1), a * NAN, a[0]]


def wrong_labels(a: np.ndarray) -> list[Any]:
    if a.ndim:
        return [a * NAN, a * INF, a[None], a[:0]]
    return [a + 0.5, a > 0, a[None], a + NAN, np.full((), 2**64 - 1, np.uint64)]


WRONG: dict[str, Callable[[np.ndarray], list[Any]]] = {
    "image": wrong_images,
    "label": wrong_labels,
    "mask": wrong_masks,
    "boxes": wrong_rows,
    "keypoints": wrong_rows,
    "box_label": lambda a: wrong_flags(a) + ([a > 0] if len(a) else []),
    "box_ignore": wrong_flags,
    "box_weight": wrong_weights,
    "box_source": lambda a: [one for one in wrong_flags(a) if not np.array_equal(one, [-2.0] * len(a))],
    "keypoint_visible": wrong_flags,
    "size": lambda a: [*wrong_sizes(a), a + np.array([12, 0]), a + np.array([0, 12])],
    "original_size": wrong_sizes,
}


def spoil(r: random.Random, name: str, truth: dict[str, Any]) -> Any:
    """Write a field down in one of the ways that are refused."""
    if name == "meta":
        return r.choice(["path", [1, 2], 5])
    a = truth[name]
    bad: list[Any] = [None, "word", {"a": 1}, np.full(a.shape, "x"), np.empty(a.shape, object)]
    if a.size:
        bad += [a.astype(np.complex64), torch.from_numpy(np.array(a)).to_sparse()]
    return r.choice(bad + WRONG[name](a))


# --- what must come of them ---


def check_error(error: BaseException, *names: str) -> None:
    """Raise where an error is not a short line that has one of the names."""
    text = str(error)
    if type(error) not in (ValueError, TypeError):
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "kornia_mvit" in f.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        raise Fault(f"{type(error).__name__} at {where}: {text[:150]!r}")
    if "\n" in text or len(text) > LONGEST:
        raise Fault(f"{len(text)} characters, {text.count(chr(10))} breaks: {text[:150]!r}")
    if not any(name in text for name in names):
        raise Fault(f"none of {names} is named: {text[:150]!r}")


def check_batch(batch: Batch, truths: list[dict[str, Any]], ignore_index: int) -> None:
    """Raise where a batch is not what its samples say."""
    uneven = len({truth["image"].shape for truth in truths}) > 1
    for i, truth in enumerate(truths):
        for name in truth:
            check_field(name, getattr(batch, name)[i], truth, ignore_index)
        if (
            uneven
            and "size" not in truth
            and (batch.size is None or batch.size[i].tolist() != [*truth["image"].shape[1:]])
        ):
            raise Fault("size is not that of the image")


def check_field(name: str, value: Any, truth: dict[str, Any], ignore_index: int) -> None:
    """Raise where a field of an image is not what its sample says, with padding after it."""
    a, (h, w) = truth[name], truth["image"].shape[1:]
    if name == "meta":
        if value != a:
            raise Fault("meta differs")
        return
    got, fill = value.detach().double(), {"box_label": -1, "box_source": -1, "mask": ignore_index}.get(name, 0)
    if name in ("image", "mask"):
        pad = got.clone()
        pad[..., :h, :w] = fill
        got = got[..., :h, :w]
    elif name in ("label", "size", "original_size"):
        pad = got[:0] if got.ndim else got[None][:0]
    else:
        got, pad = got[: len(a)], got[len(a) :]
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
    before = {name: value.clone() for name, value in vars(batch).items() if isinstance(value, Tensor)}
    flipped = r.random() < 0.5
    steps = [RandomHorizontalFlip(p=float(flipped))]
    out = AugmentationPipeline(steps, ignore_index=ignore_index, min_box_area=0.0)(
        batch, seed=np.int64(r.randrange(100))
    )
    width = batch.image.shape[-1]
    size = batch.size if batch.size is not None else torch.tensor([batch.image.shape[2:]]).expand(len(batch), 2)
    limit = size.flip(-1).double()[:, None]  # of x and y, of each image
    if batch.boxes is not None:
        left, top, right, bottom = batch.boxes.double().clamp_min(0).minimum(limit.repeat(1, 1, 2)).unbind(-1)
        keep = (batch.box_label >= 0) & (right > left) & (bottom > top)
        boxes = torch.stack([width - right, top, width - left, bottom] if flipped else [left, top, right, bottom], -1)
        for i, kept in enumerate(keep):
            labels = batch.box_label[i][kept].tolist()
            if out.box_label[i].tolist() != labels + [-1] * (len(kept) - len(labels)):
                raise Fault("box_label of the flip")
            if not torch.allclose(out.boxes[i, : len(labels)].double(), boxes[i][kept]):
                raise Fault("boxes of the flip")
    if batch.mask is not None:
        rows, columns = (torch.arange(n) for n in batch.mask.shape[1:])
        inside = (columns < size[:, 1:])[:, None, :] & (rows < size[:, :1])[:, :, None]
        mask = batch.mask.double().masked_fill(~inside, ignore_index)
        if not torch.equal(out.mask.double(), mask.flip(-1) if flipped else mask):
            raise Fault("mask of the flip")
    if batch.keypoints is not None:
        seen = seen_points(batch, limit, keep if batch.boxes is not None else None)
        if not torch.equal(out.keypoint_visible, seen):
            raise Fault("keypoint_visible of the flip")
    for value in vars(out).values():
        if isinstance(value, Tensor):
            value.detach().fill_(1)
    for name, value in before.items():
        if not torch.equal(getattr(batch, name).nan_to_num(7), value.nan_to_num(7)):
            raise Fault(f"{name} is changed by writing to the result")


def check_change(r: random.Random, batch: Batch) -> None:
    """Change a field of a batch, its dtype, rank, length or type; raise where that is taken and is not right."""
    name = r.choice([f.name for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)])
    value: Tensor = getattr(batch, name).detach()
    narrow = value[0] if name in ("label", "image") or not value.shape[-1] else value[..., :-1]
    other = value.to(r.choice(DTYPES))
    changed = r.choice([value[None], narrow, torch.cat([value, value]), value.tolist(), 3, "word", other, other, other])
    try:
        kept = getattr(batch.replace(**{name: changed}), name)
    except Exception as error:
        check_error(error, name, PARTS.get(name, name))
        return
    if changed is not other:
        raise Fault(f"a wrong {name} is taken by Batch")
    if not torch.equal(kept.double().nan_to_num(7), other.double().nan_to_num(7)):
        raise Fault(f"{name} is changed by Batch")


def check_case(r: random.Random) -> None:
    """Make a case, and raise where what comes of it is not right."""
    names = [f.name for f in fields(Batch) if f.name not in ("image", *UNKNOWN) and r.random() < 0.6]
    names += [PARTS[name] for name in names if name in PARTS]
    names += [part for part, of in PARTS.items() if of in names and part not in OPTIONAL]
    names = list(dict.fromkeys(names))
    ignore_index = r.choice([255, -100, -1, 0, 7, 65535])
    dtype = r.choice([np.uint8, np.uint8, np.float16, np.float32, np.float64])
    truths = make_truth(r, names, r.randint(1, 3), dtype, r.choice([1, 3, 4, 6]))
    samples: list[Any] = [{name: write(r, name, truth) for name in truth} for truth in truths]
    wrong = r.choice(["image", "sample", *names]) if r.random() < 0.5 else None
    if wrong is not None:
        i = r.randrange(len(samples))
        if wrong == "sample":
            whole = samples[i]
            image = whole["image"]
            samples[i] = r.choice([(image, 1, 2), [1, image], 5, whole | {"extra": 1}, {"label": 1}, {}])
        else:
            samples[i][wrong] = spoil(r, wrong, truths[i])
    try:
        batch = Batch.collate(samples, ignore_index=ignore_index)
    except Exception as error:
        if wrong is None:
            raise Fault(f"refused: {type(error).__name__}: {str(error)[:150]}") from error
        others = {"image": ("mask", "size"), "sample": ("field",), "label": ("mask",)}  # of two dimensions it is a mask
        check_error(error, wrong, *others.get(wrong, (PARTS.get(wrong, wrong),)))
        return
    if wrong is not None:
        raise Fault(f"a wrong {wrong} is taken")
    check_batch(batch, truths, ignore_index)
    check_flip(r, batch, ignore_index)
    check_change(r, batch)


def run_cases(cases: int, seed: int, first: int = 0) -> dict[str, list[int]]:
    """Run cases; return what went wrong, and the numbers of the cases."""
    wrong: dict[str, list[int]] = collections.defaultdict(list)
    for case in range(first, first + cases):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", "all (boxes|keypoints) of a batch lie within")
                warnings.filterwarnings("ignore", ".* of a batch lie wholly outside their images")
                check_case(random.Random(f"{seed} {case}"))
        except Exception as error:
            wrong[str(error) if isinstance(error, Fault) else f"{type(error).__name__}: {str(error)[:150]}"].append(
                case
            )
    return dict(wrong)


def main() -> int:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    wrong = run_cases(args.cases, args.seed, args.first)
    print(f"targets: {args.cases} cases, {time.perf_counter() - began:.0f} s, {len(wrong)} faults", flush=True)
    for fault, cases in wrong.items():
        print(f"  {len(cases)} times, first in case {cases[0]}: {fault}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
