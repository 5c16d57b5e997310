"""Targets of each task, and the numbers that they are made of."""

import math
from collections.abc import Collection
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from kornia_mvit.extra_images import Extra
from kornia_mvit.testing.arguments import check_range
from kornia_mvit.testing.builders import INSTANCE_CONTENTS, make_boxes, make_image, make_instance_masks, make_keypoints

__all__ = [
    "TASKS",
    "corners_within",
    "drawn_extra",
    "drawn_objects",
    "drawn_points",
    "points_within",
    "quarters",
    "soft_rows",
    "targets_of",
]

Size = tuple[int, int]

TARGETS = ("label", "mask", "boxes", "oriented_boxes", "instance_masks", "fields", "keypoints", "extra")
TASKS: dict[str, tuple[str, ...]] = {
    "classification": ("label",),
    "segmentation": ("mask",),
    "detection": ("boxes",),
    "instances": ("boxes", "instance_masks", "fields"),
    "keypoints": ("keypoints",),
    "everything": TARGETS,
}


def targets_of(task: str | Collection[str]) -> tuple[str, ...]:
    """Return the targets of a task, or the given ones with those that they go with, in order.

    Raises:
        ValueError: for an unknown task or target.
    """
    if isinstance(task, str):
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; available: {', '.join(map(repr, TASKS))}, or a list of targets")
        return TASKS[task]
    if unknown := sorted(set(task) - set(TARGETS)):
        raise ValueError(f"unknown targets {', '.join(unknown)}; available: {', '.join(TARGETS)}")
    with_boxes = {"boxes"} if set(task) & {"oriented_boxes", "instance_masks", "fields"} else set()
    return tuple(target for target in TARGETS if target in {*task, *with_boxes})


def corners_within(
    size: Size, min_count: int, max_count: int, min_side: float
) -> SearchStrategy[list[tuple[float, float, float, float]]]:
    """Draw lists of boxes within an image, as numbers."""
    check_range("min_count", min_count, "max_count", max_count, least=0)
    if not 0 <= min_side <= min(size):
        raise ValueError(f"an image of {size[0]}x{size[1]} pixels holds no box of side {min_side}; give a smaller one")

    @st.composite
    def box(draw: DrawFn) -> tuple[float, float, float, float]:
        edges = []
        for side in (size[1], size[0]):
            length = draw(quarters(min_side, side))
            start = draw(quarters(0.0, side - length))
            edges.append((start, start + length))
        (left, right), (top, bottom) = edges
        return left, top, right, bottom

    return st.lists(box(), min_size=min_count, max_size=max_count)


@st.composite
def drawn_objects(
    draw: DrawFn, size: Size, classes: int, max_objects: int, ignored: bool, targets: Collection[str]
) -> dict[str, Any]:
    """Draw boxes with what is bound to them, as a sample has it, and sometimes a row of padding after them."""
    corners = draw(corners_within(size, 0, max_objects, 1.0))
    labels = [draw(st.integers(0, classes - 1)) for _ in corners]
    if draw(st.booleans()):
        corners, labels = [*corners, (0.0, 0.0, 0.0, 0.0)], [*labels, -1]
    out: dict[str, Any] = {"boxes": corners, "box_label": labels}
    if ignored:
        out["box_ignore"] = [label >= 0 and draw(st.booleans()) for label in labels]
    if "oriented_boxes" in targets:
        angles = [draw(st.sampled_from([0.0, 0.5, -1.25, 2.0])) for _ in labels]
        out["oriented_boxes"] = [
            ((a + c) / 2, (b + d) / 2, 0.75 * (c - a), 0.5 * (d - b), angle)
            for (a, b, c, d), angle in zip(corners, angles, strict=True)
        ]
    if "instance_masks" in targets:
        out["instance_masks"] = make_instance_masks(size, corners, content=draw(st.sampled_from(INSTANCE_CONTENTS)))
    if "fields" in targets:
        out["fields"] = {"row": list(range(len(labels))), "corners": make_boxes(corners)}
    return out


@st.composite
def drawn_extra(draw: DrawFn, size: Size, channels: int, dtype: torch.dtype) -> dict[str, Extra]:
    """Draw a second frame, a map of values and a field of vectors, as a sample has them."""
    seed = draw(st.integers(0, 2**16))
    frame = make_image((channels, *size), content="noise", seed=seed, dtype=dtype)
    depth = 10 * make_image((1, *size), content="noise", seed=seed + 1)
    flow = 8 * make_image((2, *size), content="noise", seed=seed + 2) - 4
    return {
        "frame": Extra(frame, kind="image"),
        "depth": Extra(depth, kind="values", mode="nearest", fill=-1.0),
        "flow": Extra(flow, kind="vectors"),
    }


@st.composite
def drawn_points(draw: DrawFn, size: Size, max_objects: int, keypoints: int, rows: int | None) -> dict[str, Any]:
    """Draw keypoints with their visibility: of an image, or, with a number of keypoints, of some rows of instances."""
    if not keypoints:
        points = draw(points_within(size, 0, max_objects))
        return {"keypoints": points, "keypoint_visible": [draw(st.booleans()) for _ in points]}
    number = draw(st.integers(0, max_objects)) if rows is None else rows
    flat = draw(points_within(size, number * keypoints, number * keypoints))
    states = draw(st.lists(st.sampled_from([0, 1, 2]), min_size=len(flat), max_size=len(flat)))
    visible = torch.tensor(states, dtype=torch.uint8).reshape(number, keypoints)
    return {"keypoints": make_keypoints(flat).reshape(number, keypoints, 2), "keypoint_visible": visible}


def points_within(size: Size, min_count: int, max_count: int) -> SearchStrategy[list[tuple[float, float]]]:
    """Draw lists of points within an image."""
    check_range("min_count", min_count, "max_count", max_count, least=0)
    point = st.tuples(quarters(0.0, size[1]), quarters(0.0, size[0]))
    return st.lists(point, min_size=min_count, max_size=max_count)


def quarters(low: float, high: float) -> SearchStrategy[float]:
    """Draw multiples of a quarter."""
    return st.integers(math.ceil(4 * low), int(4 * high)).map(lambda number: number / 4)


def soft_rows(classes: int) -> SearchStrategy[tuple[int, int, float]]:
    """Draw a class, the class that is mixed in, and the share of the first."""
    one = st.integers(0, classes - 1)
    return st.tuples(one, one, st.integers(0, 8).map(lambda number: 1 - number / 16))
