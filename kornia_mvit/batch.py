"""Images and their targets, in one object that travels together."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

from kornia_mvit.batch_checks import check_fields, check_targets, warn_of_coordinates
from kornia_mvit.extra_images import Extra, check_extra, stack_extra
from kornia_mvit.fields import align_keypoints, check_image_values, check_layout, hold_value, read_sample
from kornia_mvit.samples import name_fields, open_batch

__all__ = ["Batch", "check_image_values", "check_layout", "hold_value", "map_tensors", "replace_checked"]

_CANVASES = ("image", "mask", "instance_masks")
_PADDING = {  # of what has rows
    **{"boxes": 0, "box_label": -1, "box_ignore": False, "box_weight": 0, "box_source": -1},
    **{"box_index": -1, "oriented_boxes": 0, "instance_masks": 0},
    **{"keypoints": 0, "keypoint_visible": False, "keypoint_index": -1},
}


@dataclass
class Batch:
    """Images on one canvas and what is known of them. Fields that are absent are None, and stay so.

    Fields of a dtype that cannot hold all that they may have to, such as labels of boxes in uint8, become wider.
    Coordinates are in pixels of the canvas, x before y, measured from its upper left corner: the first pixel covers 0
    to 1 and its centre is at 0.5, so that a box around the whole canvas is (0, 0, W, H).

    Args:
        image: (B, C, H, W), uint8, or floating point in [0, 1].
        label: (B,) classes from 0, int64, or (B, K) soft targets that sum to one, or multi-hot ones.
        boxes: (B, N, 4) left, top, right and bottom edges, floating point of 32 bits or more. N is that of the image
            with most; the rows after an image's own are padding. Boxes without area are taken, and dropped by
            pipelines.
        box_label: (B, N) class of each box from 0, integer; -1 marks padding. Comes with ``boxes``.
        box_ignore: (B, N) bool, boxes to leave out of loss and score (crowds, difficult ones).
        box_weight: (B, N) weight of each box in the loss, from 0, floating point; 1 where absent. MixUp sets it.
        box_source: (B, N) the image of the batch that each box is from, integer; -1 for padding. Mixes set it.
        box_index: (B, N) which of the boxes that a pipeline was given each row is, integer; -1 for padding.
        oriented_boxes: (B, N, 5) cx, cy, w, h and angle of each box's object, in pixels and radians: the angle of the
            side w from the x axis towards the y axis, clockwise as one looks. Comes with ``boxes``, which
            :func:`kornia_mvit.ops.oriented.oriented_bounds` makes of them.
        instance_masks: (B, N, H, W) the pixels of each box's object, bool, or uint8 of 0 and 1. Comes with ``boxes``.
        fields: tensors (B, N, ...) by name, of any dtype, that say more of each box, such as its track or its score.
            They follow the boxes; rows of padding hold zeros.
        mask: (B, H, W) class of each pixel, integer, with one number for pixels to ignore.
        keypoints: (B, K, 2) x and y, floating point of 32 bits or more; or (B, N, K, 2) those of several instances,
            which go with the ``boxes`` of their rows where the batch has boxes.
        keypoint_visible: (B, K) or (B, N, K), which comes with ``keypoints``: bool, False for padding too; or integer,
            as COCO has it: 0 not labelled, as padding, 1 labelled and hidden, 2 visible.
        keypoint_index: (B, K) or (B, N, K), which of the keypoints that a pipeline was given each is, integer, counted
            through all instances; -1 for padding.
        extra: further images and maps (B, C, H, W) by name, each an :class:`~kornia_mvit.Extra` that says what it is: a
            second frame, depth, optical flow, heat maps. They go through a pipeline in step with the image.
        size: (B, 2) height and width of the part of the canvas, from its upper left corner, that holds the image; the
            rest is padding. None where the image fills the canvas.
        original_size: (B, 2) height and width of the image before it was brought to the canvas.
        meta: a dictionary for each image, such as ``{'path': …}``.

    Raises:
        ValueError: if the fields' shapes do not fit each other, a field lacks the one that goes with it, or, on the
            CPU, targets hold what :meth:`check_values` refuses.
        TypeError: for an image that is neither uint8 nor floating point, or a field of a wrong dtype.

    Example:
        >>> batch = Batch(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 2, 1]))
        >>> len(batch), batch[1:3].label
        (4, tensor([1, 2]))
    """

    image: Tensor
    label: Tensor | None = None
    _: KW_ONLY
    boxes: Tensor | None = None
    box_label: Tensor | None = None
    box_ignore: Tensor | None = None
    box_weight: Tensor | None = None
    box_source: Tensor | None = None
    box_index: Tensor | None = None
    oriented_boxes: Tensor | None = None
    instance_masks: Tensor | None = None
    fields: dict[str, Tensor] | None = None
    mask: Tensor | None = None
    keypoints: Tensor | None = None
    keypoint_visible: Tensor | None = None
    keypoint_index: Tensor | None = None
    extra: dict[str, Extra] | None = None
    size: Tensor | None = None
    original_size: Tensor | None = None
    meta: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.image.device.type == "cpu":
            check_targets(self)

    def check_values(self) -> None:
        """Raise for values that no image or target can have. On an accelerator this waits for the device.

        Targets on the CPU are looked at when a batch is made, too.

        Raises:
            ValueError: for images that are not finite or outside [0, 1], boxes that are not finite or end before they
                start, visible keypoints that are not finite, visibility beyond 0, 1 and 2, labels with NaN, classes of
                boxes below -1, instance masks above 1, and sizes below a pixel or above the canvas. Rows of padding may
                hold anything else.
        """
        check_image_values(self.image)
        for name, one in (self.extra or {}).items():
            if one.kind == "image":
                check_image_values(one.tensor, f"extra[{name!r}]")
        check_targets(self)

    def warn_of_coordinates(self) -> bool:
        """Warn where boxes or keypoints seem to be shares of width and height, and where boxes lie outside the image.

        They seem to be shares where all of them lie between 0 and 1, at fractions; fewer than four keypoints may do so
        by chance. On an accelerator this waits for the device.

        Returns:
            Whether there was a warning.
        """
        return warn_of_coordinates(self)

    def __repr__(self) -> str:
        """Tell which fields there are, with their shapes and dtypes."""
        told = [f"{name}={_describe(value)}" for name, value in vars(self).items() if isinstance(value, Tensor)]
        if self.fields:
            told.append(f"fields={{{', '.join(f'{name}: {_describe(one)}' for name, one in self.fields.items())}}}")
        if self.extra:
            parts = [f"{name}: {one.kind} {_describe(one.tensor)}" for name, one in self.extra.items()]
            told.append(f"extra={{{', '.join(parts)}}}")
        return f"{type(self).__name__}({', '.join(told)})"

    def __len__(self) -> int:
        return self.image.shape[0]

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Self:
        """Return the batch of the chosen images.

        Raises:
            TypeError: for a single number; use :meth:`sample` for one image.
        """
        if isinstance(index, int):
            raise TypeError(f"batch[{index}] would lose the batch dimension; write batch.sample({index})")
        rows = range(len(self))[index] if isinstance(index, slice) else torch.as_tensor(index)
        if isinstance(rows, Tensor):
            rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
            numbers = rows.tolist()
        else:
            numbers = list(rows)
        return self._map(lambda v: v[numbers], lambda v: [v[i] for i in numbers])

    def sample(self, index: int) -> dict[str, Any]:
        """Return one image and its targets without the batch dimension, as :meth:`collate` takes them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value[index] if isinstance(value, list) else map_tensors(value, lambda v: v[index])
            for name, value in values.items()
            if value is not None
        }

    def replace(self, **changes: Any) -> Self:
        """Return a batch with some fields changed; the others are shared, not copied.

        The numbers that a pipeline gave to boxes and keypoints go where there are more or fewer of these.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for numbers, rows in (("box_index", "boxes"), ("box_source", "boxes"), ("keypoint_index", "keypoints")):
            old, new = values[rows], changes.get(rows, values[rows])
            if old is not None and (new is None or (isinstance(new, Tensor) and new.shape != old.shape)):
                values[numbers] = None
        return type(self)(**(values | changes))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch with its tensors on a device, and ``size`` on the CPU as well if it was there."""
        out = self._map(lambda v: v.to(device, non_blocking=non_blocking))
        on_host = self.host_size()
        if on_host is not None and out.size is not on_host:
            out.remember_size(on_host.clone())
        return out

    def remember_size(self, on_host: Tensor) -> None:
        """Keep a copy of ``size`` on the CPU, so that nothing has to wait for a device to know it."""
        self._size_on_host = (self.size, on_host)

    def host_size(self) -> Tensor | None:
        """Return ``size`` on the CPU where that is known without waiting for a device, else None."""
        if self.size is None or self.size.device.type == "cpu":
            return self.size
        of, on_host = self.__dict__.get("_size_on_host", (None, None))
        known: Tensor | None = on_host if of is self.size else None
        return known

    def pin_memory(self) -> Self:
        """Return the batch with its tensors in page-locked memory."""
        return self._map(lambda v: v.pin_memory())

    @classmethod
    def collate(cls, samples: Iterable[Any], *, ignore_index: int = 255) -> Self:
        """Make a batch of samples, one for each image.

        Images of several sizes are laid on one canvas as large as the largest height and width, padded right and
        below with zeros, their masks with ``ignore_index``, and ``size`` says which part is image; images of one size
        whose pixels have their values together in memory, as decoders give them, stay so. Lists of boxes and
        keypoints of any length, none included, are padded to the longest, with what is bound to them. Each target is
        checked against its image before that, and values here, on the CPU.

        A sample is a dictionary with the fields of a batch, less the batch dimension, or what datasets give:

        - an image alone, or a pair ``(image, label)`` or ``(image, mask)``;
        - ``(image, {'boxes': ..., 'labels': ...})`` of torchvision, boxes being corners;
        - ``(image, annotations)`` of torchvision's CocoDetection, and rows of Hugging Face's datasets, with ``image``
          and ``label``, or ``objects`` of ``bbox`` and ``category``, boxes being x, y, width and height.

        Classes keep their numbers. ``iscrowd`` becomes ``box_ignore``, and ``image_id``, ``file_name`` and other
        strings go into ``meta``; ``masks`` of single objects become ``instance_masks``, and areas and outlines are left
        out.

        Images are tensors (C, H, W), PIL images, which become RGB and are turned as their EXIF data tell, or NumPy
        arrays, channels first or last. Targets are lists, numbers, arrays, tensors or torchvision's TVTensors, whose
        boxes and keypoints are brought to corners in pixels of the image from their ``format`` and ``canvas_size``;
        masks may be PIL images of one channel. Masks become int64 where their dtype cannot hold ``ignore_index``.

        Args:
            samples: such as ``{'image': (C, H, W), 'boxes': (n, 4), 'box_label': (n,)}``.
            ignore_index: what masks are padded with.

        Raises:
            ValueError: if samples differ in their fields or in the channels of their images, if a target does not fit
                its image, for arrays whose channels may be first or last, or for values as :meth:`check_values` says.
            TypeError: for samples of another form, and fields that cannot become tensors of their kind.
        """
        samples = list(samples)
        if not samples:
            raise ValueError("cannot make a batch of no samples")
        columns = _read_columns(samples, [field.name for field in fields(cls)])
        columns |= align_keypoints(columns)
        images = columns["image"]
        if len({(image.shape[0], image.dtype) for image in images}) > 1:
            found = sorted({f"{image.dtype} {tuple(image.shape)}" for image in images})
            raise ValueError(f"images of several dtypes or numbers of channels in one batch: {', '.join(found)}")
        height, width = (max(image.shape[k] for image in images) for k in (1, 2))
        if any(image.shape[1:] != (height, width) for image in images):
            columns.setdefault("size", [torch.tensor(image.shape[1:]) for image in images])
        canvas = height, width
        values = {name: _stack(name, rows, canvas, ignore_index) for name, rows in columns.items()}
        check_image_values(values["image"])
        batch = cls(**values)
        if get_worker_info() is None:  # otherwise each worker would, at each epoch; pipelines look, too
            batch.warn_of_coordinates()
        return batch

    @classmethod
    def read(cls, loaded: Any, *, ignore_index: int = 255) -> Self:
        """Return what any DataLoader gave as a batch, such as the pair of stacked images and labels of PyTorch's own.

        Args:
            loaded: a batch, which is returned; images (B, C, H, W), alone or in a pair with labels (B,), soft labels
                (B, K) or masks (B, H, W); a dictionary of such; a pair of images and of as many targets; or a list of
                samples as :meth:`collate` takes them.
            ignore_index: what masks are padded with.

        Raises:
            TypeError: for other forms, saying what was given and what would do.
            ValueError: as :meth:`collate`.

        Example:
            >>> Batch.read([torch.rand(2, 3, 8, 8), torch.tensor([0, 1])])
            Batch(image=(2, 3, 8, 8) float32, label=(2,) int64)
        """
        if isinstance(loaded, Batch):
            return cast(Self, loaded)
        found = open_batch(loaded)
        if isinstance(found, list):
            return cls.collate(found, ignore_index=ignore_index)
        batch = cls(found["image"], found.get("label"), mask=found.get("mask"))
        check_layout(batch.image.shape)
        if batch.image.device.type == "cpu":
            check_image_values(batch.image)
        return batch

    def _map(
        self, tensor: Callable[[Tensor], Tensor], other: Callable[[list[Any]], list[Any]] = lambda value: value
    ) -> Self:
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            values[field.name] = other(value) if isinstance(value, list) else map_tensors(value, tensor)
        return type(self)(**values)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to the value of a field: to a tensor, or to each of a dictionary's; None stays None.

    Example:
        >>> map_tensors({"track": torch.tensor([3])}, torch.neg)
        {'track': tensor([-3])}
    """
    if isinstance(value, Mapping):
        return {name: map_tensors(one, function) for name, one in value.items()}
    if isinstance(value, Extra):
        return value.replace(function(value.tensor))
    return function(value) if isinstance(value, Tensor) else value


def replace_checked(batch: Batch, **changes: Any) -> Batch:
    """Return a batch with some fields changed, without looking at the values of its targets again.

    For values that follow from a batch whose own were checked. Shapes and dtypes are checked as always, and the values
    of a subclass by its own constructor.

    Args:
        batch: whose fields are kept where they are not changed.
        changes: other fields, by name.
    """
    if type(batch) is not Batch:
        return batch.replace(**changes)
    out = object.__new__(Batch)
    for field in fields(batch):
        setattr(out, field.name, changes[field.name] if field.name in changes else getattr(batch, field.name))
    check_fields(out)
    return out


def _describe(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _pad_rows(name: str, rows: Sequence[Tensor], fill: float = 0) -> Tensor:
    """Stack rows of several numbers, padded to the longest. None, as an empty list is, fit any others.

    Raises:
        ValueError: where they differ in shape or dtype besides.
    """
    like = next((row for row in rows if len(row)), rows[0])
    rows = [row if len(row) else like[:0] for row in rows]
    if len({(row.shape[1:], row.dtype) for row in rows}) > 1:
        found = sorted({f"{row.dtype} {tuple(row.shape)}" for row in rows})
        raise ValueError(f"{name} differ in dtype, or in shape after the first dimension: {', '.join(found)}")
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)


def _stack(name: str, rows: list[Any], canvas: tuple[int, int], ignore_index: int) -> Any:
    """Put what samples have of a field together, on one canvas and of one number of rows."""
    if name == "meta":
        return rows
    if name == "extra":
        return stack_extra(rows, canvas)
    if name == "fields":
        if len(names := {", ".join(sorted(row)) for row in rows}) > 1:
            raise ValueError(f"fields differ in their names: {' or '.join(sorted(names))}")
        return {key: _pad_rows(f"fields[{key!r}]", [row[key] for row in rows]) for key in rows[0]}
    if name in _CANVASES:
        fill = ignore_index if name == "mask" else 0
        rows = [_pad(hold_value(row, fill) if name == "mask" else row, canvas, fill) for row in rows]
    if name == "instance_masks" and any(row.dtype == torch.uint8 for row in rows):  # of others, they may be bool
        rows = [row.to(torch.uint8) for row in rows]
    if name in _PADDING:
        return _pad_rows(name, rows, _PADDING[name])
    if len({row.shape for row in rows}) > 1:
        raise ValueError(f"{name} differ in shape: {sorted({tuple(row.shape) for row in rows})}")
    # Decoders put the values of a pixel together: kept so, images are copied as they are, in a seventh of the time.
    if name == "image" and all(row.permute(1, 2, 0).is_contiguous() for row in rows):
        return torch.stack([row.permute(1, 2, 0) for row in rows]).permute(0, 3, 1, 2)
    return torch.stack(rows)


def _pad(image: Tensor, canvas: tuple[int, int], fill: int) -> Tensor:
    """Pad an image or masks right and below."""
    below, right = canvas[0] - image.shape[-2], canvas[1] - image.shape[-1]
    return F.pad(image, (0, right, 0, below), value=fill) if below or right else image


def _read_columns(samples: Sequence[Any], known: list[str]) -> dict[str, list[Any]]:
    """Read samples, and put what they have of each field together."""
    columns: dict[str, list[Any]] = {}
    for i, sample in enumerate(samples):
        with _numbered(i, sample):
            named = name_fields(sample)
        if i == 0:
            if unknown := sorted({str(name) for name in named} - set(known)):
                raise ValueError(
                    f"a batch has no field {', '.join(unknown)}; it has {', '.join(known)}: leave it out, or put it "
                    "into meta"
                )
            if "image" not in named:
                raise ValueError(f"a sample has no image; it has {', '.join(named) or 'nothing'}")
            columns = {name: [] for name in named}
        if named.keys() != columns.keys():
            raise ValueError(f"sample {i} has the fields {list(named)}, sample 0 has {list(columns)}")
        with _numbered(i, named):
            found = read_sample(named)
            if "extra" in found:
                found["extra"] = check_extra(found["extra"], found["image"])
            for name, value in found.items():
                columns[name].append(value)
    return columns


@contextmanager
def _numbered(number: int, sample: Any) -> Iterator[None]:
    """Tell the number of a sample in errors about it, and its path where that is known."""
    try:
        yield
    except (TypeError, ValueError) as error:
        meta = sample.get("meta") if isinstance(sample, Mapping) else None
        path = f" ({meta['path']})" if isinstance(meta, Mapping) and "path" in meta else ""
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"sample {number}{path}: {error}") from None
