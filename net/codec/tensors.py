"""One tensor as a bit string, bit for bit: zeros apart, values shared, or raw.

Everything works on the bit patterns of the elements as unsigned integers, so that -0.0, NaN
payloads and denormals survive; "zero" means that all bits are zero.
"""

import math

import numpy as np
import torch

from ..huffman import read_table, write_table
from .bits import BitReader, BitWriter, HuffmanError
from .positions import read_positions, read_set, write_positions, write_set
from .prefix import RUN, Code, gather, histogram

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


def patterns(tensor: torch.Tensor) -> np.ndarray:
    """The elements as unsigned integers, uint[n]; complex ones as two each, real part first."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().reshape(-1)
    if flat.stride(0) != 1:  # an expanded tensor, or one element of a strided one
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().view(f"u{component_size(tensor.dtype)}")


def identity(tensor: torch.Tensor) -> tuple:
    """Equal for two tensors that are the same memory, as tied weights are, seen in the same way."""
    if tensor.numel() == 0:
        return (id(tensor),)
    # A lazy conjugate or negative has the memory of what it was made of.
    seen_as = tensor.is_conj(), tensor.is_neg()
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), seen_as


def component_size(dtype: torch.dtype) -> int:
    """Bytes per pattern."""
    return dtype.itemsize // (2 if dtype.is_complex else 1)


def write_tensor(tensor: torch.Tensor) -> BitWriter:
    """The bit string with the fewest bits of up to four forms."""
    values = patterns(tensor)
    shape = tuple(tensor.shape) + ((2,) if tensor.dtype.is_complex else ())
    floating = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    nonzero = np.count_nonzero(values)
    sparse = None
    if nonzero < values.size * (MAX_DENSITY if values.size > LARGE else 1):
        sparse = BitWriter()
        sparse.write(1, 1)
        positions = np.flatnonzero(values)
        positions = positions[write_positions(sparse, positions, shape)]
        _write_values(sparse, values[positions], floating)
        # beyond 7 zeros per value, no code that spends a bit on each zero is smaller
        if values.size >= SAMPLE and nonzero < values.size // 8:
            return sparse
    dense = BitWriter()
    dense.write(0, 1)
    _write_values(dense, values, floating)
    return dense if sparse is None or dense.length < sparse.length else sparse


def read_tensor(reader: BitReader, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The tensor that ``write_tensor`` was given; HuffmanError for any other bits."""
    whole = shape + ((2,) if dtype.is_complex else ())
    size = math.prod(whole)
    kind = np.dtype(f"u{component_size(dtype)}")
    floating = dtype.is_floating_point or dtype.is_complex
    if reader.read(1):
        reader.begin("positions")
        positions = read_positions(reader, whole)
        reader.begin("header")
        values = np.zeros(size, kind)
        values[positions] = _read_values(reader, len(positions), kind, floating)
    else:
        values = _read_values(reader, size, kind, floating)
    return torch.from_numpy(values.view(np.uint8)).view(dtype).reshape(shape)


# --- values -------------------------------------------------------------------------------------


def _write_values(writer: BitWriter, values: np.ndarray, floating: bool) -> None:
    """Shared (a codebook and Huffman-coded numbers) or raw, whichever takes fewer bits."""
    if not values.size:
        return
    narrow = Narrow.of(values, floating)
    values = narrow.apply(values)
    best = _shared(values, narrow)
    # of a large tensor with few values, the raw form is never the smaller one
    if best is None or values.size < SAMPLE or best.length > narrow.width * values.size:
        raw = BitWriter()
        raw.write(0, 1)
        _write_planes(raw, values, narrow.width)
        if best is None or raw.length <= best.length:
            best = raw
    narrow.write(writer)
    writer.extend(best)


def _read_values(reader: BitReader, count: int, kind: np.dtype, floating: bool) -> np.ndarray:
    if not count:
        return np.zeros(0, kind)
    narrow = Narrow.read(reader, kind, floating)
    if reader.read(1):
        reader.begin("codebook")
        codebook = narrow.undo(_read_codebook(reader, narrow), kind)
        code = read_table(reader)
        if code.symbols[-1] >= len(codebook):
            raise HuffmanError("a code word for a value beyond the codebook")
        reader.begin("values")
        ranks = code.read_ranks(reader, count)
        reader.note(code, ranks)
        return gather(codebook[code.symbols], ranks)
    reader.begin("values")
    return narrow.undo(_read_planes(reader, count, narrow), kind)


class Narrow:
    """Bits that all values of a tensor share are not stored.

    ``half``: float32 or float64 values that float16 represents exactly are stored as float16.
    Otherwise the ``shift`` lowest and the highest bits beyond ``width`` are zero in all values
    (bfloat16 in float32, small integers in int64) and left out.
    """

    def __init__(
        self,
        bits: int,
        floating: bool,
        shift: int = 0,
        width: int | None = None,
        half: bool = False,
    ) -> None:
        self.half, self.shift = half, shift
        self.width = 16 if half else bits if width is None else width
        self.whole = self.width == bits
        self.signed = half or (floating and shift + self.width == bits)  # the top bit is a sign

    @classmethod
    def of(cls, values: np.ndarray, floating: bool) -> "Narrow":
        bits = 8 * values.itemsize
        if floating and bits > 16 and _fits_half(values):
            return cls(bits, True, half=True)
        used = int(np.bitwise_or.reduce(values))
        width = used.bit_length()
        shift = (used & -used).bit_length() - 1 if used else 0
        return cls(bits, floating, shift=shift, width=max(width - shift, 1))

    def write(self, writer: BitWriter) -> None:
        writer.write(self.half, 1)
        if not self.half:
            writer.write(not self.whole, 1)
            if not self.whole:
                writer.write(self.shift, 6)
                writer.write(self.width - 1, 6)

    @classmethod
    def read(cls, reader: BitReader, kind: np.dtype, floating: bool) -> "Narrow":
        bits = 8 * kind.itemsize
        if reader.read(1):
            if not floating or bits <= 16:
                raise HuffmanError("half precision for a type that has none")
            return cls(bits, True, half=True)
        if not reader.read(1):
            return cls(bits, floating)
        shift, width = reader.read(6), reader.read(6) + 1
        if shift + width > bits or width == bits:
            raise HuffmanError("values as wide as their type, or wider")
        return cls(bits, floating, shift=shift, width=width)

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
        if not self.signed:
            return values
        sign = np.uint64(1 << (self.width - 1))
        return np.where(values & sign, values ^ np.uint64((1 << self.width) - 1), values | sign)

    def unordered(self, values: np.ndarray) -> np.ndarray:
        if not self.signed:
            return values
        sign = np.uint64(1 << (self.width - 1))
        return np.where(values & sign, values ^ sign, values ^ np.uint64((1 << self.width) - 1))


def _as_half(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.view(f"f{values.itemsize}").astype(np.float16)


def _fits_half(values: np.ndarray) -> bool:
    for i in range(0, values.size, SAMPLE):  # most tensors do not: stop at the first part
        part = values[i : i + SAMPLE]
        # processors differ in what they make of a NaN's payload
        if np.isnan(part.view(f"f{part.itemsize}")).any() or not np.array_equal(
            _as_half(part).astype(f"f{part.itemsize}").view(part.dtype), part
        ):
            return False
    return True


def _shared(values: np.ndarray, narrow: Narrow) -> BitWriter | None:
    """Codebook and numbers, or None if there are too many distinct values."""
    if values.size > SAMPLE:
        sample = values[:: values.size // SAMPLE]
        if len(np.unique(sample)) > len(sample) // 2:
            return None
    distinct = np.unique(values)
    if len(distinct) > min(MAX_CODEBOOK, values.size // 2 + 1):
        return None
    ordered = narrow.ordered(distinct)
    by_value = np.argsort(ordered)
    number = np.empty(len(distinct), np.min_scalar_type(len(distinct)))
    number[by_value] = np.arange(len(distinct))
    numbers = np.empty(values.size, number.dtype)
    for i in range(0, values.size, SAMPLE):  # indexes of 8 bytes, for a part at a time
        numbers[i : i + SAMPLE] = number[np.searchsorted(distinct, values[i : i + SAMPLE])]
    writer = BitWriter()
    writer.write(1, 1)
    _write_codebook(writer, ordered[by_value], narrow.width)
    code = Code.of(numbers)
    write_table(writer, code)
    code.write(writer, numbers)
    return writer


def _write_codebook(writer: BitWriter, ordered: np.ndarray, width: int) -> None:
    """Distinct values in the order of the numbers that they stand for."""
    writer.write_number(len(ordered) - 1)
    if width <= 48:
        write_set(writer, ordered.astype(np.int64), 1 << width)
    else:
        writer.write_array(ordered, np.full(len(ordered), width))


def _read_codebook(reader: BitReader, narrow: Narrow) -> np.ndarray:
    size = reader.read_number() + 1
    if size > MAX_CODEBOOK or size > 1 << narrow.width:
        raise HuffmanError("a codebook of too many values")
    if narrow.width <= 48:
        ordered = read_set(reader, size, 1 << narrow.width).astype(np.uint64)
    else:
        ordered = reader.read_fixed(size, narrow.width)
        if (ordered[1:] <= ordered[:-1]).any():
            raise HuffmanError("a codebook that is not in ascending order")
    return narrow.unordered(ordered)


def _write_planes(writer: BitWriter, values: np.ndarray, width: int) -> None:
    """Byte by byte, the low bytes of all values first; each plane Huffman-coded if smaller."""
    for shift in range(0, width, 8):
        plane = np.empty(values.size, np.uint8)
        np.right_shift(values, values.dtype.type(shift), out=plane, casting="unsafe")
        bits = min(8, width - shift)
        symbols, counts = histogram(plane)
        code = Code.from_counts(symbols, counts)
        table = BitWriter()
        write_table(table, code)
        payload = int(np.sum(counts * code.lengths)) or len(plane) // RUN
        coded = table.length + payload < bits * len(plane)
        writer.write(coded, 1)
        if coded:
            writer.extend(table)
            code.write(writer, plane)
        elif bits == 8:
            writer.write_bytes(plane)
        else:
            writer.write_array(plane, np.full(len(plane), bits, np.uint8))


def _read_planes(reader: BitReader, count: int, narrow: Narrow) -> np.ndarray:
    if count > RUN * reader.remaining:
        raise HuffmanError("the data ends early")
    count_bytes = (narrow.width + 7) // 8
    values = np.zeros((count, 1 << (count_bytes - 1).bit_length()), np.uint8)
    for i in range(count_bytes):
        bits = min(8, narrow.width - 8 * i)
        if reader.read(1):
            code = read_table(reader)
            if code.symbols[-1] >> bits:
                raise HuffmanError("a byte beyond its width")
            values[:, i] = code.read(reader, count, np.uint8)
        elif bits == 8:
            values[:, i] = reader.read_bytes(count)
        else:
            values[:, i] = reader.read_fixed(count, bits)
    return values.view(f"<u{values.shape[1]}").ravel()
