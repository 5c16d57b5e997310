"""Hypothesis strategies for images, their targets, augmentations and networks.

What is drawn is small: a shape, a kind of content, a seed. Tensors are built from it, so that an image of any size
costs Hypothesis a handful of choices, a counter-example prints as the call that makes it, and it shrinks to small
sizes, constant images, few boxes and short stacks. PyTorch's global generator is neither read nor moved.

Sizes are height before width. Wherever a size, shape or dtype is asked for, a strategy for one does as well.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor, nn

from kornia_mvit.batch import Batch
from kornia_mvit.models.mobilevit import MobileViTConfig, Stage
from kornia_mvit.testing import stacks
from kornia_mvit.testing.arguments import (
    as_pair,
    as_strategy,
    check_contents,
    check_count,
    check_range,
    check_size,
    multiples,
)
from kornia_mvit.testing.builders import (
    IMAGE_CONTENTS,
    MASK_CONTENTS,
    make_batch,
    make_boxes,
    make_image,
    make_keypoints,
    make_mask,
    make_soft_labels,
)
from kornia_mvit.testing.mixes import mixes
from kornia_mvit.testing.targets import (
    TASKS,
    corners_within,
    drawn_extra,
    drawn_objects,
    drawn_points,
    points_within,
    soft_rows,
    targets_of,
)

__all__ = [
    "TASKS",
    "augmentations",
    "batches",
    "boxes",
    "image_sizes",
    "images",
    "indivisible_sizes",
    "keypoints",
    "masks",
    "mixes",
    "mobilevit_configs",
    "soft_labels",
]

Size = tuple[int, int]


def image_sizes(
    divisible_by: int | Size = 1, *, min_side: int = 32, max_side: int = 128, square: bool = False
) -> SearchStrategy[Size]:
    """Heights and widths of images; they shrink to the smallest.

    Args:
        divisible_by: what sides are multiples of, one number for both or one for each.
        min_side: least side in pixels.
        max_side: greatest side in pixels.
        square: height and width are equal.

    Raises:
        ValueError: if no such side exists.

    Example:
        >>> from hypothesis import find
        >>> find(image_sizes(divisible_by=32), lambda size: size[1] > 64)
        (32, 96)
    """
    by = as_pair("divisible_by", divisible_by)
    check_range("min_side", min_side, "max_side", max_side, least=1)
    if square and by[0] != by[1]:
        raise ValueError(f"divisible_by {by} and square contradict each other; give one number")
    heights, widths = (multiples(step, min_side, max_side) for step in by)
    if square:
        return heights.map(lambda side: (side, side))
    return st.tuples(heights, widths)


def indivisible_sizes(by: int | Size = 32, *, min_side: int = 32, max_side: int = 128) -> SearchStrategy[Size]:
    """Heights and widths of which at least one is no multiple of a number: what reshaping into patches trips over.

    Args:
        by: what one side at least is no multiple of, one number for both or one for each.
        min_side: least side in pixels.
        max_side: greatest side in pixels.

    Raises:
        ValueError: if every side in the range is a multiple.

    Example:
        >>> from hypothesis import find
        >>> find(indivisible_sizes(32), lambda size: True)
        (32, 33)
    """
    steps = as_pair("by", by)
    check_range("min_side", min_side, "max_side", max_side, least=1)
    broken = [[side for side in range(min_side, max_side + 1) if side % step] for step in steps]
    if not any(broken):
        raise ValueError(
            f"every side from {min_side} to {max_side} is a multiple of {steps}; give a wider range, or divisors from 2"
        )
    either = st.integers(min_side, max_side)
    ways = []
    if broken[1]:
        ways.append(st.tuples(either, st.sampled_from(broken[1])))
    if broken[0]:
        ways.append(st.tuples(st.sampled_from(broken[0]), either))
    return st.one_of(ways)


def images(
    size: Size | SearchStrategy[Size] | None = None,
    *,
    channels: int | SearchStrategy[int] = 3,
    batch: int | SearchStrategy[int] | None = None,
    dtype: torch.dtype | SearchStrategy[torch.dtype] = torch.float32,
    value_range: tuple[float, float] | None = None,
    contents: Sequence[str] = IMAGE_CONTENTS,
    device: torch.device | str = "cpu",
) -> SearchStrategy[Tensor]:
    """Images; they shrink to small ones that hold the least value everywhere.

    Args:
        size: height and width in pixels; :func:`image_sizes` when None.
        channels: number of channels.
        batch: number of images in (B, C, H, W); None for single ones (C, H, W).
        dtype: uint8 or floating point.
        value_range: least and greatest value; [0, 1] when None, or 0 to 255 for uint8.
        contents: kinds of content to draw from, simplest first; see :func:`~kornia_mvit.testing.make_image`.
        device: where images are put.

    Raises:
        ValueError: for an unknown content, a range that is not ascending, or a dtype that images cannot have.

    Example:
        >>> from hypothesis import find
        >>> find(images(channels=1), lambda image: True).shape
        torch.Size([1, 32, 32])
    """
    check_contents(contents, IMAGE_CONTENTS)
    if value_range is not None and not value_range[0] <= value_range[1]:
        raise ValueError(f"value_range {value_range} is not ascending")
    if isinstance(dtype, torch.dtype) and dtype != torch.uint8 and not dtype.is_floating_point:
        raise ValueError(f"images are uint8 or floating point, not {dtype}")
    check_count("channels", channels, least=1)
    check_count("batch", batch, least=0)
    size = image_sizes() if size is None else check_size(size)
    front = [] if batch is None else [as_strategy(batch)]
    shapes = st.tuples(*front, as_strategy(channels), as_strategy(size)).map(lambda v: (*v[:-1], *v[-1]))
    options: dict[str, Any] = {}
    if dtype is not torch.float32:
        options["dtype"] = as_strategy(dtype)
    if value_range is not None:
        options["value_range"] = st.just(value_range)
    if torch.device(device).type != "cpu":
        options["device"] = st.just(device)
    return st.builds(make_image, shapes, content=st.sampled_from(list(contents)), seed=_SEEDS, **options)


def masks(
    size: Size | SearchStrategy[Size] | None = None,
    *,
    classes: int = 4,
    ignore_index: int | None = 255,
    contents: Sequence[str] = MASK_CONTENTS,
    dtype: torch.dtype = torch.int64,
) -> SearchStrategy[Tensor]:
    """Masks (H, W) of classes from 0; they shrink to background everywhere.

    Args:
        size: height and width in pixels; :func:`image_sizes` when None.
        classes: number of classes.
        ignore_index: what some masks hold in a border; None for none.
        contents: kinds of content to draw from, simplest first; see :func:`~kornia_mvit.testing.make_mask`.
        dtype: an integer one.

    Raises:
        ValueError: for no class, an unknown content, or a dtype that is not an integer.
    """
    check_contents(contents, MASK_CONTENTS)
    check_count("classes", classes, least=1)
    if dtype.is_floating_point or dtype == torch.bool:
        raise ValueError(f"masks are integers, not {dtype}")
    options: dict[str, Any] = {} if dtype == torch.int64 else {"dtype": st.just(dtype)}
    return st.builds(
        make_mask,
        as_strategy(image_sizes() if size is None else check_size(size)),
        classes=st.just(classes),
        content=st.sampled_from(list(contents)),
        seed=_SEEDS,
        ignore_index=st.sampled_from([None, ignore_index]),
        **options,
    )


def boxes(
    size: Size,
    *,
    min_count: int = 0,
    max_count: int = 5,
    min_side: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> SearchStrategy[Tensor]:
    """Boxes (N, 4), left, top, right and bottom, within an image; they shrink to few, small and at the corner.

    Edges lie on quarters of a pixel, which every floating-point dtype holds exactly in images of ordinary size.

    Args:
        size: height and width of the image in pixels.
        min_count: least number of boxes.
        max_count: greatest number of boxes.
        min_side: least width and height of a box in pixels; 0 for boxes without area too.
        dtype: floating point.

    Raises:
        ValueError: if the image cannot hold such a box, or for counts that are not ascending.

    Example:
        >>> from hypothesis import find
        >>> find(boxes((20, 30)), lambda found: len(found) == 1)
        tensor([[0., 0., 1., 1.]])
    """
    return st.builds(
        make_boxes,
        corners_within(size, min_count, max_count, min_side),
        **({} if dtype == torch.float32 else _just(dtype)),
    )


def keypoints(
    size: Size, *, min_count: int = 0, max_count: int = 5, dtype: torch.dtype = torch.float32
) -> SearchStrategy[Tensor]:
    """Keypoints (N, 2), x and y, within an image, on quarters of a pixel; they shrink to few, at the corner.

    Args:
        size: height and width of the image in pixels.
        min_count: least number of keypoints.
        max_count: greatest number of keypoints.
        dtype: floating point.

    Raises:
        ValueError: for counts that are not ascending.
    """
    return st.builds(
        make_keypoints, points_within(size, min_count, max_count), **({} if dtype == torch.float32 else _just(dtype))
    )


def soft_labels(
    classes: int, *, batch: int = 1, smoothing: float = 0.1, dtype: torch.dtype = torch.float32
) -> SearchStrategy[Tensor]:
    """Soft labels (B, K) that sum to one, as mixing and label smoothing make them; they shrink to class 0 alone.

    Args:
        classes: K.
        batch: B.
        smoothing: how much of some rows is spread over all classes.
        dtype: floating point.

    Raises:
        ValueError: for no class, or a smoothing outside [0, 1].
    """
    check_count("classes", classes, least=1)
    check_count("batch", batch, least=0)
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing {smoothing} is not in [0, 1]")
    return st.builds(
        make_soft_labels,
        st.lists(soft_rows(classes), min_size=batch, max_size=batch),
        classes=st.just(classes),
        smoothing=st.sampled_from([0.0, smoothing]),
        **({} if dtype == torch.float32 else _just(dtype)),
    )


def batches(
    task: str | Collection[str] = "classification",
    *,
    size: Size | SearchStrategy[Size] | None = None,
    count: int | SearchStrategy[int] | None = None,
    channels: int = 3,
    dtype: torch.dtype | SearchStrategy[torch.dtype] | None = None,
    contents: Sequence[str] = IMAGE_CONTENTS,
    classes: int = 4,
    soft: bool | None = None,
    max_objects: int = 4,
    padded: bool | None = None,
    meta: bool = False,
    ignore_index: int = 255,
    instance_keypoints: int = 0,
    device: torch.device | str = "cpu",
) -> SearchStrategy[Batch]:
    """Batches of images with the targets of a task; they shrink to one small constant image with nothing on it.

    Objects come in other numbers for each image, so that rows of padding occur; and so do images of other sizes, laid
    on one canvas, unless ``padded`` says otherwise.

    Args:
        task: one of :data:`TASKS`, or the targets themselves: any of ``'label'``, ``'mask'``, ``'boxes'``,
            with them ``'oriented_boxes'``, ``'instance_masks'``, ``'fields'``; ``'keypoints'``, ``'extra'``; or none.
        size: height and width of each image in pixels; of 8 to 64 when None.
        count: number of images; 1 to 3 when None.
        channels: of the images.
        dtype: of the images; float32 or uint8 when None.
        contents: kinds of images, simplest first; see :func:`~kornia_mvit.testing.make_image`.
        classes: number of classes of labels, masks and boxes.
        soft: labels are soft ones (B, K); either when None.
        max_objects: greatest number of boxes, and of keypoints, of an image.
        padded: True for images of other sizes on one canvas, False for images of one size; either when None.
        meta: with ``original_size`` and ``meta``.
        ignore_index: what masks hold where nothing is known.
        instance_keypoints: K, for keypoints (B, N, K, 2) of instances, those of the boxes where there are some, with
            COCO's three states of visibility; 0 for keypoints (B, K, 2) of images.
        device: where batches are put.

    Raises:
        ValueError: for an unknown task or target, or numbers that cannot be.

    Example:
        >>> from hypothesis import given, settings
        >>> @settings(max_examples=5, deadline=None)
        ... @given(batch=batches("detection"))
        ... def test_labels_go_with_boxes(batch):
        ...     assert batch.boxes.shape[:2] == batch.box_label.shape
        >>> test_labels_go_with_boxes()
    """
    targets = targets_of(task)
    check_count("count", count, least=1)
    check_count("channels", channels, least=1)
    check_count("classes", classes, least=1)
    check_count("max_objects", max_objects, least=0)
    check_count("instance_keypoints", instance_keypoints, least=0)
    check_contents(contents, IMAGE_CONTENTS)
    sizes = as_strategy(image_sizes(min_side=8, max_side=64) if size is None else check_size(size))
    counts = st.integers(1, 3) if count is None else as_strategy(count)
    dtypes = st.sampled_from([torch.float32, torch.uint8]) if dtype is None else as_strategy(dtype)

    @st.composite
    def draw_batch(draw: DrawFn) -> Batch:
        number, kind = draw(counts), draw(dtypes)
        apart = draw(st.booleans()) if padded is None else padded
        fuzzy = "label" in targets and (draw(st.booleans()) if soft is None else soft)
        ignored = "boxes" in targets and draw(st.booleans())
        common = draw(sizes)
        samples: list[dict[str, Any]] = []
        for place in range(number):
            own = draw(sizes) if apart and place else common
            sample: dict[str, Any] = {
                "image": draw(images(own, channels=channels, dtype=kind, contents=contents)),
            }
            if "label" in targets:
                label = _soft_row(classes) if fuzzy else st.integers(0, classes - 1)
                sample["label"] = draw(label)
            if "boxes" in targets:
                sample |= draw(drawn_objects(own, classes, max_objects, ignored, targets))
            if "mask" in targets:
                sample["mask"] = draw(masks(own, classes=classes, ignore_index=ignore_index))
            if "keypoints" in targets:
                rows = len(sample["boxes"]) if "boxes" in targets else None
                sample |= draw(drawn_points(own, max_objects, instance_keypoints, rows))
            if "extra" in targets:
                sample["extra"] = draw(drawn_extra(own, channels, kind))
            if meta:
                sample["original_size"] = torch.tensor([2 * own[0], 2 * own[1]])
                sample["meta"] = {"path": f"{place}.png"}
            samples.append(sample)
        options: dict[str, Any] = {} if ignore_index == 255 else {"ignore_index": st.just(ignore_index)}
        if torch.device(device).type != "cpu":
            options["device"] = st.just(device)
        return draw(st.builds(make_batch, st.just(samples), **options))

    return draw_batch()


def augmentations(
    targets: str | Collection[str] = (),
    *,
    channels: int = 3,
    min_steps: int = 0,
    max_steps: int = 4,
    operations: Collection[str] | None = None,
    size: Size = (32, 40),
) -> SearchStrategy[list[nn.Module]]:
    """Lists of Kornia's augmentations, and this package's, that can carry the given targets; they shrink to none.

    Whether an operation can is asked of the code that :class:`~kornia_mvit.AugmentationPipeline` asks. They take
    images from 8 pixels up, and go into the pipeline as they are, or into Kornia's containers by
    ``AugmentationSequential(*steps, data_keys=["input"])``.

    Args:
        targets: those of a task, by its name in :data:`TASKS`, or any of ``'label'``, ``'mask'``, ``'boxes'``,
            ``'oriented_boxes'``, ``'instance_masks'``, ``'fields'``, ``'keypoints'`` and ``'extra'``.
        channels: of the images; colour operations need 3.
        min_steps: least number of operations.
        max_steps: greatest number of operations.
        operations: names of the operations to draw from; all that can carry the targets when None.
        size: height and width in pixels that crops and resizing operations give.

    Raises:
        ValueError: for an unknown task, target or operation, for operations that do not support the targets, by name,
            and for numbers that are not ascending.

    Example:
        >>> from hypothesis import find
        >>> [type(step).__name__ for step in find(augmentations("detection"), lambda steps: len(steps) == 1)]
        ['RandomHorizontalFlip']
    """
    check_range("min_steps", min_steps, "max_steps", max_steps, least=0)
    found = stacks.find_operations(targets_of(targets), channels=channels, size=size, names=operations)
    return st.lists(st.one_of(list(found.values())), min_size=min_steps, max_size=max_steps)


def mobilevit_configs(
    *, max_stages: int = 4, max_channels: int = 12, attention: bool | None = None
) -> SearchStrategy[MobileViTConfig]:
    """Small valid rows of MobileViT's variant table; they shrink to one stage without attention.

    The least image that each of them takes is that of :class:`~kornia_mvit.MobileViT`, 32 pixels.

    Args:
        max_stages: greatest number of stages.
        max_channels: greatest width of a stage, from 2.
        attention: True for at least one stage with a MobileViT block, False for none; either when None.

    Raises:
        ValueError: for numbers that cannot be.

    Example:
        >>> from hypothesis import given, settings
        >>> @settings(max_examples=5, deadline=None)
        ... @given(config=mobilevit_configs(attention=True))
        ... def test_attends(config):
        ...     assert any(stage.depth for stage in config.stages)
        >>> test_attends()
    """
    check_count("max_stages", max_stages, least=1)
    check_count("max_channels", max_channels, least=2)

    @st.composite
    def draw_config(draw: DrawFn) -> MobileViTConfig:
        heads = draw(st.integers(1, 3))
        given_width = draw(st.booleans())
        count = draw(st.integers(1, max_stages))
        must = draw(st.integers(0, count - 1)) if attention else None
        stages = []
        for place in range(count):
            depth = 0 if attention is False else draw(st.integers(1 if place == must else 0, 2))
            values = {
                "channels": draw(st.integers(2, max_channels)),
                "stride": draw(st.sampled_from([1, 2])),
                "repeat": draw(st.integers(1, 2)),
            }
            if depth:
                dim = draw(st.integers(2, 12)) if given_width else heads * draw(st.integers(2, 6))
                values |= {"dim": dim, "depth": depth, "ffn_ratio": draw(st.integers(1, 4))}
            stages.append(Stage(**values))
        return MobileViTConfig(
            stem=draw(st.integers(2, max_channels)),
            expand=draw(st.integers(1, 3)),
            stages=tuple(stages),
            head_channels=draw(st.integers(2, 2 * max_channels)),
            heads=heads,
            head_dim=draw(st.integers(2, 6)) if given_width else None,
            qkv_bias=draw(st.booleans()),
            closing_norm=draw(st.booleans()),
            proj_norm_act=draw(st.booleans()),
        )

    return draw_config()


_SEEDS = st.integers(0, 2**16)


def _soft_row(classes: int) -> SearchStrategy[Tensor]:
    return soft_labels(classes).map(lambda rows: rows[0])


def _just(dtype: torch.dtype) -> dict[str, SearchStrategy[torch.dtype]]:
    return {"dtype": st.just(dtype)}
