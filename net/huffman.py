"""Huffman coding of non-negative integers (paper, section 4).

``encode`` and ``decode`` map an integer array to a self-contained stream and back. The functions
beside them work on a shared bit string, without the fields that the surrounding format implies.
The bit layout is specified in docs/format.md.
"""

import zlib

import numpy as np

from .codec.bits import BitReader, BitWriter, HuffmanError
from .codec.integers import read_integers, write_integers
from .codec.prefix import SMALL_ALPHABET, Code, checked_code, read_small_table, write_small_table

__all__ = ["HuffmanError", "decode", "encode"]


def encode(symbols: np.ndarray) -> bytes:
    """Encode non-negative integers below 2**63 (any integer dtype, any shape, flattened).

    Raises HuffmanError for anything else.
    """
    symbols = np.asarray(symbols).ravel()
    if symbols.size == 0:
        symbols = symbols.astype(np.uint8)
    if symbols.dtype == bool:
        symbols = symbols.view(np.uint8)
    if symbols.dtype.kind not in "iu":
        raise HuffmanError(f"cannot encode {symbols.dtype} symbols; pass integers")
    if symbols.size and (int(symbols.min()) < 0 or int(symbols.max()) >= 1 << 63):
        raise HuffmanError("cannot encode symbols outside [0, 2**63)")
    writer = BitWriter()
    writer.write_number(symbols.size)
    write_symbols(writer, symbols)
    data = writer.finish()
    return data + zlib.crc32(data).to_bytes(4, "big")


def decode(data: bytes) -> np.ndarray:
    """The int64 array that ``encode`` was given; HuffmanError for bytes that it cannot write."""
    body, checksum = bytes(data[:-4]), bytes(data[-4:])
    if len(checksum) < 4 or zlib.crc32(body) != int.from_bytes(checksum, "big"):
        raise HuffmanError("the checksum does not match: the stream is damaged or cut")
    reader = BitReader(body)
    symbols = read_symbols(reader, reader.read_number())
    reader.finish()
    return symbols


def write_symbols(writer: BitWriter, symbols: np.ndarray) -> None:
    """A code table and the coded symbols; the reader has to know how many there are."""
    if symbols.size:
        code = Code.of(symbols)
        write_table(writer, code)
        code.write(writer, symbols)


def read_symbols(reader: BitReader, count: int) -> np.ndarray:
    """``count`` int64 symbols written by ``write_symbols``."""
    if count == 0:
        return np.zeros(0, np.int64)
    return read_table(reader).read(reader, count)


# --- code tables ------------------------------------------------------------------------------


def write_table(writer: BitWriter, code: Code) -> None:
    """The cheaper of two forms: small (bit by bit) or wide (the two columns as streams)."""
    small = BitWriter()
    if code.symbols[-1] < SMALL_ALPHABET:
        small.write(0, 1)
        write_small_table(small, code)
        if code.symbols[-1] < 64:  # the wide form has two tables of its own
            return writer.extend(small)
    wide = BitWriter()
    wide.write(1, 1)
    _write_wide_table(wide, code)
    writer.extend(small if 0 < small.length <= wide.length else wide)


def read_table(reader: BitReader) -> Code:
    return _read_wide_table(reader) if reader.read(1) else read_small_table(reader)


def _write_wide_table(writer: BitWriter, code: Code) -> None:
    writer.write_number(len(code.symbols))
    write_integers(writer, np.diff(code.symbols, prepend=-1) - 1)
    lengths = Code.of(code.lengths)
    write_small_table(writer, lengths)
    lengths.write(writer, code.lengths)


def _read_wide_table(reader: BitReader) -> Code:
    size = reader.read_number()
    if size == 0:
        raise HuffmanError("a code of no symbols")
    gaps = read_integers(reader, size).astype(np.uint64)
    after = np.cumsum(gaps + np.uint64(1))  # symbol + 1
    # each gap is below 2**63, so that a sum beyond 2**63 shows before it wraps
    if int(after.max()) > 1 << 63 or (after[1:] <= after[:-1]).any():
        raise HuffmanError("a symbol beyond 2**63")
    lengths = read_small_table(reader).read(reader, size)
    if int(lengths.max()) > 31:
        raise HuffmanError("a code length outside 0 to 31")
    return checked_code((after - np.uint64(1)).astype(np.int64), lengths.astype(np.uint8))
