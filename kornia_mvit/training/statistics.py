"""Statistics of batch normalisation, estimated anew where those that training leaves lag behind the weights.

In training, batch normalisation uses each batch's own mean and variance; in evaluation their running averages, which
weigh the last ten steps or so. In a short run the weights change fast in these, and the averages are of a network that
is gone: training is all right, validation all wrong.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import IterableDataset

from kornia_mvit.batch import Batch
from kornia_mvit.ops.seeds import BATCH_PLACE, combine_seed
from kornia_mvit.training.lightning_names import CombinedLoader, TrainerFn, isolate_rng, pl, rank_zero_warn

__all__ = ["SHORT_RUN", "estimating", "is_short", "refresh_statistics", "some_batches", "warn_of_lag"]

SHORT_RUN = 1000  # steps, beyond which the running averages are as good
_GAP = 0.2  # between the accuracies of training and validation, from which a look at the statistics is worth its time
_CHOICE = 0x57A7  # of training images


@contextmanager
def estimating(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Replace the statistics of norms by plain averages over the batches that pass through them inside the block.

    The norms' modes, momentum and counters are restored behind it; after an error, and where no batch has passed, the
    statistics too.

    Args:
        norms: layers of batch normalisation; those without running statistics are left alone.

    Example:
        >>> norm = nn.BatchNorm1d(1).eval()
        >>> with torch.no_grad(), estimating([norm]):
        ...     for batch in (torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [8.0]])):
        ...         _ = norm(batch)
        >>> norm.running_mean, norm.running_var  # the variances are 2 and 8
        (tensor([3.5000]), tensor([5.]))
    """
    kept = [cast(_BatchNorm, norm) for norm in norms if getattr(norm, "running_mean", None) is not None]
    before = [(_buffers_of(norm), norm.momentum, norm.training) for norm in kept]
    done = False
    try:
        for norm in kept:
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's word for the plain average
            norm.train()
        yield
        done = all(int(cast(Tensor, norm.num_batches_tracked)) for norm in kept)
    finally:
        for norm, (buffers, momentum, training) in zip(kept, before, strict=True):
            norm.momentum = momentum
            norm.train(training)
            for name, value in norm.named_buffers():
                if not done or name == "num_batches_tracked":
                    value.copy_(buffers[name])


def refresh_statistics(task: Any, images: int) -> bool:
    """Estimate the statistics of a task's network anew from some of its training images.

    The images are those that evaluation would see, and the estimates of a classifier are kept only where they classify
    more of them correctly than the running averages do. Where each image is evaluated at its own size, the images are
    augmented ones, and the estimates are kept. The images are the same each time, and for each process of a distributed
    run. No generator moves on by it, nor does the place in the training data.

    Args:
        task: an :class:`~kornia_mvit.training.base.ImageTask` in a fit.
        images: the number of images at most.

    Returns:
        Whether it was tried: not where no norm is trained, and for data that are not read by number, such as shards.
    """
    network: nn.Module = task.network
    modes = [(module, module.training) for module in network.modules()]
    task.freeze_modules()  # in train mode is now what learns
    norms = [one for one in network.modules() if isinstance(one, _BatchNorm) and one.training]
    network.eval()
    was_training = task.pipeline.training
    # Compiling for a few batches is no gain.
    run: Callable[[Tensor], Tensor] = network.forward if task.hparams["compile"] else network
    try:
        if not norms:
            return False
        with torch.no_grad(), isolate_rng(), task.trainer.precision_plugin.forward_context():
            task.pipeline.train(not task.prepares)
            batches = list(some_batches(task, task.trainer.train_dataloader, images))
            buffers = _buffers_of(network)
            before = _count_right(task, run, batches)
            with estimating(norms):
                for batch in batches:
                    run(task.arrange(batch.image))
            if before is not None and cast(int, _count_right(task, run, batches)) <= before:
                _set_buffers(network, buffers)
    finally:
        task.pipeline.train(was_training)
        for module, mode in modes:
            module.training = mode
    return bool(batches)


def _count_right(task: Any, run: Callable[[Tensor], Tensor], batches: Sequence[Batch]) -> int | None:
    """Return how many images of batches are classified correctly; None where the task is no classification."""
    if task.task_name != "classification":
        return None
    found = [cast(Tensor, run(task.arrange(batch.image)).argmax(1) == batch.label) for batch in batches]
    return sum(int(right.sum()) for right in found)


def warn_of_lag(task: Any, images: int) -> None:
    """Warn at the end of a fit where validation is far behind training, and statistics estimated anew close the gap.

    Args:
        task: a classification task.
        images: of training and of validation, that it is tried with at most.
    """
    trainer: pl.Trainer = task.trainer
    train, val = (trainer.callback_metrics.get(f"{name}/accuracy") for name in ("train", "val"))
    if train is None or val is None or float(train) - float(val) < _GAP:
        return
    buffers, mode = _buffers_of(task.network), task.training
    task.eval()
    before = _accuracy(task, images)
    if refresh_statistics(task, images):
        after = _accuracy(task, images)
        _set_buffers(task.network, buffers)
        if after - before > (float(train) - before) / 2:
            rank_zero_warn(
                f"validation's accuracy is {float(val):.2f}, training's {float(train):.2f}, since the statistics of "
                f"batch normalisation lag behind the weights: estimated anew, they give {after:.2f} on up to {images} "
                f"validation images; set statistics_images={images}, or train longer"
            )
    task.train(mode)


def is_short(trainer: pl.Trainer) -> bool:
    """Return whether a fit has at most :data:`SHORT_RUN` steps, and is past the check of validation before it."""
    fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
    return fitting and trainer.estimated_stepping_batches <= SHORT_RUN


def _buffers_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


def _set_buffers(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, value in module.named_buffers():
        value.copy_(buffers[name])


def _accuracy(task: Any, images: int) -> float:
    with torch.no_grad(), isolate_rng(), task.trainer.precision_plugin.forward_context():
        batches = list(some_batches(task, task.trainer.val_dataloaders, images))
        return (_count_right(task, task.network, batches) or 0) / max(1, sum(map(len, batches)))


def some_batches(task: Any, loaders: Any, images: int) -> Iterator[Batch]:
    """Load a fixed random choice of a loader's images, in batches as large as its own, as the pipeline's mode says.

    Args:
        task: an :class:`~kornia_mvit.training.base.ImageTask` with a trainer.
        loaders: one or several; nothing is loaded where none reads its data by number.
        images: the number of images at most.
    """
    flat = [] if loaders is None else CombinedLoader(loaders).flattened
    loader = next((one for one in flat if _is_read_by_number(getattr(one, "dataset", None))), None)
    if loader is None:
        return
    data, count = loader.dataset, len(loader.dataset)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(combine_seed(_CHOICE, count)))[:images]
    size = getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size or len(order)
    for number, part in enumerate(torch.tensor_split(order, max(1, -(-len(order) // size)))):
        numbers = part.tolist()
        samples = data.__getitems__(numbers) if hasattr(data, "__getitems__") else [data[one] for one in numbers]
        outside = BATCH_PLACE.set((0, -1, number))  # what is drawn depends on it, and not on the pipeline's counter
        try:
            batch = task.trainer.strategy.batch_to_device(loader.collate_fn(samples), task.device, 0)
        finally:
            BATCH_PLACE.reset(outside)
        yield batch


def _is_read_by_number(data: Any) -> bool:
    known = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    return known and not isinstance(data, IterableDataset)
