"""The frame of all tasks: augmentation on the device, optimiser and schedule, evaluation, checkpoints."""

import inspect
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import AdamW

from kornia_mvit.augmentation import policies
from kornia_mvit.augmentation.pipeline import AugmentationPipeline
from kornia_mvit.batch import Batch
from kornia_mvit.models.backbones import backbone_name
from kornia_mvit.ops.seeds import multiscale_sizes
from kornia_mvit.option_errors import PRECISIONS
from kornia_mvit.preprocess import Preprocess
from kornia_mvit.training.callbacks import KeepMemory, RestoreLoaders
from kornia_mvit.training.keypoints import adopt_flip_pairs
from kornia_mvit.training.lightning_adapter import own_callbacks, trainer_of, transfer_in_module
from kornia_mvit.training.lightning_names import (
    Callback,
    OptimizerLRScheduler,
    TorchCheckpointIO,
    rank_zero_info,
    warn_of_other_lightning,
)
from kornia_mvit.training.loading import check_progress, class_names_of, confine_paths, load_task
from kornia_mvit.training.networks import check_image_size, compile_network, find_layers
from kornia_mvit.training.optimization import parameter_groups, warmup_schedule
from kornia_mvit.training.range_learning import RangeLearning, range_groups
from kornia_mvit.training.resuming import AtomicCheckpointIO
from kornia_mvit.training.runs import RunFolder
from kornia_mvit.training.settings import TaskSettings
from kornia_mvit.training.statistics import is_short, refresh_statistics
from kornia_mvit.weights.cards import Model, model_card
from kornia_mvit.weights.checkpoints import CARD_KEY

__all__ = ["ImageTask", "build_pipeline", "with_values_of"]


class ImageTask(RangeLearning):
    """A network that learns from augmented batches. The base of the three tasks.

    Loaders may give whatever :meth:`Batch.read` takes, such as pairs of images and labels. Batches are augmented on the
    device, after their transfer. A checkpoint carries the model's arguments, the class
    names and the Preprocess, so that :func:`kornia_mvit.from_pretrained` needs nothing else. Precision, gradient
    accumulation, gradient clipping and devices are the Trainer's.

    A task has a record of its settings, a constructor that builds network and pipeline from it, ``training_step``,
    ``predict_step`` and ``evaluate_batch``, and ``reset_scores`` and ``log_scores`` where it has scores of a whole
    epoch.

    Args:
        mode: size of the MobileViT that is built: ``'xxs'``, ``'xs'`` or ``'s'``, or ``'v2-0.5'`` to ``'v2-2.0'`` for
            :class:`~kornia_mvit.MobileViTV2` of a width.
        num_classes: number of classes, without background; on the command line it is taken from the data.
        network: the network, in place of the one built from ``mode``.
        weights: what training starts from: published weights by name, or a checkpoint of any layout.
        pipeline: augmentation and Preprocess, in place of those built from the arguments below.
        image_size: side in pixels of the images that the network sees.
        policy: augmentation in training: the name of a policy in :mod:`kornia_mvit.augmentation.policies`.
        policy_args: arguments of the policy, besides the size.
        variant: see :class:`~kornia_mvit.MobileViT`.
        backbone: the network under the head, in place of MobileViT: ``'timm:NAME'``, such as ``'timm:resnet18'``, or a
            module; see :func:`~kornia_mvit.models.backbones.as_backbone`. A checkpoint keeps the name; a module has to
            be passed again when it is loaded.
        pretrained: whether a backbone of timm starts with the weights that timm publishes, which are fetched; their
            mean and std are used.
        backbone_dropout: the ``dropout`` of :class:`~kornia_mvit.MobileViT`.
        drop_path: see :class:`~kornia_mvit.MobileViT`.
        learning_rate: the highest learning rate, for the whole batch.
        warmup_steps: steps in which the learning rate rises from ``warmup_factor`` of its highest value to the whole.
        warmup_factor: share of the learning rate at the first step.
        final_factor: share of the learning rate at the last step.
        schedule: how the learning rate falls: ``'cosine'`` or ``'poly'``.
        weight_decay: weight decay of AdamW.
        decay_norms: whether weight decay applies to norms and biases too.
        head_lr_multiplier: learning-rate multiplier of the head, which is all that is not the backbone.
        layer_decay: factor on the learning rate from each layer to the one before it.
        train_backbone: False freezes the backbone for the whole run, and trains the head alone: a linear probe.
        freeze_epochs: epochs at the beginning in which the backbone is frozen.
        freeze_norms: freeze the statistics of batch normalisation, as small batches need.
        statistics_images: in a run of at most 1,000 steps, training images from which the statistics of batch
            normalisation are estimated anew before each validation and at the end, 256 in classification, which keeps
            them where they classify more of these images correctly; 0 leaves the running averages.
        antialias: see :class:`~kornia_mvit.AugmentationPipeline`; for a policy that makes large images small.
        label_smoothing: share of a target that is spread over all classes.
        tta: test-time augmentation in validation and test, such as ``'flip'``; see
            :class:`~kornia_mvit.TestTimeAugmentation`.
        use_ema_weights: evaluate the averaged weights of a checkpoint that has them, such as those of
            :class:`~kornia_mvit.training.EMA`; False evaluates the weights that were trained.
        per_class: log the score of each class in evaluation.
        compile: compile the network: true, or 'blocks', which compiles transformer layers alone, each kind once, in a
            third of the time.
        channels_last: keep the channels of a pixel side by side, which is faster on most devices.
        gradient_checkpointing: trade time for memory: true or 'stages', or 'activations', which costs little time.
        dropout: the former name of ``backbone_dropout``, and in segmentation of ``head_dropout``, until 0.3.
        head_factor: the former name of ``head_lr_multiplier``, until 0.3.
        raw_weights: the former name of ``use_ema_weights``, with the opposite meaning, until 0.3.

    Raises:
        ValueError: without ``num_classes``; for unknown names; for arguments that exclude each other; if data and
            checkpoint differ in their classes.
    """

    task_name = "classification"
    prepares = True  # whether evaluation gets preprocessed batches; else the task preprocesses, and maps results back
    renamed: Mapping[str, str] = TaskSettings.renamed
    added: Mapping[str, Any] = TaskSettings.added
    network: nn.Module
    class_names: tuple[str, ...] | None

    def _begin(self, settings: TaskSettings) -> None:
        """Start the module, and keep its settings for checkpoints and loggers."""
        super().__init__()
        warn_of_other_lightning()
        unsaved = [*settings.unsaved, *settings.renamed]
        self.save_hyperparameters(ignore=unsaved)  # arguments of a subclass, and what the command line adds
        self.save_hyperparameters(settings.plain())

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
        check_image_size(network, h["image_size"])
        compile_network(network, h["compile"], dynamic=True if pipeline.multi_scale is not None else None)
        if isinstance(network, Model):
            h["backbone"] = backbone_name(network.backbone)  # for the task's checkpoints
        self.network = network.train()
        self.pipeline = pipeline
        self.class_names = None
        self._told: dict[str, int] = {}
        self._refreshed: int | None = None  # step at which the statistics were estimated

    @property
    def preprocess(self) -> Preprocess:
        """What images go through in evaluation."""
        return self.pipeline.preprocess

    def forward(self, image: Tensor) -> Tensor:
        """Return the network's output for preprocessed images (B, C, H, W).

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
                "use more images, a larger batch_size or larger images"
            ) from error
        return out

    def tell_classes(self, name: str, known: int) -> None:
        """Print over how many classes a mean is, where it is not over all; once for each number."""
        count, trainer = self.hparams["num_classes"], trainer_of(self)
        if known < count and not (trainer is not None and trainer.sanity_checking) and self._told.get(name) != known:
            rank_zero_info(f"{name} is the mean over {known} of {count} classes, those that were there")
        self._told[name] = known

    def arrange(self, image: Tensor) -> Tensor:
        """Lay images out in memory as the network is."""
        return image.contiguous(memory_format=torch.channels_last) if self.hparams["channels_last"] else image

    def configure_callbacks(self) -> list[Callback]:
        """Have what a step on a CPU frees kept for the next one, and loaders left as they were after errors."""
        return [KeepMemory(), RestoreLoaders()]

    def setup(self, stage: str) -> None:
        """Take class names and pairs of keypoints from the data, and let checkpoints be read as data.

        They are so whatever the Trainer's default is.

        Raises:
            ValueError: for a precision that tasks do not support, and for data of another number of classes.
        """
        strategy, precision = self.trainer.strategy, self.trainer.precision
        if precision not in PRECISIONS:
            raise ValueError(f"a task does not support precision {precision!r}; use {', '.join(PRECISIONS)}")
        if type(strategy.checkpoint_io) is TorchCheckpointIO:  # none was asked for
            strategy.checkpoint_io = AtomicCheckpointIO()
        transfer_in_module(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        adopt_flip_pairs(self.pipeline, data)
        names = getattr(data, "class_names", None)
        if names is not None:
            if len(names) != self.hparams["num_classes"]:
                raise ValueError(f"the data have {len(names)} classes, the task {self.hparams['num_classes']}")
            self.class_names = tuple(names)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Return what a loader gave as a batch, and check that its classes are those of the task.

        Raises:
            TypeError: for what :meth:`Batch.read` does not take, saying what would do.
            ValueError: for classes that the task does not have.
        """
        out = Batch.read(batch, ignore_index=self.pipeline.ignore_index)
        trainer = trainer_of(self)
        if trainer is None or not trainer.predicting:
            self._check_classes(out)
        return out

    def _check_classes(self, batch: Batch) -> None:
        count = self.hparams["num_classes"]
        for name, value, least in (("label", batch.label, 0), ("box_label", batch.box_label, -1)):
            if value is None or value.is_floating_point() or value.device.type != "cpu" or not len(value.flatten()):
                continue
            low, high = (int(end) for end in value.aminmax())
            if low < least or high >= count:
                raise ValueError(
                    f"{name} has {high if high >= count else low}, and the task has num_classes={count}, counted from "
                    "0; where classes count from 1, as in torchvision's detection and COCO, subtract 1"
                )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Augment or preprocess the batch, where it is.

        Raises:
            TypeError: for what :meth:`Batch.read` does not take, saying what would do.
        """
        read = Batch.read(batch, ignore_index=self.pipeline.ignore_index)  # a data module may have hooks of its own
        if not self.prepares and not self.pipeline.training:
            return read
        return self._augment(read)

    def on_train_start(self) -> None:
        """Forget what an earlier run of this task, such as a learning-rate finder's, has estimated."""
        super().on_train_start()
        self._refreshed = None

    def on_train_epoch_start(self) -> None:
        """Start the pipeline's random numbers of an epoch, and freeze what does not learn in it."""
        self.pipeline.train()  # whatever was done with the task before
        self.pipeline.set_epoch(self.current_epoch)
        self.freeze_modules()

    def freeze_modules(self) -> None:
        """Put into eval mode what does not learn in this epoch: batch normalisation, the backbone, or neither."""
        h = self.hparams
        self.network.train()
        if h["freeze_norms"]:
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        if not h["train_backbone"] or self.current_epoch < h["freeze_epochs"]:
            _freeze(self.network, {id(parameter) for parameter in find_layers(self.network)[-1].values()})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW over the groups of :func:`parameter_groups`, and its schedule by steps.

        Raises:
            ValueError: for a Trainer without a length, or that accumulates fewer batches than one.
        """
        h = self.hparams
        if self.trainer.accumulate_grad_batches < 1:
            raise ValueError(f"accumulate_grad_batches {self.trainer.accumulate_grad_batches} is not at least 1")
        if self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise ValueError("the schedule needs the length of the run; give max_epochs or max_steps, max_time besides")
        groups = parameter_groups(
            self.network,
            h["learning_rate"],
            h["weight_decay"],
            head_lr_multiplier=h["head_lr_multiplier"],
            layer_decay=h["layer_decay"],
            decay_norms=h["decay_norms"],
        ) + range_groups(self.pipeline.ranges)
        # In one pass over the weights. It unscales half precision itself, where gradients could not be clipped then.
        devices = {parameter.device.type for parameter in self.network.parameters()}
        fused = devices <= {"cpu", "cuda", "mps", "xpu"} and not str(self.trainer.precision).startswith("16")
        optimizer = AdamW(groups, fused=fused)
        total = int(self.trainer.estimated_stepping_batches)
        epochs = max(1, self.trainer.max_epochs or 1)
        scheduler = warmup_schedule(
            optimizer,
            total,
            warmup=h["warmup_steps"],
            first=h["warmup_factor"],
            last=h["final_factor"],
            frozen=round(total * min(1.0, h["freeze_epochs"] / epochs)),
            shape=h["schedule"],
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def refresh_statistics(self) -> None:
        """Estimate the statistics of batch normalisation anew, where the run is short and has taken a step since.

        Callbacks that average weights have put the average in place by then, so that the statistics are the average's.
        """
        images, step = self.hparams["statistics_images"], self.trainer.global_step
        if images and self._refreshed != step and is_short(self.trainer) and refresh_statistics(self, images):
            self._refreshed = step

    def on_train_end(self) -> None:
        """Estimate the statistics anew where no validation has done so for the last weights."""
        self.refresh_statistics()

    # ----------------------------------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Log the loss, and return what :meth:`evaluate_batch` does."""
        return self.evaluate_batch(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Log the loss, and return what :meth:`evaluate_batch` does."""
        return self.evaluate_batch(batch, "test")

    def evaluate_batch(self, batch: Batch, stage: str) -> dict[str, Any]:
        """Log the loss of a batch, and update the scores of the epoch.

        Args:
            batch: of the validation or test data.
            stage: ``'val'`` or ``'test'``, under which the values are logged.

        Returns:
            The ``loss`` and the predictions, which callbacks take.
        """
        raise NotImplementedError(f"{type(self).__name__} has no evaluation")

    def reset_scores(self) -> None:
        """Reset the scores that :meth:`log_scores` computes."""

    def log_scores(self, stage: str) -> None:
        """Log the scores of an epoch of evaluation, over all processes."""

    def on_validation_epoch_start(self) -> None:
        """Estimate the statistics of batch normalisation anew in a short run, and reset the scores."""
        self.refresh_statistics()
        self.reset_scores()

    def on_test_epoch_start(self) -> None:
        """Reset the scores."""
        self.reset_scores()

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self.log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self.log_scores("test")

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def card(self) -> dict[str, Any]:
        """Return, as plain data, a description of what a checkpoint holds."""
        return model_card(self.network, self.class_names, self.preprocess, self.task_name)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the card to the checkpoint."""
        checkpoint[CARD_KEY] = self.card()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's class names, and those of its weights that the settings ask for.

        Raises:
            ValueError: for other classes than the data have, and for weights that the checkpoint does not hold.
        """
        trainer = trainer_of(self)
        if trainer is not None:
            check_progress(checkpoint, trainer)
            callbacks = list(own_callbacks(trainer))
            for callback in callbacks:
                if isinstance(callback, RunFolder):
                    callback.follow(trainer, checkpoint)
            confine_paths(checkpoint, callbacks)
            saved = checkpoint.get("hyper_parameters")
            if trainer.training and not (isinstance(saved, dict) and "statistics_images" in saved):
                self.hparams["statistics_images"] = 0  # a run of an earlier version goes on as it began
        if not self.hparams["use_ema_weights"] and (trainer is None or not trainer.training):
            if "current_model_state" not in checkpoint:
                raise ValueError("the checkpoint has no raw weights beside its average; leave use_ema_weights on")
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


def _freeze(module: nn.Module, head: set[int]) -> None:
    """Put into eval mode all modules without parameters of the head; the head's own stay in train mode."""
    own = [id(parameter) in head for parameter in module.parameters()]
    if not any(own):
        module.eval()
    elif not all(own):
        for child in module.children():
            _freeze(child, head)


def with_values_of(preprocess: Preprocess, given: Preprocess | None) -> Preprocess:
    """Return a Preprocess with the channel order, mean and std of another, if there is one."""
    if given is None:
        return preprocess
    return replace(preprocess, channel_order=given.channel_order, mean=given.mean, std=given.std)


def build_pipeline(
    policy: str,
    policy_args: dict[str, Any] | None,
    image_size: int | tuple[int, int],
    preprocess: Preprocess,
    *,
    multi_scale: tuple[int, int, int] | None = None,
    ignore_index: int = 255,
    min_box_visibility: float = 0.0,
    antialias: bool = False,
    **defaults: Any,
) -> AugmentationPipeline:
    """Build a pipeline from a policy's name.

    Its random numbers depend on Lightning's ``seed_everything``.

    Args:
        policy: one of :mod:`kornia_mvit.augmentation.policies`.
        policy_args: its arguments, besides the size.
        image_size: side in pixels of the result, or its height and width.
        preprocess: applied after the policy in training, and alone in evaluation.
        multi_scale: smallest and largest side in pixels and number of the sizes that each step samples from.
        ignore_index: value of the pixels to ignore in masks.
        min_box_visibility: share of a box that has to stay in view.
        antialias: as the pipeline takes it.
        defaults: further arguments of the policy, used where the policy has them and ``policy_args`` does not.

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
        antialias=antialias,
        multi_scale=None if multi_scale is None else multiscale_sizes(*multi_scale),
        seed=int(os.environ.get("PL_GLOBAL_SEED", "0")),
    )
