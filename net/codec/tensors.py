"""One tensor as a bit string, bit for bit: zeros apart, values shared, or raw.

Everything works on the bit patterns of the elements as unsigned integers, so that -0.0, NaN
payloads and denormals survive; "zero" means that all bits are zero.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from .. import codec
from .bits import PAD, BitReader, BitWriter, HuffmanError, read_set, write_set
from .codes import RUN, Code, Empty, lane_size, narrow, parts, read_table, write_table
from .forms import Form, patterns, stored_as
from .levels import begins_levels, read_levels, write_levels
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
MANY = 1 << 16  # values; of so many, only the forms that are likely the smallest are tried
MAX_CODEBOOK = 1 << 16
# Of the hash, one after the other: values that collide under all of them are stored raw.
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93)
MIN_GAIN = 64  # a large plane is coded if that saves one bit in so many


def write_tensor(tensor: torch.Tensor) -> BitWriter:
    """The bit string with the fewest bits of up to four forms."""
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
    dense, numbered = BitWriter(), _numbered(values)
    dense.write(0, 1)
    write_values(dense, values, floating, numbered)
    best = dense if sparse is None or dense.length < sparse.length else sparse
    distinct, numbers = numbered
    if numbers is None and values.size < MANY:  # a grid has its step alone, however many they are
        distinct, numbers = np.unique(values, return_inverse=True)
    if numbers is not None:
        best = write_levels(distinct, numbers, shape, tensor.dtype, best.length) or best
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


# --- values: a codebook and Huffman-coded numbers (paper, sections 3 and 4), or raw --------------


def write_values(
    writer: BitWriter,
    values: np.ndarray,
    floating: bool,
    numbered: tuple[np.ndarray, np.ndarray | None] | None = None,
) -> None:
    """Shared (a codebook and Huffman-coded numbers) or raw, whichever takes fewer bits.

    `numbered`: what `_numbered` says of the values, if that is known.
    """
    if not values.size:
        return
    distinct, numbers = numbered or _numbered(values)
    few = distinct if numbers is not None else values
    forms = [Form.of(few, floating)]
    if forms[0].half and values.size < MANY:  # rounded ones may be narrower as they are
        forms.append(Form.whole(few, floating))
    found: list[BitWriter] = []
    for form in forms:
        shared = [_shared(form, distinct, numbers)] if numbers is not None else []
        # of many elements with few values, the raw form is never the smaller one
        if not shared or values.size < MANY or shared[0].length > form.width * values.size:
            found.append(_raw(form, values))
        found += shared
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
    form = Form.read(reader, 8 * kind.itemsize, floating)
    if reader.read(1):
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
        for part, values in _read_planes(reader, count, form.width, kind):
            yield part, form.undo(values, kind)


# --- shared -------------------------------------------------------------------------------------


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The distinct values, in the order in which they come, and which of them each one is; None if
    they are too many to share."""
    distinct = np.empty(min(MAX_CODEBOOK, values.size // 2 + 1), np.uint64)
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


def _shared(form: Form, distinct: np.ndarray, numbers: np.ndarray) -> BitWriter:
    """Codebook and numbers."""
    ordered = form.ordered(form.apply(distinct))
    by_value = np.argsort(ordered)
    counts = codec.kernels.count(numbers, len(distinct))[by_value]
    code = Code.from_counts(np.arange(len(distinct)), counts)
    writer = form.writer()
    writer.write(1, 1)
    writer.write_number(len(distinct) - 1)
    write_set(writer, ordered[by_value], (1 << form.width) - 1)
    write_table(writer, code)
    code.write(writer, numbers, names=by_value)
    return writer


def _read_codebook(reader: BitReader, form: Form, count: int) -> np.ndarray:
    size = reader.read_number() + 1
    if size > min(count, MAX_CODEBOOK, 1 << form.width):
        raise HuffmanError("a codebook of too many values")
    return form.unordered(read_set(reader, size, (1 << form.width) - 1))


# --- raw ----------------------------------------------------------------------------------------


def _raw(form: Form, values: np.ndarray) -> BitWriter:
    """Byte by byte, the low bytes of all values first; each plane Huffman-coded if smaller.

    A large plane that codes hardly pay for is left as it is: it would take most of the time.
    """
    writer, kept = form.writer(), form.apply(values)
    writer.write(0, 1)
    for low in range(0, form.width, 8):
        plane, bits = kept.view(np.uint8)[low // 8 :: kept.itemsize], min(8, form.width - low)
        counts = codec.kernels.count(plane, 1 << 8)
        symbols = np.flatnonzero(counts)
        code = Code.from_counts(symbols, counts[symbols])
        table = BitWriter()
        write_table(table, code)
        payload = int(np.dot(counts[symbols], code.lengths)) or len(plane) // RUN
        least = len(plane) * bits // MIN_GAIN if len(plane) >= MANY else 0
        coded = table.length + payload < bits * len(plane) - least
        writer.write(coded, 1)
        if coded:
            writer.extend(table)
            code.write(writer, plane)
        else:
            words = np.arange(1 << bits, dtype=np.uint64) << np.uint64(6) | np.uint64(bits)
            writer.append(bits * len(plane), codec.kernels.pack_words, plane, words)
    return writer


def _read_planes(
    reader: BitReader, count: int, width: int, kind: np.dtype
) -> Iterator[tuple[slice, np.ndarray]]:
    """What ``_raw`` has written, part by part, as ``read_values`` does."""
    if count > RUN * reader.remaining:
        raise HuffmanError("the data ends early")
    planes = []  # data, from which bit on, in how many bits a value
    for low in range(0, width, 8):
        bits = min(8, width - low)
        if reader.read(1):
            code = read_table(reader, count, (1 << bits) - 1, "a byte beyond its width")
            octets = np.empty(count + PAD, np.uint8)
            for part, read in code.read_parts(reader, count, code.symbols.astype(np.uint8)):
                octets[part] = read
            planes.append((octets, 0, 8))
        else:
            planes.append((reader.data, reader.skip(bits * count), bits))
    for part in parts(count):
        values = np.zeros(part.stop - part.start, kind)
        for plane, (data, at, bits) in enumerate(planes):
            codec.kernels.merge_bits(data, at + part.start * bits, bits, 8 * plane, values)
        yield part, values
