"""Non-negative integers of any size: Huffman-coded tokens and raw bits (JPEG XL's hybrid integers).

A value below 2**split is its own token. A larger one, of b + 1 bits, has a token made of b and the
``kept`` bits after the leading one; the other b - kept bits are stored raw.

Example: split 2, kept 1: 0, 1, 2, 3 -> tokens 0, 1, 2, 3; 4, 5 -> 4 and a bit; 6, 7 -> 5 and a bit
"""

import numpy as np

from .. import codec
from .bits import BitReader, BitWriter, HuffmanError
from .codes import Code, histogram, narrow, read_small_table, write_small_table

MAX_SPLIT = 10


def write_integers(writer: BitWriter, values: np.ndarray) -> None:
    """Non-negative int64 values, by the cheapest split.

    The reader has to know how many there are.
    """
    if values.size == 0:
        return
    split, kept, code = _best_split(*histogram(values))
    writer.write(split, 4)
    writer.write(kept, 2)
    write_small_table(writer, code)
    tokens, widths = codec.kernels.split_values(values, split, kept)
    code.write(writer, tokens)
    writer.write_fields(values.view(np.uint64), widths)


class Integers:
    """``count`` > 0 integers written by ``write_integers``; ``take`` gives the next of them.

    Their tokens are kept, a byte or two each: all values at once may be far more than what they
    are the gaps of.
    """

    def __init__(self, reader: BitReader, count: int) -> None:
        split, kept = reader.read(4), reader.read(2)
        if kept > split or split > MAX_SPLIT:
            raise HuffmanError("token parameters that no encoder uses")
        code = read_small_table(reader)
        size = int(code.symbols[-1]) + 1
        self._least, self._widths = _token_values(size - 1, split, kept)
        self._tokens = code.read(reader, count, narrow(code.symbols, size))
        reader.note(code, self._tokens)
        bits = int(np.dot(codec.kernels.count(self._tokens, size), self._widths))
        self._data, self._at = reader.data, reader.skip(bits)
        self._end, self.left = reader.position, count

    def take(self, out: np.ndarray) -> None:
        """Fill ``out`` (int64, at most ``left``) with values in [0, 2**63)."""
        first = len(self._tokens) - self.left
        tokens = self._tokens[first : first + len(out)]
        arguments = self._data, self._at, self._end, tokens, self._least, self._widths, out
        self._at = codec.kernels.unpack_integers(*arguments)
        self.left -= len(out)


def integer_bits(values: np.ndarray) -> float:
    """About as many bits as ``write_integers`` takes."""
    return float(_costs(*histogram(values)).min()) if values.size else 0.0


def _token_values(last: int, split: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """The least value and the number of raw bits of each token up to ``last``, int64."""
    large = np.arange(last + 1) - (1 << split)
    magnitude = (large >> kept) + split
    if int(magnitude[-1]) > 62:
        raise HuffmanError("a token beyond 2**63")
    widths = np.where(large >= 0, magnitude - kept, 0)
    top = (1 << kept) + (large & ((1 << kept) - 1))
    return np.where(large >= 0, top << widths, np.arange(last + 1)), widths


def _best_split(distinct: np.ndarray, counts: np.ndarray) -> tuple[int, int, Code]:
    """The split and kept bits with the fewest bits in all, and the code of their tokens."""
    costs = _costs(distinct, counts)
    found: list[tuple[int, int, int, Code]] = []
    for index in np.argsort(costs, axis=None, kind="stable")[:4]:  # the estimate is that good
        split, kept = divmod(int(index), costs.shape[1])
        if np.isinf(costs[split, kept]):
            break
        tokens, widths = codec.kernels.split_values(distinct, split, kept)
        first = np.flatnonzero(np.diff(tokens, prepend=-1))  # tokens rise with values
        sums = np.add.reduceat(counts, first)
        code = Code.from_counts(tokens[first].astype(np.int64), sums)
        table = BitWriter()
        write_small_table(table, code)
        cost = table.length + int(np.dot(counts, widths)) + int(np.dot(sums, code.lengths))
        found.append((cost, split, kept, code))
    return min(found, key=lambda each: each[0])[1:]


def _costs(distinct: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """About the bits that each (split, kept) takes; infinite where it is of no use."""
    largest = int(distinct[-1]).bit_length()
    costs = np.full((min(largest, MAX_SPLIT) + 1, 3), np.inf)
    codec.kernels.split_costs(distinct, counts, int(counts.sum()), costs)
    costs[largest:, 1:] = np.inf  # with nothing above the split, the kept bits do not matter
    return costs
