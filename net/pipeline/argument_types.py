"""The types of the scripts' options: text to value.

A value that is out of range is bad usage, found before any work starts.
"""

import argparse
import math
from collections.abc import Callable
from typing import Literal, TypeVar

Number = TypeVar("Number", int, float)
Value = TypeVar("Value")

DATASETS = ("auto", "mnist", "fashion-mnist", "kmnist", "cifar10", "digits")


def integer(low: int, high: float = math.inf) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            span = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {span}")
        return value

    return parse


def or_auto(kind: Callable[[str], Value]) -> Callable[[str], Value | Literal["auto"]]:
    """The type of an option whose value is "auto" or what `kind` takes."""
    return lambda text: "auto" if text == "auto" else kind(text)


def patterns(text: str) -> tuple[str, ...]:
    """Patterns over names, separated by commas."""
    found = tuple(part.strip() for part in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty pattern")
    return found


def real(low: float = 0.0, high: float = math.inf) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            span = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {span}")
        return value

    return parse


def per_layer(number: Callable[[str], Number]) -> Callable[[str], Number | dict[str, Number]]:
    """The type of an option with a value per layer, 'features.*=1.2,@linear=2.0': a number, or a
    dict {pattern: number} (net.parameters); `number` is the type of a single value."""

    def parse(text: str) -> Number | dict[str, Number]:
        if "=" not in text:
            return number(text)
        values = {}
        for part in text.split(","):
            pattern, equals, value = part.partition("=")
            if not (pattern.strip() and equals):
                raise argparse.ArgumentTypeError(f"{part!r} is not PATTERN=VALUE")
            values[pattern.strip()] = number(value)
        return values

    return parse


def dataset(text: str) -> str:
    if text in DATASETS or all(text.partition(":")):
        return text
    raise argparse.ArgumentTypeError(
        f"unknown data set {text!r}; known: {', '.join(DATASETS)}, folder:PATH, "
        "package.module:factory"
    )


def picture(text: str) -> str:
    """The name of a file that a plot is written to."""
    if not text.lower().endswith((".png", ".svg", ".pdf")):
        raise argparse.ArgumentTypeError(f"{text!r} ends in none of .png, .svg and .pdf")
    return text
