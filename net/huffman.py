"""Huffman coding of non-negative integers (paper, section 4): integer array <-> bytes.

The bit layout is specified in docs/format.md.
"""

import zlib

import numpy as np

from .codec.bits import PAD, BitReader, BitWriter, HuffmanError
from .codec.codes import Code, read_table, write_table

__all__ = ["HuffmanError", "decode", "encode"]


def encode(symbols: np.ndarray) -> bytes:
    """Encode non-negative integers below 2**63 (any integer dtype, any shape, flattened).

    Raises HuffmanError for anything else.

    Example: [3, 1, 1] -> how many: 0b01100, table: 0b0, none: 0b110, 1: 0b11100001,
    none: 0b110, 3: 0b0, code words: 0b1, 0b0, 0b0; then padding and a checksum
    """
    try:
        symbols = np.asarray(symbols).ravel()
    except (TypeError, ValueError, RuntimeError) as error:
        raise HuffmanError(f"cannot encode what is no array of integers: {error}") from None
    if symbols.size == 0:
        symbols = symbols.astype(np.uint8)
    if symbols.dtype == bool:
        symbols = symbols.view(np.uint8)
    if symbols.dtype.kind not in "iu":
        raise HuffmanError(f"cannot encode {symbols.dtype} symbols; pass integers")
    if symbols.size and (int(symbols.min()) < 0 or int(symbols.max()) >= 1 << 63):
        raise HuffmanError("cannot encode symbols outside [0, 2**63)")
    symbols = symbols.astype(symbols.dtype.newbyteorder("="), copy=False)
    writer = BitWriter()
    writer.write_number(symbols.size)
    if symbols.size:
        code = Code.of(symbols)
        write_table(writer, code)
        code.write(writer, symbols)
    data = writer.finish()[:-PAD].tobytes()
    return data + zlib.crc32(data).to_bytes(4, "big")


def decode(data: bytes) -> np.ndarray:
    """The int64 array that ``encode`` was given; HuffmanError for bytes that it cannot write."""
    try:
        whole = bytes(memoryview(data))
    except (TypeError, ValueError):
        raise HuffmanError(f"cannot decode a {type(data).__name__}; pass bytes") from None
    body, checksum = whole[:-4], whole[-4:]
    if len(checksum) < 4 or zlib.crc32(body) != int.from_bytes(checksum, "big"):
        raise HuffmanError("the checksum does not match: the stream is damaged or cut")
    reader = BitReader(np.frombuffer(bytearray(body) + bytes(PAD), np.uint8))
    count = reader.read_number()
    symbols = np.zeros(0, np.uint64)
    if count:
        code = read_table(reader, count)
        symbols = code.read(reader, count, code.symbols.astype(np.uint64))
    reader.finish()
    return symbols.view(np.int64)
