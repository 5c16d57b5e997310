"""Images and their targets, in one object that travels together."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

from kornia_mvit.fields import (
    align_keypoints,
    check_flags,
    check_image_values,
    check_instances,
    check_keypoint_values,
    check_layout,
    check_rows,
    check_weights,
    hold_value,
    is_float,
    name_size,
    plain_tensor,
    read_sample,
    widen,
)
from kornia_mvit.samples import name_fields, open_batch

__all__ = ["Batch", "check_image_values", "check_layout", "hold_value", "replace_checked"]

_PADDING = {
    **{"boxes": 0, "box_label": -1, "box_ignore": False, "box_weight": 0, "box_source": -1},
    **{"keypoints": 0, "keypoint_visible": False},
}
_TOLD: list[bool] = []  # whether boxes outside their images were told of: once is enough, as each batch has others


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
        mask: (B, H, W) class of each pixel, integer, with one number for pixels to ignore.
        keypoints: (B, K, 2) x and y, floating point of 32 bits or more; or (B, N, K, 2) those of several instances,
            which go with the ``boxes`` of their rows where the batch has boxes.
        keypoint_visible: (B, K) or (B, N, K), which comes with ``keypoints``: bool, False for padding too; or integer,
            as COCO has it: 0 not labelled, as padding, 1 labelled and hidden, 2 visible.
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
    mask: Tensor | None = None
    keypoints: Tensor | None = None
    keypoint_visible: Tensor | None = None
    size: Tensor | None = None
    original_size: Tensor | None = None
    meta: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        self._check_fields()
        if self.image.device.type == "cpu":
            self._check_targets()

    def _check_fields(self) -> None:
        """Check shapes and dtypes, and widen the dtypes that cannot hold all that they may have to."""
        self.image = plain_tensor("image", self.image)
        if self.image.ndim != 4:
            raise ValueError(f"expected images of shape (B, C, H, W), got {tuple(self.image.shape)}")
        if self.image.dtype != torch.uint8 and not is_float(self.image):
            raise TypeError(f"expected uint8 or floating-point images, got {self.image.dtype}")
        if 0 in self.image.shape[1:]:
            raise ValueError(f"images {tuple(self.image.shape)} have no pixels")
        if self.image.dtype == torch.uint8:  # what an operation made of others may have any shape
            check_layout(self.image.shape)
        self._check_lengths()
        self._check_label()
        self._check_rows("boxes", "box_label", "box_ignore", "box_weight", "box_source")
        self._check_rows("keypoints", "keypoint_visible")
        if self.boxes is not None and self.keypoints is not None:
            check_instances(self.boxes, self.keypoints)
        self._check_whole()

    def _check_lengths(self) -> None:
        """Check that each field is a tensor, or a list of dictionaries, of as many entries as there are images."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if field.name == "meta":
                if not isinstance(value, list | tuple) or not all(isinstance(entry, Mapping) for entry in value):
                    raise TypeError("meta is not a list of dictionaries, one for each image")
            else:
                value = plain_tensor(field.name, value)
                setattr(self, field.name, value)
                if value.ndim == 0:
                    raise ValueError(f"{len(self)} images, but {field.name} is a single number")
            if len(value) != len(self):
                raise ValueError(f"{len(self)} images, but {field.name} has {len(value)} entries")

    def _check_whole(self) -> None:
        """Check what holds whole numbers, and give it a dtype that can hold them all."""
        for name in ("box_label", "box_source", "mask", "size", "original_size"):
            if (value := getattr(self, name)) is None:
                continue
            setattr(self, name, widen(name, value))
            if name == "mask" and value.shape[1:] != self.image.shape[2:]:
                raise ValueError(
                    f"expected masks of shape (B, H, W) as the images {tuple(self.image.shape)}, "
                    f"got {tuple(value.shape)}"
                )
            if name in ("size", "original_size") and value.shape[1:] != (2,):
                raise ValueError(f"expected {name} of shape (B, 2), height and width, got {tuple(value.shape)}")

    def _check_label(self) -> None:
        if self.label is None:
            return
        soft = self.label.is_floating_point()
        if self.label.ndim != (2 if soft else 1) or self.label.dtype == torch.bool:
            raise ValueError(
                f"expected integer labels of shape (B,) or soft ones (B, K), got {self.label.dtype} "
                f"{tuple(self.label.shape)}"
            )
        if not soft:
            self.label = widen("label", self.label)
        elif not is_float(self.label):
            raise TypeError(f"expected soft labels of 16 to 64 bits, got {self.label.dtype}")

    def _check_rows(self, name: str, *companions: str) -> None:
        """Check rows of coordinates and the fields that describe each of them."""
        rows: Tensor | None = getattr(self, name)
        if rows is None:
            if orphans := [other for other in companions if getattr(self, other) is not None]:
                raise ValueError(f"{orphans[0]} is given without {name}")
            return
        setattr(self, name, check_rows(name, rows))
        if getattr(self, companions[0]) is None:
            shape = "(B, N, K)" if rows.ndim == 4 else "(B, N)"
            raise ValueError(f"{name} come with {companions[0]} of shape {shape}; it is missing")
        for other in companions:
            value = getattr(self, other)
            if value is not None and value.shape != rows.shape[:-1]:
                raise ValueError(f"{name} are {tuple(rows.shape)}, but {other} is {tuple(value.shape)}")
            if value is not None and other not in ("box_label", "box_source"):
                check_flags(other, value)

    def check_values(self) -> None:
        """Raise for values that no image or target can have. On an accelerator this waits for the device.

        Targets on the CPU are looked at when a batch is made, too.

        Raises:
            ValueError: for images that are not finite or outside [0, 1], boxes that are not finite or end before they
                start, visible keypoints that are not finite, visibility beyond 0, 1 and 2, labels with NaN, classes of
                boxes below -1, and sizes below a pixel or above the canvas. Rows of padding may hold anything.
        """
        check_image_values(self.image)
        self._check_targets()

    def _check_targets(self) -> None:
        if self.label is not None and self.label.is_floating_point() and not bool(self.label.isfinite().all()):
            raise ValueError("label has NaN or infinity; soft labels are the shares of the classes")
        if self.boxes is not None and self.box_label is not None:
            if bool((self.box_label < -1).any()):
                raise ValueError(f"box_label has {int(self.box_label.min())}; classes count from 0, -1 marks padding")
            right = (self.boxes[..., 2:] >= self.boxes[..., :2]).all(-1) & self.boxes.isfinite().all(-1)
            wrong = (self.box_label >= 0) & ~right
            if bool(wrong.any()):
                i, j = wrong.nonzero()[0].tolist()
                box = self.boxes[i, j].tolist()
                told = f"boxes[{i}, {j}] is ({', '.join(f'{edge:g}' for edge in box)})"
                if not all(map(math.isfinite, box)):
                    raise ValueError(f"{told}, which is not finite; leave the box out, or set its box_label to -1")
                raise ValueError(
                    f"{told}, which ends before it starts; boxes are left, top, right and bottom: a box of x, y, "
                    "width and height is x, y, x + width, y + height"
                )
            if self.box_weight is not None:
                check_weights(self.box_weight)
        if self.keypoints is not None and self.keypoint_visible is not None:
            check_keypoint_values(self.keypoints, self.keypoint_visible)
        height, width = self.image.shape[2:]
        for name, value in (("size", self.size), ("original_size", self.original_size)):
            if value is None or not len(value):
                continue
            least, most = value.amin(0).tolist(), value.amax(0).tolist()
            if min(least) < 1 or (name == "size" and (most[0] > height or most[1] > width)):
                limit = f"the canvas is {height}x{width}" if name == "size" else "sizes start at 1x1"
                raise ValueError(f"{name} goes from {name_size(least)} to {name_size(most)}, but {limit}")

    def warn_of_coordinates(self) -> bool:
        """Warn where boxes or keypoints seem to be shares of width and height, and where boxes lie outside the image.

        They seem to be shares where all of them lie between 0 and 1, at fractions; fewer than four keypoints may do so
        by chance. On an accelerator this waits for the device.

        Returns:
            Whether there was a warning.
        """
        for name, rows, live, least in (
            ("boxes", self.boxes, None if self.box_label is None else self.box_label >= 0, 1),
            ("keypoints", self.keypoints, None if self.keypoint_visible is None else self.keypoint_visible > 0, 4),
        ):
            if rows is None or live is None or int(live.sum()) < least:
                continue
            found = rows[live]
            if bool(((found >= 0) & (found <= 1)).all() & (found != found.round()).any()):
                warnings.warn(
                    f"all {name} of a batch lie within [0, 1]; they are in pixels: multiply shares of width and height "
                    "by them",
                    stacklevel=3,
                )
                return True
        return self._warn_of_boxes_outside()

    def _warn_of_boxes_outside(self) -> bool:
        if _TOLD or self.boxes is None or self.box_label is None or not self.boxes.numel():
            return False
        size = torch.tensor(self.image.shape[2:], device=self.boxes.device)
        size = (size[None] if self.size is None else self.size)[:, None].flip(-1)
        has_area = (self.boxes[..., 2:] > self.boxes[..., :2]).all(-1)
        beside = (self.boxes[..., :2] >= size).any(-1) | (self.boxes[..., 2:] <= 0).any(-1)
        outside = beside & has_area & (self.box_label >= 0)
        if not bool(outside.any()):
            return False
        _TOLD.append(True)
        i, j = outside.nonzero()[0].tolist()
        height, width = self.image.shape[2:] if self.size is None else self.size[i].tolist()
        path = f" of {self.meta[i]['path']}" if self.meta is not None and "path" in self.meta[i] else ""
        warnings.warn(
            f"{int(outside.sum())} of {int((self.box_label >= 0).sum())} boxes of a batch lie wholly outside their "
            f"images, such as boxes[{i}, {j}]{path}, ({', '.join(f'{edge:g}' for edge in self.boxes[i, j].tolist())}), "
            f"outside {height}x{width} (height x width): nothing can be learned from them; boxes are in pixels of the "
            "image as it is given",
            stacklevel=4,
        )
        return True

    def __repr__(self) -> str:
        """Tell which fields there are, with their shapes and dtypes."""
        told = [
            f"{name}={tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        ]
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
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value[index] for name, value in values if value is not None}

    def replace(self, **changes: Any) -> Self:
        """Return a batch with some fields changed; the others are shared, not copied."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
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
        below with zeros, their masks with ``ignore_index``, and ``size`` says which part is image. Lists of boxes and
        keypoints of any length, none included, are padded to the longest. Each target is checked against its image
        before that, and values here, on the CPU.

        A sample is a dictionary with the fields of a batch, less the batch dimension, or what datasets give:

        - an image alone, or a pair ``(image, label)`` or ``(image, mask)``;
        - ``(image, {'boxes': ..., 'labels': ...})`` of torchvision, boxes being corners;
        - ``(image, annotations)`` of torchvision's CocoDetection, and rows of Hugging Face's datasets, with ``image``
          and ``label``, or ``objects`` of ``bbox`` and ``category``, boxes being x, y, width and height.

        Classes keep their numbers. ``iscrowd`` becomes ``box_ignore``, and ``image_id``, ``file_name`` and other
        strings go into ``meta``; areas, outlines and masks of single objects are left out.

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
        values: dict[str, Any] = {}
        for name, rows in columns.items():
            if name == "meta":
                values[name] = rows
            elif name == "image":
                values[name] = torch.stack([_pad(row, height, width, 0) for row in rows])
            elif name == "mask":
                masks = [hold_value(row, ignore_index) for row in rows]
                values[name] = torch.stack([_pad(row, height, width, ignore_index) for row in masks])
            elif name in _PADDING:
                values[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_PADDING[name])
            elif len({row.shape for row in rows}) > 1:
                raise ValueError(f"{name} differ in shape: {sorted({tuple(row.shape) for row in rows})}")
            else:
                values[name] = torch.stack(rows)
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
            values[field.name] = tensor(value) if isinstance(value, Tensor) else None if value is None else other(value)
        return type(self)(**values)


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
    out._check_fields()
    return out


def _pad(image: Tensor, height: int, width: int, fill: int) -> Tensor:
    """Pad an image or a mask right and below."""
    below, right = height - image.shape[-2], width - image.shape[-1]
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
            for name, value in read_sample(named).items():
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
