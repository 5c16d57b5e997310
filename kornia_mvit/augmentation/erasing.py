"""What RandomErasing does to targets, where a pipeline is asked to let it."""

# B images of a batch, N boxes and K keypoints of each with padding, H W canvas

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from kornia_mvit.augmentation.geometry import Geometry
from kornia_mvit.augmentation.sampling import Draw
from kornia_mvit.augmentation.targets import known_part
from kornia_mvit.batch import Batch, replace_checked
from kornia_mvit.extra_images import fill_unknown
from kornia_mvit.ops.geometry import EDGE_TOLERANCE

if TYPE_CHECKING:
    from kornia_mvit.augmentation.execution import Execution

__all__ = ["Erased", "choose_erased", "drop_hidden", "erase"]

ERASABLE = ("boxes", "keypoints", "instance_masks", "mask", "extra")
_SEEN, _ERASED, _UNSEEN = 0, 1, 2


def choose_erased(targets: bool | Collection[str], masks: bool = False) -> frozenset[str]:
    """Return the targets that erasing changes, from two arguments of a pipeline.

    Args:
        targets: True for all, False for none, or the names of some.
        masks: with ``mask`` and ``instance_masks`` in any case.

    Raises:
        ValueError: for other names.

    Example:
        >>> sorted(choose_erased(["keypoints"], masks=True))
        ['instance_masks', 'keypoints', 'mask']
    """
    chosen = {targets} if isinstance(targets, str) else set(ERASABLE if targets is True else targets or ())
    if unknown := sorted(map(str, chosen - {*ERASABLE})):
        raise ValueError(
            f"erase_targets names {', '.join(unknown)}; available: {', '.join(ERASABLE)}, or True for all of them"
        )
    return frozenset(chosen | ({"mask", "instance_masks"} if masks else set()))


@dataclass
class Erased:
    """What was erased in a run so far.

    Args:
        boxes: (B, N) which of the given boxes, None for none.
        keypoints: which of the given keypoints, likewise.
        pixels: (B, H, W) uint8, 1 where pixels were erased, 2 where nothing was in view, else 0.
        canvas: the number of the canvas that they are on.
    """

    boxes: Tensor | None = None
    keypoints: Tensor | None = None
    pixels: Tensor | None = None
    canvas: int = 0

    def move(self, geometry: Geometry) -> Tensor | None:
        """Bring the pixels to the last canvas of a geometry."""
        first, self.canvas = self.canvas, len(geometry)
        if self.pixels is not None and first < self.canvas:
            self.pixels = geometry.warp_mask(self.pixels, first, self.canvas, _UNSEEN)
        return self.pixels

    def hide_boxes(self, run: "Execution") -> None:
        """Take boxes for erased of which nothing is left to be seen on the present canvas."""
        boxes, pixels = run.batch.boxes, self.move(run.geometry)
        if boxes is None or pixels is None:
            return
        moved, share = run.geometry.move_boxes(boxes, ellipses=run.settings.box_method == "ellipse")
        seen, erased = (_count(pixels == state, moved) for state in (_SEEN, _ERASED))
        hidden = (seen == 0) & (erased > 0) & (share > 0)
        self.boxes = hidden if self.boxes is None else self.boxes | hidden


def erase(run: "Execution", drawn: Draw) -> None:
    """Change the targets of a run under the patches that RandomErasing has just erased, as its settings say."""
    chosen, batch, geometry = run.settings.erased, run.batch, run.geometry
    patches = _erased_pixels(drawn, run.image)
    if "mask" in chosen and batch.mask is not None and (mask := run.finish_mask()) is not None:
        run.mask = mask.masked_fill(patches, run.settings.ignore_index)
    if "instance_masks" in chosen and run.instances is not None:
        run.set_instances(run.finish_instances(None, None).masked_fill(patches[:, None], 0))
    if "extra" in chosen:
        maps = run.finish_maps()
        run.maps = {key: one.replace(fill_unknown(one.tensor, patches[:, None], one.fill)) for key, one in maps.items()}
    if "keypoints" in chosen and batch.keypoints is not None:
        points, _ = geometry.move_points(batch.keypoints.flatten(1, -2))
        hidden = _is_under(points, drawn).view(batch.keypoints.shape[:-1])
        run.erased.keypoints = hidden if run.erased.keypoints is None else run.erased.keypoints | hidden
    if "boxes" in chosen and batch.boxes is not None:
        before = run.erased.move(geometry)
        if before is None:
            rest = known_part(geometry)
            blank = torch.full((), _SEEN, dtype=torch.uint8, device=run.image.device)
            before = blank.expand(len(batch), *rest.sizes[0])
            if len(rest) or rest.view is not None:
                before = rest.warp_mask(before, 0, len(rest), _UNSEEN)
        run.erased.pixels = before.masked_fill(patches & (before == _SEEN), _ERASED)
        run.erased.hide_boxes(run)


def drop_hidden(run: "Execution", batch: Batch) -> Batch:
    """Return a batch as it was given to a run, without the boxes and keypoints that were erased in it."""
    changes = {}
    run.erased.hide_boxes(run)  # of which a later crop has left nothing but what was erased
    if run.erased.boxes is not None and batch.box_label is not None:
        changes["box_label"] = batch.box_label.masked_fill(run.erased.boxes, -1)
    if run.erased.keypoints is not None and batch.keypoint_visible is not None:
        changes["keypoint_visible"] = batch.keypoint_visible.masked_fill(run.erased.keypoints, 0)
    return replace_checked(batch, **changes) if changes else batch


def _count(pixels: Tensor, boxes: Tensor) -> Tensor:
    """Count the pixels (B, H, W) that are set and lie in boxes (B, N, 4), in part at least: (B, N)."""
    height, width = pixels.shape[1:]
    table = F.pad(pixels.int().cumsum(1).cumsum(2), (1, 0, 1, 0)).flatten(1)
    low = (boxes[..., :2] + EDGE_TOLERANCE).floor().long()
    high = (boxes[..., 2:] - EDGE_TOLERANCE).ceil().long()
    left, right = (side[..., 0].clamp(0, width) for side in (low, high.maximum(low)))
    top, bottom = (side[..., 1].clamp(0, height) for side in (low, high.maximum(low)))

    def above(row: Tensor, column: Tensor) -> Tensor:
        return table.gather(1, row * (width + 1) + column)

    return above(bottom, right) - above(top, right) - above(bottom, left) + above(top, left)


def _patch(drawn: Draw, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the upper left and the lower right corners (B, 2) of patches in pixels, and (B,) whether one is erased."""
    low = torch.stack([drawn["xs"], drawn["ys"]], -1).to(device, non_blocking=True)
    side = torch.stack([drawn["widths"], drawn["heights"]], -1).to(device, non_blocking=True)
    return low, low + side, (drawn["batch_prob"] > 0.5).to(device, non_blocking=True)


def _is_under(points: Tensor, drawn: Draw) -> Tensor:
    """Tell which points (B, N, 2) lie under their image's patch: (B, N)."""
    first, last, chosen = _patch(drawn, points.device)
    return ((points >= first[:, None]) & (points < last[:, None])).all(-1) & chosen[:, None]


def _erased_pixels(drawn: Draw, image: Tensor) -> Tensor:
    """Return the pixels (B, H, W) of images that RandomErasing erased."""
    row, column = (torch.arange(n, device=image.device) for n in image.shape[-2:])
    first, last, chosen = _patch(drawn, image.device)
    across = (column >= first[:, :1]) & (column < last[:, :1])
    down = (row >= first[:, 1:]) & (row < last[:, 1:])
    return chosen[:, None, None] & down[:, :, None] & across[:, None, :]
