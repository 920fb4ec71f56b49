import argparse

import pytest

from net.errors import UserError
from net.pipeline.cli import integer, real
from net.pipeline.patterns import per_layer, resolve

KINDS = {"features.0": "conv", "features.3": "conv", "classifier": "linear"}


def test_a_number_is_for_every_layer():
    assert per_layer(real())("1.5") == 1.5
    assert resolve(1.5, KINDS) == dict.fromkeys(KINDS, 1.5)


def test_the_last_pattern_that_matches_decides():
    values = per_layer(integer(1, 16))("*=5, features.*=8,features.3=7")
    assert values == {"*": 5, "features.*": 8, "features.3": 7}
    assert resolve(values, KINDS) == {"features.0": 8, "features.3": 7, "classifier": 5}


def test_kinds():
    assert resolve({"@conv": 8, "@linear": 5}, KINDS) == {
        "features.0": 8,
        "features.3": 8,
        "classifier": 5,
    }
    assert resolve({"@conv": 8, "@linear": 5}, {"fc": "linear"}) == {"fc": 5}


@pytest.mark.parametrize("text", ["a=", "=3", "a=3,", "a=3,b", "a=99", "x"])
def test_malformed(text):
    with pytest.raises(argparse.ArgumentTypeError):
        per_layer(integer(1, 16))(text)


def test_unknown_patterns_are_refused_with_the_list_of_layers():
    with pytest.raises(UserError, match=r"no layer matches 'fc\*'; the layers are: features\.0, "):
        resolve({"*": 1, "fc*": 2}, KINDS)


def test_a_layer_that_no_pattern_covers():
    with pytest.raises(UserError, match="no pattern covers the layer 'classifier'"):
        resolve({"features.*": 1}, KINDS)
