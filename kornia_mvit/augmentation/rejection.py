"""Augmenting again the images whose result does not meet a condition."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from kornia_mvit.augmentation.randomness import uncompiled
from kornia_mvit.augmentation.rows import put_rows
from kornia_mvit.batch import Batch
from kornia_mvit.extra_images import Extra
from kornia_mvit.ops.seeds import combine_seed

__all__ = ["Condition", "by_tries", "check_until", "run_until"]

T = TypeVar("T")
U = TypeVar("U")
Params = dict[str, Any]
# Takes an augmented batch, gives (B,) bool: which of its images will do.
Condition = Callable[[Batch], Any]
Run = Callable[[Batch, int, Params | None], tuple[Batch, Params]]


def check_until(until: Condition | None, tries: int, alone: bool) -> None:
    """Refuse what a pipeline cannot try again.

    Args:
        until: the condition; None for none.
        tries: the most for an image.
        alone: whether nothing in the pipeline mixes images or learns of them.

    Raises:
        ValueError: for no try, and for a pipeline of mixes or learned ranges.
        TypeError: for a condition that cannot be called.
    """
    if tries < 1:
        raise ValueError(f"tries {tries} is not at least 1")
    if until is None:
        return
    if not callable(until):
        raise TypeError(f"until is a {type(until).__name__}; give a function of a batch that returns (B,) bool")
    if not alone:
        raise ValueError(
            "until looks at each image alone, and mix and ranges do not; give them to another pipeline behind this one"
        )


@uncompiled
def run_until(
    run: Run, batch: Batch, seed: int, until: Condition | None, tries: int, replay: Params | None
) -> tuple[Batch, Params]:
    """Augment a batch, and again those of its images that do not meet a condition, or as that went before.

    Args:
        run: augments a batch by a seed, or as parameters say.
        batch: images with their targets.
        seed: of the first try; the others follow from it.
        until: which images will do.
        tries: the most for an image.
        replay: the parameters of before; None to draw.

    Returns:
        The batch, of each image its last try, and the parameters, with ``until``: ``tried`` (B,) how often each image
        was augmented, ``met`` (B,) whether it meets the condition, ``unmet``, the number of those that never did, and
        ``again``, the parameters of the other tries.
    """
    if replay is not None:
        out, params = run(batch, seed, replay)
        for one in replay["until"]["again"]:
            part, _ = run(batch[one["rows"]], one["params"]["seed"], one["params"])
            out = _put_batch(out, one["rows"], part)
        return out, params | {"until": replay["until"]}
    assert until is not None
    out, params = run(batch, seed, None)
    met = _ask(until, out)
    tried = torch.ones(len(batch), dtype=torch.int64)
    again: list[Params] = []
    for number in range(1, tries):
        rows = (~met).nonzero().flatten()
        if not len(rows):
            break
        part, own = run(batch[rows], combine_seed(seed, -3, number), None)
        out = _put_batch(out, rows, part)
        met[rows] = _ask(until, part)
        tried[rows] += 1
        again.append({"rows": rows, "params": own})
    told = {"tried": tried, "met": met, "unmet": int((~met).sum()), "again": again}
    return out, params | {"until": told}


def by_tries(function: Callable[[T, Params], U], values: T, params: Params) -> U:
    """Do to what belongs to augmented images what a function does by parameters, to each by those of its last try.

    Args:
        function: takes values and parameters, and returns values.
        values: a tensor (B, ...) or a dictionary of :class:`~kornia_mvit.Extra`.
        params: of all images.
    """
    out = function(values, params)
    for one in params.get("until", {}).get("again", []):
        part = function(_take(values, one["rows"]), one["params"])
        out = _put(out, one["rows"], part, "the way back")
    return out


def _ask(until: Condition, batch: Batch) -> Tensor:
    """Return which images of a batch meet a condition: (B,), bool, on the CPU."""
    found = torch.as_tensor(until(batch))
    if found.shape != (len(batch),) or found.dtype != torch.bool:
        raise ValueError(
            f"until returned {found.dtype} {tuple(found.shape)} for {len(batch)} images; it returns bool "
            f"({len(batch)},), such as (batch.box_label >= 0).any(1)"
        )
    return found.cpu().clone()


def _take(values: Any, rows: Tensor) -> Any:
    if isinstance(values, dict):
        return {name: _take(value, rows) for name, value in values.items()}
    if isinstance(values, Extra):
        return values.replace(_take(values.tensor, rows))
    return values.index_select(0, rows.to(values.device))


def _put_batch(out: Batch, rows: Tensor, part: Batch) -> Batch:
    """Return a batch with some of its images from another."""
    return type(out)(**{name: _put(value, rows, getattr(part, name), name) for name, value in _fields(out).items()})


def _fields(batch: Batch) -> dict[str, Any]:
    return {name: value for name, value in vars(batch).items() if not name.startswith("_")}


def _put(values: Any, rows: Tensor, part: Any, name: str) -> Any:
    """Return values of images with those of some images from others, whatever they are kept in."""
    if values is None:
        return None
    if isinstance(values, tuple):
        return tuple(_put(one, rows, other, name) for one, other in zip(values, part, strict=True))
    if isinstance(values, dict):
        return {key: _put(one, rows, part[key], f"{name}[{key!r}]") for key, one in values.items()}
    if isinstance(values, Extra):
        return values.replace(_put(values.tensor, rows, part.tensor, name))
    if isinstance(values, list):
        taken = dict(zip(rows.tolist(), part, strict=True))
        return [taken.get(number, one) for number, one in enumerate(values)]
    if values.shape[1:] != part.shape[1:]:
        raise ValueError(
            f"{name} is {tuple(values.shape[1:])} in one try and {tuple(part.shape[1:])} in another; until needs "
            "results of one size: give preprocess a height and a width"
        )
    return put_rows(values, rows.to(values.device), part)
