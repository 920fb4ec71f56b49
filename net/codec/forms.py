"""Elements as bit patterns, and what all patterns of a tensor have in common.

Everything works on the bit patterns of the elements as unsigned integers, so that -0.0, NaN
payloads and denormals survive.
"""

import dataclasses
import itertools

import numpy as np
import torch

from ..tensors import fault, memory
from .bits import BitReader, BitWriter, HuffmanError, read_set, write_set
from .codes import parts

MAX_CODEBOOK = 1 << 16


def patterns(tensor: torch.Tensor) -> np.ndarray:
    """The elements as unsigned integers, uint[n]; complex ones as two each, real part first.

    ValueError for a tensor without plain values."""
    if what := fault(tensor):
        raise ValueError(what)
    return memory(tensor).view(stored_as(tensor.shape, tensor.dtype)[1])


def elements(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The tensor [n] of these ``patterns``, in their memory."""
    return torch.from_numpy(values.view(np.uint8)).view(dtype)


def stored_as(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[tuple[int, ...], np.dtype, bool]:
    """The shape and the type of the patterns, and whether they are those of floats."""
    if dtype.is_complex:
        return (*shape, 2), np.dtype(f"u{dtype.itemsize // 2}"), True
    return tuple(shape), np.dtype(f"u{dtype.itemsize}"), dtype.is_floating_point


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

    def write_codebook(self, writer: BitWriter, values: np.ndarray) -> np.ndarray:
        """Distinct patterns in the order of their numbers; returns that order (a permutation)."""
        ordered = self.ordered(self.apply(values))
        by_value = np.argsort(ordered)
        writer.write_number(len(ordered) - 1)
        write_set(writer, ordered[by_value], (1 << self.width) - 1)
        return by_value

    def read_codebook(self, reader: BitReader, count: int, kind: np.dtype) -> np.ndarray:
        """The patterns that ``write_codebook`` has written, of ``count`` values in ``kind``."""
        size = reader.read_number() + 1
        if size > min(count, MAX_CODEBOOK, 1 << self.width):
            raise HuffmanError("a codebook of too many values")
        return self.undo(self.unordered(read_set(reader, size, (1 << self.width) - 1)), kind)

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
