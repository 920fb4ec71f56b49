"""Bit patterns: a codebook and Huffman-coded numbers (paper, sections 3 and 4), or raw."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from .. import codec
from .bits import PAD, BitReader, BitWriter, HuffmanError, read_set, write_set
from .codes import RUN, Code, Empty, lane_size, narrow, parts, read_table, write_table

MANY = 1 << 16  # values; of so many, only the forms that are likely the smallest are tried
MAX_CODEBOOK = 1 << 16
# Of the hash, one after the other: values that collide under all of them are stored raw.
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93)
MIN_GAIN = 64  # a large plane is coded if that saves one bit in so many


def write_values(writer: BitWriter, values: np.ndarray, floating: bool) -> None:
    """Shared (a codebook and Huffman-coded numbers) or raw, whichever takes fewer bits."""
    if not values.size:
        return
    distinct, numbers = _numbered(values)
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
    for each in parts(values.size):  # most tensors do not: stop at the first part
        part = values[each]
        if np.isnan(part.view(f"f{part.itemsize}")).any() or not np.array_equal(
            _as_half(part).astype(f"f{part.itemsize}").view(part.dtype), part
        ):
            return False
    return True


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
