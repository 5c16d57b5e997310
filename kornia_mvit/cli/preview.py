"""``kornia-mvit preview``."""

import argparse
from collections.abc import Sequence

from kornia_mvit.cli.fit import build_cli
from kornia_mvit.training.preview import add_arguments, run

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="kornia-mvit preview",
        description="Draw images of a dataset beside their augmentations, with labels, boxes, masks and keypoints.",
        epilog="Further options are those of the recipe or of the data, such as --data.root DIR.",
    )
    add_arguments(parser)
    args, rest = parser.parse_known_args(argv[1:])
    return run(args, rest, build_cli)
