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
from dataclasses import dataclass, fields
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
Make = Callable[[random.Random, np.ndarray], Any]


@dataclass
class Wrong:
    """A value that is to be refused, and the words one of which the error must hold."""

    value: Any
    names: tuple[str, ...] = ()


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


def tv_rows(kind: str) -> Make:
    """Torchvision's boxes and keypoints, in a format and on a canvas of their own."""

    def make(r: random.Random, a: np.ndarray, size: tuple[int, int] = (1, 1)) -> Any:
        if tv_tensors is None or len(a) == 0:
            return a.tolist()
        factor = r.choice([1, 2])
        canvas, rows = (size[0] * factor, size[1] * factor), a.astype(np.float64) * factor
        if kind == "keypoints":
            return tv_tensors.KeyPoints(rows, canvas_size=canvas)
        form = r.choice(["XYXY", "XYWH", "CXCYWH"])
        low, high = rows[:, :2], rows[:, 2:]
        rows = {
            "XYXY": rows,
            "XYWH": np.hstack([low, high - low]),
            "CXCYWH": np.hstack([(low + high) / 2, high - low]),
        }[form]
        return tv_tensors.BoundingBoxes(rows, format=form, canvas_size=canvas)

    return make


# --- samples ---


def make_truth(r: random.Random, names: list[str], count: int, dtype: Any, channels: int) -> list[dict[str, Any]]:
    """Draw what samples say, as arrays of one form."""
    rng = np.random.default_rng(r.randrange(1 << 30))
    even, classes = r.random() < 0.5, r.randint(2, 4)
    shape = (r.randint(5, 12), r.randint(5, 12))
    soft = r.random() < 0.3
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
        points, visible = rng.integers(-8, 4 * min(h, w), (m, 2)) / 4, rng.random(m) < 0.6
        if r.random() < 0.3:
            boxes[box_label < 0] = r.choice([NAN, INF, -1.0])
            points[~visible] = r.choice([NAN, INF, -1.0])
        every = {
            "label": rng.random(classes).astype(np.float32) if soft else np.array(r.randrange(classes)),
            "boxes": boxes,
            "box_label": box_label,
            "box_ignore": rng.random(n) < 0.5,
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


def write(r: random.Random, name: str, truth: dict[str, Any]) -> Any:
    """Write a field down in one of the ways that are taken."""
    a = truth[name]
    size = truth["image"].shape[1:]
    if name == "meta":
        return dict(a)
    if name == "image":
        if tv_tensors is not None and r.random() < 0.2:
            return tv_tensors.Image(torch.from_numpy(a))
        return r.choice([as_array, as_tensor])(r, a)
    if name in ("boxes", "keypoints"):
        if r.random() < 0.3 and np.isfinite(a).all():
            return tv_rows(name)(r, a, size)
        return r.choice([as_list, FLOATS])(r, a)
    if name == "mask":
        if tv_tensors is not None and r.random() < 0.2:
            return tv_tensors.Mask(torch.from_numpy(a))
        return in_dtypes(*INTEGERS[:-1])(r, a)
    if name in ("box_ignore", "keypoint_visible"):
        return r.choice([as_list, as_array, as_tensor, WHOLE])(r, a)
    if name == "label":
        return r.choice([as_list, FLOATS if a.ndim else WHOLE])(r, a) if a.ndim == 0 else as_tensor(r, a)
    return r.choice([as_list, WHOLE, FLOATS])(r, a)


def spoil(r: random.Random, name: str, truth: dict[str, Any]) -> Wrong:
    """Write a field down in one of the ways that are refused."""
    a = truth[name]
    h, w = truth["image"].shape[1:]
    if name == "meta":
        return Wrong(r.choice(["path", [1, 2], 5]), ("meta",))
    bad: list[Any] = [None, "word", {"a": 1}, np.full(a.shape, "x"), np.empty(a.shape, object)]
    if a.size:
        bad.append(a.astype(np.complex64))
        bad.append(torch.from_numpy(np.array(a)).to_sparse())
    if name == "image":
        bad += [a[None], a[0], a.astype(np.int64), a > 0, a[:, :0], a[:0], np.full(a.shape, NAN, np.float32)]
        bad += [np.full(a.shape, INF, np.float32), a.astype(np.float32) * 300 + 2, a.astype(np.float32) - 9]
        bad += [Image.new("RGB", (w, h)), torch.zeros(3, h, w).to(torch.float8_e4m3fn)]
        if len(a) in (1, 3, 4):
            bad += [a.transpose(1, 2, 0), torch.from_numpy(a).permute(1, 2, 0)]
    elif name in ("boxes", "keypoints"):
        rows = np.array([[1.0, 1, 2, 2]] * 3)[:, : 4 if name == "boxes" else 2]
        bad += [rows.ravel(), rows.T, rows[None], np.hstack([rows, rows[:, :1]]), rows > 0, [[1, 2], [3]]]
        if len(a):
            bad += [np.vstack([a, a[:1]]), a[1:]]
    elif name in ("box_label", "box_ignore", "keypoint_visible"):
        ones = np.ones(len(a) + 1)
        bad += [ones, ones[:, None], [10**30]]
        if len(a):
            bad += [ones[1:] * 1.5, ones[1:] * -2, ones[1:] * NAN, ones[1:] * INF, ones[2:], ones[None, 1:]]
            bad += [np.full(len(a), 2**64 - 1, np.uint64)]
        if name == "box_label" and len(a):
            bad.append(ones[1:] > 0)
    elif name == "mask":
        grown = [(h * 2, w * 2), (h // 2, w // 2), (h + 1, w), (h, w - 1), (1, h, w), (h, w, 1), (0, w), (h * w,)]
        bad += [np.zeros(s, np.int64) for s in grown] + [a / 2, a > 0, a.astype(np.uint64), Image.new("L", (w, h))]
        if h != w:
            bad.append(a.T)
    elif name in ("size", "original_size"):
        bad += [a[:1], a[None], a + 0.5, a * 0, a * -1, a > 0, np.append(a, 1), a * NAN, a[0]]
        if name == "size":
            bad += [a + [h, 0], a + [0, w]]
    elif a.ndim == 0:
        bad += [a + 0.5, a > 0, a[None], a + NAN, np.array([0.5, 0.5])]
    else:
        bad += [a * NAN, a * INF, a[None], a[:0]]
    names = {"box_label": (name, "boxes"), "box_ignore": (name, "boxes"), "keypoint_visible": (name, "keypoints")}
    return Wrong(r.choice(bad), names.get(name, (name, *(("mask", "size") if name == "image" else ()))))


# --- what must come of them ---


def complaint(error: BaseException, names: tuple[str, ...]) -> str | None:
    """Say what is wrong with an error; None for nothing."""
    text = str(error)
    if type(error) not in (ValueError, TypeError):
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "kornia_mvit" in f.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        return f"{type(error).__name__} at {where}: {text[:150]!r}"
    if "\n" in text or len(text) > LONGEST:
        return f"{len(text)} characters, {text.count(chr(10))} breaks: {text[:150]!r}"
    if not any(name in text for name in names):
        return f"none of {names} is named: {text[:150]!r}"
    return None


def differences(batch: Batch, truths: list[dict[str, Any]], ignore_index: int) -> str | None:
    """Say where a batch is not what its samples say; None for nowhere."""
    for i, truth in enumerate(truths):
        h, w = truth["image"].shape[1:]
        for name, a in truth.items():
            value = getattr(batch, name)
            if name == "meta":
                if value[i] != a:
                    return "meta differs"
                continue
            got, pad = value[i].detach(), None
            if name in ("image", "mask"):
                pad = got.clone()
                pad[..., :h, :w] = 0 if name == "image" else ignore_index
                got = got[..., :h, :w]
            elif a.ndim and name not in ("label", "size", "original_size"):
                got, pad = got[: len(a)], got[len(a) :]
            if not np.array_equal(got.double().numpy(), a.astype(np.float64), equal_nan=True):
                return f"{name} differs"
            fill = {"box_label": -1, "mask": ignore_index}.get(name, 0)
            if pad is not None and not bool((pad.double() == fill).all()):
                return f"padding of {name} is not {fill}"
        if any(t["image"].shape != truth["image"].shape for t in truths) and "size" not in truth:
            if batch.size is None or batch.size[i].tolist() != [h, w]:
                return "size is not that of the image"
    return None


def flip_differences(r: random.Random, batch: Batch, ignore_index: int) -> str | None:
    """Say where a flipped batch is not what a batch flipped by hand would be."""
    before = {name: value.clone() for name, value in vars(batch).items() if isinstance(value, Tensor)}
    p = float(r.random() < 0.5)
    pipeline = AugmentationPipeline([RandomHorizontalFlip(p=p)], ignore_index=ignore_index, min_box_area=0.0)
    out = pipeline(batch, seed=np.int64(r.randrange(100)))
    width = batch.image.shape[-1]
    limit = batch.size if batch.size is not None else torch.tensor([batch.image.shape[2:]]).expand(len(batch), 2)
    limit = limit.flip(-1).double()[:, None]
    if batch.boxes is not None:
        boxes = batch.boxes.double()
        low, high = boxes[..., :2].clamp_min(0).minimum(limit), boxes[..., 2:].clamp_min(0).minimum(limit)
        keep = (batch.box_label >= 0) & (high > low).all(-1)
        if p:
            low, high = low.clone(), high.clone()
            low[..., 0], high[..., 0] = width - high[..., 0], width - low[..., 0].clone()
        for i in range(len(batch)):
            n = int(keep[i].sum())
            rows = torch.cat([low, high], -1)[i][keep[i]]
            if out.box_label[i].tolist() != [*batch.box_label[i][keep[i]].tolist(), *[-1] * (len(keep[i]) - n)]:
                return "box_label of the flip"
            if not torch.allclose(out.boxes[i, :n].double(), rows):
                return "boxes of the flip"
    if batch.mask is not None:
        rows, columns = (torch.arange(n) for n in batch.mask.shape[1:])
        inside = (columns < limit[..., :1])[:, 0][:, None, :] & (rows < limit[..., 1:])[:, 0][:, :, None]
        mask = batch.mask.double().masked_fill(~inside, ignore_index)
        if not torch.equal(out.mask.double(), mask.flip(-1) if p else mask):
            return "mask of the flip"
    if batch.keypoints is not None:
        seen = batch.keypoint_visible & ((batch.keypoints >= 0) & (batch.keypoints <= limit)).all(-1)
        if not torch.equal(out.keypoint_visible, seen):
            return "keypoint_visible of the flip"
    for name, value in vars(out).items():
        if isinstance(value, Tensor):
            value.detach().fill_(1)
    for name, value in before.items():
        if not torch.equal(getattr(batch, name).nan_to_num(7), value.nan_to_num(7)):
            return f"{name} is changed by writing to the result"
    return None


def change(r: random.Random, batch: Batch) -> tuple[str, Any, bool]:
    """Change a field of a batch: its dtype, rank, length or type; and say whether it must be refused."""
    name = r.choice([f.name for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)])
    value: Tensor = getattr(batch, name).detach()
    way = r.randrange(5)
    if way == 0:
        return name, value[None], True
    if way == 1:
        return name, value[..., :-1] if value.shape[-1] and name not in ("label", "image") else value[0], True
    if way == 2:
        return name, torch.cat([value, value]), True
    if way == 3:
        return name, r.choice([value.tolist(), 3, "word"]), True
    return name, value.to(r.choice(DTYPES)), False


def check_case(r: random.Random) -> str | None:
    """Make a case and say what is wrong with what came of it; None for nothing."""
    names = [f.name for f in fields(Batch) if f.name != "image" and r.random() < 0.6]
    for part, of in (("box_label", "boxes"), ("box_ignore", "boxes"), ("keypoint_visible", "keypoints")):
        if part in names and of not in names:
            names.append(of)
    names += [part for part, of in (("box_label", "boxes"), ("keypoint_visible", "keypoints")) if of in names]
    names = list(dict.fromkeys(names))
    ignore_index = r.choice([255, -100, -1, 0, 7, 65535])
    dtype = r.choice([np.uint8, np.uint8, np.float16, np.float32, np.float64])
    truths = make_truth(r, names, r.randint(1, 3), dtype, r.choice([1, 3, 4, 6]))
    samples: list[Any] = [{name: write(r, name, truth) for name in truth} for truth in truths]
    expected: tuple[str, ...] | None = None
    if r.random() < 0.5:
        i = r.randrange(len(samples))
        name = r.choice(["image", "sample", *names])
        if name == "sample":
            whole = samples[i]
            samples[i] = r.choice([(whole["image"], 1), [whole["image"]], whole["image"], whole | {"extra": 1}])
            expected = ("sample", "extra")
            if not isinstance(samples[i], dict) or len(samples) == 1 or i == 0:
                expected = ("sample", "extra", "field")
        else:
            wrong = spoil(r, name, truths[i])
            samples[i][name], expected = wrong.value, wrong.names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "all (boxes|keypoints) of a batch lie within")
        try:
            batch = Batch.collate(samples, ignore_index=ignore_index)
        except Exception as error:
            if expected is None:
                return f"refused: {type(error).__name__}: {str(error)[:150]}"
            return complaint(error, expected)
        if expected is not None:
            return f"a wrong {expected[0]} is taken"
        if found := differences(batch, truths, ignore_index):
            return found
        if found := flip_differences(r, batch, ignore_index):
            return found
        name, value, refused = change(r, batch)
        try:
            changed = batch.replace(**{name: value})
        except Exception as error:
            return complaint(
                error, (name, "image", {"box_label": "boxes", "keypoint_visible": "keypoints"}.get(name, name))
            )
        if refused:
            return f"a wrong {name} is taken by Batch"
        kept = getattr(changed, name)
        if not torch.equal(kept.double().nan_to_num(7), value.double().nan_to_num(7)):
            return f"{name} is changed by Batch"
        return None


def run_cases(cases: int, seed: int, first: int = 0) -> dict[str, list[int]]:
    """Run cases; return what went wrong, and the numbers of the cases."""
    wrong: dict[str, list[int]] = collections.defaultdict(list)
    for case in range(first, first + cases):
        try:
            found = check_case(random.Random(f"{seed} {case}"))
        except Exception as error:
            found = complaint(error, ()) or f"{type(error).__name__}: {str(error)[:150]}"
        if found:
            wrong[found].append(case)
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
