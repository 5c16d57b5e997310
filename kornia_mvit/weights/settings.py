"""Settings that a checkpoint carries: plain values, checked by name and type, from which nothing is ever built.

Whoever wrote a checkpoint chose its settings. Lightning hands them to a parser that imports and calls whatever class
they name. Here they are compared with the arguments of the class that they are for, and what is no plain value of the
argument's type is refused.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor, dtype

from kornia_mvit.files import printable
from kornia_mvit.weights.files import CheckpointError

__all__ = ["check_counts", "check_data", "constructor_types", "plain_settings"]

# What Lightning's command line writes beside the settings: whose they are, and what is to build them.
_OF_LIGHTNING = ("_class_path", "_instantiator")
# What says where training began or learned from. A checkpoint has its weights, and evaluation no teacher.
_LOADED_BEFORE = ("weights", "teacher", "pretrained")
# Arguments of timm.create_model that have it fetch or open files.
_FETCHES = re.compile(r"pretrained.*|checkpoint_path|cache_dir")
_SPECIFICATION = ("class_path", "init_args", "dict_kwargs", *_OF_LIGHTNING)  # of a class that a parser would build
_WORD = re.compile(r"[\w.+-]{0,100}", re.ASCII)  # which no parser takes for anything else
_NETWORK = re.compile(r"timm:[\w.]{1,100}", re.ASCII)  # a name of timm's own list
_DEPTH, _ENTRIES, _TEXT, _WHOLE = 6, 20_000, 200, 2**31
_COUNTS = ("num_classes", "aspp_channels", "aux_channels")


class _Misfit(Exception):
    """A value is not what its place asks for; the message says what it is."""


def plain_settings(owner: type, saved: object, path: str | Path) -> dict[str, Any]:
    """Return the settings of a checkpoint as arguments of a class, after checking that they are plain values of these.

    What Lightning's command line writes beside them is left out, as are the names of files that training began with.

    Args:
        owner: the class, such as a task.
        saved: what the checkpoint has as its settings.
        path: the checkpoint, for errors.

    Returns:
        Arguments of the class; lists have become tuples where the class asks for these.

    Raises:
        CheckpointError: if a name is no argument of the class, or a value is not of the argument's type, or is or holds
            anything but None, bool, int, float, str, list, tuple and dict, or describes a class that is to be built.

    Example:
        >>> class Task:
        ...     def __init__(self, image_size: int | tuple[int, int] = 64, policy_args: dict | None = None): ...
        >>> plain_settings(Task, {"image_size": [64, 80]}, "a.ckpt")
        {'image_size': (64, 80)}
        >>> plain_settings(Task, {"policy_args": {"jitter": {"class_path": "subprocess.Popen"}}}, "a.ckpt")
        Traceback (most recent call last):
        ...
        kornia_mvit.weights.files.CheckpointError: setting policy_args of a.ckpt is refused: it describes a class ...
    """
    if saved is None:
        return {}
    if not isinstance(saved, dict):
        raise CheckpointError(f"the settings of {path} are of type {type(saved).__name__}, not a dictionary")
    known = constructor_types(owner)
    settings: dict[str, Any] = {}
    for name, value in saved.items():
        if name in _OF_LIGHTNING or name in _LOADED_BEFORE:
            continue
        if name not in known:
            raise CheckpointError(_unknown(owner, name, known, saved, path))
        try:
            settings[name] = _fit(value, known[name], [_ENTRIES])
        except _Misfit as misfit:
            raise CheckpointError(f"setting {name} of {path} is refused: {misfit}") from None
    if settings.get("network_args"):
        given = settings["network_args"]
        settings["network_args"] = {name: value for name, value in given.items() if not _FETCHES.fullmatch(name)}
    return settings


def _unknown(owner: type, name: object, known: Iterable[str], saved: Mapping[Any, Any], path: str | Path) -> str:
    text = f"{path} has the setting {printable(name)[:_TEXT]!r}, which {owner.__name__} does not have"
    trained = str(saved.get("_class_path", "")).rpartition(".")[2]
    if trained not in ("", owner.__name__):
        return f"{text}; it was trained as {printable(trained)[:_TEXT]}: give the recipe that it was trained with"
    near = get_close_matches(str(name)[:_TEXT], list(known), 1, 0.8)
    return f"{text}; {f'its nearest is {near[0]!r}' if near else 'update, if a newer version wrote it'}"


def constructor_types(owner: type) -> dict[str, Any]:
    """Return the arguments that building a class takes, and their types; Any for those that say none."""
    known: dict[str, Any] = {}
    for base in owner.__mro__:
        build: Callable[..., None] | None = base.__dict__.get("__init__")
        if build is None:
            continue
        try:
            types = get_type_hints(build)
        except (NameError, TypeError):  # names that only a type checker sees
            types = {}
        arguments = list(inspect.signature(build).parameters.values())[1:]
        for argument in arguments:
            if argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY):
                known.setdefault(argument.name, types.get(argument.name, Any))
        if not any(argument.kind is argument.VAR_KEYWORD for argument in arguments):
            break  # else the classes below have the rest
    return known


def _fit(value: object, kind: Any, left: list[int], depth: int = 0) -> Any:
    """Return a value as its type asks for it; a type that is no plain data takes none."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _fit_one_of(value, parts, left, depth)
    if kind is Any or kind is object or kind in (dict, list, tuple):
        plain = _plain(value, left, depth)
        if kind not in (Any, object) and not isinstance(plain, (list, tuple) if kind is tuple else kind):
            raise _Misfit(f"{_show(value)} is not of type {kind.__name__}")
        return tuple(plain) if kind is tuple else plain
    if origin is Literal:
        if not any(value == part and type(value) is type(part) for part in parts):
            raise _Misfit(f"{_show(value)} is none of {', '.join(map(repr, parts))}")
        return value
    if kind in (None, NoneType, bool, int, float, str):
        return _fit_leaf(value, kind)
    if origin in (list, tuple, Sequence, Iterable) and type(value) in (list, tuple):
        return _fit_items(value, origin, parts, left, depth)  # type: ignore[arg-type]  # it is a list or a tuple
    if origin in (dict, Mapping) and parts[0] is str:
        return {name: _fit(item, parts[1], left, depth + 1) for name, item in _entries(value, left, depth)}
    raise _Misfit(f"{_show(value)} is not {_type_name(kind)}")


def _fit_one_of(value: object, kinds: Sequence[Any], left: list[int], depth: int) -> Any:
    reasons = []
    for kind in kinds:
        if kind is float and type(value) is int and int in kinds:
            continue
        try:
            fitted = _fit(value, kind, left, depth)
        except _Misfit as misfit:
            reasons.append(str(misfit))
            continue
        # Beside a class a string is that of something to import, but for the networks of timm.
        if isinstance(fitted, str) and not all(_is_plain(kind) for kind in kinds) and not _NETWORK.fullmatch(fitted):
            raise _Misfit(f"{_show(value)} is no name of a network of timm, such as 'timm:mobilenetv3_small_100'")
        return fitted
    told = [reason for reason in reasons if "describes a class" in reason]
    raise _Misfit(told[0] if told else f"{_show(value)} is not {' or '.join(map(_type_name, kinds))}")


def _fit_leaf(value: object, kind: Any) -> Any:
    if kind in (None, NoneType) and value is None:
        return None
    if kind is float and type(value) is int and abs(value) < _WHOLE:
        return float(value)
    if type(value) is not kind:
        raise _Misfit(f"{_show(value)} is not {_type_name(kind)}")
    if isinstance(value, int) and abs(value) >= _WHOLE:
        raise _Misfit("the number is out of bounds")
    if isinstance(value, str) and (len(value) > _TEXT or not value.isprintable() or "class_path" in value):
        raise _Misfit(f"{_show(value)} is no name")
    return value


def _fit_items(
    value: Sequence[object], origin: Any, parts: Sequence[Any], left: list[int], depth: int
) -> list[Any] | tuple[Any, ...]:
    _take(left, len(value), depth)
    fixed = origin is tuple and parts and parts[-1] is not Ellipsis
    if fixed and len(parts) != len(value):
        raise _Misfit(f"{_show(value)} does not have {len(parts)} entries")
    kinds = parts if fixed else [parts[0] if parts else Any] * len(value)
    fitted = [_fit(item, kind, left, depth + 1) for item, kind in zip(value, kinds, strict=True)]
    return tuple(fitted) if origin is tuple else fitted


def _plain(value: object, left: list[int], depth: int) -> Any:
    """Return a value whose type nothing says, if it is plain."""
    if value is None or type(value) in (bool, int, float):
        return _fit_leaf(value, type(value))
    if isinstance(value, str):
        if not _WORD.fullmatch(value):
            raise _Misfit(f"{_show(value)} is no single word")
        return value
    if type(value) in (list, tuple):
        _take(left, len(value), depth)  # type: ignore[arg-type]  # it is a list or a tuple
        return [_plain(item, left, depth + 1) for item in value]  # type: ignore[attr-defined]
    if isinstance(value, dict):
        return {name: _plain(item, left, depth + 1) for name, item in _entries(value, left, depth)}
    raise _Misfit(f"{_show(value)} is no plain value")


def _entries(value: object, left: list[int], depth: int) -> list[tuple[str, object]]:
    if not isinstance(value, dict):
        raise _Misfit(f"{_show(value)} is not dict")
    _take(left, len(value), depth)
    for name in value:
        if name in _SPECIFICATION:
            raise _Misfit(f"it describes a class that is to be built ({name}), and a checkpoint's settings build none")
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("__"):
            raise _Misfit(f"{_show(name)} is no name of an argument")
    return list(value.items())


def _take(left: list[int], count: int, depth: int) -> None:
    left[0] -= count
    if left[0] < 0 or depth >= _DEPTH:
        raise _Misfit(f"it has more than {_ENTRIES} entries, or more than {_DEPTH} levels")


def _is_plain(kind: Any) -> bool:
    """Return whether a type admits plain values only, so that no parser imports what a string names."""
    if get_origin(kind) is Literal:
        return True
    if get_args(kind):
        return all(part is Ellipsis or _is_plain(part) for part in get_args(kind))
    return kind in (None, NoneType, bool, int, float, str, list, tuple, dict, Path)


def _type_name(kind: Any) -> str:
    if kind in (None, NoneType):
        return "None"
    return str(kind).replace("typing.", "") if get_args(kind) else str(getattr(kind, "__name__", kind))


def _show(value: object) -> str:
    """Return a value as an error shows it: on one line, cut off where it is long."""
    if isinstance(value, str):
        text = repr(value[: _TEXT + 1])
    elif value is None or isinstance(value, bool | int | float):
        text = repr(value) if not isinstance(value, int) or value.bit_length() < 10 * _TEXT else "a huge number"
    else:
        return f"a {type(value).__name__}"
    return text if len(text) <= _TEXT else f"{text[: _TEXT // 2]}..."


def check_counts(settings: Mapping[str, Any], state: object, path: str | Path) -> None:
    """Check that settings ask for no more classes or channels than the weights have, before memory is taken for them.

    Args:
        settings: the settings of a task.
        state: the weights that go into its network.
        path: the checkpoint, for errors.

    Raises:
        CheckpointError: if they do, or if the weights are no dictionary.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds no weights under state_dict")
    widest = max((size for value in state.values() if isinstance(value, Tensor) for size in value.shape), default=0)
    for name in _COUNTS:
        count, most = settings.get(name), widest if name == "num_classes" else max(widest, 1024)
        if count is not None and not 0 < count <= most:
            raise CheckpointError(
                f"setting {name} of {path} is {count}, and its weights have {widest} channels at most"
            )


def check_data(checkpoint: Mapping[Any, Any], path: str | Path) -> None:
    """Check that a checkpoint holds no function and no class: the restricted unpickler gives those that it knows.

    Args:
        checkpoint: what the file holds.
        path: the file, for errors.

    Raises:
        CheckpointError: if it does.
    """
    seen: set[int] = set()
    rest: list[object] = [checkpoint]
    while rest:
        value = rest.pop()
        if isinstance(value, Tensor | dtype | str | bytes | int | float) or id(value) in seen:
            continue
        seen.add(id(value))
        if callable(value):
            name = printable(getattr(value, "__name__", type(value).__name__))
            raise CheckpointError(f"checkpoint {path} holds the function or class {name}, and is refused")
        if isinstance(value, Mapping):
            rest.extend(value.keys())
            rest.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            rest.extend(value)
