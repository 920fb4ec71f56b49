"""Options with a value per layer: `--sensitivity 'features.*=1.2,classifier.*=2.0'`.

Such a value is a number, for every layer, or a dict {pattern: number}, of which the last pattern
that matches a layer decides.  A pattern is a layer's name with the wildcards of a shell, or the
kind of the layer: `@conv` or `@linear`.
"""

import argparse
from fnmatch import fnmatchcase

from ..errors import UserError


def per_layer(number):
    """The argparse type of such an option; `number` is the type of a single value."""

    def parse(text: str):
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


def resolve(values, kinds: dict[str, str]) -> dict:
    """{layer: value} for the layers {name: kind}; UserError where one of them has no match."""
    if not isinstance(values, dict):
        return dict.fromkeys(kinds, values)
    found, unused = {}, set(values)
    for name, kind in kinds.items():
        for pattern, value in values.items():
            if pattern == f"@{kind}" or fnmatchcase(name, pattern):
                found[name] = value
                unused.discard(pattern)
    layers = ", ".join(kinds)
    # A kind may well be absent, as convolutions are from a perceptron; a misspelt name may not.
    misspelt = sorted(pattern for pattern in unused if pattern not in ("@conv", "@linear"))
    if misspelt:
        raise UserError(f"no layer matches {misspelt[0]!r}; the layers are: {layers}")
    for name in kinds:
        if name not in found:
            raise UserError(f"no pattern covers the layer {name!r}; add one, such as '*=VALUE'")
    return found
