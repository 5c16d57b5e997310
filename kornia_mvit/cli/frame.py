"""The frame of our own commands: a parser made from the signature and the docstring of a public function."""

import argparse
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from kornia_mvit.option_errors import OptionError, expected_types, unknown_option

__all__ = ["Command", "split_options"]

_PLAIN = (bool, float, int, str)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A public function as a command.

    Each argument of the function is an option: ``batch_size`` is ``--batch-size``. Its type and default are those of
    the signature, as far as text can express them; its help is that of the docstring, under Args. An argument whose
    default is False is a flag; one whose default is True is the flag ``--no-NAME``.

    Args:
        name: the command's name.
        function: what runs.
        positional: arguments without an option's name, in their order; the last may end in ``...``, for one or more.
        names: options whose names differ from their arguments', such as ``{"model": "--checkpoint --weights"}``.
        metavars: placeholders in the help, such as ``{"count": "N"}``.
        groups: titles in the help, and the arguments that stand below them.
        defaults: defaults that differ from the function's. None makes an option required that the function can spare.
        choices: what an option may be, where the annotation does not tell.
        types: functions that read an option's text, where the annotation does not tell how.
        hidden: arguments that are no options.
        example: lines that end the help: a call, and what comes out.
    """

    name: str
    function: Callable[..., Any]
    positional: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    metavars: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    types: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    hidden: Sequence[str] = ()
    example: str = ""

    def run(self, argv: Sequence[str]) -> int:
        """Call the function, and print what it returns.

        Args:
            argv: the command's name and its options.

        Returns:
            The exit status.

        Raises:
            ValueError: for a wrong option or value, naming what would do.
            ImportError: if jsonargparse is missing.
        """
        print(self.function(**self.parse(argv[1:])))
        return 0

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return the arguments of the function that a command line gives.

        Args:
            argv: the command line, without the command's name.

        Raises:
            ValueError: for a wrong option or value, naming what would do.
            ImportError: if jsonargparse is missing.
        """
        try:
            return dict(vars(self.build_parser().parse_args(list(argv))))
        except OptionError as error:
            raise ValueError(self._describe(str(error))) from None

    def build_parser(self) -> Any:
        """Return jsonargparse's parser of the command."""
        try:
            import docstring_parser
            from jsonargparse import ArgumentParser
        except ImportError as error:
            raise ImportError(f"the command line needs {error.name}; install kornia-mvit[cli]") from error

        told = docstring_parser.parse_from_object(self.function)
        parser = ArgumentParser(
            prog=f"kornia-mvit {self.name}",
            description=_plain_text(told.short_description or ""),
            epilog=f"example:\n{self.example}" if self.example else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=True,
        )
        parser.error = _refuse  # type: ignore[method-assign]  # jsonargparse offers no other way
        helps = {entry.arg_name: _plain_text(entry.description or "").removesuffix(".") for entry in told.params}
        hints, signature = get_type_hints(self.function), inspect.signature(self.function)
        sections = {
            name: group
            for title, names in self.groups.items()
            for group in [parser.add_argument_group(title)]
            for name in names
        }
        for name in (place.removesuffix("...") for place in self.positional):
            parser.add_argument(name, **self._positional(name, helps.get(name, "")))
        for name, parameter in signature.parameters.items():
            if name not in self._positional_names() and name not in self.hidden:
                flags, how = self._option(name, parameter, hints[name], helps.get(name, ""))
                sections.get(name, parser).add_argument(*flags, dest=name, **how)
        return parser

    def _positional_names(self) -> list[str]:
        return [place.removesuffix("...") for place in self.positional]

    def _positional(self, name: str, text: str) -> dict[str, Any]:
        how: dict[str, Any] = {"metavar": self.metavars.get(name, name.upper()), "help": text}
        if f"{name}..." in self.positional:
            how["nargs"] = "+"
        elif inspect.signature(self.function).parameters[name].default is not inspect.Parameter.empty:
            how["nargs"] = "?"
        return how

    def _option(
        self, name: str, parameter: inspect.Parameter, hint: Any, text: str
    ) -> tuple[list[str], dict[str, Any]]:
        default = self.defaults.get(name, parameter.default)
        dashed = name.replace("_", "-")
        if isinstance(default, bool):
            flags = self.names.get(name, f"--no-{dashed}" if default else f"--{dashed}").split()
            return flags, {"action": "store_false" if default else "store_true", "default": default, "help": text}
        how: dict[str, Any] = {"help": text}
        if default is inspect.Parameter.empty:
            how["required"] = True
        else:
            how["default"] = default
            if default is not None and "(default" not in text:
                how["help"] = f"{text} (default: {default})"
        if name in self.types:
            how["type"] = self.types[name]
        elif choices := self.choices.get(name) or _choices(hint):
            how["choices"] = tuple(choices)
        else:
            how["type"] = _text_type(hint)
        if name in self.metavars or "choices" not in how:
            how["metavar"] = self.metavars.get(name, name.upper())
        return self.names.get(name, f"--{dashed}").split(), how

    def _options(self) -> dict[str, list[str]]:
        """Return the names on the command line of each argument."""
        actions = self.build_parser()._actions
        return {action.dest: list(action.option_strings) or [action.metavar] for action in actions}

    def _describe(self, message: str) -> str:
        """Say in a line what is wrong, and what would do."""
        options = self._options()
        if message.startswith("unrecognized arguments: "):
            first = message.split()[2].partition("=")[0]
            if first.startswith("-"):
                return unknown_option(first, [name.removeprefix("--") for names in options.values() for name in names])
            return f"{first!r} is one argument too many; see kornia-mvit {self.name} --help"
        if missing := re.match(r"the following arguments are required: (.*)", message):
            needed = [options.get(name, [name])[0] for name in missing[1].split(", ")]
            return f"{self.name} needs {' and '.join(needed)}; see kornia-mvit {self.name} --help"
        if choice := re.match(r"argument ([^:]+): invalid choice: (.*) \(choose from (.*)\)", message):
            return f"{choice[1].split('/')[0]} is {choice[2]}; available: {choice[3]}"
        key = re.match(r'Parser key "(\w+)"', message)
        value = re.search(r"(?:Got value|Given value): (.*)", message)
        if key and value and (wanted := expected_types(message)):
            return f"{options[key[1]][0]} is {value[1]}; expected {' or '.join(wanted)}"
        return " ".join(message.removeprefix("argument ").split())


def split_options(argv: Iterable[str]) -> tuple[list[str], list[str]]:
    """Divide a command line into a command's own options and those of a recipe, whose names have a dot.

    Example:
        >>> split_options(["--count", "3", "--data.root", "photos", "--data.batch_size=2"])
        (['--count', '3'], ['--data.root', 'photos', '--data.batch_size=2'])
    """
    own: list[str] = []
    others: list[str] = []
    value_of: list[str] | None = None  # where the value of the option before goes
    for argument in argv:
        if argument.startswith("--"):
            name, equals, _ = argument.partition("=")
            goes = others if "." in name else own
            goes.append(argument)
            value_of = goes if not equals else None
        else:
            (own if value_of is None else value_of).append(argument)
            value_of = None
    return own, others


def _refuse(message: str, ex: Exception | None = None) -> NoReturn:
    raise OptionError(message)


def _plain_text(text: str) -> str:
    """Return a docstring's text without the marks of reStructuredText."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?([\w]+)`", r"\1", text)
    return " ".join(text.replace("`", "").split()).replace("%", "%%")


def _members(hint: Any) -> list[Any]:
    """Return the types that an annotation allows, None left out: an option that is not given is None."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [member for member in members if member is not NoneType]


def _choices(hint: Any) -> Sequence[Any]:
    members = _members(hint)
    if len(members) == 1 and get_origin(members[0]) is Literal:
        return get_args(members[0])
    return ()


def _text_type(hint: Any) -> Any:
    """Return an annotation's part that text can express: numbers, words, and tuples and lists of them."""
    plain = [one for one in _members(hint) if one in _PLAIN or get_origin(one) in (Literal, tuple, list)]
    if not plain or plain == [str]:
        return str
    return Union[tuple(plain)]  # noqa: UP007  # of a number of types that is not known here
