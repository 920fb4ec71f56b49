"""What the answers of a transformer feel of each of its matrices, told by names alone.

Where there are no sample inputs to measure it by (net.sensitivity), steps follow the sizes of
tensors (net.rounding). Within a transformer more is known. The scores of attention feel errors of
their queries and keys far less than the answers feel those of any other matrix. And where the sum
of every block is normalised (BERT and its kin), what a block adds takes the place of a part of
what came before it, so that errors of early blocks fade.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .parameters import EMBEDDING_NAME, NORM_NAME, layer_of

# Steps of queries and keys over those of other matrices, and those of a block over those of the
# block before, where sums are normalised. Chosen on two BERTs that no figure is reported of, by
# their measured sensitivities (docs/results.md, "Roles").
SCORES, NEXT_BLOCK = 2.5, 5 / 6
PROJECTION = re.compile(
    r"(?:(?:to|lin|linear|w)_?)?(q|k|v|quer(?:y|ies)|keys?|values?)(?:_?(?:proj|lin|linear))?",
    re.IGNORECASE,
)


class _Place(NamedTuple):
    """A block in a list of blocks: `blocks.3` is number 3 of "blocks"."""

    blocks: str
    number: int


def felt(names: Iterable[str], kinds: Mapping[str, str]) -> dict[str, float]:
    """{name: what the answers feel of a relative error in it, squared} of the matrices in blocks
    with attention, and of embeddings beside these, in units of their own; empty without any.

    `kinds` has what is shared, by name, as of parameters.compressible; `names` all tensors of the
    model. Attention is known by matrices for queries, keys and values beside each other.
    """
    attention: dict[str, dict[str, str]] = {}
    for name in kinds:
        parent, _, last = layer_of(name).rpartition(".")
        if found := PROJECTION.fullmatch(last):
            attention.setdefault(parent, {})[found[1][0].lower()] = name
    attention = {parent: each for parent, each in attention.items() if len(each) == 3}
    scores = {each[letter] for each in attention.values() for letter in "qk"}
    lists = _lists(attention)
    normalised = _normalised(names, lists) if lists else set()
    result = {}
    for name, kind in kinds.items():
        place = next((each for each in _places(name) if each.blocks in lists), None)
        if place is None and not (kind == "embedding" and lists):
            continue
        result[name] = SCORES**-2 if name in scores else 1.0
        if place is not None and place.blocks in normalised:
            result[name] *= NEXT_BLOCK ** (-2 * place.number)
    return result


def _counts(part: str) -> bool:
    return part.isdecimal() and len(part) < 19  # of more digits int makes an error


def _places(name: str) -> list[_Place]:
    """All that the numbers in a name may mean, from the outermost on."""
    parts = name.split(".")
    return [_Place(".".join(parts[:i]), int(x)) for i, x in enumerate(parts) if _counts(x)]


def _lists(attention: Iterable[str]) -> set[str]:
    """The outermost lists of two or more blocks, each of which has one of these layers."""
    numbers: dict[str, set[int]] = {}
    for layer in attention:
        for place in _places(layer):
            numbers.setdefault(place.blocks, set()).add(place.number)
    several = {blocks for blocks, found in numbers.items() if len(found) > 1}
    firsts = (
        next((each.blocks for each in _places(layer) if each.blocks in several), None)
        for layer in attention
    )
    return {blocks for blocks in firsts if blocks is not None}


def _normalised(names: Iterable[str], lists: set[str]) -> set[str]:
    """Of these lists of blocks those whose sums are normalised, block by block.

    It is then the embeddings that have a normalisation of their own, and none comes after the last
    block: none beside the list, or beside what has the list.
    """
    norms = set()
    for name in names:
        parent, _, last = layer_of(name).rpartition(".")
        if NORM_NAME.search(last):
            norms.add(parent)
    if not any(EMBEDDING_NAME.fullmatch(parent.rpartition(".")[2]) for parent in norms):
        return set()
    return {
        blocks
        for blocks in lists
        if any(parent.startswith(f"{blocks}.") for parent in norms)
        and not any(f"{blocks}.".startswith(f"{parent}.".removeprefix(".")) for parent in norms)
    }
