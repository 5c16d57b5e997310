"""The command line: ``kornia-mvit``, or ``python -m kornia_mvit``. A file for each command, imported when it runs."""

import os
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from kornia_mvit import __version__
from kornia_mvit.files import printable
from kornia_mvit.option_errors import innermost

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "fit": "train from a recipe",
    "validate": "evaluate a checkpoint on the validation images",
    "test": "evaluate a checkpoint on the test images",
    "predict": "classify images or their pixels, or find objects in them",
    "export": "write a model as a file for phones, browsers or servers",
    "demo": "train on handwritten digits and show the result",
    "preview": "draw a dataset's images beside augmentations of them",
    "convert": "write a checkpoint under another program's names",
    "shards": "write a dataset into tar files that are read in a stream, or check these",
    "info": "describe this installation, or a checkpoint",
}
_OTHER_WORDS = {  # that people try, as other programs have them
    "train": "fit",
    "val": "validate",
    "eval": "validate",
    "evaluate": "validate",
    "detect": "predict",
    "classify": "predict",
    "segment": "predict",
    "show": "info",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process when None.

    Returns:
        The exit status: 0 if all went well, 1 if the demo reached less than it should, 2 for a wrong argument or bad
        input, told in one line on standard error.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata, which do not matter here
        try:
            return _run(argv)
        except KeyboardInterrupt:
            print("kornia-mvit: stopped by SIGINT", file=sys.stderr)
            return 130  # as shells expect of a program that this signal stopped
        except (ValueError, TypeError, OSError, ImportError) as error:
            if os.environ.get("KORNIA_MVIT_DEBUG"):
                raise
            print(printable(f"kornia-mvit: error: {_one_line(error)}"), file=sys.stderr)
            return 2


def _run(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"kornia-mvit {__version__}")
        return 0
    if name not in COMMANDS:
        near = [_OTHER_WORDS[name]] if name in _OTHER_WORDS else get_close_matches(name, COMMANDS, 1, 0.6)
        remedy = f"did you mean kornia-mvit {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        raise ValueError(f"there is no command {name!r}; {remedy}")
    file = "fit" if name in ("validate", "test") else name
    status: int = import_module(f"kornia_mvit.cli.{file}").main(argv)
    return status


def _help() -> str:
    commands = "\n".join(f"    {name:<10} {text}" for name, text in COMMANDS.items())
    return (
        "usage: kornia-mvit [-h] [--version] COMMAND ...\n\nTrain, evaluate and use MobileViT.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n    -h, --help  show this page; kornia-mvit COMMAND --help shows a command's\n"
        "    --version   show the version\n\n"
        "KORNIA_MVIT_DEBUG=1 in the environment shows where an error arose."
    )


def _one_line(error: BaseException) -> str:
    """Return an error's message in one line, without what others wrap it in.

    That of a loader's process stands at the end of a traceback, that of a class built from a recipe is the cause of
    jsonargparse's.
    """
    error = innermost(error)
    text = str(error) or type(error).__name__
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    head, colon, items = text.partition(":\n")  # a list below a sentence
    lines = [" ".join(line.split()) for line in items.splitlines()]
    return " ".join([*f"{head}{colon}".split(), "; ".join(filter(None, lines))]).strip()
