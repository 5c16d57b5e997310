"""Everything that the package uses of Lightning, and of its loop's metrics, without a promise by Lightning.

Tried with pytorch-lightning 2.6.6 and torchmetrics 1.9.0; ``tests/training/test_lightning_adapter.py`` holds what is
expected of them. It serves to keep in a checkpoint what Lightning leaves out in the middle of an epoch: the metrics so
far, and the averaging of weights. All of it is kept as plain data.
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader
from torchmetrics import Metric

from kornia_mvit.training.lightning_names import (
    ModelCheckpoint,
    SLURMEnvironment,
    StochasticWeightAveraging,
    _Metadata,
    _ResultMetric,
    _Sync,
    load_address,
    pl,
)

__all__ = [
    "EpochMetrics",
    "ends_step",
    "is_trial",
    "is_validation_due",
    "is_within_epoch",
    "keep_one_file",
    "leave_finished_epoch",
    "load_address",
    "move_run",
    "own_callbacks",
    "recount_batches",
    "requeue_signal",
    "restore_loaders",
    "resume_averaging",
    "save_after_validation",
    "trainer_of",
    "transfer_in_module",
]

_REDUCTIONS = {
    "mean": torch.mean, "sum": torch.sum, "max": torch.max, "min": torch.min,
    "python sum": sum, "python max": max, "python min": min,
}  # fmt: skip
_FLAGS = ("prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")


def trainer_of(module: pl.LightningModule) -> pl.Trainer | None:
    """Return the Trainer that a module is attached to, or None."""
    return module._trainer


def requeue_signal(trainer: pl.Trainer) -> int | None:
    """Return the signal on which SLURM is to run the job again, or None where SLURM does not run it, or is not to."""
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal
    return None


def own_callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    """Return the callbacks of a Trainer, in their order."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    return callbacks


def is_trial(trainer: pl.Trainer) -> bool:
    """Return whether it is Lightning's ``fast_dev_run``, which is to leave no traces."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set by a connector


def restore_loaders() -> None:
    """Undo what Lightning changes in loaders and samplers while a hook makes some, which an error in the hook leaves.

    With it, a loader of which the batch size was given by place cannot be predicted with.
    """
    classes: list[type] = [DataLoader, BatchSampler]
    for kind in classes:
        below: list[type] = type.__subclasses__(kind)
        classes += [one for one in below if one not in classes]
        for name in ("__setattr__", "__delattr__", "__init__"):
            if f"__old{name}" in vars(kind):
                setattr(kind, name, vars(kind)[f"__old{name}"])
                delattr(kind, f"__old{name}")


def move_run(trainer: pl.Trainer, folder: Path) -> None:
    """Set the folder of a run after its Trainer was made."""
    trainer._default_root_dir = str(folder)  # type: ignore[attr-defined]  # set by a connector


def save_after_validation(callback: ModelCheckpoint) -> None:
    """Let a ModelCheckpoint write right after the validation that it looks at, unless it was told when.

    By itself it waits for the end of the epoch, and then comes after the checkpoint that a run resumes from.
    """
    if callback._save_on_train_epoch_end is None:
        callback._save_on_train_epoch_end = False


def keep_one_file(callback: ModelCheckpoint, name: str) -> None:
    """Let a ModelCheckpoint write under one name, though there may be a file that it does not know of."""
    callback.filename, callback._enable_version_counter = name, False


def transfer_in_module(trainer: pl.Trainer) -> None:
    """Let a task's hooks around the transfer of a batch stand beside a data module's, without Lightning's warning.

    Lightning warns once in a process, with the first batch. Here it does so early, where the warning is not shown.
    """
    hooks = trainer._data_connector._datahook_selector
    if hooks is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"You have overridden `on_\w+_batch_transfer` in `LightningModule`")
            for name in ("on_before_batch_transfer", "on_after_batch_transfer"):
                hooks.get_instance(name)


def ends_step(trainer: pl.Trainer, before: int) -> bool:
    """Return whether the batch that ended took a step of the optimiser since the step of a given number.

    In its last pass Lightning's StochasticWeightAveraging takes none, and passes over the data for batch normalisation
    alone: there each batch counts.
    """
    return trainer.global_step != before or trainer.fit_loop._skip_backward


def is_validation_due(trainer: pl.Trainer) -> bool:
    """Return whether validation follows the batch that ended."""
    fetcher: Any = trainer.fit_loop._data_fetcher
    return bool(trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher))


def is_within_epoch(trainer: pl.Trainer) -> bool:
    """Return whether an epoch of training has begun and not ended."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return bool(progress.processed < progress.started)


def leave_finished_epoch(trainer: pl.Trainer) -> None:
    """Let a run that resumes between two epochs start the next one.

    With ``max_steps`` Lightning resumes the finished one, and leaves out the next or runs it under a wrong number.
    """
    trainer.fit_loop.epoch_loop.restarting = False
    progress: Any = trainer.fit_loop.epoch_progress
    if progress.current.ready == progress.current.started:
        trainer.fit_loop.reset_restart_stage()
    for tracker in (progress.total, progress.current):
        tracker.completed = tracker.processed


def recount_batches(trainer: pl.Trainer) -> None:
    """Let the loop take over how many batches its loaders have in this epoch; by itself it counts once in a run."""
    loop = trainer.fit_loop
    combined, fetcher = loop._combined_loader, loop._data_fetcher
    if combined is None or fetcher is None:
        return
    limit: Any = trainer.limit_train_batches
    lengths = [len(loader) for loader in combined.flattened]
    combined.limits = [int(n * limit) if isinstance(limit, float) else min(n, limit) for n in lengths]
    iterator: Any = combined._iterator
    iterator.limits = combined.limits  # of the epoch that runs
    count = len(combined)
    fetcher.length, fetcher.done = count, count == 0
    loop.max_batches = count
    interval: Any = trainer.val_check_interval
    if isinstance(interval, float):
        check: Any = trainer
        check.val_check_batch = max(1, int(count * interval))


class EpochMetrics:
    """The training metrics of the epoch that runs: what was logged with ``self.log``, and torchmetrics' own sums.

    Metrics of the validation, which starts again, are left out.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._trained: set[str] = set()

    def start(self, module: pl.LightningModule) -> None:
        """Note where the metrics stand at the start of an epoch."""
        self._trained = set()
        self._counts = _counts(module)

    def start_validation(self, module: pl.LightningModule) -> None:
        """Note which metrics the training has updated."""
        self._trained |= self._updated(module)

    def end_validation(self, module: pl.LightningModule) -> None:
        """Note where the validation has left the metrics."""
        self._counts = _counts(module)

    def _updated(self, module: pl.LightningModule) -> set[str]:
        return {name for name, count in _counts(module).items() if count and count != self._counts.get(name, 0)}

    def state_dict(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
        """Return the metrics as plain data, tensors on the CPU; between epochs those of callbacks alone."""
        known = {name: _plain(value) for name, value in trainer._logger_connector._callback_metrics.items()}
        state: dict[str, Any] = {"callback_metrics": known, "logged": [], "metrics": {}}
        if not is_within_epoch(trainer):
            return state
        wanted = self._trained | self._updated(module)
        for key, item in trainer.fit_loop.epoch_loop._results.items():
            if item.has_reset or item.meta.sync.group is not None:
                continue
            if not item.is_tensor:
                wanted.add(str(item.meta.metric_attribute))
            state["logged"].append(_logged(key, item))
        for name, metric in _metrics(module).items():
            values = {one: _plain(getattr(metric, one)) for one in metric._defaults}
            if name in wanted and all(value is not None for value in values.values()):
                state["metrics"][name] = {"updates": int(metric._update_count), "values": values}
        return state

    def load_state_dict(self, trainer: pl.Trainer, module: pl.LightningModule, state: Mapping[str, Any]) -> None:
        """Restore the metrics, once the training is about to resume.

        Raises:
            ValueError: if the state is not one of this run's metrics, saying which.
        """
        device = trainer.strategy.root_device
        connector = trainer._logger_connector
        known = {name: _tensor(value, name).to(device) for name, value in state["callback_metrics"].items()}
        connector._callback_metrics.update(known)
        metrics = _metrics(module)
        for name, saved in state["metrics"].items():
            if name in metrics:  # else the run has another task
                _set_values(metrics[name], saved, name)
        if is_within_epoch(trainer):
            for saved in state["logged"]:
                item = _new_result(trainer, metrics, saved)
                if item is not None:
                    trainer.fit_loop.epoch_loop._results[saved["key"]] = item
            connector._first_loop_iter = False  # or the next logging would reset the sums
        self._trained, self._counts = set(state["metrics"]), _counts(module)


def _metrics(module: pl.LightningModule) -> dict[str, Metric]:
    return {name: one for name, one in module.named_modules() if isinstance(one, Metric)}


def _counts(module: pl.LightningModule) -> dict[str, int]:
    return {name: int(metric._update_count) for name, metric in _metrics(module).items()}


def _plain(value: Any) -> Any:
    """Return a copy on the CPU of a tensor, or of a list of them; None of anything else."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, list) and all(isinstance(one, Tensor) for one in value):
        return [one.detach().cpu().clone() for one in value]
    return None


def _tensor(value: Any, name: object) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 0:
        raise ValueError(f"{name!r} is not a number")
    return value


def _logged(key: str, item: _ResultMetric) -> dict[str, Any]:
    """Return what was logged under a key, and how."""
    meta = item.meta
    return {
        "key": key,
        "fx": meta.fx,
        "name": meta.name,
        "reduction": next(name for name, one in _REDUCTIONS.items() if one is meta.reduce_fx),
        "sync": meta.sync.should,
        "rank_zero_only": meta.sync.rank_zero_only,
        "dataloader_idx": meta.dataloader_idx,
        "metric": meta.metric_attribute,
        "updates": int(item._update_count),
        "values": {name: _plain(getattr(item, name)) for name in item._defaults} if item.is_tensor else None,
        **{name: getattr(meta, name) for name in _FLAGS},
    }


def _new_result(trainer: pl.Trainer, metrics: Mapping[str, Metric], saved: Mapping[str, Any]) -> _ResultMetric | None:
    """Return the entry that Lightning's log would have made; None for a metric that the task no longer has."""
    words = {name: saved[name] for name in ("key", "fx", "name")}
    flags = {name: saved[name] for name in (*_FLAGS, "sync", "rank_zero_only")}
    index, attribute, values = saved["dataloader_idx"], saved["metric"], saved["values"]
    good = all(isinstance(word, str) for word in words.values()) and all(
        isinstance(one, bool) for one in flags.values()
    )
    if not good or not isinstance(index, int | None) or not isinstance(attribute, str | None):
        raise ValueError(f"what was logged as {saved['name']!r} is not as Lightning logs it")
    if values is None and attribute not in metrics:
        return None
    meta = _Metadata(
        fx=words["fx"],
        name=words["name"],
        reduce_fx=cast(Any, _REDUCTIONS[saved["reduction"]]),
        dataloader_idx=index,
        metric_attribute=attribute,
        **{name: flags[name] for name in _FLAGS},
    )
    meta.sync = _Sync(fn=trainer.strategy.reduce, _should=flags["sync"], rank_zero_only=flags["rank_zero_only"])
    item = _ResultMetric(meta, values is not None)
    if values is None:
        item.value = metrics[cast(str, attribute)]
        item._update_count = int(saved["updates"])
    else:
        _set_values(item, saved, words["name"])
    return item.to(trainer.strategy.root_device)


def _set_values(metric: Metric, saved: Mapping[str, Any], name: str) -> None:
    """Set the sums of a metric to saved ones of the same kinds and shapes."""
    values, updates = saved["values"], saved["updates"]
    if set(values) != set(metric._defaults) or not isinstance(updates, int) or updates < 0:
        raise ValueError(f"metric {name!r} has {', '.join(metric._defaults)}, not what is kept of it")
    for key, default in metric._defaults.items():
        value = values[key]
        tensors: Iterable[Any] = value if isinstance(value, list) else (value,)
        same = isinstance(default, list) or (
            isinstance(value, Tensor)
            and value.shape == default.shape
            and value.is_floating_point() == default.is_floating_point()
        )
        if not same or not all(isinstance(one, Tensor) for one in tensors):
            raise ValueError(f"{key} of metric {name!r} has another shape or type")
        kept = [one.to(metric.device) for one in tensors]
        setattr(metric, key, kept if isinstance(value, list) else kept[0])
    metric._update_count, metric._computed = updates, None


def resume_averaging(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Let Lightning's StochasticWeightAveraging resume where a checkpoint left it.

    By itself it resumes its schedule at the start of the next epoch, and so leaves out a step of it; and it counts the
    averaged epochs from zero where there is none. In its last pass, which updates batch normalisation, it must take no
    steps of the optimiser, and must keep the statistics that it has counted.
    """
    for callback in own_callbacks(trainer):
        if not isinstance(callback, StochasticWeightAveraging) or callback._scheduler_state is None:
            continue
        progress: Any = trainer.fit_loop.epoch_progress.current
        epoch = progress.completed
        groups = [{**group} for optimizer in trainer.optimizers for group in optimizer.param_groups]
        progress.completed = min(epoch, callback.swa_end)  # the callback begins in epochs that it averages alone
        callback.on_train_epoch_start(trainer, module)
        progress.completed = epoch
        if epoch > callback.swa_end and is_within_epoch(trainer):
            state = {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}
            callback.on_train_epoch_start(trainer, module)
            module.load_state_dict(state, strict=False)
        own = (group for optimizer in trainer.optimizers for group in optimizer.param_groups)
        for group, before in zip(own, groups, strict=True):  # the new schedule has changed its rates
            group.update({name: value for name, value in before.items() if name != "params"})
