"""Canonical, length-limited prefix codes: their lengths, words and tables, and both ways through.

Canonical codes are known by their lengths alone. Package-merge finds the optimal lengths within
a limit; the limit lets one lookup decode a symbol.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from .. import codec
from . import LANES
from .bits import BitReader, BitWriter, HuffmanError, read_set, write_set

PART = 1 << 15  # symbols decoded before they are used: the L2 cache holds them
LANES_FROM = 1 << 17  # symbols; fewer are not divided into lanes
LARGE_TABLE = 1 << 19  # entries of 4 bytes; more only where there are as many symbols to decode
RUN = 1024  # a one-symbol alphabet costs one bit for this many symbols
MAX_SYMBOLS = 1 << 26
SMALL_ALPHABET = 1024  # largest symbol + 1 that the small form can hold
FIRST_LENGTH = 4  # the length that the first entry of a small table is compared with


Empty = Callable[[int, np.dtype], np.ndarray]  # as np.empty: elements, type


class Code:
    """A prefix code: ``symbols`` (ascending int64) and the ``lengths`` of their code words.

    Code words are canonical: consecutive numbers in the order of length, ties by symbol. A code
    of one symbol has length 0.

    Example: symbols 3, 5, 6, 9, lengths 3, 1, 3, 2 -> words 0b110, 0b0, 0b111, 0b10
    """

    def __init__(self, symbols: np.ndarray, lengths: np.ndarray) -> None:
        self.symbols = symbols
        self.lengths = lengths
        self.longest = int(lengths.max())

    @classmethod
    def of(cls, symbols: np.ndarray) -> "Code":
        """The optimal code for the empirical distribution of a non-empty array."""
        return cls.from_counts(*histogram(symbols))

    @classmethod
    def from_counts(cls, symbols: np.ndarray, counts: np.ndarray) -> "Code":
        """The optimal code within ``length_limit``; all counts > 0."""
        if len(symbols) > MAX_SYMBOLS:
            raise HuffmanError(f"cannot encode more than {MAX_SYMBOLS} different symbols")
        return cls(symbols, code_lengths(counts, length_limit(len(symbols))))

    @classmethod
    def checked(cls, symbols: np.ndarray, lengths: np.ndarray) -> "Code":
        """A code that was read; refuses words unused or used twice, and too long ones."""
        if not len(symbols) or int(np.sum(1 << (31 - lengths.astype(np.int64)))) != 1 << 31:
            raise HuffmanError("the code lengths do not make a complete prefix code")
        if int(lengths.max()) > length_limit(len(symbols)):
            raise HuffmanError("a code word longer than its code needs")
        return cls(symbols, lengths)

    def words(self) -> np.ndarray:
        """The code words as uint64."""
        return codec.kernels.canonical_words(self.lengths, self.longest)

    def lookup(self, width: int, of_each: np.ndarray) -> np.ndarray:
        """For each number of ``width`` bits, which begins with a code word, what ``of_each`` has in
        the place of its symbol."""
        order = np.argsort(self.lengths, kind="stable")  # canonical
        return np.repeat(of_each[order], 1 << (width - self.lengths[order].astype(np.int64)))

    def _fewest_bits(self, count: int) -> int:
        """At least so many bits are taken by ``count`` symbols."""
        return count // RUN if len(self.symbols) == 1 else count

    def write(
        self, writer: BitWriter, symbols: np.ndarray, names: np.ndarray | None = None
    ) -> None:
        """Append the code words of ``symbols``; before those of a long array the lanes' sizes.

        ``names``: what ``symbols`` has in the place of each of the code's symbols.
        """
        if len(self.symbols) == 1:  # zeros, so that a few bytes cannot promise gigabytes
            run = symbols.size // RUN
            return writer.append(run, lambda out, at: at + run)
        names = self.symbols if names is None else names
        size = int(names.max()) + 1
        if size > max(1 << 16, 4 * symbols.size):  # a table by rank, where one by symbol is large
            same = symbols.astype(self.symbols.dtype, copy=False)  # not both as float64
            symbols, size = np.searchsorted(self.symbols, same), len(self.symbols)
            names = np.arange(size)
        table = np.zeros(size, np.uint64)
        table[names] = self.words() << np.uint64(6) | self.lengths
        symbols = narrow(symbols, size)
        each = lane_size(symbols.size)
        bounds = [*range(0, LANES * each, each), symbols.size] if each else [0, symbols.size]
        lengths = (table & 63).astype(np.int64)
        lanes = [
            int(np.dot(codec.kernels.count(symbols[first:last], size), lengths))
            for first, last in itertools.pairwise(bounds)
        ]
        for bits in lanes[:-1]:
            writer.write_number(bits)
        writer.append(sum(lanes), codec.kernels.pack_words, symbols, table)

    def read(
        self, reader: BitReader, count: int, values: np.ndarray, empty: Empty = np.empty
    ) -> np.ndarray:
        """``count`` symbols, each as that of ``values`` (by rank; an unsigned type)."""
        reader.need(self._fewest_bits(count))
        out = empty(count, values.dtype)
        for _ in self.read_parts(reader, count, values, out):
            pass
        return out

    def read_parts(
        self, reader: BitReader, count: int, values: np.ndarray, out: np.ndarray | None = None
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """As ``read``, part by part: which symbols, and what they are, until the next is asked for.

        The cache holds a part. With ``out``, which has room for all of them, they stay.
        """
        reader.need(self._fewest_bits(count))
        if out is None:
            out = np.empty(min(count, LANES * PART), values.dtype)
        if len(self.symbols) == 1:
            if reader.read(count // RUN):
                raise HuffmanError("a run with bits that are not zero")
            out[:] = values
            yield from ((part, out[: part.stop - part.start]) for part in parts(count, len(out)))
            return
        each = lane_size(count)
        starts = lane_starts(reader, LANES if each else 1)
        kernel: Callable = codec.kernels.unpack_words
        code: tuple[np.ndarray, ...]
        if 1 << self.longest <= max(LARGE_TABLE, count):
            ranks = np.arange(len(self.lengths))
            code = (self.lookup(self.longest, (ranks << 6 | self.lengths).astype(np.uint32)),)
        else:
            counts = np.bincount(self.lengths)
            ends = np.cumsum(counts << np.arange(self.longest, -1, -1))
            kernel = codec.kernels.search_words
            order = np.argsort(self.lengths, kind="stable")
            code = order, ends.astype(np.uint64), np.cumsum(counts)

        def unpack(at: np.ndarray, out: np.ndarray) -> np.ndarray:
            if not kernel(reader.data, at, reader.end, *code, self.longest, values, out):
                raise HuffmanError("the data ends early")
            return out

        at = starts.copy()
        for part in parts(each, len(out) // len(at)):
            size = part.stop - part.start
            found = unpack(at, out[: LANES * size]).reshape(LANES, size)
            for lane in range(LANES):
                yield slice(lane * each + part.start, lane * each + part.stop), found[lane]
        check_lanes(at, starts)
        rest = out[len(out) - (count - LANES * each) :]  # of the last lane
        yield slice(LANES * each, count), unpack(at[-1:], rest)
        reader.move(int(at[-1]))


def parts(count: int, size: int = PART) -> Iterator[slice]:
    """0 to ``count`` in steps of ``size``."""
    return (slice(i, min(i + size, count)) for i in range(0, count, size))


def lane_size(count: int) -> int:
    """Symbols in each of LANES lanes (the last one has the rest, too): none if they are few."""
    return count // LANES if count >= LANES_FROM else 0


def lane_starts(reader: BitReader, lanes: int) -> np.ndarray:
    """Where each begins, int64 [lanes]; their sizes, but for the last one's, come next."""
    sizes = [reader.read_number() for _ in range(lanes - 1)]
    if sum(sizes) > reader.remaining:
        raise HuffmanError("a lane longer than the data")
    return reader.position + np.cumsum([0, *sizes], dtype=np.int64)


def check_lanes(ends: np.ndarray, starts: np.ndarray) -> None:
    """Raise HuffmanError unless each lane ends where the next one begins."""
    if not np.array_equal(ends[:-1], starts[1:]):
        raise HuffmanError("a lane does not end where the next one begins")


def narrow(symbols: np.ndarray, size: int) -> np.ndarray:
    """Symbols below ``size`` in the narrowest type that the kernels are compiled for."""
    kind = np.uint8 if size <= 1 << 8 else np.uint16 if size <= 1 << 16 else np.uint64
    return np.ascontiguousarray(symbols, kind)


def histogram(symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct symbols (ascending int64) and how often each occurs."""
    size = int(symbols.max()) + 1
    if size <= max(1 << 16, symbols.size):
        wide = symbols.itemsize == 8  # as it is: a kernel less to compile
        counts = codec.kernels.count(
            symbols.view(np.uint64) if wide else narrow(symbols, size), size
        )
        present = np.flatnonzero(counts)
        return present, counts[present]
    present, counts = np.unique(symbols, return_counts=True)
    return present.astype(np.int64), counts


def entropy(counts: np.ndarray) -> float:
    """The bits of so many symbols of each kind, which no code for them can beat by much.

    What a sample shows is less than what it stands for, by log2(e) / 2 for each symbol but one
    (Miller 1955): that is added.
    """
    counts = counts[counts > 0]
    total = counts.sum()
    return float(np.dot(counts, np.log2(total / counts)) + (len(counts) - 1) / math.log(4))


def length_limit(alphabet: int) -> int:
    """15 bits, or 2 more than a code of fixed width needs where that is more."""
    return max(15, alphabet.bit_length() + 2)


def code_lengths(counts: np.ndarray, limit: int) -> np.ndarray:
    """Lengths (uint8) that minimise sum(counts * lengths) with no length above ``limit``.

    Among equal counts the larger symbol gets the shorter word.

    Example: [1, 1, 1] -> [2, 2, 1]
    """
    lengths = np.zeros(len(counts), np.uint8)
    if len(counts) == 1:
        return lengths
    order = np.argsort(counts, kind="stable")
    lengths[order] = codec.kernels.package_merge(counts[order], min(limit, len(counts) - 1))
    return lengths


# --- tables: which symbols a code has, and the lengths of their words -----------------------------


def write_table(writer: BitWriter, code: Code) -> None:
    """The cheaper of two forms: small (a list of all lengths) or wide (symbols, then lengths)."""
    size, last = len(code.symbols), int(code.symbols[-1])
    wide = BitWriter()
    if last >= 64:  # the wide form has a small table of its own
        wide.write(1, 1)
        wide.write_number(size - 1)
        wide.write_number(last - (size - 1))
        if size > 1:
            write_set(wide, code.symbols[:-1], last - 1)
        lengths = Code.of(code.lengths)
        write_small_table(wide, lengths)
        lengths.write(wide, code.lengths)
        least = 1 + size + 3 * (last + 1 - size)  # of the small form
        if last >= SMALL_ALPHABET or least > wide.length:
            return writer.extend(wide)
    small = BitWriter()
    small.write(0, 1)
    write_small_table(small, code)
    writer.extend(wide if 0 < wide.length < small.length else small)


def read_table(
    reader: BitReader,
    count: int,
    largest: int = (1 << 63) - 1,
    beyond: str = "a symbol beyond 2**63",
) -> Code:
    """The code of ``count`` symbols, which has no more code words than these.

    Refuses a symbol above ``largest``, with the message ``beyond``, before it makes room for any.
    """
    if not reader.read(1):
        code = read_small_table(reader)
        if code.symbols[-1] > largest:
            raise HuffmanError(beyond)
        return code
    size = reader.read_number() + 1
    if size > min(count, reader.remaining, MAX_SYMBOLS):  # each takes a bit somewhere
        raise HuffmanError("a code of more words than there are symbols")
    last = reader.read_number() + size - 1
    if last > largest:
        raise HuffmanError(beyond)
    symbols = np.full(size, last)
    if size > 1:
        symbols[:-1] = read_set(reader, size - 1, last - 1)
    lengths = read_small_table(reader)
    if lengths.symbols[-1] > 31:
        raise HuffmanError("a code length outside 0 to 31")
    return Code.checked(symbols, lengths.read(reader, size, lengths.symbols.astype(np.uint8)))


def write_small_table(writer: BitWriter, code: Code) -> None:
    """One entry for each of 0, 1, 2, ... up to the last symbol, until Kraft's sum is 1.

    0: as long as the one before; 100, 101: a bit longer, shorter; 110: no code word;
    111 and 5 bits: the length. The lengths of neighbours are alike, since the symbols are
    tokens of gaps or numbers of sorted centroids.

    Example: symbols 0, 2, lengths 1, 1 -> 0b11100001, 0b110, 0b0
    """
    size = int(code.symbols[-1]) + 1
    fields, widths = np.empty(size, np.uint64), np.empty(size, np.uint8)
    codec.kernels.table_entries(code.symbols, code.lengths, FIRST_LENGTH, fields, widths)
    writer.write_fields(fields, widths)


def read_small_table(reader: BitReader) -> Code:
    symbols, lengths = [], []
    length, kraft = FIRST_LENGTH, 0  # Kraft's sum in units of 2**-31
    text, at = "", 0  # the next bits, which is faster than to ask for one after the other
    for symbol in range(SMALL_ALPHABET):
        if at + 8 > len(text):
            reader.skip(at)
            text, at = reader.ahead(1024), 0
        if text[at] == "0":
            at += 1
        else:
            kind, at = text[at + 1 : at + 3], at + 3
            if kind == "10":
                continue
            before = length
            if kind == "11":
                length, at = int(text[at : at + 5], 2), at + 5
                if abs(length - before) < 2:
                    raise HuffmanError("a code length in a longer form than needed")
            else:
                length += 1 if kind == "00" else -1
            if not 0 <= length <= 31:
                raise HuffmanError("a code length outside 0 to 31")
        symbols.append(symbol)
        lengths.append(length)
        kraft += 1 << (31 - length)
        if kraft >= 1 << 31:
            break
    reader.skip(at)
    return Code.checked(np.array(symbols, np.int64), np.array(lengths, np.uint8))
