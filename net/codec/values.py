"""Bit patterns: a codebook and Huffman-coded numbers (paper, sections 3 and 4), or raw."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from .. import codec
from .bits import BitReader, BitWriter, HuffmanError
from .codes import RUN, Code, narrow
from .sets import read_set, write_set
from .tables import read_table, write_table

PART = 1 << 16  # values converted at once: the temporaries stay in the L2 cache
MAX_CODEBOOK = 1 << 16
MIN_GAIN = 64  # a large plane is coded if that saves one bit in so many


def write_values(writer: BitWriter, values: np.ndarray, floating: bool) -> None:
    """Shared (a codebook and Huffman-coded numbers) or raw, whichever takes fewer bits."""
    if not values.size:
        return
    distinct, numbers = _numbered(values)
    few = distinct if numbers is not None else values
    forms = [Form.of(few, floating)]
    if forms[0].half and values.size < PART:  # rounded ones may be narrower as they are
        forms.append(Form.whole(few, floating))
    found = [_written(form, values, distinct, numbers) for form in forms]
    writer.extend(min(found, key=lambda each: each.length))


def _written(
    form: "Form", values: np.ndarray, distinct: np.ndarray, numbers: np.ndarray | None
) -> BitWriter:
    """The values in this form, shared or raw."""
    best = _shared(form, distinct, numbers) if numbers is not None else None
    # of a large tensor with few values, the raw form is never the smaller one
    if best is None or values.size < PART or best.length > form.width * values.size:
        raw = BitWriter()
        raw.write(0, 1)
        _write_planes(raw, form.apply(values), form.width)
        if best is None or raw.length <= best.length:
            best = raw
    writer = BitWriter()
    form.write(writer)
    writer.extend(best)
    return writer


def read_values(
    reader: BitReader, count: int, kind: np.dtype, floating: bool
) -> Iterator[tuple[slice, np.ndarray]]:
    """``count`` patterns of type ``kind`` written by ``write_values``, PART by PART.

    Gives which they are, and the patterns, to be used before the next part is asked for.
    """
    if not count:
        return iter(())
    form = Form.read(reader, 8 * kind.itemsize, floating)
    parts = [slice(i, min(i + PART, count)) for i in range(0, count, PART)]
    if reader.read(1):
        reader.begin("codebook")
        codebook = form.undo(_read_codebook(reader, form), kind)
        code = read_table(reader, count)
        if code.symbols[-1] >= len(codebook):
            raise HuffmanError("a code word for a value beyond the codebook")
        reader.begin("values")
        numbers = code.read(reader, count, narrow(code.symbols, len(codebook)))
        reader.note(code, numbers)
        return ((part, codebook.take(numbers[part], mode="clip")) for part in parts)
    reader.begin("values")
    planes = _read_planes(reader, count, form.width)
    size = 1 << (len(planes) - 1).bit_length()  # bytes: 1, 2, 4 or 8
    values = np.zeros(min(count, PART), f"<u{size}")
    return ((part, form.undo(_merged(planes, part, values), kind)) for part in parts)


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

    def write(self, writer: BitWriter) -> None:
        writer.write(self.half, 1)
        if not self.half:
            writer.write(self.width < self.bits, 1)
            if self.width < self.bits:
                writer.write(self.shift, 6)
                writer.write(self.width - 1, 6)

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
            wide = values.astype(np.uint16).view(np.float16).astype(f"f{kind.itemsize}")
            return wide.view(kind)
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
    for i in range(0, values.size, PART):  # most tensors do not: stop at the first part
        part = values[i : i + PART]
        # processors differ in what they make of a NaN's payload
        if np.isnan(part.view(f"f{part.itemsize}")).any() or not np.array_equal(
            _as_half(part).astype(f"f{part.itemsize}").view(part.dtype), part
        ):
            return False
    return True


# --- shared -------------------------------------------------------------------------------------


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The distinct values, and which of them each one is; None if they are too many to share."""
    distinct = np.empty(min(MAX_CODEBOOK, values.size // 2 + 1), np.uint64)
    bits, found = len(distinct).bit_length() + 1, 0
    slots, numbers = np.zeros(1 << bits, np.int32), np.empty(values.size, np.uint16)
    for i in range(0, values.size, PART):
        part = values[i : i + PART].astype(np.uint64), distinct, found, slots, 64 - bits
        found = codec.kernels.number(*part, numbers[i : i + PART])
        if found < 0:
            return distinct, None
    return distinct[:found].astype(values.dtype), narrow(numbers, found)


def _shared(form: Form, distinct: np.ndarray, numbers: np.ndarray) -> BitWriter:
    """Codebook and numbers."""
    ordered = form.ordered(form.apply(distinct))
    by_value = np.argsort(ordered)
    counts = codec.kernels.count(numbers, len(distinct))[by_value]
    code = Code.from_counts(np.arange(len(distinct)), counts)
    writer = BitWriter()
    writer.write(1, 1)
    writer.write_number(len(distinct) - 1)
    write_set(writer, ordered[by_value], (1 << form.width) - 1)
    write_table(writer, code)
    code.write(writer, numbers, names=by_value)
    return writer


def _read_codebook(reader: BitReader, form: Form) -> np.ndarray:
    size = reader.read_number() + 1
    if size > MAX_CODEBOOK or size > 1 << form.width:
        raise HuffmanError("a codebook of too many values")
    return form.unordered(read_set(reader, size, (1 << form.width) - 1))


# --- raw ----------------------------------------------------------------------------------------


def _write_planes(writer: BitWriter, values: np.ndarray, width: int) -> None:
    """Byte by byte, the low bytes of all values first; each plane Huffman-coded if smaller.

    A large plane that codes hardly pay for is left as it is: it would take most of the time.
    """
    for i, octets in enumerate(_planes(values, width)):
        bits, counts = min(8, width - 8 * i), codec.kernels.count(octets, 1 << 8)
        symbols = np.flatnonzero(counts)
        code = Code.from_counts(symbols, counts[symbols])
        table = BitWriter()
        write_table(table, code)
        payload = int(np.dot(counts[symbols], code.lengths)) or len(octets) // RUN
        least = len(octets) * bits // MIN_GAIN if len(octets) >= PART else 0
        coded = table.length + payload < bits * len(octets) - least
        writer.write(coded, 1)
        if coded:
            writer.extend(table)
            code.write(writer, octets)
        else:
            words = np.arange(1 << bits, dtype=np.uint64) << np.uint64(6) | np.uint64(bits)
            writer.append(bits * len(octets), codec.kernels.pack_words, octets, words)


def _read_planes(reader: BitReader, count: int, width: int) -> list[tuple[np.ndarray, int, int]]:
    """Where each plane is: as uint8[count], or from which bit on, in how many bits a value."""
    if count > RUN * reader.remaining:
        raise HuffmanError("the data ends early")
    planes = []
    for low in range(0, width, 8):
        bits = min(8, width - low)
        if reader.read(1):
            code = read_table(reader, count)
            if code.symbols[-1] >> bits:
                raise HuffmanError("a byte beyond its width")
            planes.append((code.read(reader, count, code.symbols.astype(np.uint8)), 0, 0))
        else:
            planes.append((reader.data, reader.skip(bits * count), bits))
    return planes


def _merged(planes: list, part: slice, values: np.ndarray) -> np.ndarray:
    """The ``part`` of the values that the planes make: in ``values``, while that is cached."""
    values = values[: part.stop - part.start]
    raw = np.empty(len(values), np.uint8)  # the kernel is many times faster without strides
    for octets, (data, at, bits) in zip(_planes(values, 8 * len(planes)), planes, strict=True):
        if bits:
            codec.kernels.unpack_bytes(data, at + part.start * bits, bits, raw)
        octets[:] = raw if bits else data[part]
    return values


def _planes(values: np.ndarray, width: int) -> list[np.ndarray]:
    """Views of the bytes that hold the low ``width`` bits, the lowest byte of all values first."""
    octets = values.view(np.uint8)
    return [octets[i :: values.itemsize] for i in range((width + 7) // 8)]
