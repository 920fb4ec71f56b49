"""One tensor as a bit string, bit for bit: zeros apart, values shared, raw, or heads and tails.

Everything works on the bit patterns of the elements as unsigned integers, so that -0.0, NaN
payloads and denormals survive; "zero" means that all bits are zero.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from .. import codec
from ..tensors import fault, memory
from .bits import BitReader, BitWriter, HuffmanError, read_set, write_set
from .codes import RUN, Code, Empty, entropy, lane_size, narrow, parts, read_table, write_table
from .heads import HEAD, LEAST, Heads, read_heads
from .planes import MANY, planes_cost, read_planes, write_planes
from .positions import Positions, write_positions

_NAMES = (
    "float32 float64 float16 bfloat16 complex32 complex64 complex128 bool uint8 int8 int16 "
    "uint16 int32 uint32 int64 uint64 float8_e4m3fn float8_e5m2 float8_e4m3fnuz "
    "float8_e5m2fnuz float8_e8m0fnu"
)
DTYPES = {n: getattr(torch, n) for n in _NAMES.split() if hasattr(torch, n)}
SAMPLE = 1 << 16
# Positions take 50 bytes per non-zero while they are coded: above this density a large tensor
# is coded with its zeros, so that no more than 3 times its own size is needed.
LARGE, MAX_DENSITY = 1 << 22, 0.25
MAX_CODEBOOK = 1 << 16
FEW = 1 << 10  # distinct values: as these are never smaller in another form, none is tried
# Of so many values drawn by chance no more than DIFFERENT are distinct if MAX_CODEBOOK are in all.
DRAWN, DIFFERENT = 1 << 12, 4060  # 3,970 on average, with a standard deviation of 11
# Of the hash, one after the other: values that collide under all of them are stored raw.
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93)
# A form that no values have, wider than any type: values follow as heads and tails.
SPLIT, SPLIT_BITS = 0b01_111111_111111, 14


def patterns(tensor: torch.Tensor) -> np.ndarray:
    """The elements as unsigned integers, uint[n]; complex ones as two each, real part first.

    ValueError for a tensor without plain values."""
    if what := fault(tensor):
        raise ValueError(what)
    return memory(tensor).view(_stored_as(tensor.shape, tensor.dtype)[1])


def _stored_as(
    shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[tuple[int, ...], np.dtype, bool]:
    """The shape and the type of the patterns, and whether they are those of floats."""
    if dtype.is_complex:
        return (*shape, 2), np.dtype(f"u{dtype.itemsize // 2}"), True
    return tuple(shape), np.dtype(f"u{dtype.itemsize}"), dtype.is_floating_point


def write_tensor(tensor: torch.Tensor) -> BitWriter:
    """The bit string with the fewest bits of several forms."""
    values = patterns(tensor)
    shape, _, floating = _stored_as(tensor.shape, tensor.dtype)
    nonzero = np.count_nonzero(values)
    sparse = None
    if nonzero < values.size * (MAX_DENSITY if values.size > LARGE else 1):
        sparse = BitWriter()
        sparse.write(1, 1)
        positions = np.flatnonzero(values)
        positions = positions[write_positions(sparse, positions, shape)]
        write_values(sparse, values[positions], floating)
        # beyond 7 zeros per value, no code that spends a bit on each zero is smaller
        if values.size >= SAMPLE and nonzero < values.size // 8:
            return sparse
    dense = BitWriter()
    dense.write(0, 1)
    write_values(dense, values, floating)
    return dense if sparse is None or dense.length < sparse.length else sparse


def read_tensor(
    reader: BitReader, shape: tuple[int, ...], dtype: torch.dtype, empty: Empty = np.empty
) -> torch.Tensor:
    """The tensor that ``write_tensor`` was given; HuffmanError for any other bits."""
    whole, kind, _ = _stored_as(shape, dtype)
    size = math.prod(whole)
    sparse, pieces = _read(reader, shape, dtype, empty)
    values = np.zeros(size, kind) if sparse else None
    for where, read in pieces:
        if len(read) == size and not sparse:
            values = read
        else:
            values = empty(size, kind) if values is None else values
            values[where] = read
    values = np.empty(0, kind) if values is None else values
    return torch.from_numpy(values.view(np.uint8)).view(dtype).reshape(shape)


def reads_as(reader: BitReader, tensor: torch.Tensor) -> bool:
    """Whether ``read_tensor`` gives this tensor, bit for bit; part by part, without a copy."""
    values, nonzero, stored = patterns(tensor), 0, 0
    sparse, pieces = _read(reader, tuple(tensor.shape), tensor.dtype)
    seen = np.zeros(values.size if sparse else 0, bool)
    for where, read in pieces:
        if not np.array_equal(values[where], read):
            return False
        if sparse:
            seen[where] = True
            nonzero += int(np.count_nonzero(read))
            stored += len(read)
    # each once, and nothing elsewhere
    return not sparse or (np.count_nonzero(seen) == stored and np.count_nonzero(values) == nonzero)


def _read(
    reader: BitReader, shape: tuple[int, ...], dtype: torch.dtype, empty: Empty | None = None
) -> tuple[bool, Iterator[tuple[slice | np.ndarray, np.ndarray]]]:
    """Whether some patterns are zero because they are not stored; where those belong that are, and
    the patterns, part by part; with ``empty`` in one part where that takes no more memory."""
    whole, kind, floating = _stored_as(shape, dtype)
    if not reader.read(1):
        count = math.prod(whole)
        reader.need(count // RUN)  # before there is a tensor to fill
        return False, read_values(reader, count, kind, floating, empty=empty)
    reader.begin("positions")
    positions = Positions(reader, whole)
    reader.begin("header")
    pieces = read_values(reader, positions.count, kind, floating, in_order=True)
    return True, ((positions.take(len(read)), read) for _, read in pieces)


# --- values: a codebook and Huffman-coded numbers (paper, sections 3 and 4), or unshared ----------


def write_values(writer: BitWriter, values: np.ndarray, floating: bool) -> None:
    """Shared (a codebook and Huffman-coded numbers), raw, or as heads and tails, whichever takes
    the fewest bits."""
    if not values.size:
        return
    distinct = _distinct(values)
    few = values if distinct is None else distinct.values
    forms = [Form.of(few, floating)]
    if forms[0].half and values.size < MANY:  # rounded ones may be narrower as they are
        forms.append(Form.whole(few, floating))
    found: list[BitWriter] = []
    for form in forms:
        unshared = None
        if distinct is None or len(few) > FEW or values.size < MANY:
            found.append(unshared := _unshared(form, values))
        if distinct is None:
            continue
        if unshared is None or distinct.about < unshared.length:
            found.append(_shared(form, distinct))
        if unshared is None and found[-1].length > form.width * values.size:
            found.append(_unshared(form, values))
    writer.extend(min(found, key=lambda each: each.length))


def read_values(
    reader: BitReader,
    count: int,
    kind: np.dtype,
    floating: bool,
    in_order: bool = False,
    empty: Empty | None = None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """``count`` patterns of type ``kind`` written by ``write_values``, part by part.

    Gives which they are, and the patterns, to be used before the next part is asked for. Lanes
    come in turns unless ``in_order``, which takes a byte or two more for each value. With
    ``empty`` shared values are one part, in an array that it gives.
    """
    if not count:
        return
    if split := reader.peek(SPLIT_BITS) == SPLIT:
        reader.skip(SPLIT_BITS)
    form = Form.read(reader, 8 * kind.itemsize, floating)
    if split:
        reader.begin("values")
        whole = empty if form.plain else None  # what is undone would be there twice
        for part, values in read_heads(reader, count, form.width, kind, whole):
            yield part, form.undo(values, kind)
    elif reader.read(1):
        reader.begin("codebook")
        codebook = form.undo(_read_codebook(reader, form, count), kind)
        beyond = "a code word for a value beyond the codebook"
        code = read_table(reader, count, len(codebook) - 1, beyond)
        reader.begin("values")
        in_order &= lane_size(count) > 0
        if reader.codes is None and not in_order:
            values = codebook[code.symbols]
            if empty:
                yield slice(0, count), code.read(reader, count, values, empty)
            else:
                yield from code.read_parts(reader, count, values)
            return
        names = narrow(code.symbols, len(codebook))
        pieces = code.read_parts(reader, count, names)
        if in_order:
            numbers = code.read(reader, count, names)
            pieces = ((part, numbers[part]) for part in parts(count))
        for part, found in pieces:
            reader.note(code, found)
            yield part, codebook.take(found)
    else:
        reader.begin("values")
        for part, values in read_planes(reader, count, form.width, kind):
            yield part, form.undo(values, kind)


@dataclasses.dataclass(frozen=True)
class Form:
    """Bits that all values of a tensor share are not stored.

    ``half``: float32 or float64 values that float16 represents exactly are stored as float16.
    Otherwise the ``shift`` lowest and the highest bits beyond ``width`` are zero in all values
    (bfloat16 in float32, small integers in int64) and left out.
    """

    bits: int  # of the type
    floating: bool
    shift: int
    width: int
    half: bool = False

    @property
    def plain(self) -> bool:
        """Whether values are stored as they are, but for bits on top that are zero."""
        return not self.half and not self.shift

    @classmethod
    def of(cls, values: np.ndarray, floating: bool) -> "Form":
        bits = 8 * values.itemsize
        if floating and bits > 16 and _fits_half(values):
            return cls(bits, True, 0, 16, half=True)
        return cls.whole(values, floating)

    @classmethod
    def whole(cls, values: np.ndarray, floating: bool) -> "Form":
        """The narrowest form of their own type."""
        bits = 8 * values.itemsize
        used = int(np.bitwise_or.reduce(values))
        shift = (used & -used).bit_length() - 1 if used else 0
        return cls(bits, floating, shift, max(used.bit_length() - shift, 1))

    def writer(self) -> BitWriter:
        """One that begins with the form."""
        writer = BitWriter()
        writer.write(self.half, 1)
        if not self.half:
            writer.write(self.width < self.bits, 1)
            if self.width < self.bits:
                writer.write(self.shift, 6)
                writer.write(self.width - 1, 6)
        return writer

    @classmethod
    def read(cls, reader: BitReader, bits: int, floating: bool) -> "Form":
        if reader.read(1):
            if not floating or bits <= 16:
                raise HuffmanError("half precision for a type that has none")
            return cls(bits, True, 0, 16, half=True)
        if not reader.read(1):
            return cls(bits, floating, 0, bits)
        shift, width = reader.read(6), reader.read(6) + 1
        if shift + width > bits or width == bits:
            raise HuffmanError("values as wide as their type, or wider")
        return cls(bits, floating, shift, width)

    def apply(self, values: np.ndarray) -> np.ndarray:
        if self.half:
            return _as_half(values).view(np.uint16)
        return values >> values.dtype.type(self.shift) if self.shift else values

    def undo(self, values: np.ndarray, kind: np.dtype) -> np.ndarray:
        if self.half:
            halves = values.astype(np.uint16).view(np.float16)
            if np.isnan(halves).any():  # processors differ in what they make of its payload
                raise HuffmanError("a NaN in half precision")
            return halves.astype(f"f{kind.itemsize}").view(kind)
        values = values.astype(kind, copy=False)
        return values << kind.type(self.shift) if self.shift else values

    def ordered(self, values: np.ndarray) -> np.ndarray:
        """Patterns as uint64 in the order of the numbers that they stand for, and back.

        Negative floats come first, the largest magnitude first.
        """
        values = values.astype(np.uint64)
        sign, ones = self._sign()
        return np.where(values & sign, values ^ ones, values | sign)

    def unordered(self, values: np.ndarray) -> np.ndarray:
        sign, ones = self._sign()
        return np.where(values & sign, values ^ sign, values ^ ones)

    def _sign(self) -> tuple[np.uint64, np.uint64]:
        """The bit that is a sign, and all bits; none if there is no sign."""
        if not self.half and not (self.floating and self.shift + self.width == self.bits):
            return np.uint64(0), np.uint64(0)
        return np.uint64(1 << (self.width - 1)), np.uint64((1 << self.width) - 1)


def _as_half(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.view(f"f{values.itemsize}").astype(np.float16)


def _fits_half(values: np.ndarray) -> bool:
    # most tensors do not, and a few values show it
    for each in itertools.chain([slice(0, 1 << 8)], parts(values.size)):
        part = values[each]
        if np.isnan(part.view(f"f{part.itemsize}")).any() or not np.array_equal(
            _as_half(part).astype(f"f{part.itemsize}").view(part.dtype), part
        ):
            return False
    return True


# --- shared -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Distinct:
    """The distinct values of an array, how often each occurs, and how to get the number of each."""

    values: np.ndarray
    counts: np.ndarray
    numbers: Callable[[], np.ndarray]

    @property
    def about(self) -> float:
        """The bits of the shared form, without the codebook: for many values 2 for each entry of
        the table, and half a percent more than the entropy, as of large networks in bfloat16."""
        bits = entropy(self.counts)
        return 1.005 * bits + 2 * len(self.values) if len(self.values) > FEW else bits


def _distinct(values: np.ndarray) -> _Distinct | None:
    """None if they are too many to share."""
    if values.itemsize <= 2 and values.size >= MANY:  # a table of all patterns
        counts = codec.kernels.count(values, 1 << 8 * values.itemsize)
        found = np.flatnonzero(counts)
        if len(found) > _most(values):
            return None

        def numbers() -> np.ndarray:
            number = np.zeros(len(counts), np.uint16)
            number[found] = np.arange(len(found))
            return narrow(number, len(found))[values]

        return _Distinct(found.astype(values.dtype), counts[found], numbers)
    if values.size > 2 * MAX_CODEBOOK:
        drawn = values[np.random.default_rng(0).integers(0, values.size, DRAWN)]
        if len(np.unique(drawn)) > DIFFERENT:
            return None
    distinct, numbered = _numbered(values)
    if numbered is None:
        return None
    counts = codec.kernels.count(numbered, len(distinct))
    return _Distinct(distinct, counts, lambda: numbered)


def _most(values: np.ndarray) -> int:
    """So many distinct ones can be shared."""
    return min(MAX_CODEBOOK, values.size // 2 + 1)


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The distinct values, in the order in which they come, and which of them each one is; None if
    they are too many to share."""
    distinct = np.empty(_most(values), np.uint64)
    bits, numbers = len(distinct).bit_length() + 1, np.empty(values.size, np.uint16)
    for multiplier in MULTIPLIERS:
        found, slots = 0, np.zeros(1 << bits, np.int32)
        for part in parts(values.size):
            known = distinct, found, slots, 64 - bits, np.uint64(multiplier)
            found = codec.kernels.number(values[part].astype(np.uint64), *known, numbers[part])
            if found < 0:
                break
        if found >= 0:
            return distinct[:found].astype(values.dtype), narrow(numbers, found)
        if found == -1:
            break
    return distinct, None


def _shared(form: Form, distinct: _Distinct) -> BitWriter:
    """Codebook and numbers."""
    ordered = form.ordered(form.apply(distinct.values))
    by_value = np.argsort(ordered)
    code = Code.from_counts(np.arange(len(ordered)), distinct.counts[by_value])
    writer = form.writer()
    writer.write(1, 1)
    writer.write_number(len(ordered) - 1)
    write_set(writer, ordered[by_value], (1 << form.width) - 1)
    write_table(writer, code)
    code.write(writer, distinct.numbers(), names=by_value)
    return writer


def _read_codebook(reader: BitReader, form: Form, count: int) -> np.ndarray:
    size = reader.read_number() + 1
    if size > min(count, MAX_CODEBOOK, 1 << form.width):
        raise HuffmanError("a codebook of too many values")
    return form.unordered(read_set(reader, size, (1 << form.width) - 1))


# --- raw, or heads and tails ----------------------------------------------------------------------


def _unshared(form: Form, values: np.ndarray) -> BitWriter:
    """The form that takes fewer bits by what a few blocks of the values show."""
    kept = form.apply(values)
    writer = BitWriter()
    if kept.size >= LEAST and form.width > HEAD:
        heads = Heads(kept, form.width)
        if heads.about < planes_cost(kept, form.width):
            writer.write(SPLIT, SPLIT_BITS)
            writer.extend(form.writer())
            writer.extend(heads.write())
            return writer
    writer.extend(form.writer())
    writer.write(0, 1)
    writer.extend(write_planes(kept, form.width))
    return writer
