"""``kornia-mvit export``."""

import sys
import warnings
from collections.abc import Sequence

from kornia_mvit.cli.frame import Command
from kornia_mvit.exporters.writing import export
from kornia_mvit.files import printable

__all__ = ["COMMAND", "main"]

COMMAND = Command(
    name="export",
    function=export,
    positional=("model", "path"),
    metavars={
        "model": "CHECKPOINT",
        "path": "OUT",
        "format": "NAME",
        "size": "PIXELS",
        "layout": "NAME",
        "calibration": "DIR",
        "max_drop": "SHARE",
        "images": "DIR",
        "labelled": "DIR",
    },
    groups={
        "in the graph": ("with_preprocess", "with_decode", "layout", "nms"),
        "size and speed": ("fp16", "int8", "calibration", "max_drop"),
        "report": ("images", "labelled", "report"),
    },
    types={"size": str},
    example="  kornia-mvit export best.ckpt model.onnx --with-preprocess --with-decode\n"
    "  writes model.onnx, and prints how it compares with best.ckpt: outputs, size and time",
)


def main(argv: Sequence[str]) -> int:
    """See :meth:`Command.run`."""
    arguments = COMMAND.parse(argv[1:])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            result = export(**arguments)
        finally:
            for warning in caught:
                if warning.category is UserWarning and "kornia_mvit" in warning.filename:
                    print(printable(f"kornia-mvit: warning: {warning.message}"), file=sys.stderr)
    print(result)
    return 0
