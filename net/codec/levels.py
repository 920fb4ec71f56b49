"""The values of a whole tensor as levels of a matrix, coded with what is near them in mind.

A level is the number of a value: of a grid, which is known by its step, the multiple; otherwise the
place in a codebook, counted from that of the most frequent one. Weights that are rounded without
training (net.rounding) lie on a grid, and may follow a trellis; the values alone tell both. The
adaptive coder (net.codec.adaptive) decodes 20 million weights a second and core, a tenth of what
Huffman codes do, so it has to save bytes to be used.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from .. import codec
from .bits import BitReader, BitWriter, HuffmanError
from .codes import parts
from .forms import MAX_CODEBOOK, Form, elements, patterns
from .positions import Integers, matrix_views, write_integers

FEWEST = 64  # elements that are tried
ESCAPE = 0b01000000  # the form "01" with a shift of 0 and, then, the whole width of the type
MIN_GAIN = 50  # it is used where it saves one bit in so many
SAMPLED, SAMPLES = 1 << 15, 16  # of more elements, one in so many is tried first
MOST_LISTED = 1 << 10  # values on no grid that are tried
MANTISSAS = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}
FEW = 64  # the smallest of more values, which show mostly that these are on no grid
LEAST = 8  # the smallest values, whose differences suggest a step
SHORTEST = 4  # steps within what the values allow, of the fewest digits, that are tried
ROWS_APART = 63  # where the digits of a step would be: rows have shifts
MOST_SHIFTED = 13  # by which levels of MAX_LEVEL stay in an int32
LEAST_NORMAL = 2.0**-126  # below it a process may take float32 for zero (set_flush_denormal)
VALUES_A_BIT = 1024  # no decision takes less than a bit for so many


class Grid(NamedTuple):
    """Values that are multiples of a step."""

    step: float
    digits: int  # of the step's mantissa, behind its leading one
    half: bool  # rounded to float16 on the way to the type of the tensor

    def values(self, levels: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        """Their patterns: products in float64, then in float32 unless that is the tensor's type."""
        exact = torch.from_numpy(levels * np.float64(self.step))
        if dtype != torch.float64:
            exact = exact.float()
        return patterns((exact.half() if self.half else exact).to(dtype))

    @classmethod
    def of(cls, distinct: np.ndarray, dtype: torch.dtype) -> "tuple[Grid, np.ndarray] | None":
        """The grid of these patterns, and the level int64 of each; None if they are on none."""
        if dtype not in MANTISSAS or len(distinct) < 2:
            return None
        if dtype.itemsize == 2 and len(distinct) > FEW + 2:  # with both zeros
            smallest = np.partition(distinct & np.uint16(0x7FFF), FEW + 1)[: FEW + 2]
            few = elements(smallest, dtype).double()
            if not any(_steps(np.sort(few[(few > 0) & few.isfinite()].numpy()), MANTISSAS[dtype])):
                return None
        exact = elements(distinct, dtype).double()
        values = exact.numpy()
        if not np.isfinite(values).all():
            return None
        half = dtype.itemsize > 2 and torch.equal(exact.half().double(), exact)
        sizes = np.sort(np.abs(values[values != 0]))
        if dtype != torch.float64 and sizes.min(initial=1) < LEAST_NORMAL:
            return None
        for step, digits in _steps(sizes, 10 if half else MANTISSAS[dtype]):
            grid, levels = cls(step, digits, half), np.rint(values / step).astype(np.int64)
            if np.array_equal(grid.values(levels, dtype), distinct):
                return grid, levels
        return None

    def reaches(self, level: int, dtype: torch.dtype) -> bool:
        """Whether its value is finite."""
        return bool(elements(self.values(np.array([level]), dtype), dtype).isfinite())

    def write(self, writer: BitWriter, shifts: np.ndarray | None) -> None:
        """`shifts` int64 [rows]: by so many bits the levels of a row are shifted, if any are."""
        bits = int(np.float64(self.step).view(np.uint64))
        writer.write(self.half, 1)
        writer.write(bits >> 52, 11)
        if shifts is not None:
            writer.write(ROWS_APART, 6)
            write_integers(writer, shifts)
        writer.write(self.digits, 6)
        writer.write(bits >> (52 - self.digits) & ((1 << self.digits) - 1), self.digits)

    @classmethod
    def read(
        cls, reader: BitReader, dtype: torch.dtype, rows: int
    ) -> "tuple[Grid, np.ndarray | None]":
        if dtype not in MANTISSAS:
            raise HuffmanError("a grid of a type that has none")
        half, exponent, digits = reader.read(1) > 0, reader.read(11), reader.read(6)
        shifts = None
        if digits == ROWS_APART:
            shifts = np.empty(rows, np.int64)
            Integers(reader, rows).take(shifts)
            digits = reader.read(6)
            if shifts.max(initial=0) > MOST_SHIFTED:
                raise HuffmanError("a shift beyond the largest")
        if digits > 52 or exponent in (0, 2047) or (half and dtype.itemsize <= 2):
            raise HuffmanError("a step that no encoder writes")
        bits = exponent << 52 | reader.read(digits) << (52 - digits)
        return cls(float(np.uint64(bits).view(np.float64)), digits, half), shifts


def _steps(sizes: np.ndarray, digits: int) -> Iterator[tuple[float, int]]:
    """Steps that `sizes`, ascending, > 0 and rounded to so many digits behind the leading one, may
    be multiples of, those whose mantissas have the fewest digits, and how many these are."""
    if not len(sizes) or sizes[0] < 2.0**-900:  # where a unit of the last digit may be none
        return
    # What each size may have been before it was rounded: half a unit of its last digit off.
    mantissas, exponents = np.frexp(sizes)
    unit = np.ldexp(1.0, exponents - 1 - digits)
    lowest = sizes - unit / np.where(mantissas == 0.5, 4, 2)
    with np.errstate(over="ignore"):  # of the greatest number that there is
        highest = sizes + unit / 2
    gaps = np.diff(sizes[:LEAST], prepend=0.0)
    least = int(np.where(gaps > sizes[0] / 4, gaps, np.inf).argmin())
    low, high = float(gaps[least] - unit[least]), float(gaps[least] + unit[least])
    if low <= 0:  # hidden by the rounding of the two
        return
    reach, some = 4.0, 0
    # Sizes further away say more, once it is clear which multiples they are.
    while some < len(sizes):
        middle = (low + high) / 2
        some = int(np.searchsorted(sizes, reach * middle))
        multiples = np.maximum(np.rint(sizes[:some] / middle), 1)
        low = float((lowest[:some] / multiples).max(initial=low))
        high = float((highest[:some] / multiples).min(initial=high))
        if low > high:
            return
        reach *= 4
    if sizes[-1] < MAX_CODEBOOK * (low + high) / 2:
        yield from _shortest(low, high)


def _shortest(low: float, high: float) -> Iterator[tuple[float, int]]:
    """Some numbers in [low, high], those of the fewest digits in the mantissa, and how many."""
    middle, last = (low + high) / 2, 0.0
    exponent = math.frexp(middle)[1] - 1
    tried = 0
    for digits in range(53):
        unit = math.ldexp(1.0, exponent - digits)
        step = round(middle / unit) * unit
        if low <= step <= high and step != last and math.frexp(step)[1] - 1 == exponent:
            yield step, digits
            last, tried = step, tried + 1
            if tried == SHORTEST:
                return


def has_levels(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether a tensor is a matrix, and not cut into lines of some length."""
    return not dtype.is_complex and math.prod(shape) > 0 and len(matrix_views(shape)) > 1


class Scan(NamedTuple):
    """A tensor as a matrix whose levels are coded strip by strip, column by column."""

    shape: tuple[int, ...]  # of the tensor
    view: int  # as of positions.matrix_views
    trellis: bool = False

    @property
    def matrix(self) -> tuple[int, int]:
        return matrix_views(self.shape)[self.view]

    @property
    def steps(self) -> tuple[int, int]:
        """In the tensor, from row to row and from column to column."""
        rows, columns = self.matrix
        return (1, rows) if self.view & 1 else (columns, 1)

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of what the columns of a convolution are ordered by; (1, 1) for none."""
        if self.view or len(self.shape) < 3:
            return 1, 1
        return (self.shape[-2] if len(self.shape) > 3 else 1), self.shape[-1]

    def walks(self, levels: np.ndarray) -> bool:
        """Whether these int32 [n] follow the trellis."""
        return codec.adaptive.walks(levels, self.matrix, self.steps)

    def write(self, levels: np.ndarray, out: np.ndarray, rows: int | None = None) -> int:
        """Code `levels` int32 [n], of the first `rows` rows or all; returns the bytes, -1 if these
        have no room in `out`."""
        return self._code(levels, out[:0], out, rows)

    def read(self, data: np.ndarray) -> np.ndarray:
        """The levels int32 [n] that `data` is made of, all of it."""
        levels = np.empty(math.prod(self.shape), np.int32)
        size = self._code(levels, data, data[:0]) if len(data) else -1
        if size < 0:
            raise HuffmanError("bytes that are no levels")
        # A writer leaves zeros at the end out, and does not write what is not read.
        if size < len(data) or not data[-1]:
            raise HuffmanError("the levels do not end with the data")
        return levels

    def _code(
        self, levels: np.ndarray, data: np.ndarray, out: np.ndarray, first: int | None = None
    ) -> int:
        rows, columns = self.matrix
        matrix = min(first or rows, rows), columns
        tables = codec.adaptive.initial(self.trellis)
        rest = self.steps, self.kernel, self.trellis, tables, data, out
        return int(codec.adaptive.code_levels(levels, matrix, *rest))


def write_levels(
    distinct: np.ndarray,
    counts: np.ndarray,
    numbers: Callable[[], np.ndarray],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    most: int,
) -> BitWriter | None:
    """The whole bit string of a tensor, if it takes enough fewer than `most` bits.

    Its patterns are `distinct`[`numbers()`], uint[n], each of them `counts` times.
    """
    if len(distinct) < 2 or not has_levels(shape, dtype) or math.prod(shape) < FEWEST:
        return None
    writer, found = BitWriter(), Grid.of(distinct, dtype)
    if found is None and len(distinct) > MOST_LISTED:
        return None
    writer.write(ESCAPE, 9)
    writer.write(8 * distinct.itemsize - 1, 6)
    writer.write(found is not None, 1)
    scan = Scan(shape, 0)
    if found is not None:
        levels = found[1].astype(np.int32)[numbers()]
        scan, shifts = _trellis(levels, shape) or (scan, None)
        found[0].write(writer, shifts)
        if shifts is not None:
            levels = (levels.reshape(scan.matrix) >> shifts[:, None]).astype(np.int32).ravel()
    else:
        of_each = _write_codebook(writer, distinct, counts, dtype.is_floating_point)
        levels = of_each.astype(np.int32)[numbers()]
    writer.write(scan.trellis, 1)
    writer.write(scan.view, 2)
    writer.write(0, -writer.length % 8)
    room = (most - most // MIN_GAIN - writer.length) // 8
    if room <= 0 or not (scan.trellis or levels.size <= SAMPLED or _promising(scan, levels)):
        return None
    out = np.empty(room + 16, np.uint8)
    size = scan.write(levels, out)
    if not 0 <= size <= room:
        return None
    writer.append(8 * size, _copy, out[:size].copy())
    return writer


def _trellis(levels: np.ndarray, shape: tuple[int, ...]) -> tuple[Scan, np.ndarray | None] | None:
    """How these int32 [n] follow the trellis, and the shifts of the rows where they do so with
    these alone (net.rounding, `fineness`); or None."""
    for view in matrix_views(shape):
        scan = Scan(shape, view, True)
        if scan.walks(levels):
            return scan, None
    scan = Scan(shape, 0, True)
    shifts = row_shifts(levels.reshape(scan.matrix))
    return None if shifts is None else (scan, shifts)


def row_shifts(levels: np.ndarray) -> np.ndarray | None:
    """The powers of two int64 [rows], divided by which the levels int32 [rows, columns] of each
    row follow the trellis; None if they do not, or if all are 0.
    """
    bits = np.bitwise_or.reduce(levels, axis=1)
    lowest = np.frexp((bits & -bits).astype(np.float64))[1] - 1
    if lowest.max() <= 0:
        return None
    shifts = np.empty(len(levels), np.int64)
    for usual in (-1, np.bincount(lowest[lowest >= 0]).argmax()):
        if codec.adaptive.row_shifts(levels, usual, shifts):
            return shifts if 0 < shifts.max() <= MOST_SHIFTED else None
    return None


def _copy(octets: np.ndarray, out: np.ndarray, at: int) -> int:
    out[at >> 3 : (at >> 3) + len(octets)] = octets
    return at + 8 * len(octets)


def _promising(scan: Scan, levels: np.ndarray) -> bool:
    """Whether some rows take fewer bits so than by the frequencies of all levels."""
    rows = -(-scan.matrix[0] // SAMPLES)
    some = levels[: rows * scan.matrix[1]]  # of view 0
    distinct, counts = np.unique(levels[:: max(1, len(levels) // SAMPLED)], return_counts=True)
    bits = np.log2(counts.sum() / counts)
    place = np.searchsorted(distinct, some).clip(max=len(distinct) - 1)
    room = int(bits[place].sum()) // 8 + 16
    return scan.write(levels, np.empty(room - room // MIN_GAIN, np.uint8), rows) >= 0


def _write_codebook(
    writer: BitWriter, distinct: np.ndarray, counts: np.ndarray, floating: bool
) -> np.ndarray:
    """Form, values and the number of the most frequent one; the level of each, 0 of that."""
    form = Form.of(distinct, floating)
    writer.extend(form.writer())
    by_value = form.write_codebook(writer, distinct)
    zero = int(np.argmax(counts[by_value]))
    writer.write_number(zero)
    of_each = np.empty(len(distinct), np.int64)
    of_each[by_value] = np.arange(len(distinct)) - zero
    return of_each


def begins_levels(reader: BitReader, kind: np.dtype) -> bool:
    """Whether what follows the first bit of a tensor of patterns of this type is this form."""
    return reader.peek(14) == ESCAPE << 6 | 8 * kind.itemsize - 1


def read_levels(
    reader: BitReader, shape: tuple[int, ...], dtype: torch.dtype, kind: np.dtype
) -> Iterator[tuple[slice, np.ndarray]]:
    """The patterns that `write_levels` was given, part by part; HuffmanError for other bits."""
    count = math.prod(shape)
    if not has_levels(shape, dtype):
        raise HuffmanError("levels of a shape that has none")
    if count > VALUES_A_BIT * (reader.remaining + 64):  # before there is memory for rows of it
        raise HuffmanError("the data ends early")
    reader.skip(14)
    reader.begin("codebook")
    grid, codebook, zero, shifts = None, None, 0, None
    if reader.read(1):
        grid, shifts = Grid.read(reader, dtype, shape[0])
    else:
        form = Form.read(reader, 8 * kind.itemsize, dtype.is_floating_point)
        codebook = form.read_codebook(reader, count, kind)
        zero = reader.read_number()
        if zero >= len(codebook):
            raise HuffmanError("a zero beyond the codebook")
    trellis, view = reader.read(1) > 0, reader.read(2)
    if view not in matrix_views(shape):
        raise HuffmanError("a view that the shape has not")
    if shifts is not None and not (trellis and view == 0):
        raise HuffmanError("shifts of rows without the trellis")
    if reader.read(-reader.position % 8):
        raise HuffmanError("bits before the levels that are not zero")
    reader.begin("values")
    if count > VALUES_A_BIT * (reader.remaining + 64):
        raise HuffmanError("the data ends early")
    first = reader.skip(reader.remaining) // 8
    levels = Scan(shape, view, trellis).read(reader.data[first : reader.position // 8])
    if shifts is not None:
        levels = (levels.reshape(len(shifts), -1) << shifts[:, None]).astype(np.int32).ravel()
    low, high = int(levels.min()), int(levels.max())
    if grid is not None and not (grid.reaches(low, dtype) and grid.reaches(high, dtype)):
        raise HuffmanError("a level whose value is infinite")
    if grid is not None and dtype != torch.float64 and grid.step < LEAST_NORMAL:
        least = int(np.abs(levels[levels != 0]).min(initial=1 << 30))
        if least * grid.step < LEAST_NORMAL:
            raise HuffmanError("a level whose value is subnormal")
    if grid is not None and high - low < count:
        codebook, zero = grid.values(np.arange(low, high + 1), dtype), -low
    if codebook is not None and (low < -zero or high >= len(codebook) - zero):
        raise HuffmanError("a level beyond the codebook")
    for part in parts(count):
        if codebook is None:
            assert grid is not None
            read = grid.values(levels[part].astype(np.int64), dtype)
        else:
            read = codebook.take(levels[part] + zero)
        yield part, read
