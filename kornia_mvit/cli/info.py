"""``kornia-mvit info``."""

from collections.abc import Callable, Sequence

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
main: Callable[[Sequence[str]], int] = COMMAND.run
