"""Segmentation: a class for each pixel, learned from crops and measured on whole images."""

from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.batch import Batch
from kornia_mvit.evaluation.segmentation import class_iou
from kornia_mvit.inference.sliding_window import SlidingWindow, predict_maps
from kornia_mvit.inference.tta import TestTimeAugmentation, find_transforms
from kornia_mvit.models.deeplabv3 import DeepLabV3
from kornia_mvit.ops.losses import pixel_cross_entropy, pixel_dice, pixel_lovasz
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.training.base import ImageTask, build_pipeline
from kornia_mvit.training.networks import find_start
from kornia_mvit.training.optimization import SHAPES
from kornia_mvit.weights.cards import model_card
from kornia_mvit.weights.checkpoints import load_checkpoint

__all__ = ["SegmentationTask"]

Size = int | tuple[int, int]


class SegmentationTask(ImageTask):
    """Train a network that gives each pixel a class, with cross-entropy, AdamW, warm-up and cosine or poly.

    Batches are augmented on the device, after their transfer; in evaluation they stay as they are stored. Then each
    image goes through the Preprocess apart from the canvas beside it, and its logits are brought back to its own size,
    where they are compared with the label image. Pixels of ``ignore_index`` count nowhere.

    Its checkpoints carry the model's arguments, the class names and the Preprocess, so that
    :func:`kornia_mvit.from_pretrained` needs nothing else. Precision, gradient accumulation, clipping and devices are
    the Trainer's.

    Logged are ``loss``, ``accuracy`` (of pixels) and ``miou``, the mean over the classes that labels or predictions
    have; with ``per_class`` also ``iou/NAME``.

    Args:
        mode: size of the MobileViT under the DeepLabV3 that is built: ``'xxs'``, ``'xs'`` or ``'s'``.
        num_classes: number of classes; on the command line it is taken from the data.
        network: any module that gives (B, num_classes, H, W) logits, in place of the one built from ``mode``; of
            another stride they are brought to the image's size.
        weights: what training starts from: published weights by name, or a checkpoint of any layout. One for
            segmentation gives all but the last layer, one for classification the backbone. Their size, channel order,
            mean and std are taken over.
        pipeline: what batches go through, in place of the one built from the next four arguments.
        image_size: side in pixels of the crops that the network learns from, or their height and width.
        resize_size: what evaluation resizes images to: the length in pixels of the shorter side, or height and width,
            then those of ``image_size``; ``'image_size'`` for the shorter side of the crops; None leaves them as they
            are. Predictions are scored at the images' own size in any case.
        policy: name of a policy in :mod:`kornia_mvit.augmentation.policies`.
        policy_args: its arguments, besides the size.
        ignore_index: number of the pixels to ignore, the same as the data's and the pipeline's.
        variant: see :class:`~kornia_mvit.MobileViT`.
        output_stride: pixels of the image for one step on the map under the head: 16, 8 or 32.
        aspp_channels: width of the head.
        dropout: dropout in the head.
        backbone_dropout: the ``dropout`` of :class:`~kornia_mvit.MobileViT`.
        drop_path: see :class:`~kornia_mvit.MobileViT`.
        aux_weight: weight in the loss of an auxiliary head on an earlier map, 0 for none; usually 0.4.
        aux_channels: width of that head.
        learning_rate: the peak, for the whole batch.
        warmup_steps: steps from ``warmup_factor`` of the learning rate to the whole.
        warmup_factor: share of the learning rate at the first step.
        final_factor: share of the learning rate at the last step.
        schedule: how the rate falls: ``'cosine'`` or ``'poly'``.
        weight_decay: of AdamW.
        decay_norms: whether norms and biases decay too.
        head_factor: times the learning rate, for the heads.
        layer_decay: factor on the learning rate from each layer to the one before it.
        train_backbone: False trains the heads alone.
        freeze_epochs: epochs at the beginning in which the heads alone learn.
        freeze_norms: leave the statistics of batch normalisation as they are, as small batches need.
        label_smoothing: share of a target that is spread over all classes.
        class_weights: weight of each class in the cross-entropy.
        dice_weight: weight of the Dice loss, which is added to the cross-entropy.
        lovasz_weight: weight of the Lovász loss, which is added to the cross-entropy.
        tta: test-time augmentation of validation and test, such as ``'flip'`` or ``'flip+scale'``; see
            :class:`~kornia_mvit.TestTimeAugmentation`.
        window: side in pixels of the windows in which evaluation goes over large images; None for whole images.
        stride: pixels from one window to the next; two thirds of the window when None.
        raw_weights: evaluate a checkpoint's raw weights, not their average.
        per_class: log the IoU of each class in evaluation.
        compile: compile the network.
        channels_last: keep the channels of a pixel side by side, which is faster on most devices.
        gradient_checkpointing: trade time for memory: true or 'stages', or 'activations', which costs little time.

    Raises:
        ValueError: without ``num_classes``; for unknown names; for arguments that exclude each other; if task,
            pipeline and data differ in what they ignore, or data and checkpoint in their classes.

    Example:
        >>> task = SegmentationTask('xxs', num_classes=3, image_size=64)
        >>> task(torch.rand(2, 3, 64, 96)).shape
        torch.Size([2, 3, 64, 96])
    """

    task_name = "segmentation"
    prepares = False
    class_colours: tuple[tuple[int, int, int], ...] | None = None

    def __init__(
        self,
        mode: str = "xxs",
        num_classes: int | None = None,
        *,
        network: nn.Module | None = None,
        weights: str | None = None,
        pipeline: AugmentationPipeline | None = None,
        image_size: Size = 512,
        resize_size: Size | Literal["image_size"] | None = "image_size",
        policy: str = "segmentation_train",
        policy_args: dict[str, Any] | None = None,
        ignore_index: int = 255,
        variant: str = "apple",
        output_stride: int = 16,
        aspp_channels: int = 256,
        dropout: float = 0.1,
        backbone_dropout: float = 0.0,
        drop_path: float = 0.0,
        aux_weight: float = 0.0,
        aux_channels: int = 256,
        learning_rate: float = 9e-4,
        warmup_steps: int = 500,
        warmup_factor: float = 0.1,
        final_factor: float = 0.01,
        schedule: str = "cosine",
        weight_decay: float = 0.01,
        decay_norms: bool = True,
        head_factor: float = 10.0,
        layer_decay: float = 1.0,
        train_backbone: bool = True,
        freeze_epochs: int = 0,
        freeze_norms: bool = False,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        dice_weight: float = 0.0,
        lovasz_weight: float = 0.0,
        tta: str | None = None,
        window: int | None = None,
        stride: int | None = None,
        raw_weights: bool = False,
        per_class: bool = False,
        compile: bool = False,
        channels_last: bool = True,
        gradient_checkpointing: bool | str = False,
    ) -> None:
        super().__init__()
        if num_classes is None:
            raise ValueError("num_classes is missing; give the number of classes, such as data.num_classes")
        self.save_hyperparameters(ignore=["network", "pipeline"])
        for name in ("image_size", "resize_size"):  # tuples become lists, which are plain data
            if isinstance(self.hparams[name], tuple):
                self.hparams[name] = list(self.hparams[name])
        self._check()
        preprocess = Preprocess(size=_shorter(image_size) if resize_size == "image_size" else resize_size)
        if network is not None and weights is not None:
            raise ValueError("weights go into the network built from mode; give network or weights, not both")
        if network is None:
            network, given = _deeplab(self.hparams, weights)
            if given is not None:
                preprocess = replace(preprocess, **{k: getattr(given, k) for k in ("channel_order", "mean", "std")})
        if aux_weight and getattr(network, "aux_head", None) is None:
            raise ValueError(
                f"aux_weight {aux_weight} needs an auxiliary head, which {type(network).__name__} lacks; build "
                "DeepLabV3 with aux_channels, or leave aux_weight at 0"
            )
        if pipeline is not None and pipeline.ignore_index != ignore_index:
            raise ValueError(
                f"the pipeline ignores pixels of {pipeline.ignore_index}, the task those of {ignore_index}; give both "
                "the same ignore_index"
            )
        self._adopt(
            network,
            pipeline or build_pipeline(policy, policy_args, image_size, preprocess, ignore_index=ignore_index),
        )
        self.class_weights: Tensor | None
        self.register_buffer(
            "class_weights",
            None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32),
            persistent=False,
        )
        self.confusion: MulticlassConfusionMatrix = MulticlassConfusionMatrix(num_classes, validate_args=False)

    def _check(self) -> None:
        h = self.hparams
        count, weights = h["num_classes"], h["class_weights"]
        size, resize = (tuple(v) if isinstance(v, list) else v for v in (h["image_size"], h["resize_size"]))
        if isinstance(resize, str) and resize != "image_size":
            raise ValueError(f"unknown resize_size {resize!r}; give a number of pixels, 'image_size' or None")
        if isinstance(resize, tuple) and resize != (size if isinstance(size, tuple) else (size, size)):
            raise ValueError(
                f"resize_size {resize} is a height and a width, to which training crops would be stretched, and "
                f"image_size is {size}; give both the same, or the length of the shorter side, or None"
            )
        if 0 <= h["ignore_index"] < count:
            raise ValueError(f"ignore_index {h['ignore_index']} is one of the {count} classes; take another number")
        if weights is not None and (len(weights) != count or min(weights) < 0 or max(weights) == 0):
            raise ValueError(f"class_weights {weights} are not {count} numbers from 0, one a class")
        for name in ("aux_weight", "dice_weight", "lovasz_weight"):
            if h[name] < 0:
                raise ValueError(f"{name} {h[name]} is negative; 0 is for none")
        if h["lovasz_weight"] and count < 2:
            raise ValueError("the Lovász loss needs two classes or more; leave lovasz_weight at 0")
        if h["schedule"] not in SHAPES:
            raise ValueError(f"unknown schedule {h['schedule']!r}; available: {', '.join(map(repr, SHAPES))}")
        if h["compile"] and h["aux_weight"]:
            raise ValueError("compile is for the forward pass, which auxiliary heads do not take; leave one of both")
        if h["tta"] is not None:
            find_transforms(h["tta"])
        if h["window"] is not None:
            SlidingWindow(self, h["window"], h["stride"])
        elif h["stride"] is not None:
            raise ValueError(f"stride {h['stride']} is that of windows; give window too")

    def setup(self, stage: str) -> None:
        """Take the class names from the data, and see that they ignore the same pixels."""
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

    # ------------------------------------------------------------------------------------------------------- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Give the loss of an augmented batch."""
        mask, weight = _mask_of(batch).long(), self.hparams["aux_weight"]
        if weight:
            network = cast(DeepLabV3, self.network)
            logits, aux = network.forward_with_aux(self.arrange(batch.image))
            loss = self.loss(logits, mask) + cast(float, weight) * self.loss(aux, mask)
        else:
            loss = self.loss(self(batch.image), mask)
        self.log("train/loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Give the loss of logits (B, K, h, w) for a mask (B, H, W); 0 where it has nothing but ignored pixels."""
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
        """Give logits (B, K, h, w) of preprocessed images, by windows and test-time augmentation as the settings say.

        Their stride is the network's, unless there are windows or augmentations.
        """
        h = self.hparams
        predict: nn.Module = self if h["window"] is None else SlidingWindow(self, h["window"], h["stride"])
        if h["tta"] is None:
            return cast(Tensor, predict(image))
        return cast(Tensor, TestTimeAugmentation(predict, h["tta"])(image))

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Log loss and metrics.

        Gives ``loss``; ``prediction`` (B, H, W), the class of each pixel of the stored images, ``ignore_index``
        beside them and where the Preprocess cut them off; and ``counts`` (B, K, K), the labelled pixels of each image
        by their class and by what they were taken for.
        """
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Do as :meth:`validation_step`."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[Tensor]:
        """Give the class of each pixel of each image (H, W), ``ignore_index`` where the Preprocess cut it off."""
        found: dict[int, Tensor] = {}
        for rows, logits, valid in predict_maps(self.predict_logits, batch, self.pipeline):
            chosen = logits.argmax(1).masked_fill(~valid[:, 0], self.pipeline.ignore_index)
            found |= dict(zip(rows, chosen, strict=True))
        return [found[row] for row in sorted(found)]

    def on_validation_epoch_start(self) -> None:
        """Count anew."""
        self.confusion.reset()

    def on_test_epoch_start(self) -> None:
        """Count anew."""
        self.confusion.reset()

    def on_validation_epoch_end(self) -> None:
        """Log what the counts come to."""
        self._log_counts("val")

    def on_test_epoch_end(self) -> None:
        """Log what the counts come to."""
        self._log_counts("test")

    def _evaluate(self, batch: Batch, stage: str) -> dict[str, Tensor]:
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

    def _log_counts(self, stage: str) -> None:
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

    def card(self) -> dict[str, Any]:
        """Say in plain data what a checkpoint holds."""
        return model_card(self.network, self.class_names, self.preprocess, self.task_name)


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


def _deeplab(h: Any, weights: str | None) -> tuple[DeepLabV3, Preprocess | None]:
    """Build the network of a task's settings, and give the Preprocess of the weights that it starts from."""
    start, more = find_start(h, weights)
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
        head_dropout=h["dropout"],
        variant=h["variant"],
        backbone_dropout=h["backbone_dropout"],
        drop_path=h["drop_path"],
        aux_channels=h["aux_channels"] if h["aux_weight"] else 0,
        **more,
    )
    if start is None:
        return network, None
    load_checkpoint(network, start.state_dict(), "native", new_head=True, name=weights)
    return network, start.preprocess
