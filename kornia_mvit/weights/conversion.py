"""A checkpoint under another program's names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kornia_mvit.files import printable
from kornia_mvit.models.staged import StagedBackbone
from kornia_mvit.weights.cards import from_card, read_card, read_preprocess
from kornia_mvit.weights.checkpoints import LoadReport, load_checkpoint, read_weights, save_checkpoint
from kornia_mvit.weights.files import CARD_KEY, read_checkpoint

__all__ = ["Conversion", "convert"]


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` read and wrote; printed, it reads as sentences.

    Args:
        path: the file that was written.
        layout: whose names it has.
        report: what was read.
        dropped: whether class names and preprocessing, which the source has, are not in the file.
    """

    path: Path
    layout: str
    report: LoadReport
    dropped: bool

    def __str__(self) -> str:
        lines = [printable(line) for line in str(self.report).splitlines()]
        lines.append(f"{printable(str(self.path))}: written in layout {self.layout!r}")
        if self.dropped:
            lines.append(
                "class names and preprocessing are not in it; a .safetensors file or layout 'native' keeps them"
            )
        return "\n".join(lines)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    from_order: Literal["rgb", "bgr"] | None = None,
    to_order: Literal["rgb", "bgr"] = "rgb",
) -> Conversion:
    """Read a checkpoint of Apple, timm, transformers, Kornia or ours, and write it under another's names.

    Args:
        source: the checkpoint: .pt, .pth, .ckpt or .safetensors.
        target: the file to write: .safetensors, or another suffix for a file that torch.load reads.
        to: whose names to write: native, apple, timm, transformers or kornia.
        from_order: channel order of the file that is read (default: as the file says, else rgb).
        to_order: channel order of the file to write.

    Returns:
        The record of what was read and written.

    Raises:
        CheckpointError: if the source cannot be read.
        ValueError: if the layout has no names for such a model.

    Example:
        >>> import tempfile
        >>> from kornia_mvit import MobileViTClassifier, convert, save_checkpoint
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_checkpoint(MobileViTClassifier("xxs", 3), folder / "mine.pt")
        >>> convert(folder / "mine.pt", folder / "timm.pt", to="timm").layout
        'timm'
    """
    data = read_checkpoint(source)
    card = read_card(data, str(source)) if CARD_KEY in data else {}
    known = card.get("model") or {}
    # What a file says of itself is more than its weights show, such as dilations and anchors.
    whole = isinstance(known.get("mode"), str) or "backbone" in known
    model = from_card(data, str(source)) if whole else read_weights(data, name=str(source)).build()
    order = from_order or card.get("channel_order", "rgb")
    report = load_checkpoint(model, data, channel_order=order, name=str(source))
    if card and not isinstance(model, StagedBackbone):
        model.class_names = card.get("class_names")
        model.preprocess = read_preprocess(card, str(source))
    save_checkpoint(model, target, to, channel_order=to_order)
    dropped = bool(card) and to != "native" and Path(target).suffix != ".safetensors"
    return Conversion(Path(target), to, report, dropped)
