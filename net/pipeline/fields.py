"""Options declared once, as fields of dataclasses, and the command lines that are made of them.

    @dataclass(frozen=True)
    class Training:
        epochs: int = option(20, "epochs of dense training")

A field's type says what text is taken: a number, one of several words (Literal), None ("none"), a
value per layer, {pattern: number}, or any of these. Imports nothing heavy: `--help` must answer at
once.
"""

import argparse
import copy
import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NoReturn, TypeVar

Group = TypeVar("Group")
PerLayer = Mapping[str, float]
BitsPerLayer = Mapping[str, int]


def option(
    default: Any,
    help: str,
    *,
    low: float = 0,
    high: float = math.inf,
    metavar: str | None = None,
    expert: bool = False,
    negatable: bool = False,
    check: Callable[[str], Any] | None = None,
) -> Any:
    """A field of a dataclass that is an option of a script, too.

    `low` and `high` bound its numbers; `check` reads its text in place of its type. `metavar` is
    what the help calls its value, if not N, R, NAME or the words. `expert`: shown by --help-all
    alone, and given as any other or by --set. `negatable`: a switch that a preset may turn on, so
    that it has a form with --no- as well.
    """
    metadata = {"help": help, "low": low, "high": high, "metavar": metavar, "check": check}
    metadata |= {"expert": expert, "negatable": negatable}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


expert = functools.partial(option, expert=True)


def declared(group: type) -> dict[str, dataclasses.Field]:
    """{name: field} of the options of a dataclass."""
    return {field.name: field for field in dataclasses.fields(group) if "help" in field.metadata}


hints = functools.cache(typing.get_type_hints)  # a millisecond for each of a hundred options


def alternatives(group: type, name: str) -> tuple[set[Any], list[str]]:
    """The types that an option takes, such as {int, Mapping, Literal}, and the words."""
    hint = hints(group)[name]
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    parts = typing.get_args(hint) if union else (hint,)
    words = [word for part in parts if typing.get_origin(part) is Literal for word in part.__args__]
    return {typing.get_origin(part) or part for part in parts}, words


# --- from text to value -------------------------------------------------------------------------


def reader(group: type, name: str) -> Callable[[str], Any]:
    """The function that reads the text of an option of `group`.

    It raises argparse.ArgumentTypeError for a value that is out of range: bad usage, found before
    any work starts.
    """
    facts = declared(group)[name].metadata
    kinds, words = alternatives(group, name)

    def read(text: str) -> Any:
        if text in words:
            return text
        if text == "none" and type(None) in kinds:
            return None
        if bool in kinds and text.lower() in ("on", "off", "true", "false"):
            return text.lower() in ("on", "true")
        if typing.get_origin(PerLayer) in kinds and "=" in text:
            return per_layer(text, number)
        if int in kinds or float in kinds:
            return number(text)
        if str in kinds:
            return text
        known = [*words, *["on", "off"] * (bool in kinds)]
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}")

    def number(text: str) -> float:
        return in_range(text, float if float in kinds else int, facts["low"], facts["high"])

    return facts["check"] or read


def in_range(text: str, kind: type, low: float, high: float) -> Any:
    try:
        value = kind(text)
        finite = math.isfinite(value)
    except (ValueError, OverflowError):  # of hundreds of digits
        finite = False
    if not (finite and low <= value <= high):
        what = "number" if kind is float else "whole number"
        span = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what} {span}")
    return value


def per_layer(text: str, number: Callable[[str], Any]) -> dict[str, Any]:
    """'features.*=1.2,@linear=2.0' as {pattern: number} (net.parameters)."""
    values = {}
    for part in text.split(","):
        pattern, equals, value = part.partition("=")
        if not (pattern.strip() and equals):
            raise argparse.ArgumentTypeError(f"{part!r} is not PATTERN=VALUE")
        values[pattern.strip()] = number(value)
    return values


def shown(value: object) -> str:
    """A value as the user would type it."""
    if isinstance(value, Mapping):
        return ",".join(f"{pattern}={number}" for pattern, number in value.items())
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple) and value:  # patterns
        return ",".join(map(str, value))
    return "none" if value is None or value == () else str(value)


# --- command lines --------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser whose options are fields of dataclasses, whose errors are one line, and whose help
    is the script's docstring.

    A field that was not given is not in the namespace: see ``given`` and ``built``.
    """

    def __init__(self, docstring: str | None) -> None:
        super().__init__(
            description=docstring,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.known: dict[str, tuple[type, str]] = {}  # {name for --set: where it is declared}
        self.hidden: dict[argparse.Action, str | None] = {}  # {option: its help}
        self.add_argument("-h", "--help", action="help", help="what is needed most, and exit")
        text = "an option of this page's groups or of --help-all's, by its name"
        self.beyond = [  # what --help shows
            self.add_argument(
                "--help-all", action=_HelpAll, nargs=0, help="every option, and exit"
            ),
            self.add_argument("--set", action=_Set, metavar="NAME=VALUE", help=text),
        ]

    def add_fields(
        self,
        title: str,
        group: type,
        *,
        rename: Mapping[str, str] | None = None,
        only: Iterable[str] | None = None,
        hide: Iterable[str] = (),
        defaults: Callable[[str], str] | None = None,
    ) -> None:
        """Options for the fields of `group`, those of `only` if that is given.

        `rename`: other names for some. `hide`: leave these to --help-all as well. `defaults(name)`
        says what holds where the option is not given, if that is not the field's default.
        """
        box, values = self.add_argument_group(title), group()
        for name in declared(group) if only is None else only:
            facts = declared(group)[name].metadata
            default = defaults(name) if defaults else shown(getattr(values, name))
            flag = (rename or {}).get(name, name)
            self.known[flag] = group, name
            kinds, words = alternatives(group, name)
            more: dict[str, Any] = {"action": "store_true"}
            if facts["negatable"]:
                more = {"action": argparse.BooleanOptionalAction}
            elif bool not in kinds:
                metavar = "R" if float in kinds else "N" if int in kinds else "NAME"
                metavar = "{" + ",".join(words) + "}" if kinds == {Literal} else metavar
                more = {"type": reader(group, name), "metavar": facts["metavar"] or metavar}
            action = box.add_argument(
                "--" + flag.replace("_", "-"),
                dest=name,
                default=argparse.SUPPRESS,
                help=facts["help"] + (f" (default: {default})" if default != "none" else ""),
                **more,
            )
            if facts["expert"] or name in hide:
                self.hide(action)

    def hide(self, action: argparse.Action) -> None:
        """Show the option by --help-all alone."""
        self.hidden[action], action.help = action.help, argparse.SUPPRESS

    def format_help(self) -> str:
        if not self.hidden:
            for action in self.beyond:
                action.help = argparse.SUPPRESS
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


class _HelpAll(argparse.Action):
    def __call__(self, parser: Any, *_: Any, **__: Any) -> None:
        for action, text in parser.hidden.items():
            action.help = text
        parser.print_help()
        parser.exit()


class _Set(argparse.Action):
    def __call__(self, parser: Any, namespace: argparse.Namespace, text: Any, *_: Any) -> None:
        flag, equals, value = text.partition("=")
        flag = flag.strip().lstrip("-").replace("-", "_")
        if not equals or flag not in parser.known:
            close = difflib.get_close_matches(flag, parser.known, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            parser.error(f"argument --set: {text!r} is not NAME=VALUE of an option{hint}")
        group, name = parser.known[flag]
        try:
            setattr(namespace, name, reader(group, name)(value))
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --set {flag}: {error}")


def given(args: argparse.Namespace, group: type) -> dict[str, Any]:
    """{name: value} of the options of `group` that the user has given."""
    return {name: value for name, value in vars(args).items() if name in declared(group)}


def built(args: argparse.Namespace, group: type[Group]) -> Group:
    """A `group` of what the user has given, and its defaults."""
    return group(**given(args, group))
