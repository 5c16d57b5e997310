"""Tasks: what is trained and how, as Lightning modules."""

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix

from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.batch import Batch
from kornia_mvit.inference.tta import TestTimeAugmentation
from kornia_mvit.models.mobilevit import MobileViTClassifier
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.training.base import ImageTask, build_pipeline
from kornia_mvit.training.networks import Teacher, find_teacher, timm_network
from kornia_mvit.weights.cards import find_config, model_card, task_of
from kornia_mvit.weights.registry import from_pretrained

__all__ = ["ClassificationTask"]


class ClassificationTask(ImageTask):
    """Train a classifier with soft-targeted cross-entropy, AdamW, warm-up and cosine.

    Batches are augmented on the device, after their transfer. Its checkpoints carry the model's arguments, the class
    names and the Preprocess, so that :func:`kornia_mvit.from_pretrained` needs nothing else.

    Precision, gradient accumulation, clipping and devices are the Trainer's.

    Args:
        mode: size of the MobileViT that is built: ``'xxs'``, ``'xs'`` or ``'s'``.
        num_classes: number of classes; on the command line it is taken from the data.
        network: any module that gives (B, num_classes) logits, in place of the one built from ``mode``; or the name of
            one of timm's, such as ``'timm:mobilenetv3_small_100'``.
        network_args: arguments of timm's network, such as ``{img_size: 128}`` where it is made for one size.
        weights: what training starts from: published weights by name, or a checkpoint of any layout, whose classifier
            is left out. Their channel order, mean and std are taken over.
        pipeline: what batches go through, in place of the one built from the next five arguments.
        image_size: side in pixels of the images that the network sees.
        resize_size: shorter side in pixels that evaluation resizes to before the centre crop; ``image_size`` if None.
        policy: name of a policy in :mod:`kornia_mvit.augmentation.policies`.
        policy_args: its arguments, besides the size.
        multi_scale: least and greatest side in pixels and their number, such as Apple's (160, 320, 5): each step then
            draws a height and a width, and as many images as keep their pixels constant.
        variant: see :class:`~kornia_mvit.MobileViT`.
        dropout: see :class:`~kornia_mvit.MobileViT`.
        head_dropout: dropout before the classifier.
        drop_path: see :class:`~kornia_mvit.MobileViT`.
        learning_rate: the peak, for the whole batch.
        warmup_steps: steps from ``warmup_factor`` of the learning rate to the whole.
        warmup_factor: share of the learning rate at the first step.
        final_factor: share of the learning rate at the last step.
        weight_decay: of AdamW.
        decay_norms: whether norms and biases decay too.
        head_factor: times the learning rate, for the classifier.
        layer_decay: factor on the learning rate from each layer to the one before it.
        train_backbone: False trains the classifier alone, on features that stay as they are: a linear probe.
        freeze_epochs: epochs at the beginning in which the classifier alone learns.
        freeze_norms: leave the statistics of batch normalisation as they are, as small batches need.
        label_smoothing: share of a target that is spread over all classes.
        teacher: a module, ``'timm:NAME'``, or what :func:`kornia_mvit.from_pretrained` takes, to be learned from.
        teacher_weight: share of the loss that is the distance to the teacher's answers.
        temperature: what both logits are divided by for that distance.
        tta: test-time augmentation of validation and test, such as ``'flip'``; see
            :class:`~kornia_mvit.TestTimeAugmentation`.
        raw_weights: evaluate a checkpoint's raw weights, not their average.
        per_class: log the accuracy of each class in evaluation.
        compile: compile the network.
        channels_last: keep the channels of a pixel side by side, which is faster on most devices.
        gradient_checkpointing: trade time for memory: true or 'stages', or 'activations', which costs little time.

    Raises:
        ValueError: without ``num_classes``, for an unknown policy or network, if ``network`` and ``weights`` are both
            given, and if data and checkpoint differ in their classes.

    References:
        G. Hinton et al.: Distilling the knowledge in a neural network. https://arxiv.org/abs/1503.02531

    Example:
        >>> import torch
        >>> task = ClassificationTask('xxs', num_classes=10, image_size=64)
        >>> task(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        mode: str = "xxs",
        num_classes: int | None = None,
        *,
        network: nn.Module | str | None = None,
        network_args: dict[str, Any] | None = None,
        weights: str | None = None,
        pipeline: AugmentationPipeline | None = None,
        image_size: int = 256,
        resize_size: int | None = None,
        policy: str = "classification_train",
        policy_args: dict[str, Any] | None = None,
        multi_scale: tuple[int, int, int] | None = None,
        variant: str = "apple",
        dropout: float = 0.0,
        head_dropout: float = 0.0,
        drop_path: float = 0.0,
        learning_rate: float = 2e-3,
        warmup_steps: int = 500,
        warmup_factor: float = 0.1,
        final_factor: float = 0.1,
        weight_decay: float = 0.01,
        decay_norms: bool = True,
        head_factor: float = 1.0,
        layer_decay: float = 1.0,
        train_backbone: bool = True,
        freeze_epochs: int = 0,
        freeze_norms: bool = False,
        label_smoothing: float = 0.1,
        teacher: nn.Module | str | None = None,
        teacher_weight: float = 0.5,
        temperature: float = 2.0,
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
        if not 0 <= teacher_weight <= 1 or temperature <= 0:
            raise ValueError(f"teacher_weight {teacher_weight} is not in [0, 1], or temperature {temperature} not > 0")
        self.save_hyperparameters(ignore=["network", "pipeline", "teacher"])
        self.hparams["network"] = network if isinstance(network, str) else None
        # a checkpoint has the weights already, and evaluation no teacher
        self.hparams["weights"] = None
        if multi_scale is not None:
            self.hparams["multi_scale"] = list(multi_scale)

        preprocess = Preprocess(size=resize_size or image_size, crop=image_size)
        arguments: dict[str, Any] = {"backbone_dropout": dropout, "head_dropout": head_dropout, "drop_path": drop_path}
        if network is not None and weights is not None:
            raise ValueError("weights go into the network built from mode; give network or weights, not both")
        if isinstance(network, str):
            network = timm_network(network, num_classes, **(network_args or {}))
        elif network is None and weights is not None:
            network = from_pretrained(weights, num_classes=num_classes, **arguments)
            if not isinstance(network, MobileViTClassifier):
                raise ValueError(f"{weights} is for {task_of(network)}; give a classifier's weights")
            if (known := find_config(network.backbone.config)) is not None:  # what the task's checkpoints build again
                self.hparams["mode"], self.hparams["variant"] = known
            given = network.preprocess or Preprocess(size=None)
            preprocess = replace(preprocess, **{k: getattr(given, k) for k in ("channel_order", "mean", "std")})
        elif network is None:
            network = MobileViTClassifier(mode, num_classes, variant=variant, **arguments)
        self._adopt(
            network,
            pipeline
            or build_pipeline(
                policy,
                policy_args,
                image_size,
                preprocess,
                multi_scale=multi_scale,
                num_classes=num_classes,
                label_smoothing=label_smoothing,
            ),
        )
        self.teacher: Teacher | None = None if teacher is None else find_teacher(teacher, num_classes)
        self.metrics: nn.ModuleDict = nn.ModuleDict(
            {stage: nn.ModuleDict(_metrics(num_classes, stage)) for stage in ("train_", "val_", "test_")}
        )
        self.confusion: MulticlassConfusionMatrix = MulticlassConfusionMatrix(num_classes)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Give the loss of an augmented batch."""
        return self._step(batch, "train")[0]

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Log loss and metrics; give them and the logits (B, num_classes) to callbacks."""
        loss, logits = self._step(batch, "val")
        return {"loss": loss, "logits": logits}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Do as :meth:`validation_step`."""
        loss, logits = self._step(batch, "test")
        return {"loss": loss, "logits": logits}

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Give the logits (B, num_classes), with test-time augmentation as the settings say."""
        return self._predict(batch.image)

    def _predict(self, image: Tensor) -> Tensor:
        tta = self.hparams["tta"]
        return cast(Tensor, self(image) if tta is None else TestTimeAugmentation(self, tta)(image))

    def on_validation_epoch_start(self) -> None:
        """Count anew."""
        self.confusion.reset()

    def on_test_epoch_start(self) -> None:
        """Count anew."""
        self.confusion.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy of each class, if asked to."""
        self._log_classes("val")

    def on_test_epoch_end(self) -> None:
        """Log the accuracy of each class, if asked to."""
        self._log_classes("test")

    def _step(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor]:
        if batch.label is None:
            raise ValueError("classification needs labels; this batch has none")
        logits: Tensor = self(batch.image) if stage == "train" else self._predict(batch.image)
        smoothed = stage != "train" or self.pipeline.mix is not None  # the mix smooths its targets
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
        """Give Hinton's distance of the student's answers from the teacher's."""
        t = self.hparams["temperature"]
        wanted = teacher(self.pipeline.preprocess.module().undo_values(image)).float()
        student, target = (logits.float() / t).log_softmax(-1), (wanted / t).log_softmax(-1)
        distance: Tensor = F.kl_div(student, target, reduction="batchmean", log_target=True) * t**2
        return distance

    def _log_classes(self, stage: str) -> None:
        if not self.hparams["per_class"]:
            return
        counts: Tensor = self.confusion.compute()  # of all processes
        share = counts.diagonal() / counts.sum(1).clamp_min(1)
        names = self.class_names or tuple(map(str, range(len(share))))
        self.log_dict({f"{stage}/accuracy/{name}": value for name, value in zip(names, share, strict=True)})

    def card(self) -> dict[str, Any]:
        """Say in plain data what a checkpoint holds."""
        return model_card(self.network, self.class_names, self.preprocess)


def _metrics(num_classes: int, stage: str) -> dict[str, Metric]:
    """Give what is measured in a stage. Training has its accuracy alone, on the labels that weigh most."""
    metrics: dict[str, Metric] = {"accuracy": MulticlassAccuracy(num_classes, average="micro")}
    if stage != "train_":
        if num_classes > 5:
            metrics["top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
        metrics["class_accuracy"] = MulticlassAccuracy(num_classes, average="macro")
        metrics["calibration_error"] = MulticlassCalibrationError(num_classes, n_bins=15)
    return metrics
