"""Where the non-zero elements of a tensor are: relative indexes (paper, sections 2 and 4).

The tensor is seen as a matrix. Its rows and its columns are each divided into the dead ones
(nothing but zeros: pruned units, blank pixels) and up to 8 classes of similar density. Each block
"row class x column class" is then nearly uniform, and its elements are coded as gaps from one
non-zero to the next with a code of its own. Compared with one code for the gaps of the whole
matrix this takes 6 to 14 % off the fully connected layers of LeNet-300-100; no padding zeros are
needed, since gaps have no largest value.
"""

import functools
import itertools
import math
from collections import deque

import numpy as np

from .. import codec
from .bits import BitReader, BitWriter, HuffmanError, read_set, write_set
from .codes import (
    Code,
    histogram,
    narrow,
    read_small_table,
    read_table,
    write_small_table,
    write_table,
)

MAX_SPLIT = 10  # of gaps into tokens and raw bits
MAX_LINES = 1 << 20
FOLD = 1 << 14
SMALL_GRIDS = [(rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3)]


def write_positions(writer: BitWriter, positions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Code ascending flat indexes (int64) of a tensor of ``shape``, not all of them.

    Returns the order (a permutation) in which ``Positions`` gives them back.
    """
    writer.write_number(positions.size)
    if positions.size == 0:
        return positions
    coded = [(grid.coded(), grid.order) for grid in _best_grids(positions, shape)]
    best, order = min(coded, key=lambda each: each[0].length)
    writer.extend(best)
    return order


class Positions:
    """Flat indexes of ``count`` non-zeros, in the order of the blocks; ``take`` gives the next.

    Kept are the tokens of the gaps: of small elements, all indexes would be larger than these.
    """

    def __init__(self, reader: BitReader, shape: tuple[int, ...]) -> None:
        self._size = math.prod(shape)
        self.count = reader.read_number()
        # rows, columns, gaps, and where the last non-zero was
        self._blocks: deque[tuple[np.ndarray, np.ndarray, Integers, np.ndarray]] = deque()
        if self.count >= self._size:
            raise HuffmanError("as many non-zeros as elements, or more")
        if self.count == 0:
            return
        view = reader.read(2)
        if view not in matrix_views(shape):
            raise HuffmanError("a matrix view that this shape does not have")
        height, width = matrix_views(shape)[view]
        rows, columns = LineClasses.read(reader, height), LineClasses.read(reader, width)
        self._steps = (1, height) if view & 1 else (width, 1)  # in the tensor, from line to line
        blocks = list(itertools.product(rows.members(), columns.members()))
        if not blocks:
            raise HuffmanError("non-zeros in a tensor whose lines are all zero")
        left = self.count
        for i, (row, column) in enumerate(blocks):
            here = reader.read_number() if i < len(blocks) - 1 else left
            if here > min(left, len(row) * len(column)):
                raise HuffmanError("more non-zeros than elements")
            left -= here
            if here:
                last = np.array([0, -1])
                self._blocks.append((row, column, Integers(reader, here), last))

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` indexes, int64."""
        out, done = np.empty(count, np.int64), 0
        while done < count:
            rows, columns, gaps, last = self._blocks[0]
            part = out[done : done + gaps.left]
            gaps.take(part)
            if not codec.kernels.places(part, last, rows, columns, *self._steps, part):
                raise HuffmanError("a non-zero outside the tensor")
            done += len(part)
            if not gaps.left:
                self._blocks.popleft()
        if count and int(out.max()) >= self._size:
            raise HuffmanError("a non-zero outside the tensor")
        return out


def matrix_views(shape: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """The matrices (height, width) that a tensor can be seen as, by number.

    0: first dimension by the others, 2: first two by the others (filters by kernel positions);
    1 and 3: their transposes. A tensor with more than MAX_LINES rows or columns (a long vector)
    is cut into rows of FOLD elements instead, the last one not full.
    """
    size = math.prod(shape)
    height = shape[0] if shape else 1
    if max(height, size // height) > MAX_LINES:
        return {0: (-(-size // FOLD), FOLD)}
    views = {0: (height, size // height)}
    if len(shape) >= 3 and height * shape[1] <= MAX_LINES:
        views[2] = (height * shape[1], size // (height * shape[1]))
    if len(shape) >= 2:
        views |= {view + 1: (width, height) for view, (height, width) in views.items()}
    return views


class LineClasses:
    """Rows or columns: ``classes`` [n], 0 for dead ones, 1, 2, ... by rising density."""

    def __init__(self, classes: np.ndarray, wanted: int = 0) -> None:
        self.classes = classes
        self.count = int(classes.max(initial=0))
        self.wanted = wanted  # may be more than there are: lines of equal populations

    @classmethod
    def of(cls, populations: np.ndarray, count: int) -> "LineClasses":
        """At most ``count`` classes of live lines, of equal sums of sqrt(population)."""
        classes = np.zeros(len(populations), np.int64)
        live = populations > 0
        ascending = np.sort(populations[live])
        weight = np.cumsum(np.sqrt(ascending))
        at = np.searchsorted(weight, weight[-1] * np.arange(1, count) / count)
        bounds = np.unique(ascending[at])
        bounds = bounds[bounds > ascending[0]]
        classes[live] = 1 + np.searchsorted(bounds, populations[live], side="right")
        return cls(classes, count)

    def members(self) -> list[np.ndarray]:
        """The lines of each class, in ascending order, int32."""
        return [np.flatnonzero(self.classes == i + 1).astype(np.int32) for i in range(self.count)]

    def ranks(self) -> tuple[np.ndarray, np.ndarray]:
        """The number of each line inside its class, and how many lines each class has."""
        ranks, sizes = np.zeros_like(self.classes), np.bincount(self.classes)
        for members in self.members():
            ranks[members] = np.arange(len(members))
        return ranks, sizes

    @functools.cached_property
    def coded(self) -> BitWriter:
        writer = BitWriter()
        dead = np.flatnonzero(self.classes == 0)
        writer.write_number(dead.size)
        write_set(writer, dead, len(self.classes) - 1)
        if dead.size < len(self.classes):
            writer.write(self.count - 1, 3)
            if self.count > 1:
                live = narrow(self.classes[self.classes > 0] - 1, self.count)
                code = Code.of(live)
                write_table(writer, code)
                code.write(writer, live)
        return writer

    @classmethod
    def read(cls, reader: BitReader, size: int) -> "LineClasses":
        dead = reader.read_number()
        if dead > size:
            raise HuffmanError("more dead lines than lines")
        classes = np.ones(size, np.uint8)
        classes[read_set(reader, dead, size - 1).view(np.int64)] = 0
        if dead < size:
            count = reader.read(3) + 1
            if count > 1:
                beyond = "a class of lines beyond the last one"
                code = read_table(reader, size - dead, count - 1, beyond)
                live = code.read(reader, size - dead, code.symbols.astype(np.uint8))
                if int(code.symbols[-1]) < count - 1:
                    raise HuffmanError("a last class of lines without a line")
                classes[classes > 0] = live + 1
        return cls(classes)


# --- writing: which grid of blocks ----------------------------------------------------------------


class Matrix:
    """The non-zeros of one view, row by row: row r has columns[starts[r] : starts[r + 1]].

    order[i] is the number of the i-th among the given positions; None if they are in order.
    """

    def __init__(self, positions: np.ndarray, shape: tuple[int, ...], view: int) -> None:
        self.view, self.order = view, None
        height, width = matrix_views(shape)[view & 2]
        begun = np.arange(height + 1) * width
        self.starts = np.searchsorted(positions, begun)
        self.row_sums = np.diff(self.starts)
        self.columns = (positions - np.repeat(begun[:-1], self.row_sums)).astype(np.int32)
        self.column_sums = np.bincount(self.columns, minlength=width)
        if view & 1:
            matrix = self.starts, self.columns, self.column_sums
            self.starts, self.columns, self.order = codec.kernels.transpose(*matrix)
            self.row_sums, self.column_sums = self.column_sums, self.row_sums


class Grid:
    """A matrix in blocks: the gaps in each (int64), and ``order``, as that of the matrix."""

    def __init__(self, matrix: Matrix, rows: LineClasses, columns: LineClasses) -> None:
        self.view, self.rows, self.columns = matrix.view, rows, columns
        lines = rows.count, rows.classes, rows.ranks()[0], columns.classes, *columns.ranks()
        sizes, gaps, order = codec.kernels.block_gaps(matrix.starts, matrix.columns, *lines)
        self.blocks = np.split(gaps, np.cumsum(sizes)[:-1])
        self.order = order if matrix.order is None else matrix.order[order]
        self.bits = sum(integer_bits(gaps) + 15 for gaps in self.blocks)
        self.bits += rows.coded.length + columns.coded.length

    def coded(self) -> BitWriter:
        writer = BitWriter()
        writer.write(self.view, 2)
        writer.extend(self.rows.coded)
        writer.extend(self.columns.coded)
        for i, gaps in enumerate(self.blocks):
            if i < len(self.blocks) - 1:  # the last count follows from the total
                writer.write_number(gaps.size)
            write_integers(writer, gaps)
        return writer


def _best_grids(positions: np.ndarray, shape: tuple[int, ...]) -> list[Grid]:
    """Those with the fewest estimated bits: three, or of a large tensor one.

    The estimates are within a few per cent of each other where the sizes are.
    """
    small = positions.size <= 1 << 18
    best: list[Grid] = []
    tried = set()

    def attempt(view: int, choices: list[tuple[int, int]]) -> None:
        matrix = Matrix(positions, shape, view)
        rows = {choice[0]: LineClasses.of(matrix.row_sums, choice[0]) for choice in choices}
        columns = {choice[1]: LineClasses.of(matrix.column_sums, choice[1]) for choice in choices}
        for r, c in choices:
            tried.add((view, r, c))
            best.append(Grid(matrix, rows[r], columns[c]))
            best.sort(key=lambda grid: grid.bits)
            del best[3 if small else 1 :]

    first = [(1, 1)]
    if positions.size > 32:  # below, no second code table pays
        first = (
            SMALL_GRIDS if positions.size <= 1 << 13 else [(1, 1), (3, 3)] if small else [(3, 3)]
        )
    for view in matrix_views(shape):
        attempt(view, first)
    # a second look around the best one, at what is left to gain there: up to 3 %
    if positions.size > 32 and small:
        view, r, c = best[0].view, best[0].rows.wanted, best[0].columns.wanted
        near = [(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        attempt(view, [pair for pair in near if min(pair) >= 1 and (view, *pair) not in tried])
    return best


# --- gaps: non-negative integers of any size ------------------------------------------------------

# Huffman-coded tokens and raw bits (JPEG XL's hybrid integers). A value below 2**split is its own
# token. A larger one, of b + 1 bits, has a token made of b and the ``kept`` bits after the leading
# one; the other b - kept bits are stored raw. Example, of split 2 and kept 1: 0, 1, 2, 3 are the
# tokens 0, 1, 2, 3; 4 and 5 are token 4 and a bit, 6 and 7 token 5 and a bit.


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
        self._data, self._at, self.left = reader.data, reader.skip(bits), count

    def take(self, out: np.ndarray) -> None:
        """Fill ``out`` (int64, at most ``left``) with values in [0, 2**63)."""
        first = len(self._tokens) - self.left
        tokens = self._tokens[first : first + len(out)]
        arguments = self._data, self._at, tokens, self._least, self._widths, out
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
