"""One tensor as a bit string, bit for bit: zeros apart, values shared, raw, or heads and tails.

Everything works on the bit patterns of the elements as unsigned integers, so that -0.0, NaN
payloads and denormals survive; "zero" means that all bits are zero.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from .. import codec
from .bits import BitReader, BitWriter
from .codes import RUN, Code, Empty, entropy, lane_size, narrow, parts, read_table, write_table
from .forms import MAX_CODEBOOK, Form, elements, patterns, stored_as
from .heads import HEAD, LEAST, Heads, read_heads
from .levels import begins_levels, has_levels, read_levels, write_levels
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
FEW = 1 << 10  # distinct values: as these are never smaller in another form, none is tried
# Of so many values drawn by chance no more than DIFFERENT are distinct if MAX_CODEBOOK are in all.
DRAWN, DIFFERENT = 1 << 12, 4060  # 3,970 on average, with a standard deviation of 11
# Of the hash, one after the other: values that collide under all of them are stored raw.
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93)
# A form that no values have, wider than any type: values follow as heads and tails.
SPLIT, SPLIT_BITS = 0b01_111111_111111, 14


def write_tensor(tensor: torch.Tensor) -> BitWriter:
    """The bit string with the fewest bits of several forms."""
    values = patterns(tensor)
    shape, _, floating = stored_as(tensor.shape, tensor.dtype)
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
    distinct = write_values(dense, values, floating)
    best = dense if sparse is None or dense.length < sparse.length else sparse
    # a grid has its step alone, however many they are
    if distinct is None and values.size < MANY and has_levels(shape, tensor.dtype):
        found, numbers, counts = np.unique(values, return_inverse=True, return_counts=True)
        distinct = _Distinct(found, counts, lambda: numbers)
    if distinct is not None:
        few = distinct.values, distinct.counts, distinct.numbers
        best = write_levels(*few, shape, tensor.dtype, best.length) or best
    return best


def read_tensor(
    reader: BitReader, shape: tuple[int, ...], dtype: torch.dtype, empty: Empty = np.empty
) -> torch.Tensor:
    """The tensor that ``write_tensor`` was given; HuffmanError for any other bits."""
    whole, kind, _ = stored_as(shape, dtype)
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
    return elements(values, dtype).reshape(shape)


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
    whole, kind, floating = stored_as(shape, dtype)
    if not reader.read(1):
        count = math.prod(whole)
        if begins_levels(reader, kind):
            return False, read_levels(reader, whole, dtype, kind)
        reader.need(count // RUN)  # before there is a tensor to fill
        return False, read_values(reader, count, kind, floating, empty=empty)
    reader.begin("positions")
    positions = Positions(reader, whole)
    reader.begin("header")
    pieces = read_values(reader, positions.count, kind, floating, in_order=True)
    return True, ((positions.take(len(read)), read) for _, read in pieces)


# --- values: a codebook and Huffman-coded numbers (paper, sections 3 and 4), or unshared ----------


def write_values(writer: BitWriter, values: np.ndarray, floating: bool) -> "_Distinct | None":
    """Shared (a codebook and Huffman-coded numbers), raw, or as heads and tails, whichever takes
    the fewest bits. Returns what `_distinct` says of the values."""
    if not values.size:
        return None
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
            shared = _shared(form, distinct, unshared.length if unshared else math.inf)
            found += [shared] if shared else []
        if unshared is None and found[-1].length > form.width * values.size:
            found.append(_unshared(form, values))
    writer.extend(min(found, key=lambda each: each.length))
    return distinct


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
        codebook = form.read_codebook(reader, count, kind)
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
        the table, and half a percent more than the entropy (of tensors of five networks in 16 bits,
        none reported, 0.4 to 1.0 %), so that it is seldom more than they take."""
        bits = entropy(self.counts)
        return 1.005 * bits + 2 * len(self.values) if len(self.values) > FEW else bits


def _distinct(values: np.ndarray) -> _Distinct | None:
    """None if they are too many to share."""
    if values.itemsize <= 2 and values.size >= MANY:  # a table of all patterns
        counts = codec.kernels.count(values, 1 << 8 * values.itemsize)
        found = np.flatnonzero(counts != 0)  # in a quarter of the time that the counts take
        if len(found) > _most(values):
            return None

        def numbers() -> np.ndarray:
            number = np.zeros(len(counts), np.uint16)
            number[found] = np.arange(len(found))
            return narrow(number, len(found)).take(values)  # in half of the time that [] takes

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


def _shared(form: Form, distinct: _Distinct, most: float) -> BitWriter | None:
    """Codebook and numbers, if they take fewer than so many bits."""
    writer = form.writer()
    writer.write(1, 1)
    by_value = form.write_codebook(writer, distinct.values)
    counts = distinct.counts[by_value]
    code = Code.from_counts(np.arange(len(by_value)), counts)
    write_table(writer, code)
    if writer.length + int(np.dot(counts, code.lengths)) >= most:  # before a number is made
        return None
    code.write(writer, distinct.numbers(), names=by_value)
    return writer


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
