"""``kornia-mvit info``."""

from collections.abc import Sequence

from kornia_mvit.cli.frame import Command
from kornia_mvit.weights.info import info

__all__ = ["COMMAND", "main"]

COMMAND = Command(
    name="info",
    function=info,
    positional=("checkpoint",),
    metavars={"checkpoint": "FILE"},
    example="  kornia-mvit info best.ckpt\n  prints its layout, task, model, classes and preprocessing",
)


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: ``info`` and its options.

    Returns:
        The exit status.
    """
    print(info(**COMMAND.parse(argv[1:])))
    return 0
