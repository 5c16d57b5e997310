"""``kornia-mvit predict``: classes of images or of their pixels, or objects in them, as JSON lines and pictures."""

import argparse
from collections.abc import Sequence

from kornia_mvit.inference.predictor import add_arguments, run

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: ``predict`` and its options.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="kornia-mvit predict",
        description="Classify images or their pixels, or find objects, as the checkpoint is for: a JSON line each.",
    )
    add_arguments(parser)
    return run(parser.parse_args(argv[1:]))
