"""Reading the checkpoints of runs: nothing that one says is run, and no file that one names is touched."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

from kornia_mvit.parsing import cut
from kornia_mvit.training.lightning_adapter import load_address
from kornia_mvit.training.lightning_names import (
    Callback,
    ModelCheckpoint,
    load_hparams_from_tags_csv,
    load_hparams_from_yaml,
    pl,
)
from kornia_mvit.training.settings import present_settings
from kornia_mvit.weights.cards import GIVEN, read_card
from kornia_mvit.weights.files import CARD_KEY, CheckpointError, checkpoint_in, read_checkpoint
from kornia_mvit.weights.settings import check_counts, check_data, plain_settings

__all__ = ["check_progress", "class_names_of", "confine_paths", "load_task", "read_run"]

Task = TypeVar("Task", bound=pl.LightningModule)
_SETTINGS = "hyper_parameters"  # Lightning's places in a checkpoint
_VERSION = "pytorch-lightning_version"
_STATES = {"callbacks": dict, "loops": dict, "optimizer_states": list, "lr_schedulers": list, "state_dict": dict}
_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


def read_run(source: str | Path | IO[bytes], map_location: Any = None) -> dict[str, Any]:
    """Read what Lightning wrote, by PyTorch's restricted unpickler.

    Args:
        source: a file, its address, or an open file.
        map_location: where the tensors go; where they were when None.

    Raises:
        CheckpointError: if the file cannot be read, is no checkpoint of a run, or holds a function or a class.
    """
    name = str(source) if isinstance(source, str | Path) else "the checkpoint"
    if not isinstance(source, str | Path) or "://" in name:
        data = load_address(source, map_location, weights_only=True)
    else:
        source = checkpoint_in(source)
        data = read_checkpoint(source, whole=True)  # for its errors
        if Path(source).suffix != ".safetensors":
            data = torch.load(source, map_location, weights_only=True)  # its own memory: the file may be replaced
    if not isinstance(data, dict):
        raise CheckpointError(f"{name} holds a {type(data).__name__}, not a checkpoint")
    check_data(data, name)
    for key, kind in _STATES.items():
        if not isinstance(data.get(key, kind()), kind):
            raise CheckpointError(f"{key} of {name} is of type {type(data[key]).__name__}, not {kind.__name__}")
    if "state_dict" in data:
        written = re.match(r"(\d+)\.\d", str(data.get(_VERSION))[:20])
        if written is None:
            raise CheckpointError(
                f"{name} is not the checkpoint of a run: Lightning's version is missing; from_pretrained loads weights"
            )
        if int(written[1]) < 2:
            raise CheckpointError(
                f"{name} is of Lightning {written[0]}; this package resumes from those of 2.0 or newer"
            )
    class_names_of(data, name)
    return data


def load_task(
    owner: type[Task],
    source: str | Path | IO[bytes],
    map_location: Any = None,
    hparams_file: str | Path | None = None,
    strict: bool | None = None,
    **arguments: Any,
) -> Task:
    """Build a task from the settings of a checkpoint, which are checked, and load its weights.

    Args:
        owner: the task's class.
        source: the checkpoint.
        map_location: where the tensors go; where they were when None.
        hparams_file: YAML or CSV with the settings, in place of the checkpoint's.
        strict: whether the names of weights have to be the same; as the task says when None.
        arguments: of the class, in place of the checkpoint's.

    Raises:
        CheckpointError: if the file cannot be read, says of its model what cannot be, or has settings that are not
            plain values of the class's arguments.
    """
    name = str(source) if isinstance(source, str | Path) else "the checkpoint"
    checkpoint = read_run(source, map_location)
    if CARD_KEY in checkpoint:
        read_card(checkpoint, name)  # hooks read it again, and do not know the file's name
    saved = checkpoint.get(_SETTINGS)
    if hparams_file is not None:
        if Path(hparams_file).suffix.lower() == ".csv":
            saved = load_hparams_from_tags_csv(hparams_file)
        else:
            saved = load_hparams_from_yaml(hparams_file, use_omegaconf=False)
    settings = plain_settings(owner, present_settings(owner, saved), name)
    _check_backbone(checkpoint, {*arguments}, name)
    state = checkpoint.get("state_dict")
    check_counts({key: value for key, value in settings.items() if key not in arguments}, state, name)
    assert isinstance(state, dict)
    try:
        task = owner(**{**settings, **arguments})
        task.configure_model()
        task.on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]  # which the task may have exchanged
        task.load_state_dict(state, strict=task.strict_loading if strict is None else strict)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        if arguments or isinstance(error, CheckpointError):
            raise
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the settings and weights in {name} do not go together: {cut(reason)}") from error
    device = next((value.device for value in state.values() if isinstance(value, Tensor)), torch.device("cpu"))
    return task.to(device)


def _check_backbone(checkpoint: Mapping[str, Any], arguments: set[str], name: str) -> None:
    """Raise where the network stands on a module that nobody passes."""
    card = checkpoint.get(CARD_KEY)
    known = card.get("model") if isinstance(card, dict) else None
    if isinstance(known, dict) and known.get("backbone") == GIVEN and not arguments & {"backbone", "network"}:
        raise CheckpointError(
            f"{name} was trained on a backbone that is none of timm's; build that and pass it as backbone="
        )


def class_names_of(checkpoint: Mapping[str, Any], name: str = "the checkpoint") -> tuple[str, ...] | None:
    """Return the class names that a checkpoint gives, or None.

    Raises:
        CheckpointError: if what it gives are no names.
    """
    card = checkpoint.get(CARD_KEY)
    if card is None:
        return None
    names = card.get("class_names") if isinstance(card, dict) else 0
    if names is None:
        return None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"the card in {name} is damaged: its class_names are not a list of names")
    return tuple(names)


def check_progress(checkpoint: Mapping[str, Any], trainer: pl.Trainer) -> None:
    """Check that what a checkpoint says of a run's progress is of the kind that Lightning's loops keep.

    Args:
        checkpoint: what the file holds.
        trainer: whose loops are to take it.

    Raises:
        CheckpointError: if it is not.
    """
    states = checkpoint.get("loops")
    if states is None:
        return
    loops = {name: getattr(trainer, name) for name in ("fit_loop", "validate_loop", "test_loop", "predict_loop")}
    if not isinstance(states, dict):
        raise CheckpointError("the checkpoint is damaged: its loops are no dictionary")
    for name, loop in loops.items():
        if not isinstance(states.get(name), dict) or not _is_alike(states[name], loop.state_dict()):
            raise CheckpointError(f"the checkpoint's progress is damaged ({name}); resume from another")


def _is_alike(given: object, own: object) -> bool:
    """Return whether numbers and dictionaries stand where one's own do, as far as both have the places."""
    if isinstance(own, dict):
        return isinstance(given, dict) and all(_is_alike(given[name], own[name]) for name in own if name in given)
    return not isinstance(own, int) or isinstance(given, int)


def confine_paths(checkpoint: Mapping[str, Any], callbacks: Iterable[Callback]) -> None:
    """Let a checkpoint's callbacks forget files outside the folders that this run writes checkpoints to.

    Lightning's ModelCheckpoint keeps the names of its files in the checkpoint, and removes these files later on.

    Args:
        checkpoint: what the file holds; the states of callbacks in it are changed.
        callbacks: those of the run.

    Raises:
        CheckpointError: if the states are no dictionaries.
    """
    folders = [str(callback.dirpath) for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    states = checkpoint.get("callbacks") or {}
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise CheckpointError("the checkpoint is damaged: the states of its callbacks are no dictionaries")
    for state in states.values():
        for name in _PATHS:
            if name in state and not _is_own(state[name], folders):
                state[name] = ""
        kept = state.get("best_k_models", {})
        whole = isinstance(kept, dict) and all(_is_own(path, folders) and _is_score(kept[path]) for path in kept)
        if not whole or (state.get("kth_best_model_path") and state["kth_best_model_path"] not in kept):
            state["best_k_models"], state["kth_best_model_path"] = {}, ""


def _is_own(path: object, folders: Iterable[str]) -> bool:
    """Return whether a path is that of a checkpoint in one of the folders."""
    if not isinstance(path, str) or not path.isprintable() or Path(path).suffix != ModelCheckpoint.FILE_EXTENSION:
        return False
    for folder in folders:
        if "://" in folder:
            inside = path.startswith(f"{folder.rstrip('/')}/") and "::" not in path and ".." not in Path(path).parts
        else:
            inside = "://" not in path and "::" not in path and Path(folder).resolve() in Path(path).resolve().parents
        if inside:
            return True
    return False


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
