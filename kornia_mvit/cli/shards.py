"""``kornia-mvit shards``."""

from collections.abc import Callable, Sequence

from kornia_mvit.cli.frame import Command
from kornia_mvit.training.packing import shards

__all__ = ["COMMAND", "main"]

COMMAND = Command(
    name="shards",
    function=shards,
    positional=("source", "out"),
    metavars={
        "source": "DATA",
        "out": "FOLDER",
        "size": "PIXELS",
        "quality": "N",
        "max_count": "N",
        "processes": "N",
        "seed": "N",
    },
    choices={"task": ("classification", "segmentation", "detection")},
    example="  kornia-mvit shards photos shards --size 320\n"
    "  writes shards/train-00000.tar and so on, with shards/index.json\n"
    "  kornia-mvit shards shards --check\n"
    "  compares them with their checksums",
)
main: Callable[[Sequence[str]], int] = COMMAND.run
