"""``kornia-mvit convert``."""

from collections.abc import Callable, Sequence

from kornia_mvit.cli.frame import Command
from kornia_mvit.weights.conversion import convert
from kornia_mvit.weights.layouts import LAYOUTS

__all__ = ["COMMAND", "main"]

COMMAND = Command(
    name="convert",
    function=convert,
    positional=("source", "target"),
    metavars={"source": "IN", "target": "OUT"},
    choices={"to": tuple(LAYOUTS)},
    example="  kornia-mvit convert mine.ckpt mine.safetensors --to timm\n"
    "  writes mine.safetensors, which timm.create_model loads, and says what was read",
)
main: Callable[[Sequence[str]], int] = COMMAND.run
