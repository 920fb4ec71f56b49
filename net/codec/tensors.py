"""One tensor as a bit string, bit for bit: zeros apart, values shared, or raw.

Everything works on the bit patterns of the elements as unsigned integers, so that -0.0, NaN
payloads and denormals survive; "zero" means that all bits are zero.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from ..tensors import fault
from .bits import BitReader, BitWriter
from .codes import RUN, Empty
from .positions import Positions, write_positions
from .values import read_values, write_values

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


def patterns(tensor: torch.Tensor) -> np.ndarray:
    """The elements as unsigned integers, uint[n]; complex ones as two each, real part first.

    ValueError for a tensor without plain values."""
    if what := fault(tensor):
        raise ValueError(what)
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().reshape(-1)
    if flat.stride(0) != 1:  # an expanded tensor, or one element of a strided one
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().view(f"u{component_size(tensor.dtype)}")


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
    size, kind = math.prod(shape) * (2 if dtype.is_complex else 1), f"u{component_size(dtype)}"
    sparse, parts = _read(reader, shape, dtype, empty)
    values = np.zeros(size, kind) if sparse else None
    for where, read in parts:
        if len(read) == size and not sparse:
            values = read
        else:
            values = empty(size, np.dtype(kind)) if values is None else values
            values[where] = read
    values = np.empty(0, kind) if values is None else values
    return torch.from_numpy(values.view(np.uint8)).view(dtype).reshape(shape)


def reads_as(reader: BitReader, tensor: torch.Tensor) -> bool:
    """Whether ``read_tensor`` gives this tensor, bit for bit; part by part, without a copy."""
    values, nonzero, stored = patterns(tensor), 0, 0
    sparse, parts = _read(reader, tuple(tensor.shape), tensor.dtype)
    seen = np.zeros(values.size if sparse else 0, bool)
    for where, read in parts:
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
    whole = shape + ((2,) if dtype.is_complex else ())
    floating = dtype.is_floating_point or dtype.is_complex
    kind = np.dtype(f"u{component_size(dtype)}")
    if not reader.read(1):
        count = math.prod(whole)
        reader.need(count // RUN)  # before there is a tensor to fill
        return False, read_values(reader, count, kind, floating, empty=empty)
    reader.begin("positions")
    positions = Positions(reader, whole)
    reader.begin("header")
    parts = read_values(reader, positions.count, kind, floating, in_order=True)
    return True, ((positions.take(len(read)), read) for _, read in parts)
