"""Detection: boxes of objects, learned from augmented images and measured in the pixels of the original ones."""

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.batch import Batch
from kornia_mvit.evaluation.coco import CocoMetrics, truths_of
from kornia_mvit.inference.detection import Found, bring_back, predict_boxes
from kornia_mvit.inference.tta import TestTimeAugmentation, find_transforms
from kornia_mvit.models.ssdlite import SSDLite
from kornia_mvit.ops.boxes import assign_targets
from kornia_mvit.ops.losses import multibox_loss
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.training.base import ImageTask, build_pipeline
from kornia_mvit.training.networks import find_start
from kornia_mvit.training.optimization import SHAPES
from kornia_mvit.weights.cards import model_card
from kornia_mvit.weights.checkpoints import load_checkpoint

__all__ = ["DetectionTask"]

Size = int | tuple[int, int]


class DetectionTask(ImageTask):
    """Train SSDLite, with cross-entropy over hard negatives and smooth L1, AdamW, warm-up and cosine or poly.

    Batches are augmented on the device, after their transfer. In evaluation they stay as they are stored: each image
    goes through the Preprocess, and the boxes that are found come back through it into the pixels of the image's file,
    where they are compared with the truth as COCO does.

    Its checkpoints carry the model's arguments, the class names and the Preprocess, so that
    :func:`kornia_mvit.from_pretrained` needs nothing else. Precision, gradient accumulation, clipping and devices are
    the Trainer's.

    Logged are ``loss`` and, in evaluation, ``map`` (over IoUs from 0.5 to 0.95), ``map_50``, ``map_75``, ``map_small``,
    ``map_medium``, ``map_large`` and ``mar_100``, those for which there are truths; with ``per_class`` also
    ``ap/NAME``.

    Args:
        mode: size of the MobileViT under the SSDLite that is built: ``'xxs'``, ``'xs'`` or ``'s'``.
        num_classes: number of classes of objects, background not counted; on the command line it is taken from the
            data.
        network: a :class:`~kornia_mvit.SSDLite` of ``num_classes + 1``, in place of the one built from ``mode``.
        weights: what training starts from: published weights by name, or a checkpoint of any layout. One for detection
            gives all but the classifiers, one for classification the backbone. Their size, channel order, mean and std
            are taken.
        pipeline: augmentation and Preprocess, in place of the one built from the arguments below.
        image_size: side in pixels of the network's input, or its height and width. Apple's is 320.
        letterbox: keep the aspect of images in evaluation and leave the rest of the input black, in place of
            stretching them.
        policy: augmentation in training, one of :mod:`kornia_mvit.augmentation.policies`.
        policy_args: its arguments, besides the size.
        min_box_visibility: share of a box that an augmented image has to show, for the box to stay.
        variant: see :class:`~kornia_mvit.MobileViT`.
        dropout: the ``dropout`` of :class:`~kornia_mvit.MobileViT`.
        drop_path: see :class:`~kornia_mvit.MobileViT`.
        learning_rate: the peak, for the whole batch.
        warmup_steps: steps from ``warmup_factor`` of the learning rate to the whole.
        warmup_factor: share of the learning rate at the first step.
        final_factor: share of the learning rate at the last step.
        schedule: how the rate falls: ``'cosine'`` or ``'poly'``.
        weight_decay: of AdamW.
        decay_norms: whether norms and biases decay too.
        head_factor: times the learning rate, for all that is not the backbone.
        layer_decay: factor on the learning rate from each layer to the one before it.
        train_backbone: False trains the head alone.
        freeze_epochs: epochs at the beginning in which the head alone learns.
        freeze_norms: leave the statistics of batch normalisation as they are, as small batches need.
        label_smoothing: share of a target that is spread over all classes.
        negatives: how many anchors without an object count for each with one.
        score_threshold: boxes of lower scores are left out in evaluation.
        iou_threshold: boxes of a class that overlap a better one by more are left out.
        max_detections: boxes of an image at most, the best; COCO counts 100.
        tta: test-time augmentation of validation and test, such as ``'flip'`` or ``'flip+scale'``, merged by
            weighted fusion; see :class:`~kornia_mvit.TestTimeAugmentation`.
        raw_weights: evaluate a checkpoint's raw weights, not their average.
        per_class: log the average precision of each class in evaluation.
        compile: compile the network.
        channels_last: keep the channels of a pixel side by side, which is faster on most devices.
        gradient_checkpointing: trade time for memory: true or 'stages', or 'activations', which costs little time.

    Raises:
        ValueError: without ``num_classes``; for unknown names; for arguments that exclude each other; if data and
            checkpoint differ in their classes.

    Example:
        >>> task = DetectionTask('xxs', num_classes=3, image_size=64)
        >>> (found,) = task.eval().detect(torch.rand(1, 3, 64, 64))
        >>> sorted(found)
        ['boxes', 'labels', 'scores']
    """

    task_name = "detection"
    prepares = False

    def __init__(
        self,
        mode: str = "xxs",
        num_classes: int | None = None,
        *,
        network: nn.Module | None = None,
        weights: str | None = None,
        pipeline: AugmentationPipeline | None = None,
        image_size: Size = 320,
        letterbox: bool = False,
        policy: str = "detection_train",
        policy_args: dict[str, Any] | None = None,
        min_box_visibility: float = 0.3,
        variant: str = "apple",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        learning_rate: float = 9e-4,
        warmup_steps: int = 500,
        warmup_factor: float = 0.1,
        final_factor: float = 0.01,
        schedule: str = "cosine",
        weight_decay: float = 0.01,
        decay_norms: bool = True,
        head_factor: float = 1.0,
        layer_decay: float = 1.0,
        train_backbone: bool = True,
        freeze_epochs: int = 0,
        freeze_norms: bool = False,
        label_smoothing: float = 0.0,
        negatives: int = 3,
        score_threshold: float = 0.01,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        tta: str | None = None,
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
        if isinstance(image_size, tuple):  # tuples become lists, which are plain data
            self.hparams["image_size"] = list(image_size)
        self._check()
        size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        preprocess = Preprocess(size, letterbox=letterbox)
        if network is not None and weights is not None:
            raise ValueError("weights go into the network built from mode; give network or weights, not both")
        if network is None:
            network, given = _ssdlite(self.hparams, weights)
            if given is not None:
                preprocess = replace(preprocess, **{k: getattr(given, k) for k in ("channel_order", "mean", "std")})
        elif getattr(network, "num_classes", num_classes + 1) != num_classes + 1:
            raise ValueError(
                f"the network has {getattr(network, 'num_classes', None)} classes; {num_classes} classes of objects "
                f"and the background are {num_classes + 1}"
            )
        pipeline = pipeline or build_pipeline(
            policy, policy_args, image_size, preprocess, min_box_visibility=min_box_visibility
        )
        if pipeline.preprocess.output_size is None:
            raise ValueError(
                f"the pipeline's Preprocess has size {pipeline.preprocess.size}, which leaves images of several sizes; "
                "give it a height and a width"
            )
        self._adopt(network, pipeline)
        self.coco: CocoMetrics | None = None

    def _check(self) -> None:
        h = self.hparams
        if h["schedule"] not in SHAPES:
            raise ValueError(f"unknown schedule {h['schedule']!r}; available: {', '.join(map(repr, SHAPES))}")
        for name in ("score_threshold", "iou_threshold", "label_smoothing", "min_box_visibility"):
            if not 0 <= h[name] <= 1:
                raise ValueError(f"{name} {h[name]} is not in [0, 1]")
        for name, least in (("num_classes", 1), ("max_detections", 1), ("negatives", 0)):
            if h[name] < least:
                raise ValueError(f"{name} {h[name]} is not at least {least}")
        if h["tta"] is not None:
            find_transforms(h["tta"])

    def setup(self, stage: str) -> None:
        """Take the class names from the data, and prepare to count."""
        super().setup(stage)
        names = self.class_names or tuple(map(str, range(self.hparams["num_classes"])))
        self.coco = CocoMetrics(names).to(self.device)

    # ------------------------------------------------------------------------------------------------------- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Give the loss of an augmented batch."""
        classes, boxes = self.loss(batch)
        log = partial(self.log, on_step=False, on_epoch=True, batch_size=len(batch))
        log("train/class_loss", classes)
        log("train/box_loss", boxes)
        log("train/loss", classes + boxes, prog_bar=True)
        return classes + boxes

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Give the losses of classes and of boxes of an augmented or preprocessed batch.

        Raises:
            ValueError: for a batch without boxes.
        """
        logits, deltas = self(batch.image)
        return self._loss(logits, deltas, batch)

    def _loss(self, logits: Tensor, deltas: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Give the losses of classes and of boxes of what the network says of a batch of that size."""
        if batch.boxes is None or batch.box_label is None:
            raise ValueError("detection needs boxes; this batch has none")
        h, (height, width) = self.hparams, batch.image.shape[-2:]
        network = cast(SSDLite, self.network)
        anchors = network.anchors((height, width), device=deltas.device)
        boxes = batch.boxes.float() / batch.boxes.new_tensor([width, height] * 2, dtype=torch.float32)
        labels = batch.box_label.long()
        labels = torch.where(labels >= 0, labels + 1, labels)
        targets = assign_targets(anchors, boxes, labels, batch.box_ignore)
        smoothing = h["label_smoothing"] if self.training else 0.0
        loss = multibox_loss(logits, deltas, *targets, negative_ratio=h["negatives"], label_smoothing=smoothing)
        return loss.classification, loss.regression

    # ----------------------------------------------------------------------------------------------------- evaluation

    def detect(self, image: Tensor) -> list[Found]:
        """Find the objects in preprocessed images (B, C, H, W), with test-time augmentation as the settings say.

        Returns:
            For each image ``boxes`` (n, 4) in its pixels, ``scores`` and ``labels`` (n,), the best first.
        """
        tta = self.hparams["tta"]
        found = self._detect(image) if tta is None else TestTimeAugmentation(self._detect, tta)(image)
        limit = self.hparams["max_detections"]
        return [{name: value[:limit] for name, value in one.items()} for one in cast(list[Found], found)]

    def _detect(self, image: Tensor) -> list[Found]:
        logits, deltas = self(image)
        return self._decode(logits, deltas, image)

    def _decode(self, logits: Tensor, deltas: Tensor, image: Tensor) -> list[Found]:
        h = self.hparams
        found = cast(SSDLite, self.network).decode(
            logits,
            deltas,
            (image.shape[-2], image.shape[-1]),
            score_threshold=h["score_threshold"],
            iou_threshold=h["iou_threshold"],
            max_detections=h["max_detections"],
        )
        return [one._asdict() for one in found]

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Log loss and count.

        Gives ``loss``, and in ``detections`` for each image ``boxes`` (n, 4) in the pixels of its file, ``scores`` and
        ``labels`` (n,).
        """
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Do as :meth:`validation_step`."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[Found]:
        """Give for each image ``boxes`` (n, 4) in the pixels of its file, ``scores`` and ``labels`` (n,)."""
        return predict_boxes(self.detect, batch, self.pipeline)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of all images."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores of all images."""
        self._log_scores("test")

    def _evaluate(self, batch: Batch, stage: str) -> dict[str, Any]:
        prepared, params = self.pipeline.prepare(batch)
        logits, deltas = self(prepared.image)
        classes, boxes = self._loss(logits, deltas, prepared)
        loss = classes + boxes
        if self.hparams["tta"] is None:
            found = self._decode(logits, deltas, prepared.image)
        else:
            found = self.detect(prepared.image)
        found = bring_back(found, batch, self.pipeline, params)
        assert self.coco is not None
        self.coco.update(found, truths_of(batch))
        self.log(f"{stage}/loss", loss, on_epoch=True, sync_dist=True, prog_bar=True, batch_size=len(batch))
        return {"loss": loss, "detections": found, "num_classes": self.hparams["num_classes"]}

    def _log_scores(self, stage: str) -> None:
        assert self.coco is not None
        scores = self.coco.compute()
        self.tell_classes(f"{stage}/map", sum(name.startswith("ap/") for name in scores))
        for name, value in scores.items():
            kind = name.partition("/")[0]
            if kind.startswith("map") or kind == "mar_100" or (kind == "ap" and self.hparams["per_class"]):
                if name == "map" or not value.isnan():
                    shown = name in ("map", "map_50")
                    self.log(f"{stage}/{name}", value.nan_to_num(0.0), prog_bar=shown, sync_dist=True)
        self.coco.reset()

    def card(self) -> dict[str, Any]:
        """Say in plain data what a checkpoint holds."""
        return model_card(self.network, self.class_names, self.preprocess, self.task_name)


def _ssdlite(h: Any, weights: str | None) -> tuple[SSDLite, Preprocess | None]:
    """Build the network of a task's settings, and give the Preprocess of the weights that it starts from."""
    start, more = find_start(h, weights)
    if isinstance(start, SSDLite):
        more |= {"widths": start.widths, "aspect_ratios": start.aspect_ratios, "scales": start.scales}
    network = SSDLite(
        h["mode"],
        h["num_classes"] + 1,
        backbone_dropout=h["dropout"],
        drop_path=h["drop_path"],
        variant=h["variant"],
        **more,
    )
    if start is None:
        return network, None
    load_checkpoint(network, start.state_dict(), "native", new_head=True, name=weights)
    return network, start.preprocess
