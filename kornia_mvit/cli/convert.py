"""``kornia-mvit convert``."""

from collections.abc import Sequence

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


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: ``convert`` and its options.

    Returns:
        The exit status.
    """
    print(convert(**COMMAND.parse(argv[1:])))
    return 0
