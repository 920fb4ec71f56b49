"""Values in two parts: heads in Huffman codes that blocks choose from, and tails as they are.

A dense float carries most of what can be saved in sign and exponent, a little in the first bits
of the mantissa, and nothing in the others. So the top bits of a value, its head, are one symbol,
and the rest, its tail, follows the code word. A code of heads of 11 bits loses less to lengths
that are whole numbers than one of exponents does. Tensors are not alike all over: each block of
``BLOCK`` values has one of a few codes, and its own number of bits in a tail, since low bits that
are zero in all of it are left out (rows of a lower precision, as those that were never trained).

Value i is in lane i % LANES. The lanes are decoded at the same time; each goes through all blocks,
so that its size is stored once.
"""

from collections.abc import Callable, Iterator

import numpy as np

from .. import codec
from . import BLOCK, LANES, LONGEST
from .bits import BitReader, BitWriter, HuffmanError
from .codes import (
    Code,
    check_lanes,
    code_lengths,
    entropy,
    lane_starts,
    parts,
    read_table,
    write_table,
)

MAX_HEAD, MAX_TABLES = 12, 64
TAILS = 64  # a block's symbol is this times the number of its table, plus the bits of its tails
LEAST = 2 * BLOCK  # values; fewer are written in another form

# Chosen on the voice encoder of Resemblyzer and on CHGNet, in float32 and bfloat16: 10 or 12 bits
# take 0.01 to 0.04 % more, one table for a tensor of 262,144 values 0.2 to 0.6 %. From where on
# there are 8, on the word tables of WordLlama and of a BERT, and on AntiBERTy: of a million values
# and more they save 0.02 to 0.24 % over 2, and 16 no more than 0.2 % over 8.
HEAD = 11
GROUP = 16  # blocks that choose a code together
TABLES = {1 << 20: 8, 1 << 18: 2, 0: 1}  # from so many values on; each costs a reader 0.1 ms
ROUNDS = 2  # of k-means
PART = 16 * BLOCK  # values decoded before they are used


class Heads:
    """Values below 2**width (an unsigned type), at least ``LEAST`` of them, width > ``HEAD``, and
    ``about`` how many bits they take."""

    def __init__(self, values: np.ndarray, width: int) -> None:
        self._values, self._low = values, np.uint64(width - HEAD)
        groups = -(-values.size // (BLOCK * GROUP))
        self._counts = np.zeros((groups, LANES, 1 << HEAD), np.uint16)
        self._groups = np.zeros((groups, 1 << HEAD), np.int64)
        codec.kernels.survey(values, self._low, GROUP, self._counts, self._groups)
        below = _used(values) & ((np.uint64(1) << self._low) - np.uint64(1))
        _, exponents = np.frexp((below & (~below + np.uint64(1))).astype(np.float64))
        # at least one, so that every value takes a bit
        self._tails = np.where(below, int(self._low) + 1 - exponents, 1)
        total = self._groups.sum(axis=0)
        tails = float(self._tails.mean()) * values.size
        self.about = entropy(total) + 3 * np.count_nonzero(total) + tails

    def write(self) -> BitWriter:
        """The fields of docs/format.md, Heads and tails."""
        group, codes = _codes(self._groups)
        which = np.repeat(group, GROUP)[: len(self._tails)]
        tables = np.zeros((len(codes), 1 << HEAD), np.uint16)
        writer = BitWriter()
        writer.write(HEAD, 4)
        writer.write_number(len(codes) - 1)
        for table, code in zip(tables, codes, strict=True):
            write_table(writer, code)
            table[code.symbols] = code.words() << np.uint64(4) | code.lengths
        kinds = which * TAILS + self._tails
        kind = Code.of(kinds)
        write_table(writer, kind)
        kind.write(writer, kinds)
        sizes = self._sizes(group, tables & 15)
        for size in sizes[:-1].tolist():
            writer.write_number(size)
        blocks = self._values, self._low, tables, which, self._tails.astype(np.uint64)
        writer.append(int(sizes.sum()), codec.kernels.pack_lanes, *blocks, sizes)
        return writer

    def _sizes(self, group: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The bits that each lane takes, int64[LANES]."""
        last = self._values.size - BLOCK * (len(self._tails) - 1)
        sizes = self._tails[:-1].sum() * (BLOCK // LANES) + self._tails[-1] * (
            (last + LANES - 1 - np.arange(LANES)) // LANES
        )
        codec.kernels.lane_sizes(self._counts, group, lengths, sizes)
        return sizes


def _used(values: np.ndarray) -> np.ndarray:
    """The bits in use in each block, uint64 [blocks]."""
    whole = values.size // BLOCK
    wide = values[: whole * BLOCK].view(np.uint64).reshape(whole, -1)  # several values at a time
    few = np.bitwise_or.reduce(wide, axis=1).view(values.dtype).reshape(whole, -1)
    rest = values[None, whole * BLOCK :]
    found = [np.bitwise_or.reduce(part, axis=1) for part in (few, rest) if part.size]
    return np.concatenate(found).astype(np.uint64)


def _codes(groups: np.ndarray) -> tuple[np.ndarray, list[Code]]:
    """Which code each group has, and the codes: k-means, where a distance is a number of bits."""
    total = groups.sum(axis=0)
    heads, size = np.flatnonzero(total), total.sum()
    which = np.zeros(len(groups), np.int64)
    most = next(tables for least, tables in TABLES.items() if size >= least)
    counts = groups[:, heads].astype(np.float64)
    if most > 1:
        # at first by scale: the head without its top bit, a sign, grows with it
        scales = counts @ (heads & ((1 << (HEAD - 1)) - 1))
        which[np.argsort(scales / counts.sum(axis=1))] = np.arange(len(which)) * most // len(which)
        for _ in range(ROUNDS):
            centers = np.stack([counts[which == k].sum(axis=0) for k in np.unique(which)])
            centers += total[heads] / size  # so that none is impossible
            bits = -np.log2(centers / centers.sum(axis=1, keepdims=True))
            which = np.argmin(counts @ bits.T, axis=1)
    _, which = np.unique(which, return_inverse=True)
    return which, [_code(counts[which == k].sum(axis=0), heads) for k in range(which.max() + 1)]


def _code(counts: np.ndarray, heads: np.ndarray) -> Code:
    """The best code within ``LONGEST`` bits where heads[i] occurs counts[i] times."""
    present = np.flatnonzero(counts)
    return Code(heads[present], code_lengths(counts[present].astype(np.int64), LONGEST))


def read_heads(
    reader: BitReader,
    count: int,
    width: int,
    kind: np.dtype,
    empty: Callable[[int, np.dtype], np.ndarray] | None = None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """``count`` values written by ``Heads`` in the type ``kind``, part by part.

    With ``empty`` all of them are one part, in an array that it gives.
    """
    reader.need(count)  # each takes a bit at least
    head = reader.read(4)
    if not 1 <= head <= min(MAX_HEAD, width - 1):
        raise HuffmanError("heads of a width that no value has")
    blocks, low = -(-count // BLOCK), width - head
    size = reader.read_number() + 1
    if size > min(blocks, MAX_TABLES):
        raise HuffmanError("more codes than blocks, or than there may be")
    tables = np.empty((size, 1 << LONGEST), np.uint16)
    for table in tables:
        code = read_table(reader, count, (1 << head) - 1, "a head beyond its width")
        if code.longest > LONGEST:
            raise HuffmanError("a code word that is too long for a head")
        table[:] = code.lookup(LONGEST, code.symbols << 4 | code.lengths)
    of = read_table(reader, blocks, size * TAILS - 1, "a block of a code that is not there")
    tail = of.symbols % TAILS
    if tail.min() < 1 or tail.max() > low:
        raise HuffmanError("tails that no value has")
    kinds = of.read(reader, blocks, of.symbols.astype(np.uint16))
    which, tails = (kinds // TAILS).astype(np.int64), (kinds % TAILS).astype(np.uint64)
    starts = lane_starts(reader, LANES)
    at = starts.copy()
    out = empty(count, kind) if empty else np.empty(min(count, PART), kind)
    for part in parts(count, len(out)):
        here = slice(part.start // BLOCK, -(-part.stop // BLOCK))
        chosen = tables, which[here], tails[here], np.uint64(low)
        values = out[: part.stop - part.start]
        if not codec.kernels.unpack_lanes(reader.data, at, reader.end, *chosen, values):
            raise HuffmanError("the data ends early")
        yield part, values
    check_lanes(at, starts)
    reader.move(int(at[-1]))
