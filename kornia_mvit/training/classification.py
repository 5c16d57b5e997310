"""Classification: one class an image, learned with soft targets, mixes and teachers."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix

from kornia_mvit.augmentation.mix import Mix
from kornia_mvit.batch import Batch
from kornia_mvit.inference.tta import TestTimeAugmentation
from kornia_mvit.models.modes import build_classifier, find_mode
from kornia_mvit.models.staged import Classifier
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.training.base import ImageTask, build_pipeline, with_values_of
from kornia_mvit.training.networks import Teacher, find_backbone, find_teacher, timm_network
from kornia_mvit.training.settings import TaskSettings, accepts
from kornia_mvit.training.statistics import warn_of_lag
from kornia_mvit.weights.cards import task_of
from kornia_mvit.weights.registry import from_pretrained

__all__ = ["ClassificationSettings", "ClassificationTask"]


@dataclass(kw_only=True)
class ClassificationSettings(TaskSettings):
    """The settings of :class:`ClassificationTask`, which documents them.

    Raises:
        ValueError: for weights of the loss and temperatures out of range.
    """

    renamed: ClassVar[Mapping[str, str]] = {**TaskSettings.renamed, "dropout": "backbone_dropout"}
    unsaved: ClassVar[tuple[str, ...]] = (*TaskSettings.unsaved, "teacher")

    image_size: int = 256
    learning_rate: float = 2e-3
    final_factor: float = 0.1
    label_smoothing: float = 0.1
    statistics_images: int = 256
    network_args: dict[str, Any] | None = None
    resize_size: int | None = None
    multi_scale: tuple[int, int, int] | None = None
    head_dropout: float = 0.0
    teacher: nn.Module | str | None = None
    teacher_weight: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if not 0 <= self.teacher_weight <= 1:
            raise ValueError(f"teacher_weight {self.teacher_weight} is not in [0, 1]")
        if self.temperature <= 0:
            raise ValueError(f"temperature {self.temperature} is not positive")

    def plain(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the name of the network, and no weights, which the checkpoint has."""
        network = self.network if isinstance(self.network, str) else None
        return super().plain() | {"network": network, "weights": None}


class ClassificationTask(ImageTask):
    """Train a classifier with soft-targeted cross-entropy, AdamW, warm-up and cosine.

    Arguments that are not listed here are those of :class:`~kornia_mvit.training.base.ImageTask`.

    Args:
        network: any module that returns (B, num_classes) logits, in place of the one built from ``mode``; or the name
            of a network of timm, such as ``'timm:mobilenetv3_small_100'``.
        network_args: arguments of timm's network, such as ``{img_size: 128}`` where it is made for one size.
        weights: what training starts from: published weights by name, or a checkpoint of any layout, without its
            classifier. Its channel order, mean and std are used.
        resize_size: shorter side in pixels that evaluation resizes to before the centre crop; ``image_size`` if None.
        multi_scale: smallest and largest side in pixels and their number, such as Apple's (160, 320, 5): each step then
            samples a height and a width, and as many images as keep the number of pixels constant.
        head_dropout: dropout before the classifier.
        teacher: a module, ``'timm:NAME'``, or what :func:`kornia_mvit.from_pretrained` takes, to learn from.
        teacher_weight: share of the loss that is the distance to the teacher's predictions.
        temperature: what both logits are divided by for that distance.

    References:
        G. Hinton et al.: Distilling the knowledge in a neural network. https://arxiv.org/abs/1503.02531

    Example:
        >>> import torch
        >>> task = ClassificationTask('xxs', num_classes=10, image_size=64)
        >>> task(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    renamed: Mapping[str, str] = ClassificationSettings.renamed

    @accepts(ClassificationSettings)
    def __init__(self, settings: ClassificationSettings) -> None:
        self._begin(settings)
        classes, size = cast(int, settings.num_classes), settings.image_size
        network, given = self._build_network(settings)
        preprocess = with_values_of(Preprocess(size=settings.resize_size or size, crop=size), given)
        pipeline = settings.pipeline or build_pipeline(
            settings.policy,
            settings.policy_args,
            size,
            preprocess,
            multi_scale=settings.multi_scale,
            antialias=settings.antialias,
            num_classes=classes,
            label_smoothing=settings.label_smoothing,
        )
        self._adopt(network, pipeline)
        self.teacher: Teacher | None = None if settings.teacher is None else find_teacher(settings.teacher, classes)
        self.metrics: nn.ModuleDict = nn.ModuleDict(
            {stage: nn.ModuleDict(_metrics(classes, stage)) for stage in ("train_", "val_", "test_")}
        )
        self.confusion: MulticlassConfusionMatrix = MulticlassConfusionMatrix(classes)

    def _build_network(self, settings: ClassificationSettings) -> tuple[nn.Module, Preprocess | None]:
        """Return the network, and the Preprocess of the weights that it starts from."""
        classes = cast(int, settings.num_classes)
        if isinstance(settings.network, str):
            return timm_network(settings.network, classes, **(settings.network_args or {})), None
        if settings.network is not None:
            return settings.network, None
        arguments: dict[str, Any] = {
            "backbone_dropout": settings.backbone_dropout,
            "head_dropout": settings.head_dropout,
            "drop_path": settings.drop_path,
        }
        backbone, published = find_backbone(settings.backbone, settings.pretrained)
        if backbone is not None:
            arguments["backbone"] = backbone
        if settings.weights is None:
            return build_classifier(settings.mode, classes, variant=settings.variant, **arguments), published
        network = from_pretrained(settings.weights, num_classes=classes, **arguments)
        if not isinstance(network, Classifier):
            raise ValueError(f"{settings.weights} is for {task_of(network)}; give a classifier's weights")
        if (known := find_mode(network.backbone)) is not None:  # what the task's checkpoints build again
            self.hparams["mode"], self.hparams["variant"] = known
        return network, network.preprocess or Preprocess(size=None)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of an augmented batch."""
        return self.add_range_loss(self._step(batch, "train")[0])

    def evaluate_batch(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        """Log loss and metrics, and return the ``loss`` and the ``logits`` (B, num_classes)."""
        loss, logits = self._step(batch, stage)
        return {"loss": loss, "logits": logits}

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the logits (B, num_classes), with test-time augmentation as the settings say."""
        return self._predict(batch.image)

    def _predict(self, image: Tensor) -> Tensor:
        tta = self.hparams["tta"]
        return cast(Tensor, self(image) if tta is None else TestTimeAugmentation(self, tta)(image))

    def reset_scores(self) -> None:
        """Reset the confusion matrix."""
        self.confusion.reset()

    def log_scores(self, stage: str) -> None:
        """Log the accuracy of each class, if ``per_class`` is set."""
        if not self.hparams["per_class"]:
            return
        counts: Tensor = self.confusion.compute()  # of all processes
        share = counts.diagonal() / counts.sum(1).clamp_min(1)
        names = self.class_names or tuple(map(str, range(len(share))))
        self.log_dict({f"{stage}/accuracy/{name}": value for name, value in zip(names, share, strict=True)})

    def on_train_end(self) -> None:
        """Estimate the statistics as other tasks do; in runs that do not, warn where that would have helped."""
        super().on_train_end()
        if self._refreshed is None:
            warn_of_lag(self, self.hparams["statistics_images"] or 256)

    def _step(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor]:
        if batch.label is None:
            raise ValueError("classification needs labels; this batch has none")
        logits: Tensor = self(batch.image) if stage == "train" else self._predict(batch.image)
        smoothed = stage != "train" or isinstance(self.pipeline.mix, Mix)  # which smooths its targets
        smoothing = 0.0 if smoothed else self.hparams["label_smoothing"]
        loss = F.cross_entropy(logits, batch.label, label_smoothing=smoothing)
        if stage == "train" and self.teacher is not None:
            weight = self.hparams["teacher_weight"]
            loss = (1 - weight) * loss + weight * self._distance(logits, batch.image, self.teacher)
        hard = batch.label.argmax(1) if batch.label.is_floating_point() else batch.label
        log = partial(self.log, on_step=False, on_epoch=True, batch_size=len(batch))
        log(f"{stage}/loss", loss, prog_bar=True, sync_dist=stage != "train")
        for name, metric in cast(nn.ModuleDict, self.metrics[f"{stage}_"]).items():
            cast(Metric, metric).update(logits.detach().float(), hard)
            log(f"{stage}/{name}", cast(Metric, metric), prog_bar=name == "accuracy")
        if stage != "train":
            self.confusion.update(logits.detach(), hard)
        return loss, logits.detach()

    def _distance(self, logits: Tensor, image: Tensor, teacher: Teacher) -> Tensor:
        """Return Hinton's distance between the student's and the teacher's predictions."""
        t = self.hparams["temperature"]
        wanted = teacher(self.pipeline.preprocess.module().undo_values(image)).float()
        student, target = (logits.float() / t).log_softmax(-1), (wanted / t).log_softmax(-1)
        distance: Tensor = F.kl_div(student, target, reduction="batchmean", log_target=True) * t**2
        return distance


def _metrics(num_classes: int, stage: str) -> dict[str, Metric]:
    """Return the metrics of a stage. Training has accuracy alone, on the labels of greatest weight."""
    metrics: dict[str, Metric] = {"accuracy": MulticlassAccuracy(num_classes, average="micro")}
    if stage != "train_":
        if num_classes > 5:
            metrics["top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
        metrics["class_accuracy"] = MulticlassAccuracy(num_classes, average="macro")
        metrics["calibration_error"] = MulticlassCalibrationError(num_classes, n_bins=15)
    return metrics
