"""Where the non-zero elements of a tensor are: relative indexes (paper, sections 2 and 4).

The tensor is seen as a matrix. Its rows and its columns are each divided into the dead ones
(nothing but zeros: pruned units, blank pixels) and up to MAX_CLASSES classes of similar density.
Each block "row class x column class" is then nearly uniform, and its elements are coded as gaps
from one non-zero to the next with a code of its own. Compared with one code for the gaps of the
whole matrix this takes 6 to 14 % off the fully connected layers of LeNet-300-100; no padding
zeros are needed, since gaps have no largest value.
"""

import math

import numpy as np

from ..huffman import read_symbols, write_symbols
from .bits import BitReader, BitWriter, HuffmanError
from .integers import integer_bits, read_integers, write_integers

MAX_CLASSES = 8
MAX_LINES = 1 << 20
FOLD = 1 << 14
SMALL_GRIDS = [(rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3)]


def write_positions(writer: BitWriter, positions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Code ascending flat indexes (int64) of a tensor of ``shape``, not all of them.

    Returns the order (int64 permutation) in which ``read_positions`` gives them back.
    """
    writer.write_number(positions.size)
    if positions.size == 0:
        return positions
    # the estimates are within a few per cent of each other where the sizes are
    kept = _choose(positions, shape)[: 3 if positions.size <= 1 << 18 else 1]
    coded = [_write_grid(positions, shape, *choice) for choice in kept]
    best, order = min(coded, key=lambda each: each[0].length)
    writer.extend(best)
    return order


def _write_grid(
    positions: np.ndarray, shape: tuple[int, ...], view: int, rows: int, columns: int
) -> tuple[BitWriter, np.ndarray]:
    """The grid with at most so many classes of rows and columns, and the order of its blocks."""
    grid = Grid.of(positions, shape, view, rows, columns)
    writer = BitWriter()
    writer.write(view, 2)
    grid.rows.write(writer)
    grid.columns.write(writer)
    for i, block in enumerate(grid.blocks):
        if i < len(grid.blocks) - 1:  # the last count follows from the total
            writer.write_number(block.size)
        write_integers(writer, np.diff(block, prepend=-1) - 1)
    return writer, grid.order


def read_positions(reader: BitReader, shape: tuple[int, ...]) -> np.ndarray:
    """Flat indexes (int64) of the non-zeros, in the order of the blocks."""
    size = math.prod(shape)
    count = reader.read_number()
    if count == 0:
        return np.zeros(0, np.int64)
    if count >= size:
        raise HuffmanError("as many non-zeros as elements, or more")
    view = reader.read(2)
    views = matrix_views(shape)
    if view not in views:
        raise HuffmanError("a matrix view that this shape does not have")
    height, width = views[view]
    rows = Lines.read(reader, height)
    columns = Lines.read(reader, width)
    parts = []
    left = count
    pairs = [(r, c) for r in rows.members() for c in columns.members()]
    if not pairs:
        raise HuffmanError("non-zeros in a tensor whose lines are all zero")
    for i, (row, column) in enumerate(pairs):
        here = reader.read_number() if i < len(pairs) - 1 else left
        if here > min(left, len(row) * len(column)):
            raise HuffmanError("more non-zeros than elements")
        left -= here
        gaps = read_integers(reader, here)
        if here and int(gaps.max()) >= len(row) * len(column):
            raise HuffmanError("a non-zero outside the tensor")
        block = np.cumsum(gaps + 1) - 1
        if here and int(block[-1]) >= len(row) * len(column):
            raise HuffmanError("a non-zero outside the tensor")
        r, c = np.divmod(block, len(column))
        r, c = row[r], column[c]
        parts.append(c * height + r if view & 1 else r * width + c)
    positions = np.concatenate(parts)
    if int(positions.max()) >= size:
        raise HuffmanError("a non-zero outside the tensor")
    return positions


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


# --- the grid of blocks -------------------------------------------------------------------------


class Lines:
    """Rows or columns: ``classes`` int64[n], 0 for dead ones, 1, 2, ... by rising density."""

    def __init__(self, classes: np.ndarray) -> None:
        self.classes = classes
        self.count = int(classes.max(initial=0))

    @classmethod
    def of(cls, populations: np.ndarray, count: int) -> "Lines":
        """At most ``count`` classes of live lines, of equal sums of sqrt(population)."""
        classes = np.zeros(len(populations), np.int64)
        live = populations > 0
        ascending = np.sort(populations[live])
        weight = np.cumsum(np.sqrt(ascending))
        at = np.searchsorted(weight, weight[-1] * np.arange(1, count) / count)
        bounds = np.unique(ascending[at])
        bounds = bounds[bounds > ascending[0]]
        classes[live] = 1 + np.searchsorted(bounds, populations[live], side="right")
        return cls(classes)

    def members(self) -> list[np.ndarray]:
        """The lines of each class, in ascending order."""
        return [np.flatnonzero(self.classes == i + 1) for i in range(self.count)]

    def write(self, writer: BitWriter) -> None:
        dead = np.flatnonzero(self.classes == 0)
        writer.write_number(dead.size)
        write_set(writer, dead, len(self.classes))
        if dead.size < len(self.classes):
            writer.write(self.count - 1, 3)
            if self.count > 1:
                write_symbols(writer, self.classes[self.classes > 0] - 1)

    @classmethod
    def read(cls, reader: BitReader, size: int) -> "Lines":
        dead = reader.read_number()
        if dead > size:
            raise HuffmanError("more dead lines than lines")
        classes = np.ones(size, np.int64)
        classes[read_set(reader, dead, size)] = 0
        if dead < size:
            count = reader.read(3) + 1
            if count > 1:
                live = read_symbols(reader, size - dead)
                if int(live.max()) >= count:
                    raise HuffmanError("a class of lines beyond the last one")
                classes[classes > 0] = live + 1
        return cls(classes)


class Grid:
    """The non-zeros of a matrix, block by block.

    ``blocks``: for each pair (row class, column class) the ascending flat indexes inside the
    block; ``order``: the permutation that puts the given positions into this order.
    """

    def __init__(
        self,
        row: np.ndarray,
        column: np.ndarray,
        order: np.ndarray | None,
        rows: Lines,
        columns: Lines,
    ) -> None:
        self.rows, self.columns = rows, columns
        count = rows.count * columns.count
        widths = np.bincount(columns.classes, minlength=columns.count + 1)[columns.classes]
        inside = _ranks(rows)[row] * widths[column] + _ranks(columns)[column]
        if count == 1:
            self.blocks = [inside]
        else:
            # at most 64 blocks: NumPy sorts single bytes by radix
            block = ((rows.classes - 1) * columns.count).astype(np.uint8)[row]
            block += (columns.classes - 1).astype(np.uint8)[column]
            by_block = np.argsort(block, kind="stable")
            ends = np.cumsum(np.bincount(block, minlength=count))
            self.blocks = np.split(inside[by_block], ends[:-1])
            order = by_block if order is None else order[by_block]
        self.order = np.arange(len(row)) if order is None else order

    @classmethod
    def of(
        cls,
        positions: np.ndarray,
        shape: tuple[int, ...],
        view: int,
        row_classes: int,
        column_classes: int,
    ) -> "Grid":
        row, column, order = _coordinates(positions, shape, view)
        height, width = matrix_views(shape)[view]
        rows = Lines.of(np.bincount(row, minlength=height), row_classes)
        columns = Lines.of(np.bincount(column, minlength=width), column_classes)
        return cls(row, column, order, rows, columns)

    def estimate(self) -> float:
        """About as many bits as the grid takes."""
        lines = BitWriter()
        self.rows.write(lines)
        self.columns.write(lines)
        bits = [integer_bits(np.diff(block, prepend=-1) - 1) + 15 for block in self.blocks]
        return lines.length + sum(bits)


def _ranks(lines: Lines) -> np.ndarray:
    """The number of each line inside its class."""
    ranks = np.zeros(len(lines.classes), np.int64)
    for members in lines.members():
        ranks[members] = np.arange(len(members))
    return ranks


def _coordinates(
    positions: np.ndarray, shape: tuple[int, ...], view: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Row and column of each position in row-major order of the view, and that order."""
    _, width = matrix_views(shape)[view & 2]
    row, column = np.divmod(positions, width)
    if not view & 1:
        return row, column, None
    key = column.astype(np.uint16) if width <= 1 << 16 else column
    order = np.argsort(key, kind="stable")
    return column[order], row[order], order


def _choose(positions: np.ndarray, shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(View, row classes, column classes), those with the fewest estimated bits first."""
    costs = {}

    def attempt(view: int, choices: list[tuple[int, int]]) -> None:
        row, column, order = _coordinates(positions, shape, view)
        height, width = matrix_views(shape)[view]
        row_sums = np.bincount(row, minlength=height)
        column_sums = np.bincount(column, minlength=width)
        for choice in choices:
            rows, columns = Lines.of(row_sums, choice[0]), Lines.of(column_sums, choice[1])
            costs[(view, *choice)] = Grid(row, column, order, rows, columns).estimate()

    first = [(1, 1)]
    if positions.size > 32:  # below, no second code table pays
        first = [(1, 1), (3, 3)] if positions.size > 1 << 13 else SMALL_GRIDS
    for view in matrix_views(shape):
        attempt(view, first)
    # a second look around the best one, at what is left to gain there: up to 3 %
    if 32 < positions.size <= 1 << 18:
        view, rows, columns = min(costs, key=costs.get)
        near = [(rows + r, columns + c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
        attempt(view, [pair for pair in near if min(pair) >= 1 and (view, *pair) not in costs])
    return sorted(costs, key=costs.get)


# --- sets -----------------------------------------------------------------------------------


def write_set(writer: BitWriter, members: np.ndarray, universe: int) -> None:
    """Ascending distinct int64 in [0, universe), in binary interpolative code.

    (Moffat and Stuiver 2000.) The middle member is coded among the values that it can have,
    then both halves likewise: runs cost next to nothing and no table is needed. Breadth first,
    so that a whole level is one array operation. The reader has to know the number of members.
    """
    ranges = _whole(len(members), universe)
    while ranges.shape[1]:
        middle, least, choices = _middles(ranges)
        _write_uniform(writer, members[middle] - least, choices)
        ranges = _halves(ranges, middle, members[middle])


def read_set(reader: BitReader, count: int, universe: int) -> np.ndarray:
    """``count`` ascending int64 in [0, universe) written by ``write_set``."""
    members = np.zeros(count, np.int64)
    ranges = _whole(count, universe)
    while ranges.shape[1]:
        middle, least, choices = _middles(ranges)
        members[middle] = least + _read_uniform(reader, choices)
        ranges = _halves(ranges, middle, members[middle])
    return members


def _whole(count: int, universe: int) -> np.ndarray:
    """Columns (first member, end, least value, end of values), int64[4, 1 or 0]."""
    return np.array([[0], [count], [0], [universe]], np.int64)[:, : 1 if count else 0]


def _middles(ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The middle member of each range, the least value it can have and how many it can have."""
    first, end, low, high = ranges
    middle = (first + end) // 2
    least = low + (middle - first)
    return middle, least, high - (end - 1 - middle) - least


def _halves(ranges: np.ndarray, middle: np.ndarray, value: np.ndarray) -> np.ndarray:
    first, end, low, high = ranges
    left = np.stack([first, middle, low, value])
    right = np.stack([middle + 1, end, value + 1, high])
    both = np.concatenate([left, right], axis=1)
    return both[:, both[0] < both[1]]


def _write_uniform(writer: BitWriter, values: np.ndarray, choices: np.ndarray) -> None:
    """Truncated binary: the first ``short`` values take b = floor(log2(choices)) bits, the rest
    b + 1. First b bits of every value, then the last bits of those that have one."""
    bits, short = _short(choices)
    long = values >= short
    heads = np.where(long, (values + short) >> 1, values)
    writer.write_array(heads.astype(np.uint64), bits)
    tails = (values[long] + short[long]) & 1
    writer.write_array(tails.astype(np.uint64), np.ones(len(tails), np.int64))


def _read_uniform(reader: BitReader, choices: np.ndarray) -> np.ndarray:
    bits, short = _short(choices)
    values = reader.read_array(bits).astype(np.int64)
    long = values >= short
    tails = reader.read_fixed(int(long.sum()), 1).astype(np.int64)
    values[long] = 2 * values[long] + tails - short[long]
    return values


def _short(choices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bits = np.frexp(choices.astype(np.float64))[1].astype(np.int64) - 1  # choices < 2**53
    return bits, (2 << bits) - choices
