"""The weights among what a checkpoint holds: plain tensors by their names."""

import re
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.parsing import brief, cut, reason_of
from kornia_mvit.weights.files import CheckpointError
from kornia_mvit.weights.layouts import find_prefix, versions_of

__all__ = ["Found", "find_native", "find_state", "fit_stem", "fitting", "in_short"]

# Keys under which training programs keep weights, in the order in which they are taken; averaged ones come before all.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "teacher", "student")
_AVERAGED = re.compile(r"(.*_)?(ema|swa|avg|averaged?|shadow)(_.*|\d*)", re.IGNORECASE)
_COUNTER = "num_batches_tracked"


@dataclass
class Found:
    """The weights that a checkpoint was found to hold.

    Args:
        state: their names and values.
        path: the keys that they stand under.
        layout: what the names follow.
        prefix: what stands before the names of the backbone.
        known: how many of the names are those of a backbone, counters left out.
        version: of the MobileViT whose names they are.
    """

    state: dict[str, Tensor]
    path: tuple[str, ...]
    layout: str
    prefix: str
    known: int
    version: int

    @property
    def count(self) -> int:
        """Number of names under the prefix, counters left out."""
        return sum(key.startswith(self.prefix) for key in _names(self.state))


def find_state(data: Mapping[str, Any], name: str, layouts: Iterable[str]) -> Found:
    """Find the weights among all that a checkpoint holds: the mapping with most names of a backbone.

    Of several, averaged ones are taken before raw ones, and a network before its teacher or student. A number that
    stands beside the weights, as a best score does, is none of them.

    Args:
        data: what the checkpoint holds.
        name: what errors call it.
        layouts: what the names may follow.

    Raises:
        CheckpointError: if it holds no weights, or some that are no plain tensors.
    """
    mappings = list(_mappings(data))
    if not mappings:
        raise CheckpointError(f"{name} holds no weights; its keys are {brief(list(data)[:6])}")
    # those of optimisers have no names of modules, and are many
    found = [_look(*one, layouts) for one in [m for m in mappings if any("." in str(key) for key in m[1])] or mappings]
    best = max(one.known for one in found)
    near = [one for one in found if 2 * one.known >= best]
    paths = [one.path for one in near]  # whose first keys may tell none of them from the others
    shared = next((n for n, keys in enumerate(zip(*paths, strict=False)) if len({*keys}) > 1), min(map(len, paths)))
    chosen = min((one for one in near if one.known == best), key=lambda one: _preference(one, shared))
    partly = [one for one in near if one.known < best and _is_averaged(one.path[shared:])]
    if partly and not _is_averaged(chosen.path[shared:]):
        warnings.warn(
            f"{name} has averaged weights under {cut('.'.join(partly[0].path))}, but {partly[0].known} of {best} alone;"
            f" those under {cut('.'.join(chosen.path))} are taken",
            stacklevel=3,
        )
    for key, value in chosen.state.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{name} has weights under {brief(key)}, which is no name; it is damaged")
        if not _is_plain(value):
            raise CheckpointError(
                f"{cut(key)} in {name} is no plain tensor in memory (sparse, quantized, or larger than what the file "
                "holds of it); save it as a dense one"
            )
    return chosen


def find_native(data: Mapping[str, Any], name: str) -> tuple[dict[str, Tensor], str]:
    """Return the weights of a model on any backbone, by our names, and what stood before these in a run's checkpoint.

    Raises:
        CheckpointError: if there are none, or some that are no plain tensors.
    """
    held = data.get("state_dict", data)
    state = {key: value for key, value in held.items() if isinstance(value, Tensor)} if isinstance(held, dict) else {}
    outer = next(
        (outer for outer in ("", "network.") if any(str(key).startswith(f"{outer}backbone.") for key in state)), None
    )
    if outer is None:
        raise CheckpointError(f"{name} holds no weights of a model on a backbone; its keys are {brief(list(data)[:6])}")
    own = {key.removeprefix(outer): value for key, value in state.items() if str(key).startswith(outer)}
    if wrong := [key for key, value in own.items() if not isinstance(key, str) or not _is_plain(value)]:
        raise CheckpointError(f"{cut(wrong[0])} in {name} is no plain tensor in memory; save it as a dense one")
    return own, outer.removesuffix(".")


def _mappings(data: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[Any, Tensor]]]:
    """Return every mapping that has tensors, with the keys that it stands under."""
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), data)])
    seen: set[int] = set()  # a mapping may hold itself
    while waiting:
        path, value = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        items = list(value.items() if isinstance(value, Mapping) else enumerate(value))
        if isinstance(value, Mapping) and (
            state := {k: v for k, v in items if isinstance(v, Tensor) and not _stands_beside(k, v)}
        ):
            yield path, state
        waiting += [((*path, str(key)), inner) for key, inner in items if isinstance(inner, Mapping | list | tuple)]


def _stands_beside(key: object, value: Tensor) -> bool:
    """Return whether a tensor is a number beside weights, such as a score: one of a module has the module's name."""
    return isinstance(key, str) and "." not in key and value.layout == torch.strided and value.dim() == 0


def _look(path: tuple[str, ...], state: dict[Any, Tensor], layouts: Iterable[str]) -> Found:
    names = _names(state)
    scores = {
        (layout, version): find_prefix(names, layout, version) for layout in layouts for version in versions_of(layout)
    }
    # the later version where it knows more names alone: the residuals of both have the same
    layout, version = max(scores, key=lambda one: (scores[one][1], -one[1]))
    return Found(state, path, layout, *scores[layout, version], version)


def _names(state: Mapping[Any, Tensor]) -> list[str]:
    return [key for key in state if isinstance(key, str) and not key.endswith(_COUNTER)]


def _preference(found: Found, shared: int) -> tuple[bool, list[int], int]:
    path = found.path[shared:]
    ranks = [_WRAPPERS.index(key) if key in _WRAPPERS else len(_WRAPPERS) for key in path]
    return not _is_averaged(path), ranks, -len(found.state)


def _is_averaged(path: tuple[str, ...]) -> bool:
    return any(_AVERAGED.fullmatch(key) for key in path)


def _is_plain(value: Tensor) -> bool:
    """Return whether a tensor is dense, on the CPU, and no larger than its memory."""
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


@contextmanager
def fitting(name: str) -> Iterator[None]:
    """Turn the errors of weights whose shapes do not fit together into one that names the file."""
    try:
        yield
    except (RuntimeError, LookupError, ArithmeticError, TypeError) as error:
        raise CheckpointError(
            f"the weights in {name} do not fit together: {reason_of(error)}; it is damaged"
        ) from error


def in_short(names: list[str]) -> str:
    """Return names as a list; more than six of one part as that part and their number."""
    parts = Counter(name.partition(".")[0] for name in names)
    many = {part for part, count in parts.items() if count > 6}
    shown = dict.fromkeys(part if (part := name.partition(".")[0]) in many else name for name in names)
    return ", ".join(f"{name} ({parts[name]} weights)" if name in many else name for name in shown)


def fit_stem(weight: Tensor, channels: int) -> Tensor:
    """Return the stem's weights for another number of input channels: grey images give the same sums."""
    given = weight.shape[1]
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.repeat(1, -(-channels // given), 1, 1)[:, :channels]
    return (repeated.float() * (given / channels)).to(weight.dtype)
