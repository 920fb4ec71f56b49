"""Non-negative integers of any size: Huffman-coded tokens and raw bits."""

from typing import NamedTuple

import numpy as np

from .bits import BitReader, BitWriter, HuffmanError
from .prefix import SMALL_ALPHABET, Code, histogram, read_small_table, write_small_table

MAX_SPLIT = 10


def tokens(
    values: np.ndarray, magnitude: np.ndarray, split: int, kept: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and the number of raw bits of non-negative integers (JPEG XL's hybrid integers).

    A value below 2**split is its own token. A larger one, of b + 1 bits, has a token made of b
    and the ``kept`` bits after the leading one; the other b - kept bits are stored raw.
    ``magnitude`` is b, -1 for 0.
    """
    raw = np.where(magnitude >= split, magnitude - kept, 0)
    large = (1 << split) + ((magnitude - split) << kept) + ((values >> raw) & ((1 << kept) - 1))
    return np.where(magnitude >= split, large, values), raw


def _magnitude(values: np.ndarray) -> np.ndarray:
    """floor(log2(value)) as int64, -1 for 0; exact up to 2**63."""
    _, exponent = np.frexp(values.astype(np.float64))
    # a value that float64 rounded up to a power of two
    exponent = exponent.astype(np.int64)
    too_far = (exponent > 53) & (values >> np.maximum(exponent - 1, 0) == 0)
    return exponent - 1 - too_far


def write_integers(writer: BitWriter, values: np.ndarray) -> None:
    """Non-negative int64 values as Huffman-coded tokens and raw bits, by the cheapest split.

    The reader has to know how many there are.
    """
    if values.size == 0:
        return
    split, kept, code = _best_split(values)
    writer.write(split, 4)
    writer.write(kept, 2)
    token, raw = tokens(values, _magnitude(values), split, kept)
    write_small_table(writer, code)
    code.write(writer, token)
    if raw.any():
        keep = np.flatnonzero(raw)
        mask = (np.uint64(1) << raw[keep].astype(np.uint64)) - np.uint64(1)
        writer.write_array(values[keep].astype(np.uint64) & mask, raw[keep].astype(np.uint8))


def read_integers(reader: BitReader, count: int) -> np.ndarray:
    """``count`` int64 values in [0, 2**63) written by ``write_integers``."""
    if count == 0:
        return np.zeros(0, np.int64)
    split, kept = reader.read(4), reader.read(2)
    if kept > split or split > MAX_SPLIT:
        raise HuffmanError("token parameters that no encoder uses")
    code = read_small_table(reader)
    value, raw = _token_values(code.symbols, split, kept)
    ranks = code.read_ranks(reader, count)
    reader.note(code, ranks)
    values, raw = value[ranks], raw[ranks]
    if raw.any():
        keep = np.flatnonzero(raw)
        values[keep] |= reader.read_array(raw[keep]).astype(np.int64)
    return values


def _token_values(token: np.ndarray, split: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """The least value and the number of raw bits of each token."""
    large = token - (1 << split)
    magnitude = (large >> kept) + split
    if int(magnitude.max()) > 62:
        raise HuffmanError("a token beyond 2**63")
    raw = np.where(large >= 0, magnitude - kept, 0)
    top = (1 << kept) + (large & ((1 << kept) - 1))
    return np.where(large >= 0, top << raw, token), raw


def integer_bits(values: np.ndarray) -> float:
    """About as many bits as ``write_integers`` takes."""
    return _splits(*histogram(values))[0].cost if values.size else 0.0


def _best_split(values: np.ndarray) -> tuple[int, int, Code]:
    """The split and kept bits with the fewest bits in all, and the code of their tokens."""
    best = None
    for found in _splits(*histogram(values))[:4]:  # the estimate is that good
        code = Code.from_counts(found.symbols, found.counts)
        table = BitWriter()
        write_small_table(table, code)
        cost = table.length + found.raw_bits + int(np.sum(found.counts * code.lengths))
        if best is None or cost < best[0]:
            best = cost, found.split, found.kept, code
    return best[1:]


class Split(NamedTuple):
    cost: float  # bits, by entropy and a guess at the table
    split: int
    kept: int
    symbols: np.ndarray  # the tokens that occur
    counts: np.ndarray
    raw_bits: int


def _splits(distinct: np.ndarray, counts: np.ndarray) -> list[Split]:
    """All ways to make tokens of the values, the cheapest first."""
    magnitude = _magnitude(distinct)
    largest = int(magnitude[-1]) + 1
    found = []
    for split in range(min(largest, MAX_SPLIT) + 1):
        # with nothing above the split, the kept bits do not matter
        for kept in range(min(split, 2) + 1 if split < largest else 1):
            token, raw = tokens(distinct, magnitude, split, kept)
            if token[-1] < SMALL_ALPHABET:
                changes = np.flatnonzero(token[1:] != token[:-1]) + 1  # tokens rise with values
                first = np.concatenate([[0], changes])
                sums = np.add.reduceat(counts, first)
                raw_bits = int(np.dot(counts, raw))
                entropy = float(np.dot(sums, np.log2(sums.sum() / sums)))
                table = 3.0 * (int(token[-1]) + 1) - 1.0 * len(first)
                cost = entropy + raw_bits + table
                found.append(Split(cost, split, kept, token[first], sums, raw_bits))
    return sorted(found, key=lambda each: each[:3])
