"""``kornia-mvit preview``."""

from collections.abc import Sequence

from kornia_mvit.cli.frame import Command, split_options
from kornia_mvit.training.preview import preview

__all__ = ["COMMAND", "main"]

COMMAND = Command(
    name="preview",
    function=preview,
    positional=("folder",),
    names={"recipe": "--config"},
    metavars={
        "folder": "DIR",
        "recipe": "RECIPE",
        "data": "CLASS",
        "policy": "NAME",
        "policy_args": "YAML",
        "size": "PIXELS",
        "count": "N",
        "copies": "N",
        "cell": "PIXELS",
        "seed": "N",
        "out": "FILE",
    },
    defaults={"out": "preview.png"},
    hidden=("options",),
    example="  kornia-mvit preview photos --out photos.png\n"
    "  writes photos.png: a row for each of 6 images, the image first, then 4 augmentations\n"
    "Options with a dot, such as --data.root, are those of the recipe or of the data.",
)


def main(argv: Sequence[str]) -> int:
    """See :meth:`Command.run`."""
    own, options = split_options(argv[1:])
    print(preview(**COMMAND.parse(own), options=options))
    return 0
