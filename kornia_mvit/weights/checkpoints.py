"""Load and save models. Checkpoints are data: nothing that a file says is ever run."""

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kornia_mvit.augmentation.preprocess import Preprocess
from kornia_mvit.models.mobilevit import MobileViTClassifier

__all__ = ["CARD_KEY", "CheckpointError", "classifier_card", "from_pretrained", "read_card", "read_checkpoint"]

CARD_KEY = "kornia_mvit"  # where a checkpoint of ours says what it holds


class CheckpointError(ValueError):
    """A file is not the checkpoint that is asked for; the message names it."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that ``torch.save`` or Lightning wrote, on the CPU, without running code from it.

    Args:
        path: the file.

    Raises:
        CheckpointError: if the file is missing, empty or truncated, is not a checkpoint, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
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


def classifier_card(
    arguments: Mapping[str, Any] | None, class_names: Sequence[str] | None, preprocess: Preprocess
) -> dict[str, Any]:
    """Say in plain data what a checkpoint of a classifier holds, so that it can be used without being told anything.

    Args:
        arguments: what :class:`~kornia_mvit.MobileViTClassifier` was built with; None for a network of one's own.
        class_names: names of the classes, in the order of the logits, if known.
        preprocess: what images go through before the network.
    """
    from kornia_mvit import __version__

    return {
        "format": 1,
        "version": __version__,
        "task": "classification",
        "model": None if arguments is None else dict(arguments),
        "class_names": None if class_names is None else list(class_names),
        "preprocess": preprocess.to_dict(),
    }


def read_card(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Give what a checkpoint says of itself.

    Raises:
        CheckpointError: if it says nothing, or is of a format newer than this package knows.
    """
    card = checkpoint.get(CARD_KEY)
    if not isinstance(card, dict):
        raise CheckpointError(f"{path} does not say what model it holds: it was not written by kornia-mvit fit")
    if card.get("format") != 1:
        raise CheckpointError(f"{path} has format {card.get('format')}, written by {card.get('version')}; update")
    return card


def from_pretrained(path: str | Path) -> MobileViTClassifier:
    """Build the model of a checkpoint that ``kornia-mvit fit`` or :class:`ClassificationTask` wrote.

    Args:
        path: the ``.ckpt`` file. Where training averaged the weights, the average is taken.

    Returns:
        The model in eval mode. ``model.preprocess`` is the :class:`~kornia_mvit.Preprocess` of its images,
        ``model.class_names`` the names of its classes, or None where they are not known.

    Raises:
        CheckpointError: if the file is no such checkpoint, or its weights do not fit the model that it names.
    """
    checkpoint = read_checkpoint(path)
    card = read_card(checkpoint, path)
    if card["model"] is None:
        raise CheckpointError(
            f"{path} holds a network of its own, which only its code can build; "
            "use ClassificationTask.load_from_checkpoint(path, network=...)"
        )
    model = MobileViTClassifier(**card["model"])
    prefix = "network."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {path} are not those of {card['model']}: {error}") from None
    model.preprocess = Preprocess.from_dict(card["preprocess"])
    model.class_names = None if card["class_names"] is None else tuple(card["class_names"])
    return model.eval()
