"""What the tasks share: augmentation on the device, optimiser and schedule, and what a checkpoint says of itself."""

import inspect
import os
import warnings
from pathlib import Path
from typing import IO, Any, Self

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import AdamW

from kornia_mvit.augmentation import policies
from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.batch import Batch
from kornia_mvit.ops.seeds import multiscale_sizes
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.training.loading import check_progress, class_names_of, confine_paths, load_task
from kornia_mvit.training.networks import find_layers
from kornia_mvit.training.optimization import parameter_groups, warmup_schedule
from kornia_mvit.training.resuming import AtomicCheckpointIO
from kornia_mvit.weights.checkpoints import CARD_KEY

__all__ = ["ImageTask", "build_pipeline"]

_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


class ImageTask(pl.LightningModule):
    """A network that learns from augmented batches.

    It reads its settings from ``self.hparams``, which its subclasses' arguments fill: ``learning_rate``,
    ``weight_decay``, ``decay_norms``, ``head_factor``, ``layer_decay``, ``warmup_steps``, ``warmup_factor``,
    ``final_factor``, ``train_backbone``, ``freeze_epochs``, ``freeze_norms``, ``compile``, ``channels_last``,
    ``raw_weights`` and, where they have it, ``schedule``.
    """

    task_name = "classification"
    prepares = True  # for evaluation; False where a step does, which then can bring predictions back
    network: nn.Module
    pipeline: AugmentationPipeline
    class_names: tuple[str, ...] | None

    def _adopt(self, network: nn.Module, pipeline: AugmentationPipeline) -> None:
        """Take network and pipeline, and do to the network what the settings say."""
        h = self.hparams
        if h["channels_last"]:
            network = network.to(memory_format=torch.channels_last)
        if h["gradient_checkpointing"]:
            names = ("set_gradient_checkpointing", "set_grad_checkpointing")  # ours, timm's
            switch = next((getattr(network, name) for name in names if hasattr(network, name)), None)
            if switch is None:
                raise ValueError(f"{type(network).__name__} has no gradient checkpointing; leave it off")
            switch(h["gradient_checkpointing"])
        if not h["train_backbone"]:
            network.requires_grad_(False)
            for parameter in find_layers(network)[-1].values():
                parameter.requires_grad_(True)
        if h["compile"]:
            network.compile(dynamic=True if pipeline.multi_scale is not None else None)
        self.network = network.train()
        self.pipeline = pipeline
        self.class_names = None
        self._told: dict[str, int] = {}

    @property
    def preprocess(self) -> Preprocess:
        """What images go through in evaluation."""
        return self.pipeline.preprocess

    def forward(self, image: Tensor) -> Tensor:
        """Give what the network gives for preprocessed images (B, C, H, W).

        Raises:
            ValueError: where a training batch has too few pixels for batch normalisation.
        """
        try:
            out: Tensor = self.network(self.arrange(image))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            count, _, height, width = image.shape
            raise ValueError(
                f"batch normalisation needs more than {count} image of {height}x{width} pixels in a training batch; "
                "give more images, a larger batch_size or larger images"
            ) from error
        return out

    def tell_classes(self, name: str, known: int) -> None:
        """Say over how many classes a mean is, where it is not over all, once for each number."""
        count, trainer = self.hparams["num_classes"], self._trainer
        if known < count and not (trainer is not None and trainer.sanity_checking) and self._told.get(name) != known:
            rank_zero_info(f"{name} is the mean over {known} of {count} classes, those that were there")
        self._told[name] = known

    def arrange(self, image: Tensor) -> Tensor:
        """Lay images out in memory as the network is."""
        return image.contiguous(memory_format=torch.channels_last) if self.hparams["channels_last"] else image

    def setup(self, stage: str) -> None:
        """Take the class names from the data, and have checkpoints read as data, whatever the Trainer's default is."""
        strategy, precision = self.trainer.strategy, self.trainer.precision
        if precision not in _PRECISIONS:
            raise ValueError(f"a task cannot compute in precision {precision!r}; give {', '.join(_PRECISIONS)}")
        if type(strategy.checkpoint_io) is TorchCheckpointIO:  # none was asked for
            strategy.checkpoint_io = AtomicCheckpointIO()
        warnings.filterwarnings("ignore", "You have overridden `on_after_batch_transfer` in `LightningModule`")
        names = getattr(getattr(self.trainer, "datamodule", None), "class_names", None)
        if names is not None:
            if len(names) != self.hparams["num_classes"]:
                raise ValueError(f"the data have {len(names)} classes, the task {self.hparams['num_classes']}")
            self.class_names = tuple(names)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment or preprocess the batch, where it is.

        Raises:
            TypeError: for what is no batch, such as the pairs of a loader of your own.
        """
        if not isinstance(batch, Batch):
            raise TypeError(
                f"expected a kornia_mvit.Batch, got {type(batch).__name__}; give the DataLoader "
                "collate_fn=Batch.collate and samples such as {'image': image, 'label': label}"
            )
        if not self.prepares and not self.pipeline.training:
            return batch
        out: Batch = self.pipeline(batch)
        return out

    def on_train_epoch_start(self) -> None:
        """Begin the pipeline's draws of an epoch, and put to rest what is not to learn."""
        self.pipeline.train()  # whatever was done with the task before
        self.pipeline.set_epoch(self.current_epoch)
        self.rest()

    def rest(self) -> None:
        """Put into eval mode what does not learn in this epoch: norms whose statistics stay, a frozen backbone."""
        h = self.hparams
        self.network.train()
        if h["freeze_norms"]:
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        if not h["train_backbone"] or self.current_epoch < h["freeze_epochs"]:
            _rest(self.network, {id(parameter) for parameter in find_layers(self.network)[-1].values()})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Give AdamW over the groups of :func:`parameter_groups`, and its schedule by steps."""
        h = self.hparams
        if self.trainer.accumulate_grad_batches < 1:
            raise ValueError(f"accumulate_grad_batches {self.trainer.accumulate_grad_batches} is not at least 1")
        if self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise ValueError("the schedule needs the length of the run; give max_epochs or max_steps, max_time besides")
        groups = parameter_groups(
            self.network,
            h["learning_rate"],
            h["weight_decay"],
            head_factor=h["head_factor"],
            layer_decay=h["layer_decay"],
            decay_norms=h["decay_norms"],
        )
        optimizer = AdamW(groups)
        total = int(self.trainer.estimated_stepping_batches)
        epochs = max(1, self.trainer.max_epochs or 1)
        scheduler = warmup_schedule(
            optimizer,
            total,
            warmup=h["warmup_steps"],
            first=h["warmup_factor"],
            last=h["final_factor"],
            frozen=round(total * min(1.0, h["freeze_epochs"] / epochs)),
            shape=h.get("schedule", "cosine"),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def card(self) -> dict[str, Any]:
        """Say in plain data what a checkpoint holds."""
        raise NotImplementedError(f"{type(self).__name__} has no card")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint what it holds."""
        checkpoint[CARD_KEY] = self.card()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the class names of the checkpoint, unless the data say otherwise, and the weights that are asked for."""
        trainer = self._trainer
        if trainer is not None:
            check_progress(checkpoint, trainer)
            confine_paths(checkpoint, trainer.callbacks)  # type: ignore[attr-defined]  # set by a connector
        if self.hparams["raw_weights"] and (trainer is None or not trainer.training):
            if "current_model_state" not in checkpoint:
                raise ValueError("the checkpoint has no raw weights beside its average; leave raw_weights off")
            checkpoint["state_dict"] = checkpoint["current_model_state"]
        names = class_names_of(checkpoint)
        if names is None:
            return
        if self.class_names is not None and names != self.class_names:
            raise ValueError(
                f"the checkpoint's classes ({', '.join(names)}) are not those of the data "
                f"({', '.join(self.class_names)})"
            )
        self.class_names = names

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build the task that a checkpoint was trained as, with its weights.

        The checkpoint is data: its settings are compared with the arguments of the class and nothing in it is run.

        Args:
            checkpoint_path: the checkpoint, or an open file.
            map_location: where the tensors go, as :func:`torch.load` takes it.
            hparams_file: YAML or CSV with the settings, in place of the checkpoint's.
            strict: whether the names of weights have to be the same.
            weights_only: False leaves all to Lightning, which then runs what a pickle says: only for your own files.
            kwargs: arguments of the class, in place of the checkpoint's settings.

        Raises:
            CheckpointError: if the file cannot be read, or has settings that are not plain values of the arguments.
        """
        if weights_only is False:
            return super().load_from_checkpoint(
                checkpoint_path, map_location, hparams_file, strict, weights_only=False, **kwargs
            )
        return load_task(cls, checkpoint_path, map_location, hparams_file, strict, **kwargs)


def _rest(module: nn.Module, head: set[int]) -> None:
    """Put into eval mode all that has none of the head's parameters; what is wholly the head's keeps its dropout."""
    own = [id(parameter) in head for parameter in module.parameters()]
    if not any(own):
        module.eval()
    elif not all(own):
        for child in module.children():
            _rest(child, head)


def build_pipeline(
    policy: str,
    policy_args: dict[str, Any] | None,
    image_size: int | tuple[int, int],
    preprocess: Preprocess,
    *,
    multi_scale: tuple[int, int, int] | None = None,
    ignore_index: int = 255,
    min_box_visibility: float = 0.0,
    **defaults: Any,
) -> AugmentationPipeline:
    """Build a pipeline from a policy's name.

    What it draws depends on Lightning's ``seed_everything``.

    Args:
        policy: one of :mod:`kornia_mvit.augmentation.policies`.
        policy_args: its arguments, besides the size.
        image_size: side in pixels of the result, or its height and width.
        preprocess: what comes after it, and alone in evaluation.
        multi_scale: least and greatest side in pixels and their number, of the sizes that each step draws from.
        ignore_index: number of the pixels to ignore in masks.
        min_box_visibility: share of a box that has to stay in view.
        defaults: further arguments of the policy, taken where it has such and they are not given.

    Raises:
        ValueError: for an unknown policy or argument.
    """
    if policy not in policies.__all__:
        raise ValueError(f"unknown policy {policy!r}; available: {', '.join(map(repr, policies.__all__))}")
    build = getattr(policies, policy)
    known = inspect.signature(build).parameters
    given = {name: value for name, value in defaults.items() if name in known} | dict(policy_args or {})
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{policy} has no argument {', '.join(unknown)}; it has {', '.join(known)}")
    return AugmentationPipeline(
        build(image_size, **given),
        preprocess=preprocess,
        ignore_index=ignore_index,
        min_box_visibility=min_box_visibility,
        multi_scale=None if multi_scale is None else multiscale_sizes(*multi_scale),
        seed=int(os.environ.get("PL_GLOBAL_SEED", "0")),
    )
