"""What random samples of a batch hold, as arrays of one form, and the many ways to write it down."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.damage.further import choose_kinds, make_extra, make_oriented, write_extra

try:
    from torchvision import tv_tensors
except ImportError:
    tv_tensors = None

NAN, INF = float("nan"), float("inf")
INTEGERS = [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint32, np.uint64]
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # which PyTorch computes little with
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn),
]
FIELDS = {  # shape of a row, and dtypes
    "track": ((), ("int64", "int32", "uint8", "int8", "uint16", "uint64")),
    "score": ((), ("float32", "float64", "float16", "bfloat16")),
    "flag": ((), ("bool",)),
    "corner": ((2, 2), ("float32", "float64", "int64", "complex64")),
    "code": ((3,), ("uint8", "bool", "float32", "int16")),
    "none": ((0,), ("float32", "int64")),
}
Make = Callable[[random.Random, np.ndarray], Any]


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


def as_tensor(r: random.Random, a: Any) -> Any:
    """A tensor in a memory layout of many."""
    value = a.clone() if isinstance(a, torch.Tensor) else torch.from_numpy(np.array(a))
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
    kinds = {name: r.choice(FIELDS[name][1]) for name in r.sample(list(FIELDS), r.randint(0, 4))}
    further = choose_kinds(r, dtype, channels)
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
            "box_index": rng.integers(-1, 5, n),
            "keypoint_index": rng.integers(-1, 5, rows),
            "instance_masks": blobs(rng, n, h, w),
            "fields": make_fields(rng, n, kinds),
            "oriented_boxes": make_oriented(rng, n, h, w),
            "extra": make_extra(rng, further, h, w),
            "size": np.array([r.randint(1, h), r.randint(1, w)]),
            "original_size": rng.integers(1, 3000, 2),
            "meta": {"path": f"{r.randrange(100)}.png"},
        }
        truth |= {name: every[name] for name in names}
        out.append(truth)
    return out


def blobs(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Draw masks of rectangles with holes, some of them empty: (count, height, width), bool."""
    row, column = np.arange(height)[:, None], np.arange(width)
    ends = np.sort(rng.integers(0, [height + 1, width + 1], (count, 2, 2)), axis=1)[..., None, None]
    inside = (row >= ends[:, 0, 0]) & (row < ends[:, 1, 0]) & (column >= ends[:, 0, 1]) & (column < ends[:, 1, 1])
    return np.asarray(inside & (rng.random(inside.shape) < 0.8))


def make_fields(rng: np.random.Generator, count: int, kinds: dict[str, str]) -> dict[str, torch.Tensor]:
    """Draw what a sample says of each of its boxes, in the dtypes of ``kinds``."""
    return {
        name: torch.from_numpy(rng.integers(0, 2 if kind == "bool" else 100, (count, *FIELDS[name][0]))).to(
            getattr(torch, kind)
        )
        for name, kind in kinds.items()
    }


def write_fields(r: random.Random, given: dict[str, torch.Tensor]) -> Any:
    """Write fields as tensors, as arrays, or as lists where these become the same dtype."""
    return {name: write_field(r, value) for name, value in given.items()}


def write_field(r: random.Random, value: torch.Tensor) -> Any:
    if value.dtype in (torch.int64, torch.float32, torch.bool) and value.numel() and r.random() < 0.3:
        return value.tolist()
    if value.dtype != torch.bfloat16 and r.random() < 0.4:
        return as_array(r, value.numpy())
    return value.clone() if value.dtype in UNSIGNED or not value.numel() else as_tensor(r, value)


def write_instances(r: random.Random, a: np.ndarray) -> Any:
    """Write masks of single objects as one array or as a list of them."""
    if tv_tensors is not None and r.random() < 0.2:
        return tv_tensors.Mask(torch.from_numpy(a))
    one: Make = any_of(as_array, as_tensor, WHOLE)
    if r.random() < 0.3:
        return [r.choice([one, as_list])(r, mask) for mask in a]
    return r.choice([one, as_list])(r, a) if len(a) else one(r, a)


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
    "box_index": any_of(as_list, WHOLE, FLOATS),
    "keypoint_index": any_of(as_list, WHOLE, FLOATS),
    "instance_masks": write_instances,
    "fields": write_fields,
    "oriented_boxes": any_of(as_list, FLOATS),
    "extra": write_extra,
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
