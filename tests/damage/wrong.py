"""What is refused in place of each field of a sample."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.damage.further import wrong_extra, wrong_oriented
from tests.damage.truths import INF, NAN


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


def wrong_numbers(a: np.ndarray) -> list[Any]:
    ones = np.ones(a.shape)
    bad: list[Any] = [np.ones((len(a) + 1, *a.shape[1:])), ones[None, None], [10**30]]
    return bad + ([ones * 1.5, ones * NAN, ones * INF] if a.size else [])


def wrong_weights(a: np.ndarray) -> list[Any]:
    ones = np.ones(len(a) + 1)
    bad: list[Any] = [ones, ones[:, None]]
    return bad + ([ones[1:] * -2, ones[1:] * NAN, ones[1:] * INF, ones[2:], ones[None, 1:]] if len(a) else [])


def wrong_masks(a: np.ndarray) -> list[Any]:
    h, w = a.shape
    sizes = [(h * 2, w * 2), (h // 2, w // 2), (h + 1, w), (h, w - 1), (2, h, w), (h, w, 1), (0, w), (h * w,)]
    bad = [np.zeros(s, np.int64) for s in sizes] + [a + 0.5, a > 0, Image.new("RGB", (w, h))]
    return bad + ([np.full(a.shape, 2**64 - 1, np.uint64)] if h == w else [a.T])


def wrong_instances(a: np.ndarray) -> list[Any]:
    n, h, w = a.shape
    sizes = [(n + 1, h, w), (n, h + 1, w), (n, h, w - 1), (1, n, h, w), (n * h * w + 1,)] + [(h, w)] * (n > 0)
    bad: list[Any] = [np.zeros(size, bool) for size in sizes] + [a.astype(np.float32)]
    return bad + ([a * 2 - 1, a.astype(np.uint8) + 255, a.astype(np.uint8) * 0 + 2, a[:, :, None]] if n else [])


def wrong_fields(given: dict[str, torch.Tensor]) -> list[Any]:
    bad: list[Any] = [None, "word", [1, 2], 3, torch.zeros(2), given | {"one": "word"}, given | {"one": 5}]
    for name, value in given.items():
        bad += [given | {name: torch.zeros(len(value) + 1)}, given | {name: "x"}]
        bad += [given | {name: value[1:]}, given | {name: value[None, :1]}] if len(value) > 1 else []
    return bad


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
    "oriented_boxes": wrong_oriented,
    "keypoints": wrong_rows,
    "box_label": lambda a: wrong_flags(a) + ([a > 0] if len(a) else []),
    "box_ignore": wrong_flags,
    "box_weight": wrong_weights,
    "box_source": lambda a: [one for one in wrong_flags(a) if not np.array_equal(one, [-2.0] * len(a))],
    "box_index": lambda a: [one for one in wrong_flags(a) if not np.array_equal(one, [-2.0] * len(a))],
    "keypoint_index": wrong_numbers,
    "instance_masks": wrong_instances,
    "keypoint_visible": wrong_flags,
    "size": lambda a: [*wrong_sizes(a), a + np.array([12, 0]), a + np.array([0, 12])],
    "original_size": wrong_sizes,
}


def spoil(r: random.Random, name: str, truth: dict[str, Any]) -> Any:
    """Write a field down in one of the ways that are refused."""
    if name == "meta":
        return r.choice(["path", [1, 2], 5])
    a = truth[name]
    if name in ("fields", "extra"):
        return r.choice(wrong_fields(a) if name == "fields" else wrong_extra(a))
    bad: list[Any] = [None, "word", {"a": 1}, np.full(a.shape, "x"), np.empty(a.shape, object)]
    if a.size:
        bad += [a.astype(np.complex64), torch.from_numpy(np.array(a)).to_sparse()]
    return r.choice(bad + WRONG[name](a))
