"""Values byte by byte, the low bytes of all values first: the raw form of values."""

from collections.abc import Iterator

import numpy as np

from .. import codec
from .bits import PAD, BitReader, BitWriter
from .codes import RUN, Code, entropy, parts, read_table, write_table

MANY = 1 << 16  # values
PIECE, PIECES = 1 << 10, 16  # values in a piece, and pieces, that show what a plane takes
MIN_GAIN = 64  # a plane of so many is coded if that saves one bit in so many


def write_planes(values: np.ndarray, width: int) -> BitWriter:
    """Values below 2**width (an unsigned type), each plane Huffman-coded if smaller.

    A large plane that codes hardly pay for is left as it is: it would take most of the time.
    """
    writer = BitWriter()
    for plane, bits in _planes(values, width):
        plain = BitWriter()
        plain.write(0, 1)
        words = np.arange(1 << bits, dtype=np.uint64) << np.uint64(6) | np.uint64(bits)
        plain.append(bits * len(plane), codec.kernels.pack_words, plane, words)
        least = plain.length // MIN_GAIN if len(plane) >= MANY else 0
        coded = _coded(plane, plain.length - least)
        writer.extend(coded or plain)
    return writer


def _coded(plane: np.ndarray, most: int) -> BitWriter | None:
    """Table and code words, if they take fewer than so many bits."""
    counts = codec.kernels.count(plane, 1 << 8)
    symbols = np.flatnonzero(counts)
    counts = counts[symbols]
    if entropy(counts) + len(symbols) > most:  # a bit or more for each in the table
        return None
    code = Code.from_counts(symbols, counts)
    writer = BitWriter()
    writer.write(1, 1)
    write_table(writer, code)
    payload = int(np.dot(counts, code.lengths)) or len(plane) // RUN
    if writer.length + payload >= most:
        return None
    code.write(writer, plane)
    return writer


def planes_cost(values: np.ndarray, width: int) -> float:
    """About the bits of many values, by what a few from all over show."""
    pieces = values[: values.size // PIECE * PIECE].reshape(-1, PIECE)
    few = pieces[len(pieces) // (2 * PIECES) :: max(len(pieces) // PIECES, 1)].ravel()
    bits = 0.0
    for plane, most in _planes(few, width):
        coded = entropy(codec.kernels.count(plane, 1 << 8)) / len(plane)
        bits += coded if coded < most - most / MIN_GAIN else most
    return bits * values.size


def _planes(values: np.ndarray, width: int) -> Iterator[tuple[np.ndarray, int]]:
    """Each byte of all values, and how many bits it has."""
    for low in range(0, width, 8):
        yield values.view(np.uint8)[low // 8 :: values.itemsize], min(8, width - low)


def read_planes(
    reader: BitReader, count: int, width: int, kind: np.dtype
) -> Iterator[tuple[slice, np.ndarray]]:
    """``count`` values written by ``write_planes`` in the type ``kind``, part by part."""
    reader.need(count // RUN)
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
