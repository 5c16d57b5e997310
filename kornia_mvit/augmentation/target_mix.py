"""The base of the operations that mix images with their boxes and masks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kornia_mvit.augmentation.companions import read_at
from kornia_mvit.augmentation.layers import Layer, box_rows, join_boxes, name_rows, read_image, read_map
from kornia_mvit.augmentation.mix import canvas_shown, check_classes, soften
from kornia_mvit.augmentation.randomness import uncompiled
from kornia_mvit.augmentation.rows import put_rows
from kornia_mvit.augmentation.targets import BoxRules
from kornia_mvit.batch import Batch, replace_checked
from kornia_mvit.extra_images import Extra
from kornia_mvit.ops.uploads import upload

__all__ = ["TargetMix", "draw_partners", "with_sources"]

Params = dict[str, Any]


class TargetMix(nn.Module):
    """Mix images of a batch with each other, and with their targets: what Mosaic, MixUp, CutMix and CopyPaste share.

    In an :class:`~kornia_mvit.AugmentationPipeline` it comes after the augmentation and the resize. Which images are
    mixed with which is sampled on the CPU and sent to the device of the batch in one copy, and nothing waits for it.

    - Boxes of all images that are seen stand in one list, those of the image itself first, padding last. The list of a
      batch in which any image is mixed is as much longer as there are images in a mix, unless ``max_boxes`` bounds it.
      What an image hides of another cuts its boxes and instance masks, and the pipeline drops those of which little is
      left. Fields follow, and so do keypoints (B, N, K, 2), visible where the mixed image shows them.
      ``Batch.box_source`` tells the image of the batch that each box is from, and ``Batch.box_index`` its number there.
    - Labels become soft ones (B, K): the labels of all images, weighted by the pixels that show each. They are not
      smoothed.

    Args:
        p: share of the images that are mixed.
        num_classes: number of classes of labels, K; needed for batches with integer labels alone.
        max_boxes: the most boxes of a mixed image: of more, those of which most is left stay. None for no bound.

    Raises:
        ValueError: for numbers out of range.
    """

    kind: ClassVar[str]
    carries: ClassVar[tuple[str, ...]] = ("image", "values", "vectors")  # kinds of extra
    shares: ClassVar[bool] = False  # whether each pixel shows several images
    refuses: ClassVar[dict[str, str]] = {}

    def __init__(self, p: float, *, num_classes: int | None = None, max_boxes: int | None = None) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p {p} is not in [0, 1]; it is the share of the images that are mixed")
        for name, value, least in (("num_classes", num_classes, 2), ("max_boxes", max_boxes, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name} {value} is not at least {least}")
        self.p = p
        self.num_classes = num_classes
        self.max_boxes = max_boxes

    def check(self, batch: Batch) -> None:
        """Refuse batches whose targets cannot be mixed."""
        name = type(self).__name__
        if batch.keypoints is not None and (batch.keypoints.ndim == 3 or batch.boxes is None):
            raise ValueError(
                f"{name} cannot carry keypoints along without boxes of their own: a mixed image has those of several; "
                f"give keypoints (B, N, K, 2) beside boxes (B, N, 4), or leave {name} or the keypoints away"
            )
        for target, reason in self.refuses.items():
            if getattr(batch, target) is not None:
                raise ValueError(f"{name} cannot carry {target} along: {reason}; leave {name} or the {target} away")
        for target, one in (batch.extra or {}).items():
            if one.kind not in self.carries:
                raise ValueError(
                    f"{name} cannot carry extra[{target!r}] along: of kind {one.kind!r}, it does not follow; leave "
                    f"{name} or it away"
                )
        if batch.label is None:
            return
        classes = self.num_classes
        if classes is None:
            if not batch.label.is_floating_point():
                raise ValueError(
                    f"{name} makes labels the shares of all classes, and does not know how many there are; give "
                    f"{name}(num_classes=...), or leave the labels away"
                )
            classes = batch.label.shape[1]
        check_classes(batch.label, classes)

    def draw_for(self, batch: Batch) -> Params:
        """Sample for a batch from PyTorch's global generator on the CPU; see :meth:`draw`."""
        rows = 0 if batch.boxes is None else batch.boxes.shape[1]
        return self.draw(len(batch), batch.image.shape[-2], batch.image.shape[-1], rows)

    @uncompiled
    def draw(self, batch_size: int, height: int, width: int, rows: int = 0) -> Params:
        """Sample from PyTorch's global generator on the CPU: which images are mixed, with which others, and how.

        Args:
            batch_size: number of images.
            height: of the canvas, in pixels.
            width: of the canvas, in pixels.
            rows: number of boxes of an image, padding included.

        Returns:
            Plain data: ``kind``, the name of the mix, or ``'none'`` where no image is mixed; ``rows`` (M,) the images
            that are mixed, ``others`` (M, L - 1) those that they are mixed with, and what else the mix needs.
        """
        chosen = (torch.rand(batch_size) < self.p).nonzero()[:, 0]
        if batch_size < 2 or not len(chosen):
            return {"kind": "none"}
        return {"kind": self.kind, "rows": chosen, **self._draw(chosen, batch_size, (height, width), rows)}

    def _draw(self, chosen: Tensor, batch_size: int, size: tuple[int, int], rows: int) -> Params:
        """Sample for the images that are mixed."""
        raise NotImplementedError

    def _layers(self, batch: Batch, params: Params) -> Sequence[Layer]:
        """Return what each of the mixed images shows of others, in order, its own layer first."""
        raise NotImplementedError

    @staticmethod
    def send(params: Params, device: torch.device) -> Params:
        """Return what :meth:`draw` gave on the device of the images, sent there in one copy."""
        names = [name for name, value in params.items() if isinstance(value, Tensor)]
        return params | dict(zip(names, upload([params[name] for name in names], device), strict=True))

    def run(
        self, batch: Batch, params: Params, seen: Callable[[], Tensor], rules: BoxRules
    ) -> tuple[Batch, Callable[[], Tensor]]:
        """Mix a batch as was sampled, without waiting for the device.

        Args:
            batch: floating-point images with their targets.
            params: what :meth:`draw` gave.
            seen: gives (B, H, W) bool, which pixels show an image; the others are padding.
            rules: for boxes.

        Returns:
            The batch, and what ``seen`` is to be after it.
        """
        if batch.label is not None:
            batch = replace_checked(batch, label=soften(batch.label, self.num_classes, 0.0))
        if params["kind"] == "none":
            return batch, seen
        if self.shares and batch.box_label is not None and batch.box_weight is None:
            batch = replace_checked(batch, box_weight=(batch.box_label >= 0).float())
        params = self.send(params, batch.image.device)
        rows, layers = params["rows"], self._layers(batch, params)
        changes: Params = {"image": batch.image.index_copy(0, rows, self._compose(batch.image, layers))}
        if batch.mask is not None:
            changes["mask"] = batch.mask.index_copy(0, rows, _show(batch.mask, layers))
        if batch.extra is not None:
            parts = {
                key: self._compose(one.tensor, layers) if one.kind == "image" else _show_map(one, layers)
                for key, one in batch.extra.items()
            }
            changes["extra"] = {
                key: one.replace(put_rows(one.tensor, rows, parts[key])) for key, one in batch.extra.items()
            }
        if batch.label is not None:
            shown = seen()
            shares = self._find_shares(shown, layers).to(batch.label.dtype)
            labels = [batch.label.index_select(0, layer.source) for layer in layers]
            soft = (torch.stack(labels, 1) * shares[..., None]).sum(1)
            changes["label"] = batch.label.index_copy(0, rows, soft)
            after = shown.index_copy(0, rows, _show(shown, layers))
            seen = partial(_given, after)
        if batch.size is not None:
            changes["size"] = batch.size.index_copy(0, rows, self._sizes(batch, layers).to(batch.size.dtype))
        joined = join_boxes(batch, layers, rules, self.max_boxes)
        for name, (value, padding) in box_rows(batch).items():
            shape = (len(batch), joined[name].shape[1] - value.shape[1], *value.shape[2:])
            wide = torch.cat([value, value.new_full(shape, padding)], 1)
            joined[name] = put_rows(wide, rows, joined[name])
        changes |= name_rows(joined)
        return replace_checked(batch, **changes), seen

    def forward(self, batch: Batch) -> Batch:
        """Sample, and mix a batch of floating-point images.

        Raises:
            ValueError: for targets that cannot be mixed.
            TypeError: for images of uint8.
        """
        self.check(batch)
        if not batch.image.is_floating_point():
            raise TypeError(f"mixing takes floating-point images, got {batch.image.dtype}; divide by 255 first")
        batch = with_sources(batch)
        return self.run(batch, self.draw_for(batch), lambda: canvas_shown(batch), BoxRules(1.0, 0.0))[0]

    def _compose(self, image: Tensor, layers: Sequence[Layer]) -> Tensor:
        """Return the mixed images (M, C, H, W)."""
        out = read_image(image, layers[0])
        for layer in layers[1:]:
            assert layer.shown is not None
            out = torch.where(layer.shown[:, None], read_image(image, layer), out)
        return out

    def _find_shares(self, seen: Tensor, layers: Sequence[Layer]) -> Tensor:
        """Return the share (M, L) that each layer's label has in that of the result."""
        counts = []
        for layer in layers:
            part = read_map(seen, layer)
            counts.append((part if layer.shown is None else part & layer.shown).flatten(1).sum(1))
        count = torch.stack(counts, 1).double()
        own = torch.zeros_like(count)
        own[:, 0] = 1.0
        total = count.sum(1, keepdim=True)
        return torch.where(total > 0, count / total.clamp_min(1), own)

    def _sizes(self, batch: Batch, layers: Sequence[Layer]) -> Tensor:
        """Return the sizes (M, 2) of the mixed images: each holds all of its images."""
        assert batch.size is not None
        sizes = [batch.size.index_select(0, layer.source) for layer in layers]
        return torch.stack(sizes, 1).amax(1)

    def _settings(self) -> dict[str, Any]:
        """Return the settings of the mix beside those that all have."""
        return {}

    def __repr__(self) -> str:
        told = {"p": self.p, **self._settings(), "num_classes": self.num_classes, "max_boxes": self.max_boxes}
        shown = ", ".join(f"{name}={value}" for name, value in told.items() if value is not None)
        return f"{type(self).__name__}({shown})"


def draw_partners(chosen: Tensor, batch_size: int) -> Tensor:
    """Sample another image (M, 1) for each of the chosen ones."""
    return ((chosen + torch.randint(1, batch_size, chosen.shape)) % batch_size)[:, None]


def with_sources(batch: Batch) -> Batch:
    """Return a batch whose boxes tell the image that they are from: its own, unless they do already."""
    if batch.box_label is None or batch.box_source is not None:
        return batch
    number = torch.arange(len(batch), device=batch.box_label.device)[:, None]
    return replace_checked(batch, box_source=torch.where(batch.box_label >= 0, number, -1))


def _given(value: Tensor) -> Tensor:
    return value


def _show_map(one: Extra, layers: Sequence[Layer]) -> Tensor:
    """Return maps (M, C, H, W) of the mixed images: at each pixel that of the last layer that it shows."""
    out: Tensor | None = None
    for layer in layers:
        part = one.tensor.index_select(0, layer.source)
        if layer.places is not None:
            part = read_at(one.replace(part), *layer.places)
        out = part if out is None or layer.shown is None else torch.where(layer.shown[:, None], part, out)
    assert out is not None
    return out


def _show(values: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Return masks (M, H, W) of the mixed images: at each pixel that of the last layer that it shows."""
    out = read_map(values, layers[0])
    for layer in layers[1:]:
        part = read_map(values, layer)
        if layer.shown is None:  # which pixels show any
            out = out | part
        else:
            out = torch.where(layer.shown, part, out)
    return out
