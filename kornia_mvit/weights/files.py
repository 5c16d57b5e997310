"""Checkpoint files. They are data: nothing that a file says is ever run."""

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kornia_mvit.files import FileError

__all__ = ["CARD_KEY", "CheckpointError", "read_checkpoint", "write_checkpoint"]

CARD_KEY = "kornia_mvit"  # where a checkpoint of ours says what it holds


class CheckpointError(FileError):
    """A file is not the checkpoint that is asked for; the message names it."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU without running code from it.

    Args:
        path: a file that ``torch.save``, Lightning or safetensors wrote. Of a safetensors file the metadata that we
            wrote stand beside the tensors, as in our other checkpoints.

    Raises:
        CheckpointError: if the file is missing, empty or truncated, is not a checkpoint, or would run code.
        ImportError: for a ``.safetensors`` file where safetensors is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        head = file.read(2)
    if head == b"PK" and not zipfile.is_zipfile(path):
        raise CheckpointError(f"checkpoint {path} is truncated: its end is missing; copy or download it again")
    if head != b"PK" and head[:1] != b"\x80":  # neither a zip archive nor a pickle
        raise CheckpointError(f"{path} is not a PyTorch checkpoint")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=head == b"PK")
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|allowlisted", str(error))
        if found is None:
            raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint") from None
        raise CheckpointError(
            f"checkpoint {path} would run code when unpickled ({found[1] or 'an unknown object'}), and is refused; "
            "save it again with tensors and plain data only"
        ) from None
    except (EOFError, RuntimeError, KeyError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint ({reason})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not a checkpoint")
    return data


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError("reading .safetensors needs safetensors; install kornia-mvit[hub]") from error
    try:
        with safe_open(path, framework="pt") as file:
            data: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # not a dict
            card = (file.metadata() or {}).get(CARD_KEY)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({error})") from None
    if card is not None:
        data = {"state_dict": data, CARD_KEY: json.loads(card)}
    return data


def write_checkpoint(state: dict[str, Tensor], path: str | Path, card: dict[str, Any] | None = None) -> None:
    """Write weights to a file, which appears whole or not at all.

    Args:
        state: names and weights.
        path: the file; one named ``.safetensors`` is such a file, any other is read by ``torch.load``.
        card: what the file is to say of itself; without it the file is the bare state dict.

    Raises:
        ImportError: for a ``.safetensors`` file where safetensors is missing.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".safetensors":
            try:
                from safetensors.torch import save_file
            except ImportError as error:
                raise ImportError("writing .safetensors needs safetensors; install kornia-mvit[hub]") from error
            metadata = {"format": "pt"} | ({} if card is None else {CARD_KEY: json.dumps(card)})
            save_file(state, beside, metadata)
        else:
            torch.save(state if card is None else {"state_dict": state, CARD_KEY: card}, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
