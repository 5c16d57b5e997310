"""``kornia-mvit demo``."""

import sys
from collections.abc import Sequence

from kornia_mvit.cli.frame import Command
from kornia_mvit.training.demo import demo

__all__ = ["COMMAND", "main"]

PROMISED = 0.97  # share of right digits that the demo ends with, unless --epochs says otherwise
COMMAND = Command(
    name="demo",
    function=demo,
    metavars={"output": "DIR", "epochs": "N"},
    example="  kornia-mvit demo\n"
    "  trains for a minute or two; writes pictures, the checkpoint digits.ckpt and a report into runs/demo",
)


def main(argv: Sequence[str]) -> int:
    """See :meth:`Command.run`; 1 if fewer digits are right than promised."""
    arguments = COMMAND.parse(argv[1:])
    print("Training MobileViT xxs on 1,257 handwritten digits, augmented by Kornia as they arrive.", flush=True)
    run = demo(**arguments)
    print(f"\n{run}\n\nNext, with a folder of your own that has a subfolder of images for each class:\n")
    print("  kornia-mvit fit DIR\n")
    if arguments["epochs"] is None and run.accuracy < PROMISED:
        print(f"kornia-mvit: fewer right than the {PROMISED:.0%} that the demo is to reach", file=sys.stderr)
        return 1
    return 0
