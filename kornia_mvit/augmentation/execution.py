"""Carry out a stack of augmentations on the images of a batch, and keep account of where their pixels went."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from kornia.augmentation import AugmentationSequential, RandomErasing
from torch import Tensor, nn

from kornia_mvit.augmentation.companions import further_images, further_maps, read_at, warp_maps
from kornia_mvit.augmentation.crops import View, WindowCrop
from kornia_mvit.augmentation.erasing import Erased, erase
from kornia_mvit.augmentation.geometry import Geometry, Step
from kornia_mvit.augmentation.operations import (
    Draw,
    Kind,
    Operation,
    exclusive,
    find_operation,
    is_known,
    sample,
    sample_parameters,
    walk,
)
from kornia_mvit.augmentation.preparation import fit_frames
from kornia_mvit.augmentation.randomness import OwnGenerators
from kornia_mvit.augmentation.rotations import RandomExpandedRotation
from kornia_mvit.augmentation.sampling import sample_crop_in_view
from kornia_mvit.augmentation.slices import are_sliced, in_slices
from kornia_mvit.augmentation.targets import filled_size, known_part, warp_instances
from kornia_mvit.batch import Batch, hold_value
from kornia_mvit.extra_images import Extra, fill_unknown
from kornia_mvit.ops.geometry import (
    box_corners,
    constant,
    corner_bounds,
    gather_pixels,
    scale_matrix,
    transform_points,
)
from kornia_mvit.ops.seeds import combine_seed
from kornia_mvit.ops.uploads import upload
from kornia_mvit.preprocess import PreprocessModule, to_float

__all__ = ["Execution", "Settings"]


@dataclass(frozen=True)
class Settings:
    """How a stack is carried out; see :class:`~kornia_mvit.AugmentationPipeline`."""

    ignore_index: int
    erased: frozenset[str]
    fuse: bool
    box_method: str = "corners"
    antialias: bool = False


@dataclass
class _Planned:
    """An operation that is drawn and not carried out yet.

    Args:
        operation: the operation.
        drawn: what was drawn; None for a crop that looks at the batch, of which only ``numbers`` are drawn.
        index: its place in the record.
        size: height and width of the images after it, as far as known.
        step: what it does to the geometry, if its matrix is known.
        joins: it is carried out by its step, which is worked out where the images are.
        numbers: see :meth:`WindowCrop.numbers`.
        sent: what ``operation.apply`` takes.
    """

    operation: Operation
    drawn: Draw | None
    index: int
    size: tuple[int, int]
    step: Step | None = None
    joins: bool = False
    numbers: Sequence[Tensor] = ()
    sent: Draw = field(default_factory=dict)


class Execution:
    """One run of a stack over one batch.

    Geometric operations are put off as long as nothing needs their pixels, and then carried out together. Operations
    are drawn ahead as long as the size of their images is known, so that what they draw goes to the device in one copy.
    The last of them are left planned: :meth:`carry_out_planned` needs no generator and nothing of the host, and can be
    compiled with what follows it as one graph.

    Args:
        settings: of the pipeline.
        batch: the images with their targets.
        image: its images, uint8, or floating point of single precision or more.
        seed: what is drawn depends on it alone.
        look: keep account of which pixels show an image; for batches without masks.
    """

    def __init__(self, settings: Settings, batch: Batch, image: Tensor, seed: int, *, look: bool = False) -> None:
        self.settings = settings
        self.batch = batch
        self.image: Tensor = image
        self.seed = seed
        self.random: OwnGenerators = OwnGenerators()
        self.geometry: Geometry = Geometry(_size(image), batch.size, len(batch), image.device)
        self.mask: Tensor | None = None
        if batch.mask is not None:
            self.mask = hold_value(batch.mask, settings.ignore_index)
        elif look:
            self.mask = self._all_seen()
        self.images: dict[str, Tensor] = further_images(batch)  # which become what the image becomes
        self.maps: dict[str, Extra] = further_maps(batch)
        self._maps_at = 0
        # What the image alone would fill of the canvas, (B, 4); None for the whole canvas.
        self._frame: Tensor | None = None
        if self.geometry.view is not None:
            self._frame = F.pad(self.geometry.view.double().flip(-1), (2, 0))
        self.record: list[dict[str, Any]] = []
        self._planned: list[_Planned] = []
        self._waiting: list[tuple[Operation, Draw, int]] = []
        self._recolours: list[tuple[Operation, Draw]] = []  # after what waits
        self._image_at = 0
        self._mask_at = 0
        self.instances: Tensor | None = batch.instance_masks
        self._instances_at = 0
        self.erased: Erased = Erased()

    @property
    def sized(self) -> bool:
        """Whether the images fill parts of their canvas alone, which the result has to say."""
        return self._frame is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the images once all that was planned or put off is done: (B, C, H, W)."""
        return (*self.image.shape[:2], *(self._planned[-1].size if self._planned else self.geometry.sizes[-1]))

    def sample_all(self, stack: AugmentationSequential) -> None:
        """Draw and carry out each operation of a stack."""
        self._seed(len(self.record), 2)
        for operation, given in walk(stack, lambda: self.shape, self.random):
            index = len(self.record)
            with exclusive(operation.module):
                self._seed(index, 0)
                if isinstance(operation.module, WindowCrop):
                    drawn, numbers = self._draw_crop(operation.module)
                else:
                    drawn, numbers = self._draw(operation) if given is None else given, ()
                    if operation.gate is not None and "batch_prob" in drawn:
                        drawn = drawn | {"batch_prob": drawn["batch_prob"] * operation.gate}
                self.record.append({"path": operation.path, "name": operation.name, "data": drawn})
                self._plan(operation, drawn, index, numbers)
            self._seed(index + 1, 2)  # for the choices of containers
        self._send_planned()

    def replay_all(self, stack: AugmentationSequential, record: list[dict[str, Any]]) -> None:
        """Carry out what was drawn before.

        Raises:
            ValueError: if the stack has not got the operations that were recorded.
        """
        for index, entry in enumerate(record):
            try:
                operation = find_operation(entry["path"], stack.get_submodule(entry["path"]))
            except AttributeError:
                operation = None
            if operation is None or operation.name != entry["name"]:
                raise ValueError(
                    f"the parameters are of another pipeline: they have {entry['name']} at {entry['path']!r}, "
                    f"this one has {'nothing' if operation is None else operation.name}"
                )
            self.record.append(entry)
            with exclusive(operation.module):
                self._plan(operation, entry["data"], index)
        self._send_planned()

    def resize(self, size: tuple[int, int], preprocess: PreprocessModule) -> None:
        """Resize each image to a height and width, antialiased, or into a letterbox of them, if the record has one.

        An image that does not fill the canvas is taken without what is beside it, as in evaluation.
        """
        if self.geometry.sizes[-1] == size and self._frame is None:
            return
        image, record = self.finish(), replace(preprocess.preprocess, size=size, crop=None)

        def fit(image: Tensor) -> tuple[Tensor, Tensor]:
            if self._frame is not None:
                return fit_frames(image, self._frame, record)
            given = _size(image)
            scaled = record.resized_size(*given)
            matrix = scale_matrix(len(image), given, scaled)
            image = preprocess.resize(image, scaled)
            return F.pad(image, (0, size[1] - scaled[1], 0, size[0] - scaled[0])), matrix

        self.images = {name: fit(one)[0] for name, one in self.images.items()}
        (self.image, matrix), self._frame = fit(image), None
        self.geometry.append(Step("resize", matrix, size, covers=not record.letterbox, aligned=True))
        if record.letterbox and len(self.geometry) == 1:  # as in evaluation, where the image is upright in its corner
            self.geometry.filled = filled_size(self.geometry)
        self._image_at = len(self.geometry)

    def finish(self, preprocess: PreprocessModule | None = None) -> Tensor:
        """Carry out what was put off, and give the images, floating point.

        Args:
            preprocess: brings their values to what the network takes.
        """
        waiting, self._waiting = self._waiting, []
        recolours, self._recolours = self._recolours, []
        first, self._image_at = self._image_at, len(self.geometry)
        warps = any(operation.resamples or _is_away(drawn) for operation, drawn, _ in waiting)
        if not warps:
            for operation, drawn, index in waiting:
                self._apply(operation, drawn, index)

        def finish(image: Tensor) -> Tensor:
            warp = None
            if warps:
                warp = self.geometry.image_warp(image, first, self._image_at, antialias=self.settings.antialias)

            def carry_out(part: Tensor, rows: slice, out: Tensor | None) -> Tensor:
                part = to_float(part) if warp is None else warp(part, rows)
                for operation, drawn in recolours:
                    part = operation.apply(part, operation.rows(drawn, rows), self.random)
                return part if preprocess is None else preprocess.values(part, out=out)

            changes = warp or recolours or preprocess or image.dtype == torch.uint8
            return in_slices(image, carry_out) if changes else image

        self.image = finish(self.image)
        self.images = {name: finish(one) for name, one in self.images.items()}
        return self.image

    def find_seen(self) -> Tensor:
        """Return which pixels of the result show an image, (B, H, W).

        Of batches with masks, behind a step that no matrix describes, the whole canvas counts as image.
        """
        if self.batch.mask is None and self.mask is not None:
            mask = self.finish_mask()
            assert mask is not None
            return mask != bool(self.settings.ignore_index)
        rest = known_part(self.geometry)
        seen = torch.ones((), dtype=torch.bool, device=self.image.device).expand(len(self.batch), *rest.sizes[0])
        return rest.warp_mask(seen, 0, len(rest), 0) if len(rest) or rest.view is not None else seen

    def _all_seen(self) -> Tensor:
        """Return masks of a canvas on which every pixel shows an image."""
        known = torch.full((), not self.settings.ignore_index, device=self.image.device)
        return known.expand(len(self.batch), *self.geometry.sizes[-1])

    def finish_mask(self) -> Tensor | None:
        """Take the masks to where the images are to be, and give them."""
        self.mask = self._moved_mask()
        self._mask_at = len(self.geometry)
        return self.mask

    def _moved_mask(self) -> Tensor | None:
        first, last = self._mask_at, len(self.geometry)
        if self.mask is None or (first == last and not (first == 0 and self.geometry.view is not None)):
            return self.mask
        return self.geometry.warp_mask(self.mask, first, last, self.settings.ignore_index)

    def finish_maps(self) -> dict[str, Extra]:
        """Take the maps of values and fields of vectors to where the images are to be, and give them."""
        self.maps, self._maps_at = warp_maps(self.maps, self.geometry, self._maps_at), len(self.geometry)
        return self.maps

    def finish_extra(self) -> dict[str, Extra]:
        """Give the further images, as they are now, and the maps, in the batch's order."""
        maps = self.finish_maps()
        given = self.batch.extra or {}
        return {
            name: one.replace(self.images[name]) if name in self.images else maps[name] for name, one in given.items()
        }

    def finish_instances(self, order: Tensor | None, keep: Tensor | None) -> Tensor:
        """Take the masks of single objects to where the images are to be; see :func:`warp_instances`."""
        assert self.instances is not None
        return warp_instances(self.instances, self.geometry, order, keep, first=self._instances_at)

    def set_instances(self, masks: Tensor) -> None:
        """Go on with other masks of single objects, which are where the images are to be."""
        self.instances, self._instances_at = masks, len(self.geometry)

    def _seed(self, index: int, purpose: int) -> None:
        self.random.seed(combine_seed(self.seed, index, purpose))

    def _draw(self, operation: Operation) -> Draw:
        drawn = sample_parameters(operation, self.shape, self.random)
        moved = len(self.geometry) > 0 or any(one.operation.kind is not Kind.VALUES for one in self._planned)
        if moved or self.geometry.view is None:
            return drawn
        on_host = self.batch.host_size()
        view = self.geometry.view if on_host is None else on_host
        return self.random.sample_plainly(sample_crop_in_view, operation.module, drawn, view)

    def _draw_crop(self, module: WindowCrop) -> tuple[Draw | None, Sequence[Tensor]]:
        """Draw a crop's numbers; all of it, if it is one of which nothing is known."""
        if is_known(module):
            return None, sample(module, self.random, module.numbers, len(self.batch))
        self._send_and_carry_out()
        return sample(module, self.random, module.draw, self._look(module), self.shape), ()

    def _look(self, module: WindowCrop) -> View:
        """Return what a crop asks to look at, as it will be after all that was put off."""
        batch, canvas, device = self.batch, self.geometry.sizes[-1], self.image.device
        view = self.geometry.view if len(self.geometry) == 0 else None
        if view is None:
            view = constant(canvas, device, torch.int64).expand(len(batch), 2)
        boxes = valid = mask = None
        if module.looks_at == "boxes" and batch.boxes is not None and batch.box_label is not None:
            boxes, share = self.geometry.move_boxes(batch.boxes, ellipses=self.settings.box_method == "ellipse")
            valid = (batch.box_label >= 0) & (share > 0)
            boxes = boxes.masked_fill(~valid[..., None], 0.0)  # padding may hold anything
        if module.looks_at == "mask" and batch.mask is not None:
            mask = self._moved_mask()
        return View(canvas, view, boxes, valid, mask, self.settings.ignore_index)

    def _plan(self, operation: Operation, drawn: Draw | None, index: int, numbers: Sequence[Tensor] = ()) -> None:
        """Put an operation off until what follows it is drawn, if the size of its images is known."""
        before = self.shape
        one = _Planned(operation, drawn, index, (before[2], before[3]), numbers=numbers)
        known = is_known(operation.module)
        if drawn is None:
            assert isinstance(operation.module, WindowCrop)
            one.size = operation.module.size or one.size
        else:
            gate = drawn.get("batch_prob")
            if isinstance(gate, Tensor) and gate.device.type == "cpu" and not bool((gate > 0.5).any()):
                return
            if operation.kind is Kind.MATRIX and operation.joins(drawn, before, self.settings.fuse):
                one.size = operation.output_size(drawn, one.size)
                one.step = operation.step(drawn, before, one.size)
            one.joins = operation.kind is Kind.GRID and operation.joins(drawn, before, self.settings.fuse)
            one.sent = operation.select(drawn, before)
            known = known and (one.step is not None or one.joins or operation.kind is Kind.VALUES)
        self._planned.append(one)
        if not known:
            self._send_and_carry_out()

    def _send_and_carry_out(self) -> None:
        self._send_planned()
        self.carry_out_planned()

    def carry_out_planned(self) -> None:
        """Carry out what was drawn and not carried out yet."""
        planned, self._planned = self._planned, []
        for one in planned:
            self._carry_out(one)

    def _send_planned(self) -> None:
        """Send what operations take to the device, in one copy."""
        planned = self._planned
        if self.image.device.type == "cpu":
            return
        names = [one.operation.movable(one.sent) + ["batch_prob"] * one.joins for one in planned]
        here: list[Tensor] = []
        for one, chosen in zip(planned, names, strict=True):
            here += [*one.numbers, *(one.sent[name] for name in chosen)]
            if one.step is not None and one.step.matrix is not None:
                here.append(one.step.matrix)
        there = iter(upload(here, self.image.device))
        for one, chosen in zip(planned, names, strict=True):
            one.numbers = [next(there) for _ in one.numbers]
            one.sent = one.sent | {name: next(there) for name in chosen}
            if one.step is not None and one.step.matrix is not None:
                one.step = replace(one.step, matrix=next(there))

    def _carry_out(self, one: _Planned) -> None:
        operation, drawn, index, before = one.operation, one.drawn, one.index, self.shape
        if drawn is None:
            assert isinstance(operation.module, WindowCrop)
            drawn = operation.module.draw(self._look(operation.module), before, one.numbers)
            self.record[index]["data"] = drawn
            one.step = operation.step(drawn, before, one.size)
        if one.joins:
            one.step = operation.step(one.sent, before, one.size, self.image.device)
        if one.step is not None:
            if self._recolours:
                self.finish()
            joined = len(self._waiting) > 0
            self._waiting.append((operation, drawn, index))
            self._append(operation, replace(one.step, joined=joined))
            return
        drawn = one.sent
        if operation.recolours and are_sliced(self.image):
            self._recolours.append((operation, drawn))
            return
        self.finish()
        if operation.kind is Kind.DENSE:
            self._carry_freely(operation, drawn, index)
        self._apply(operation, drawn, index)
        if operation.kind is Kind.VALUES and _size(self.image) != before[2:]:
            operation = self._resized(operation, before)
        if operation.kind is not Kind.VALUES:
            step = operation.step(drawn, before, _size(self.image), self.image.device)
            self._append(operation, replace(step, rim=operation.rim))
            self._image_at = len(self.geometry)
            if not step.known:
                self._mask_at = self._maps_at = self._image_at
            if operation.kind is Kind.OPAQUE and self.mask is not None:
                self.mask = self._all_seen()
        elif isinstance(operation.module, RandomErasing) and self.settings.erased:
            erase(self, drawn)

    def _resized(self, operation: Operation, before: tuple[int, ...]) -> Operation:
        """Take an operation for unknown that was to change values alone, and gave images of another size.

        Raises:
            ValueError: if the batch has targets that would have to follow.
        """
        unknown = replace(operation, kind=Kind.OPAQUE)
        has = [name for name in ("boxes", "keypoints", "mask", "extra") if getattr(self.batch, name) is not None]
        if has:
            height, width = _size(self.image)
            raise ValueError(
                f"{operation.name} made images of {before[2]}x{before[3]} pixels {height}x{width}, and cannot carry "
                f"{' and '.join(has)} along; take it out of the augmentation, or the targets out of the batch"
            )
        return unknown

    def _append(self, operation: Operation, step: Step) -> None:
        self.geometry.append(step)
        if isinstance(operation.module, RandomExpandedRotation):
            self._frame = _turn_frame(self._frame, self.geometry)
        elif self._frame is not None:
            self._frame = _move_frame(self._frame, operation.module, self.geometry)

    def _apply(self, operation: Operation, drawn: Draw, index: int) -> None:
        def apply(image: Tensor) -> Tensor:
            if not is_known(operation.module):  # others draw nothing
                self._seed(index, 1)
            return operation.apply(to_float(image), drawn, self.random)

        self.image = apply(self.image)
        self.images = {name: apply(one) for name, one in self.images.items()}

    def _carry_freely(self, operation: Operation, drawn: Draw, index: int) -> None:
        """Take masks and maps through an operation without a matrix: send it the pixels' places, and look there."""
        mask, maps = self.finish_mask(), self.finish_maps()
        if mask is None and not maps:
            return
        height, width = _size(self.image)
        column, row = (torch.arange(n, device=self.image.device, dtype=torch.float32) + 0.5 for n in (width, height))
        places = torch.stack(
            [column.expand(height, width), row[:, None].expand(height, width), torch.ones_like(row[:, None] * column)]
        )
        self._seed(index, 1)
        x, y, weight = operation.apply(places.expand(len(self.batch), -1, -1, -1), drawn, self.random).unbind(1)
        x, y, nothing = x / weight, y / weight, ~(weight > 0.5)
        if mask is not None:
            self.mask = gather_pixels(mask, x, y).masked_fill(nothing, self.settings.ignore_index)
        self.maps = {
            name: one.replace(fill_unknown(read_at(one, x, y), nothing[:, None], one.fill))
            for name, one in maps.items()
        }


def _move_frame(frame: Tensor, module: nn.Module, geometry: Geometry) -> Tensor | None:
    """Say where frames (B, 4) are after the last step; None where it left nothing beside the images.

    What an operation does about the middle of the canvas is meant for the middle of each image: the frame goes where
    the image's middle goes, and keeps its height and width.
    """
    step, before, after = geometry.steps[-1], geometry.sizes[-2], geometry.sizes[-1]
    ratio = (after[1] / before[1], after[0] / before[0])
    if isinstance(module, (K.Resize, K.LongestMaxSize, K.SmallestMaxSize)):
        return frame * constant(ratio * 2, frame.device)
    if after != before or isinstance(module, (WindowCrop, K.RandomCrop, K.RandomResizedCrop, K.CenterCrop, K.PadTo)):
        return None
    if step.matrix is None:
        return frame
    middle = (frame[:, :2] + frame[:, 2:]) / 2
    centre = constant((after[1] / 2, after[0] / 2), frame.device)
    moved = transform_points(step.matrix, torch.stack([middle, centre.expand_as(middle)], 1))
    return frame + (moved[:, 0] - moved[:, 1] + centre - middle).repeat(1, 2)


def _turn_frame(frame: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the upright boxes (B, 4) around images, which may be whole canvases, that the last step turned."""
    matrix, (height, width) = geometry.steps[-1].matrix, geometry.sizes[-2]
    assert matrix is not None
    whole = constant((0.0, 0.0, float(width), float(height)), matrix.device)
    corners = box_corners(whole.expand(len(matrix), 4) if frame is None else frame)
    return corner_bounds(transform_points(matrix, corners))


def _is_away(drawn: Draw) -> bool:
    """Tell whether windows lie on an accelerator, where slicing by them would wait for it."""
    return "src" in drawn and drawn["src"].device.type != "cpu"


def _size(image: Tensor) -> tuple[int, int]:
    return int(image.shape[-2]), int(image.shape[-1])
