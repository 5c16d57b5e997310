"""What is wrong with an option of the command line, and what would do, in one line."""

import inspect
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module

__all__ = ["PRECISIONS", "OptionError", "describe_option_error", "expected_types", "innermost", "unknown_option"]

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")  # of the Trainer, that tasks support


class OptionError(Exception):
    """A wrong option; no ValueError, which jsonargparse would take for one of its own attempts."""


def describe_option_error(message: str) -> str:
    """Return the essence of what jsonargparse says of a wrong option.

    Example:
        >>> describe_option_error("Problem with given class_path 'torch.nn.Linear': Option 'biass' is not accepted")
        'there is no option --biass; did you mean --bias?'
    """
    if message.startswith("unrecognized arguments: "):
        return _describe_unknown(message.partition(": ")[2])
    keys = re.findall(r'Parser key "([\w.]+)"', message)
    given = re.search(r"class_path '([\w.]+)'", message)
    if unknown := re.search(r"Option '([\w.]+)' is not accepted", message):
        prefix = f"--{''.join(f'{key}.' for key in keys)}"
        return unknown_option(f"{prefix}{unknown[1]}", _arguments_of(given[1]) if given else (), prefix)
    if missing := re.search(r"arguments are required: ([\w.]+)", message):
        return f"{given[1] if given else 'it'} needs --{'.'.join([*keys, missing[1]])}"
    values = re.findall(r"(?:Got value|Given value): (.*)", message)
    if values and (nested := re.match(r"NestedArg\(key='([\w.]+)', val=(.*)\)$", values[0])):
        keys, values = [*keys, nested[1]], [nested[2].strip("'")]
    wanted = expected_types(message)
    if keys == ["trainer.precision"]:
        wanted = [*PRECISIONS]
    if keys and wanted and values:
        return f"--{'.'.join(keys)} is {values[0]}; expected {' or '.join(wanted)}"
    return " ".join(message.split())


def innermost(error: BaseException) -> BaseException:
    """Return the error that arose in building a class, which jsonargparse tells beside all that it was tried as."""
    while "Does not validate against any of the Union" in str(error) and error.__cause__ is not None:
        error = error.__cause__
    return error


def expected_types(message: str) -> list[str]:
    """Return what jsonargparse says that it expected: types, words, or the name of a class."""
    wanted = []
    for line in re.findall(r"Expected an? (.*)", message):
        if words := re.match(r"typing\.Literal\[(.*)\]", line):
            wanted += [word.strip("'") for word in words[1].split(", ")]
        elif kind := re.match(r"<class '([\w.]+)'>", line):
            wanted.append(f"{kind[1]}, such as '[64, 80]'" if kind[1] in ("tuple", "list") else kind[1])
        elif line.startswith("dot import path"):
            wanted.append("the name of a class")
    return [word for word in dict.fromkeys(wanted) if word != "NoneType"]


def unknown_option(name: str, known: Iterable[str], prefix: str = "--") -> str:
    """Say that there is no such option, and which known one is the nearest.

    Args:
        name: the option, with its prefix.
        known: names of the options that there are, without the prefix.
        prefix: what they all begin with, such as ``--data.``.

    Example:
        >>> unknown_option("--batchsize", ["batch-size", "device"])
        'there is no option --batchsize; did you mean --batch-size?'
    """
    near = get_close_matches(name.removeprefix(prefix), list(known), 1, 0.6)
    return f"there is no option {name}" + (f"; did you mean {prefix}{near[0]}?" if near else "")


def _describe_unknown(arguments: str) -> str:
    """Say of arguments of ``fit``, ``validate`` and ``test`` that are no options what to give instead."""
    name = arguments.split(maxsplit=1)[0]
    if not name.startswith("-"):
        return f"{arguments} is no option; the images are --data.root {name}"
    name = name.partition("=")[0]
    first, dot, rest = name.partition(".")
    if first == "--trainer":
        lightning = "pytorch_lightning" if "pytorch_lightning" in sys.modules else "lightning.pytorch"
        return unknown_option(name, _arguments_of(f"{lightning}.Trainer"), "--trainer.")
    sections = ["--model", "--data", "--trainer", "--config", "--checkpoint", "--ckpt_path", "--seed_everything"]
    found = get_close_matches(first, sections, 1, 0.7)
    return f"there is no option {name}" + (f"; did you mean {found[0]}{dot}{rest}?" if found else "")


def _arguments_of(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    return list(inspect.signature(getattr(import_module(module), name)).parameters)
