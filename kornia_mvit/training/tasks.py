"""Tasks: what is trained and how, as Lightning modules."""

import inspect
import math
import warnings
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from kornia_mvit.augmentation import policies
from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.augmentation.preprocess import Preprocess
from kornia_mvit.data.batch import Batch
from kornia_mvit.models.mobilevit import MobileViTClassifier
from kornia_mvit.weights.checkpoints import CARD_KEY, classifier_card

__all__ = ["ClassificationTask", "learning_rate_factor"]


class ClassificationTask(pl.LightningModule):
    """Train a classifier with soft-targeted cross-entropy, AdamW, warm-up and cosine.

    Batches are augmented on the device, after their transfer. Its checkpoints carry the model's arguments, the class
    names and the Preprocess, so that :func:`kornia_mvit.weights.checkpoints.from_pretrained` needs nothing else.

    Args:
        mode: size of the MobileViT that is built: ``'xxs'``, ``'xs'`` or ``'s'``.
        num_classes: number of classes; on the command line it is taken from the data.
        network: any module that gives (B, num_classes) logits, in place of the one built from ``mode``.
        pipeline: what batches go through, in place of the one built from the next four arguments.
        image_size: side in pixels of the images that the network sees.
        resize_size: shorter side in pixels that evaluation resizes to before the centre crop; ``image_size`` if None.
        policy: name of a policy in :mod:`kornia_mvit.policies`.
        policy_args: its arguments, besides the size.
        variant: see :class:`~kornia_mvit.MobileViT`.
        dropout: see :class:`~kornia_mvit.MobileViT`.
        head_dropout: dropout before the classifier.
        drop_path: see :class:`~kornia_mvit.MobileViT`.
        learning_rate: the peak, for the whole batch.
        warmup_steps: steps from ``warmup_factor`` of the learning rate to the whole.
        warmup_factor: share of the learning rate at the first step.
        final_factor: share of the learning rate at the last step.
        weight_decay: of AdamW.
        label_smoothing: share of a target that is spread over all classes.

    Raises:
        ValueError: without ``num_classes``, for an unknown policy, and if data and checkpoint differ in their classes.

    Example:
        >>> task = ClassificationTask('xxs', num_classes=10, image_size=64)
        >>> task(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        mode: str = "xxs",
        num_classes: int | None = None,
        *,
        network: nn.Module | None = None,
        pipeline: AugmentationPipeline | None = None,
        image_size: int = 256,
        resize_size: int | None = None,
        policy: str = "classification_train",
        policy_args: dict[str, Any] | None = None,
        variant: str = "apple",
        dropout: float = 0.0,
        head_dropout: float = 0.0,
        drop_path: float = 0.0,
        learning_rate: float = 2e-3,
        warmup_steps: int = 500,
        warmup_factor: float = 0.1,
        final_factor: float = 0.1,
        weight_decay: float = 0.01,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        if num_classes is None:
            raise ValueError("num_classes is missing; give the number of classes, such as data.num_classes")
        self.save_hyperparameters(ignore=["network", "pipeline"])
        if network is None:
            network = MobileViTClassifier(
                mode,
                num_classes,
                dropout=dropout,
                head_dropout=head_dropout,
                drop_path=drop_path,
                variant=variant,
            )
        self.network = network.to(memory_format=torch.channels_last)
        if pipeline is None:
            if policy not in policies.__all__:
                raise ValueError(f"unknown policy {policy!r}; available: {', '.join(map(repr, policies.__all__))}")
            build = getattr(policies, policy)
            arguments = dict(policy_args or {})
            if "num_classes" in inspect.signature(build).parameters:
                arguments = {"num_classes": num_classes, "label_smoothing": label_smoothing} | arguments
            pipeline = AugmentationPipeline(
                build(image_size, **arguments),
                preprocess=Preprocess(size=resize_size or image_size, crop=image_size),
            )
        self.pipeline = pipeline
        self.class_names: tuple[str, ...] | None = None
        self.accuracy = nn.ModuleDict(
            {stage: MulticlassAccuracy(num_classes, average="micro") for stage in ("train_", "val_", "test_")}
        )

    @property
    def preprocess(self) -> Preprocess:
        """What images go through in evaluation."""
        return self.pipeline.preprocess

    def forward(self, image: Tensor) -> Tensor:
        """Give logits of preprocessed images: (B, C, H, W) -> (B, num_classes)."""
        logits: Tensor = self.network(image.contiguous(memory_format=torch.channels_last))
        return logits

    def setup(self, stage: str) -> None:
        """Take the class names from the data."""
        warnings.filterwarnings("ignore", "You have overridden `on_after_batch_transfer` in `LightningModule`")
        names = getattr(getattr(self.trainer, "datamodule", None), "class_names", None)
        if names is not None:
            if len(names) != self.hparams["num_classes"]:
                raise ValueError(f"the data have {len(names)} classes, the task {self.hparams['num_classes']}")
            self.class_names = tuple(names)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment or preprocess the batch, where it is."""
        out: Batch = self.pipeline(batch)
        return out

    def on_train_epoch_start(self) -> None:
        """Begin the pipeline's draws of an epoch."""
        self.pipeline.set_epoch(self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Give the loss of an augmented batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._step(batch, "test")

    def _step(self, batch: Batch, stage: str) -> Tensor:
        if batch.label is None:
            raise ValueError("classification needs labels; this batch has none")
        logits = self(batch.image)
        smoothed = stage != "train" or self.pipeline.mix is not None  # the mix smooths its targets
        smoothing = 0.0 if smoothed else self.hparams["label_smoothing"]
        loss = F.cross_entropy(logits, batch.label, label_smoothing=smoothing)
        hard = batch.label.argmax(1) if batch.label.is_floating_point() else batch.label
        accuracy = cast(MulticlassAccuracy, self.accuracy[f"{stage}_"])
        accuracy.update(logits.detach(), hard)
        log = partial(self.log, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(batch))
        log(f"{stage}/loss", loss, sync_dist=stage != "train")
        log(f"{stage}/accuracy", accuracy)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Give AdamW over all weights, and its schedule by steps."""
        h = self.hparams
        optimizer = AdamW(self.parameters(), lr=h["learning_rate"], weight_decay=h["weight_decay"])
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(step, total, h["warmup_steps"], h["warmup_factor"], h["final_factor"]),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint what it holds."""
        checkpoint[CARD_KEY] = classifier_card(self.network, self.class_names, self.preprocess)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the class names of the checkpoint, unless the data say otherwise."""
        names = checkpoint.get(CARD_KEY, {}).get("class_names")
        if names is None:
            return
        if self.class_names is not None and tuple(names) != self.class_names:
            raise ValueError(
                f"the checkpoint's classes ({', '.join(names)}) are not those of the data "
                f"({', '.join(self.class_names)})"
            )
        self.class_names = tuple(names)


def learning_rate_factor(step: int, total: int, warmup: int, first: float, last: float) -> float:
    """Rise linearly from ``first`` to 1 in ``warmup`` steps, then fall along half a cosine to ``last``.

    A run shorter than ten warm-ups warms up in a tenth of it.

    Example:
        >>> [round(learning_rate_factor(step, 1000, 100, 0.1, 0.0), 3) for step in (0, 50, 100, 550, 1000)]
        [0.1, 0.55, 1.0, 0.5, 0.0]
    """
    warmup = min(warmup, total // 10)
    if step < warmup:
        return first + (1 - first) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return last + (1 - last) * (1 + math.cos(math.pi * progress)) / 2
