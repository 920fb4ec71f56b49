"""Options as fields: what text they take, what --help shows, what --set does."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pytest

from net.pipeline.fields import Parser, built, given, in_range, option, reader, shown


@dataclass(frozen=True)
class Example:
    n: int = option(1, "a number", low=1, high=16, metavar="N")
    x: float | Literal["auto"] = option("auto", "a real", metavar="R")
    per: float | Mapping[str, float] | None = option(None, "per layer", expert=True)
    bits: int | Mapping[str, int] | Literal["auto"] = option({"*": 5}, "bits", low=1, high=16)
    kind: Literal["a", "b"] = option("a", "a word")
    switch: bool = option(False, "a switch")
    both: bool | Literal["auto"] = option("auto", "a switch of presets", negatable=True)
    name: str | None = option(None, "any text")


def parser():
    parser = Parser("A test.")
    parser.add_fields("group", Example, rename={"name": "other"})
    return parser


def parsed(*argv):
    return built(parser().parse_args(argv), Example)


def test_what_is_not_given_is_the_default():
    assert parsed() == Example()
    assert given(parser().parse_args(["--n", "3"]), Example) == {"n": 3}


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--n", "16"], "n", 16),
        (["--x", "0.5"], "x", 0.5),
        (["--x", "auto"], "x", "auto"),
        (["--per", "a=1,@conv=2.5"], "per", {"a": 1.0, "@conv": 2.5}),
        (["--per", "none"], "per", None),
        (["--per", "2"], "per", 2.0),
        (["--bits", "*=5, features.*=8,features.3=7"], "bits")
        + ({"*": 5, "features.*": 8, "features.3": 7},),
        (["--bits", "auto"], "bits", "auto"),
        (["--kind", "b"], "kind", "b"),
        (["--switch"], "switch", True),
        (["--no-both"], "both", False),
        (["--set", "both=on"], "both", True),
        (["--set", "both=auto"], "both", "auto"),
        (["--set", "per=2"], "per", 2.0),
        (["--set", "other=some text"], "name", "some text"),
        (["--set=--n=4"], "n", 4),
    ],
)
def test_text_becomes_a_value(argv, name, value):
    assert getattr(parsed(*argv), name) == value


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--n", "0"], "argument --n: '0' is not a whole number from 1 to 16"),
        (["--n", "2.5"], "argument --n: '2.5' is not a whole number from 1 to 16"),
        (["--x", "nan"], "argument --x: 'nan' is not a number of at least 0"),
        (["--x", "inf"], "argument --x: 'inf' is not a number of at least 0"),
        (["--x", "-1"], "argument --x: '-1' is not a number of at least 0"),
        (["--bits", "a="], "argument --bits: '' is not a whole number"),
        (["--bits", "=3"], "argument --bits: '=3' is not PATTERN=VALUE"),
        (["--bits", "a=3,"], "argument --bits: '' is not PATTERN=VALUE"),
        (["--bits", "a=99"], "argument --bits: '99' is not a whole number from 1 to 16"),
        (["--kind", "c"], "argument --kind: 'c' is none of a, b"),
        (["--set", "m=1"], "argument --set: 'm=1' is not NAME=VALUE of an option"),
        (["--set", "kinds=1"], "argument --set: 'kinds=1' is not NAME=VALUE of an option (did you"),
        (["--set", "n"], "argument --set: 'n' is not NAME=VALUE of an option"),
        (["--set", "n=99"], "argument --set n: '99' is not a whole number from 1 to 16"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_bad_usage_is_one_line_and_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(argv)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_experts_are_shown_by_help_all_alone(capsys):
    for flag, there in (("--help", False), ("--help-all", True)):
        with pytest.raises(SystemExit) as stopped:
            parser().parse_args([flag])
        assert stopped.value.code == 0
        assert ("--per" in capsys.readouterr().out) is there


def test_a_value_is_shown_as_it_is_typed():
    for name, value in vars(Example()).items():
        if name != "switch":
            assert reader(Example, name)(shown(value)) == value
    assert shown({"a": 1, "b": 2}) == "a=1,b=2"


def test_a_word_that_is_none_of_the_choices():
    with pytest.raises(argparse.ArgumentTypeError, match="'x' is none of a, b"):
        reader(Example, "kind")("x")


@pytest.mark.parametrize("text", ["9" * 400, "1e999", "nan", "-1", "x"])
@pytest.mark.parametrize("kind", [int, float])
def test_numbers_that_are_none(text, kind):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
        in_range(text, kind, 0, float("inf"))
