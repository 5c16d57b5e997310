"""Detection: boxes of objects, learned from augmented images and measured in the pixels of the original ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from kornia_mvit.batch import Batch
from kornia_mvit.evaluation.coco import CocoMetrics, truths_of
from kornia_mvit.inference.detection import Found, bring_back, predict_boxes
from kornia_mvit.inference.tta import TestTimeAugmentation, find_transforms
from kornia_mvit.models.ssdlite import RATIOS, SCALES, SSDLite
from kornia_mvit.ops.boxes import Anchors, assign_targets, assign_weighted_targets, fit_anchors
from kornia_mvit.ops.losses import multibox_loss
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.training.base import ImageTask, build_pipeline, with_values_of
from kornia_mvit.training.lightning_names import isolate_rng, rank_zero_info
from kornia_mvit.training.networks import find_backbone, find_start
from kornia_mvit.training.settings import Size, TaskSettings, accepts
from kornia_mvit.training.statistics import some_batches
from kornia_mvit.weights.cards import read_card
from kornia_mvit.weights.checkpoints import CARD_KEY, load_checkpoint

__all__ = ["DetectionSettings", "DetectionTask"]

_LOOKED_AT = 512  # training images whose boxes anchors are fitted to


@dataclass(kw_only=True)
class DetectionSettings(TaskSettings):
    """The settings of :class:`DetectionTask`, which documents them.

    Raises:
        ValueError: for shares and counts out of range, and unknown test-time augmentation.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        **TaskSettings.renamed,
        "dropout": "backbone_dropout",
        "negatives": "negative_ratio",
    }

    network: nn.Module | None = None
    image_size: Size = 320
    policy: str = "detection_train"
    anchors: str | dict[str, Any] | None = None
    letterbox: bool = False
    min_box_visibility: float = 0.3
    negative_ratio: int = 3
    score_threshold: float = 0.01
    iou_threshold: float = 0.5
    max_detections: int = 100
    negatives: int | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        for name in ("score_threshold", "iou_threshold", "label_smoothing", "min_box_visibility"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not in [0, 1]")
        for name, least in (("num_classes", 1), ("max_detections", 1), ("negative_ratio", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)} is not at least {least}")
        if self.tta is not None:
            find_transforms(self.tta)
        if isinstance(self.anchors, str) and self.anchors != "auto":
            raise ValueError(f"anchors {self.anchors!r} are unknown; give 'auto', or scales and aspect_ratios")
        if isinstance(self.anchors, dict) and (unknown := sorted(self.anchors.keys() - {*Anchors._fields})):
            raise ValueError(f"anchors have no {unknown[0]!r}; give scales, aspect_ratios or both")
        if isinstance(self.anchors, dict) and not _are_numbers(self.anchors):
            raise ValueError(f"anchors {self.anchors} are not numbers, such as {{'scales': [0.1, 1.05]}}")


class DetectionTask(ImageTask):
    """Train SSDLite, with cross-entropy over hard negatives and smooth L1, AdamW, warm-up and cosine or poly.

    In evaluation batches stay as they are stored: each image goes through the Preprocess, and the boxes that are found
    are mapped back through it into the pixels of the image's file, where they are compared with the targets as COCO
    does.

    Logged are ``loss`` and, in evaluation, ``map`` (over IoUs from 0.5 to 0.95), ``map_50``, ``map_75``, ``map_small``,
    ``map_medium``, ``map_large`` and ``mar_100``, those for which there are targets; with ``per_class`` also
    ``ap/NAME``.

    Arguments that are not listed here are those of :class:`~kornia_mvit.training.base.ImageTask`.

    Args:
        network: a :class:`~kornia_mvit.SSDLite` of ``num_classes + 1``, in place of the one built from ``mode``.
        weights: what training starts from: published weights by name, or a checkpoint of any layout. All but the
            classifiers of a detector is used, and the backbone of a classifier; and its size, channel order, mean and
            std.
        image_size: side in pixels of the network's input, or its height and width. Apple's is 320.
        anchors: ``scales`` and ``aspect_ratios`` of the anchors, one or both, see :class:`~kornia_mvit.SSDLite`;
            ``'auto'`` fits them to the boxes of up to 512 training images, see
            :func:`~kornia_mvit.ops.boxes.fit_anchors`; those of the weights that training starts from, or Apple's, when
            None.
        letterbox: keep the aspect ratio of images in evaluation and leave the rest of the input black, instead of
            stretching them.
        min_box_visibility: share of a box that an augmented image has to show, for the box to stay.
        negative_ratio: negative-to-positive ratio: anchors without an object in the loss for each with one.
        score_threshold: boxes of lower scores are left out in evaluation.
        iou_threshold: boxes of a class that overlap one of a higher score by more are left out.
        max_detections: the most boxes of an image, those of the highest scores; COCO counts 100.
        tta: test-time augmentation in validation and test, such as ``'flip'`` or ``'flip+scale'``, merged by
            weighted fusion; see :class:`~kornia_mvit.TestTimeAugmentation`.
        negatives: the former name of ``negative_ratio``, until 0.3.

    Example:
        >>> task = DetectionTask('xxs', num_classes=3, image_size=64)
        >>> (found,) = task.eval().detect(torch.rand(1, 3, 64, 64))
        >>> sorted(found)
        ['boxes', 'labels', 'scores']
    """

    task_name = "detection"
    prepares = False
    renamed: Mapping[str, str] = DetectionSettings.renamed

    @accepts(DetectionSettings)
    def __init__(self, settings: DetectionSettings) -> None:
        self._begin(settings)
        classes, size = cast(int, settings.num_classes), settings.image_size
        network, given = settings.network, None
        if network is None:
            network, given = _ssdlite(self.hparams, settings)
        else:
            _check_network(network, classes)
            if settings.anchors is not None and not isinstance(network, SSDLite):
                raise ValueError(
                    f"anchors are of SSDLite, and the network is a {type(network).__name__}; leave them out"
                )
            if isinstance(settings.anchors, dict) and isinstance(network, SSDLite):
                known: dict[str, Any] = {
                    "scales": network.scales,
                    "aspect_ratios": network.aspect_ratios,
                } | settings.anchors
                _set_anchors(self.hparams, network, Anchors(known["scales"], known["aspect_ratios"]))
        preprocess = Preprocess(
            (size, size) if isinstance(size, int) else (size[0], size[1]), letterbox=settings.letterbox
        )
        pipeline = settings.pipeline or build_pipeline(
            settings.policy,
            settings.policy_args,
            size,
            with_values_of(preprocess, given),
            min_box_visibility=settings.min_box_visibility,
            antialias=settings.antialias,
        )
        if pipeline.preprocess.output_size is None:
            raise ValueError(
                f"the pipeline's Preprocess has size {pipeline.preprocess.size}, which leaves images of several sizes; "
                "give it a height and a width"
            )
        self._adopt(network, pipeline)
        self.coco: CocoMetrics | None = None

    def setup(self, stage: str) -> None:
        """Take the class names from the data, and prepare the scores."""
        super().setup(stage)
        names = self.class_names or tuple(map(str, range(self.hparams["num_classes"])))
        self.coco = CocoMetrics(names).to(self.device)

    def on_fit_start(self) -> None:
        """Fit the anchors to boxes of the training data, where the settings ask for it."""
        if self.hparams["anchors"] == "auto":
            self._fit_anchors()

    def _fit_anchors(self) -> None:
        network, boxes = cast(SSDLite, self.network), []
        (height, width) = cast(tuple[int, int], self.preprocess.output_size)
        training = self.pipeline.training
        try:
            self.pipeline.eval()  # as evaluation sees them
            with torch.no_grad(), isolate_rng():
                for stored in some_batches(self, self.trainer.train_dataloader, _LOOKED_AT):
                    batch = self.pipeline.prepare(stored)[0]
                    assert batch.boxes is not None
                    assert batch.box_label is not None
                    counted = batch.box_label >= 0
                    if batch.box_ignore is not None:
                        counted &= ~batch.box_ignore
                    boxes.append(batch.boxes[counted].double() / batch.boxes.new_tensor([width, height] * 2))
        finally:
            self.pipeline.train(training)
        if not sum(map(len, boxes)):
            raise ValueError(
                "anchors 'auto' need training data that are read by number and have boxes; give scales and "
                "aspect_ratios, such as those of kornia_mvit.ops.boxes.fit_anchors"
            )
        start = Anchors(network.scales, network.aspect_ratios)
        found = fit_anchors(torch.cat(boxes).clamp(0, 1), network.map_sizes((height, width)), start)
        _set_anchors(self.hparams, network, found)
        ratios = sorted({*found.aspect_ratios[0], *found.aspect_ratios[-1]})
        rank_zero_info(
            f"anchors fitted to {sum(map(len, boxes)):,} boxes: scales {found.scales[0]:g} to {found.scales[1]:g}, "
            f"aspect ratios {', '.join(f'{ratio:g}' for ratio in ratios)}"
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Do what the base class does, and take the anchors that the checkpoint's weights were trained with.

        Raises:
            CheckpointError: if the checkpoint's card says what cannot be.
        """
        super().on_load_checkpoint(checkpoint)
        if CARD_KEY not in checkpoint or not isinstance(self.network, SSDLite):
            return
        known = read_card(checkpoint, "the checkpoint").get("model") or {}
        if "scales" in known and "aspect_ratios" in known:
            _set_anchors(self.hparams, self.network, Anchors(known["scales"], known["aspect_ratios"]))

    # ------------------------------------------------------------------------------------------------------- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of an augmented batch."""
        classes, boxes = self.loss(batch)
        log = partial(self.log, on_step=False, on_epoch=True, batch_size=len(batch))
        log("train/class_loss", classes)
        log("train/box_loss", boxes)
        log("train/loss", classes + boxes, prog_bar=True)
        return self.add_range_loss(classes + boxes)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the losses of classes and of boxes of an augmented or preprocessed batch.

        Both terms of the anchors that are to find a box are multiplied by its ``box_weight``, where the batch has it.

        Raises:
            ValueError: for a batch without boxes.
        """
        logits, deltas = self(batch.image)
        return self._loss(logits, deltas, batch)

    def _loss(self, logits: Tensor, deltas: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the losses of classes and of boxes of the network's output for a batch."""
        if batch.boxes is None or batch.box_label is None:
            raise ValueError("detection needs boxes; this batch has none")
        h, (height, width) = self.hparams, batch.image.shape[-2:]
        network = cast(SSDLite, self.network)
        anchors = network.anchors((height, width), device=deltas.device)
        boxes = batch.boxes.float() / batch.boxes.new_tensor([width, height] * 2, dtype=torch.float32)
        labels = batch.box_label.long()
        labels = torch.where(labels >= 0, labels + 1, labels)
        loss = partial(
            multibox_loss,
            logits,
            deltas,
            negative_ratio=h["negative_ratio"],
            label_smoothing=h["label_smoothing"] if self.training else 0.0,
        )
        if batch.box_weight is None:
            found = loss(*assign_targets(anchors, boxes, labels, batch.box_ignore))
        else:
            *targets, weights = assign_weighted_targets(anchors, boxes, labels, batch.box_weight, batch.box_ignore)
            found = loss(*targets, weights=weights)
        return found.classification, found.regression

    # ----------------------------------------------------------------------------------------------------- evaluation

    def detect(self, image: Tensor) -> list[Found]:
        """Find the objects in preprocessed images (B, C, H, W), with test-time augmentation as the settings say.

        Returns:
            For each image ``boxes`` (n, 4) in its pixels, ``scores`` and ``labels`` (n,), highest score first.
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

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[Found]:
        """Return for each image ``boxes`` (n, 4) in the pixels of its file, ``scores`` and ``labels`` (n,)."""
        return predict_boxes(self.detect, batch, self.pipeline)

    def evaluate_batch(self, batch: Batch, stage: str) -> dict[str, Any]:
        """Log the loss, and add the detections to the scores.

        Returns:
            ``loss``; ``detections``, for each image ``boxes`` (n, 4) in the pixels of its file, ``scores`` and
            ``labels`` (n,); ``num_classes``.
        """
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

    def reset_scores(self) -> None:
        """Reset what COCO's metrics have collected."""
        assert self.coco is not None
        self.coco.reset()

    def log_scores(self, stage: str) -> None:
        """Log the average precisions of all images, and reset them."""
        assert self.coco is not None
        scores = self.coco.compute()
        self.tell_classes(f"{stage}/map", sum(name.startswith("ap/") for name in scores))
        for name, value in scores.items():
            kind = name.partition("/")[0]
            if kind.startswith("map") or kind == "mar_100" or (kind == "ap" and self.hparams["per_class"]):
                if name == "map" or not value.isnan():
                    shown = name in ("map", "map_50")
                    self.log(f"{stage}/{name}", value.nan_to_num(0.0), prog_bar=shown, sync_dist=True)
        self.reset_scores()  # the collected boxes need not stay in memory


def _ssdlite(h: Any, settings: DetectionSettings) -> tuple[SSDLite, Preprocess | None]:
    """Return the network of a task's settings, and the Preprocess of the weights that it starts from."""
    backbone, published = find_backbone(settings.backbone, settings.pretrained)
    start, more = find_start(h, settings.weights, backbone)
    if isinstance(start, SSDLite):
        more |= {"widths": start.widths, "aspect_ratios": start.aspect_ratios, "scales": start.scales}
    if isinstance(h["anchors"], dict):
        more |= h["anchors"]
    network = SSDLite(
        h["mode"],
        h["num_classes"] + 1,
        backbone_dropout=h["backbone_dropout"],
        drop_path=h["drop_path"],
        variant=h["variant"],
        **more,
    )
    if h["anchors"] != "auto" and (network.scales, network.aspect_ratios) != (SCALES, RATIOS):
        _set_anchors(h, network, Anchors(network.scales, network.aspect_ratios))
    if start is None:
        return network, published
    load_checkpoint(network, start.state_dict(), "native", new_head=True, name=settings.weights)
    return network, start.preprocess


def _are_numbers(anchors: Mapping[str, Any]) -> bool:
    """Return whether scales are numbers, and aspect ratios lists of such."""
    try:
        rows = [anchors.get("scales", ()), *anchors.get("aspect_ratios", ())]
        return all(isinstance(value, int | float) for row in rows for value in row)
    except TypeError:
        return False


def _set_anchors(h: Any, network: SSDLite, anchors: Anchors) -> None:
    """Give a network anchors, and have its task's checkpoints build it with them.

    Raises:
        ValueError: if they are as many in a place as the network has none for.
    """
    scales = (float(anchors.scales[0]), float(anchors.scales[1]))
    ratios = tuple(tuple(map(float, some)) for some in anchors.aspect_ratios)
    if [*map(len, ratios)] != [*map(len, network.aspect_ratios)]:
        raise ValueError(
            f"{[*map(len, ratios)]} aspect ratios are given for the levels, and the network has "
            f"{[*map(len, network.aspect_ratios)]}; give as many, or build the network with these"
        )
    network.scales, network.aspect_ratios = scales, ratios
    h["anchors"] = {"scales": list(scales), "aspect_ratios": [list(some) for some in ratios]}


def _check_network(network: nn.Module, classes: int) -> None:
    if getattr(network, "num_classes", classes + 1) != classes + 1:
        raise ValueError(
            f"the network has {getattr(network, 'num_classes', None)} classes; {classes} classes of objects "
            f"and the background are {classes + 1}"
        )
