"""Segmentation: a class for each pixel, learned from crops and measured on whole images."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from kornia_mvit.batch import Batch
from kornia_mvit.evaluation.segmentation import class_iou
from kornia_mvit.inference.sliding_window import SlidingWindow, predict_maps
from kornia_mvit.inference.tta import TestTimeAugmentation, find_transforms
from kornia_mvit.models.deeplabv3 import DeepLabV3
from kornia_mvit.ops.losses import pixel_cross_entropy, pixel_dice, pixel_lovasz
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.training.base import ImageTask, build_pipeline, with_values_of
from kornia_mvit.training.lightning_adapter import trainer_of
from kornia_mvit.training.networks import find_backbone, find_start
from kornia_mvit.training.settings import Size, TaskSettings, accepts
from kornia_mvit.weights.checkpoints import CARD_KEY, load_checkpoint

__all__ = ["SegmentationSettings", "SegmentationTask"]


@dataclass(kw_only=True)
class SegmentationSettings(TaskSettings):
    """The settings of :class:`SegmentationTask`, which documents them.

    Raises:
        ValueError: for values out of range, and for settings that exclude each other.
    """

    renamed: ClassVar[Mapping[str, str]] = {**TaskSettings.renamed, "dropout": "head_dropout"}
    added: ClassVar[Mapping[str, Any]] = {"pad": False}

    network: nn.Module | None = None
    image_size: Size = 512
    policy: str = "segmentation_train"
    head_lr_multiplier: float = 10.0
    resize_size: Size | Literal["image_size"] | None = "image_size"
    ignore_index: int = 255
    output_stride: int = 16
    aspp_channels: int | None = None
    pad: bool = True
    head_dropout: float = 0.1
    aux_weight: float = 0.0
    aux_channels: int = 256
    class_weights: list[float] | None = None
    dice_weight: float = 0.0
    lovasz_weight: float = 0.0
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        count, weights = cast(int, self.num_classes), self.class_weights
        size, resize = (tuple(v) if isinstance(v, list) else v for v in (self.image_size, self.resize_size))
        if isinstance(resize, str) and resize != "image_size":
            raise ValueError(f"unknown resize_size {resize!r}; give a number of pixels, 'image_size' or None")
        if isinstance(resize, tuple) and resize != (size if isinstance(size, tuple) else (size, size)):
            raise ValueError(
                f"resize_size {resize} is a height and a width, to which training crops would be stretched, and "
                f"image_size is {size}; give both the same, or the length of the shorter side, or None"
            )
        if 0 <= self.ignore_index < count:
            raise ValueError(f"ignore_index {self.ignore_index} is one of the {count} classes; use another number")
        if weights is not None and (len(weights) != count or min(weights) < 0 or max(weights) == 0):
            raise ValueError(f"class_weights {weights} are not {count} numbers from 0, one a class")
        for name in ("aux_weight", "dice_weight", "lovasz_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} is negative; 0 is for none")
        if self.lovasz_weight and count < 2:
            raise ValueError("the Lovász loss needs two classes or more; leave lovasz_weight at 0")
        if self.compile not in (False, "blocks") and self.aux_weight:
            raise ValueError("compile is for the forward pass, which auxiliary heads do not take; give 'blocks'")
        if self.tta is not None:
            find_transforms(self.tta)
        if self.window is not None:
            SlidingWindow(nn.Identity(), self.window, self.stride)
        elif self.stride is not None:
            raise ValueError(f"stride {self.stride} is that of windows; give window too")


class SegmentationTask(ImageTask):
    """Train a network that predicts a class for each pixel, with cross-entropy, AdamW, warm-up and cosine or poly.

    In evaluation batches stay as they are stored. Each image goes through the Preprocess without the canvas beside it,
    and its logits are brought back to its own size, where they are compared with the label image. Pixels of
    ``ignore_index`` are ignored everywhere.

    Logged are ``loss``, ``accuracy`` (of pixels) and ``miou``, the mean over the classes that labels or predictions
    have; with ``per_class`` also ``iou/NAME``.

    Arguments that are not listed here are those of :class:`~kornia_mvit.training.base.ImageTask`.

    Args:
        network: any module that returns (B, num_classes, H, W) logits, in place of the one built from ``mode``; those
            of another stride are resized to the image's size.
        weights: what training starts from: published weights by name, or a checkpoint of any layout. All but the last
            layer of a network for segmentation is used, and the backbone of a classifier; and its size, channel order,
            mean and std.
        image_size: side in pixels of the crops that the network learns from, or their height and width.
        resize_size: what evaluation resizes images to: the length in pixels of the shorter side, or height and width,
            then those of ``image_size``; ``'image_size'`` for the shorter side of the crops; None leaves them as they
            are. Predictions are scored at the images' own size in any case.
        ignore_index: value of the pixels to ignore, the same as the data's and the pipeline's.
        output_stride: pixels of the image for one step on the map under the head: 16, 8 or 32.
        aspp_channels: width of the head; when None that of Apple's networks, 256 and, on MobileViTV2, 512.
        pad: whether images that the output stride does not divide are padded; see :class:`~kornia_mvit.DeepLabV3`.
            A checkpoint of an earlier version goes on without.
        head_dropout: dropout in the head.
        aux_weight: weight in the loss of an auxiliary head on an earlier map, 0 for none; usually 0.4.
        aux_channels: width of that head.
        class_weights: weight of each class in the cross-entropy.
        dice_weight: weight of the Dice loss, which is added to the cross-entropy.
        lovasz_weight: weight of the Lovász loss, which is added to the cross-entropy.
        tta: test-time augmentation in validation and test, such as ``'flip'`` or ``'flip+scale'``; see
            :class:`~kornia_mvit.TestTimeAugmentation`.
        window: side in pixels of the sliding window in which evaluation predicts large images; None for whole images.
        stride: pixels from one window to the next; two thirds of the window when None.

    Example:
        >>> task = SegmentationTask('xxs', num_classes=3, image_size=64)
        >>> task(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2, 3, 64, 96])
    """

    task_name = "segmentation"
    prepares = False
    renamed: Mapping[str, str] = SegmentationSettings.renamed
    added: Mapping[str, Any] = SegmentationSettings.added
    class_colours: tuple[tuple[int, int, int], ...] | None = None

    @accepts(SegmentationSettings)
    def __init__(self, settings: SegmentationSettings) -> None:
        self._begin(settings)
        network, given, pipeline = settings.network, None, settings.pipeline
        if network is None:
            network, given = _deeplab(self.hparams, settings)
        if settings.aux_weight and getattr(network, "aux_head", None) is None:
            raise ValueError(
                f"aux_weight {settings.aux_weight} needs an auxiliary head, which {type(network).__name__} lacks; "
                "build DeepLabV3 with aux_channels, or leave aux_weight at 0"
            )
        if pipeline is not None and pipeline.ignore_index != settings.ignore_index:
            raise ValueError(
                f"the pipeline ignores pixels of {pipeline.ignore_index}, the task those of {settings.ignore_index}; "
                "give both the same ignore_index"
            )
        resize = _shorter(settings.image_size) if settings.resize_size == "image_size" else settings.resize_size
        preprocess = with_values_of(Preprocess(size=resize), given)
        self._adopt(
            network,
            pipeline
            or build_pipeline(
                settings.policy,
                settings.policy_args,
                settings.image_size,
                preprocess,
                ignore_index=settings.ignore_index,
                antialias=settings.antialias,
            ),
        )
        weights = settings.class_weights
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None if weights is None else torch.tensor(weights), persistent=False)
        self.confusion: MulticlassConfusionMatrix = MulticlassConfusionMatrix(
            cast(int, settings.num_classes), validate_args=False
        )

    def setup(self, stage: str) -> None:
        """Take the class names from the data, and check that they ignore the same pixels."""
        super().setup(stage)
        self.class_colours = getattr(getattr(self.trainer, "datamodule", None), "class_colours", None)
        if self.class_colours is not None and isinstance(self.network, DeepLabV3):
            self.network.class_colours = self.class_colours  # for its checkpoints
        found = getattr(getattr(self.trainer, "datamodule", None), "ignore_index", None)
        if found not in (None, self.pipeline.ignore_index):
            raise ValueError(
                f"the data ignore pixels of {found}, the task those of {self.pipeline.ignore_index}; give both the "
                "same ignore_index"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Do what the base class does, and leave a network of an earlier version without padding, as it was trained."""
        super().on_load_checkpoint(checkpoint)
        card = checkpoint.get(CARD_KEY)
        known = card.get("model") if isinstance(card, dict) else None
        if trainer_of(self) is not None and isinstance(self.network, DeepLabV3) and "pad" not in (known or {}):
            self.network.pad = self.hparams["pad"] = False

    # ------------------------------------------------------------------------------------------------------- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of an augmented batch."""
        mask, weight = _mask_of(batch).long(), self.hparams["aux_weight"]
        if weight:
            network = cast(DeepLabV3, self.network)
            logits, aux = network.forward_with_aux(self.arrange(batch.image))
            loss = self.loss(logits, mask) + cast(float, weight) * self.loss(aux, mask)
        else:
            loss = self.loss(self(batch.image), mask)
        self.log("train/loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(batch))
        return self.add_range_loss(loss)

    def loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of logits (B, K, h, w) for a mask (B, H, W); 0 for one with ignored pixels alone."""
        h, ignored = self.hparams, self.pipeline.ignore_index
        if logits.shape[-2:] != mask.shape[-2:]:
            size = (mask.shape[-2], mask.shape[-1])
            logits = nn.functional.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
        smoothing = h["label_smoothing"] if self.training else 0.0
        loss = pixel_cross_entropy(
            logits, mask, ignore_index=ignored, weight=self.class_weights, label_smoothing=smoothing
        )
        if h["dice_weight"]:
            loss = loss + h["dice_weight"] * pixel_dice(logits, mask, ignore_index=ignored)
        if h["lovasz_weight"]:
            loss = loss + h["lovasz_weight"] * pixel_lovasz(logits, mask, ignore_index=ignored)
        return loss

    # ----------------------------------------------------------------------------------------------------- evaluation

    def predict_logits(self, image: Tensor) -> Tensor:
        """Return logits (B, K, h, w) of preprocessed images, by windows and test-time augmentation as the settings say.

        Their stride is the network's, unless there are windows or augmentations.
        """
        h = self.hparams
        predict: nn.Module = self if h["window"] is None else SlidingWindow(self, h["window"], h["stride"])
        if h["tta"] is None:
            return cast(Tensor, predict(image))
        return cast(Tensor, TestTimeAugmentation(predict, h["tta"])(image))

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[Tensor]:
        """Return the class of each pixel of each image (H, W), ``ignore_index`` where the Preprocess cut it off."""
        found: dict[int, Tensor] = {}
        for rows, logits, valid in predict_maps(self.predict_logits, batch, self.pipeline):
            chosen = logits.argmax(1).masked_fill(~valid[:, 0], self.pipeline.ignore_index)
            found |= dict(zip(rows, chosen, strict=True))
        return [found[row] for row in sorted(found)]

    def evaluate_batch(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        """Log the loss, and add the batch to the confusion matrix.

        Returns:
            ``loss``; ``prediction`` (B, H, W), the class of each pixel of the stored images, ``ignore_index`` beside
            them and where the Preprocess cut them off; ``counts`` (B, K, K), for each image the number of labelled
            pixels by their class and the predicted one.
        """
        whole, ignored = _mask_of(batch), self.pipeline.ignore_index
        prediction = torch.full_like(whole, ignored, dtype=torch.long)
        k = self.hparams["num_classes"]
        counts = torch.zeros(len(batch), k, k, dtype=torch.long, device=whole.device)
        total, count = torch.zeros((), device=whole.device), 0
        for rows, logits, valid in predict_maps(self.predict_logits, batch, self.pipeline):
            height, width = logits.shape[-2:]
            mask = whole[rows, :height, :width].long().masked_fill(~valid[:, 0], ignored)
            chosen = logits.argmax(1)
            labelled = mask != ignored
            weight = int(labelled.sum())
            total, count = total + self.loss(logits, mask) * weight, count + weight
            self.confusion.update(chosen[labelled], mask[labelled])
            counts[rows] += _count(mask, chosen, labelled, k)
            prediction[rows, :height, :width] = chosen.masked_fill(~valid[:, 0], ignored)
        loss = total / max(count, 1)
        log = partial(self.log, on_step=False, on_epoch=True, sync_dist=True, prog_bar=True)
        log(f"{stage}/loss", loss, batch_size=max(count, 1))  # of all pixels of an epoch
        return {"loss": loss, "prediction": prediction, "counts": counts}

    def reset_scores(self) -> None:
        """Reset the confusion matrix."""
        self.confusion.reset()

    def log_scores(self, stage: str) -> None:
        """Log mean IoU and pixel accuracy, and the IoU of each class if ``per_class`` is set."""
        counts: Tensor = self.confusion.compute().double()  # of all processes
        iou = class_iou(counts)
        known = ~iou.isnan()
        accuracy = counts.diagonal().sum() / counts.sum().clamp_min(1)
        log = partial(self.log, sync_dist=True)
        log(f"{stage}/miou", iou[known].mean().nan_to_num().float(), prog_bar=True)
        log(f"{stage}/accuracy", accuracy.float(), prog_bar=True)
        self.tell_classes(f"{stage}/miou", int(known.sum()))
        if self.hparams["per_class"]:
            names = self.class_names or tuple(map(str, range(len(iou))))
            for name, value in zip(names, iou, strict=True):
                if not value.isnan():
                    log(f"{stage}/iou/{name}", value.float())


def _count(mask: Tensor, chosen: Tensor, labelled: Tensor, num_classes: int) -> Tensor:
    """Count the labelled pixels (B, H, W) of each image, by their class and the chosen one: (B, K, K)."""
    places = (torch.arange(len(mask), device=mask.device)[:, None, None] * num_classes + mask) * num_classes + chosen
    shape = (len(mask), num_classes, num_classes)
    return torch.bincount(places[labelled], minlength=shape[0] * shape[1] * shape[2]).view(shape)


def _shorter(size: Size) -> int:
    return size if isinstance(size, int) else min(size)


def _mask_of(batch: Batch) -> Tensor:
    if batch.mask is None:
        raise ValueError("segmentation needs masks; this batch has none")
    return batch.mask


def _deeplab(h: Any, settings: SegmentationSettings) -> tuple[DeepLabV3, Preprocess | None]:
    """Return the network of a task's settings, and the Preprocess of the weights that it starts from."""
    backbone, published = find_backbone(settings.backbone, settings.pretrained, settings.output_stride)
    start, more = find_start(h, settings.weights, backbone)
    if isinstance(start, DeepLabV3):
        h["aspp_channels"] = start.aspp_channels
        more["align_corners"] = start.align_corners
        if start.backbone.feature_strides[-1] == h["output_stride"]:
            more["rates"] = start.rates
    network = DeepLabV3(
        h["mode"],
        h["num_classes"],
        output_stride=h["output_stride"],
        aspp_channels=h["aspp_channels"],
        pad=h["pad"],
        head_dropout=h["head_dropout"],
        variant=h["variant"],
        backbone_dropout=h["backbone_dropout"],
        drop_path=h["drop_path"],
        aux_channels=h["aux_channels"] if h["aux_weight"] else 0,
        **more,
    )
    if start is None:
        return network, published
    load_checkpoint(network, start.state_dict(), "native", new_head=True, name=settings.weights)
    return network, start.preprocess
