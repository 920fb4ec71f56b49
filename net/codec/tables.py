"""Code tables: which symbols a code has, and the lengths of their code words."""

import numpy as np

from .bits import BitReader, BitWriter, HuffmanError
from .codes import MAX_SYMBOLS, Code
from .sets import read_set, write_set

SMALL_ALPHABET = 1024  # largest symbol + 1 that the small form can hold
FIRST_LENGTH = 4  # the length that the first entry of a small table is compared with


def write_table(writer: BitWriter, code: Code) -> None:
    """The cheaper of two forms: small (a list of all lengths) or wide (symbols, then lengths)."""
    small = BitWriter()
    if code.symbols[-1] < SMALL_ALPHABET:
        small.write(0, 1)
        write_small_table(small, code)
        if code.symbols[-1] < 64:  # the wide form has a small table of its own
            return writer.extend(small)
    wide = BitWriter()
    wide.write(1, 1)
    size, last = len(code.symbols), int(code.symbols[-1])
    wide.write_number(size - 1)
    wide.write_number(last - (size - 1))
    if size > 1:
        write_set(wide, code.symbols[:-1], last - 1)
    lengths = Code.of(code.lengths)
    write_small_table(wide, lengths)
    lengths.write(wide, code.lengths)
    writer.extend(small if 0 < small.length <= wide.length else wide)


def read_table(
    reader: BitReader,
    count: int,
    largest: int = (1 << 63) - 1,
    beyond: str = "a symbol beyond 2**63",
) -> Code:
    """The code of ``count`` symbols, which has no more code words than these.

    Refuses a symbol above ``largest``, with the message ``beyond``, before it makes room for any.
    """
    if not reader.read(1):
        code = read_small_table(reader)
        if code.symbols[-1] > largest:
            raise HuffmanError(beyond)
        return code
    size = reader.read_number() + 1
    if size > min(count, reader.remaining, MAX_SYMBOLS):  # each takes a bit somewhere
        raise HuffmanError("a code of more words than there are symbols")
    last = reader.read_number() + size - 1
    if last > largest:
        raise HuffmanError(beyond)
    symbols = np.full(size, last)
    if size > 1:
        symbols[:-1] = read_set(reader, size - 1, last - 1)
    lengths = read_small_table(reader)
    if lengths.symbols[-1] > 31:
        raise HuffmanError("a code length outside 0 to 31")
    return Code.checked(symbols, lengths.read(reader, size, lengths.symbols.astype(np.uint8)))


def write_small_table(writer: BitWriter, code: Code) -> None:
    """One entry for each of 0, 1, 2, ... up to the last symbol, until Kraft's sum is 1.

    0: as long as the one before; 100, 101: a bit longer, shorter; 110: no code word;
    111 and 5 bits: the length. The lengths of neighbours are alike, since the symbols are
    tokens of gaps or numbers of sorted centroids.

    Example: symbols 0, 2, lengths 1, 1 -> 0b11100001, 0b110, 0b0
    """
    lengths = dict(zip(code.symbols.tolist(), code.lengths.tolist(), strict=True))
    before = FIRST_LENGTH
    for symbol in range(int(code.symbols[-1]) + 1):
        length = lengths.get(symbol)
        if length is None:
            writer.write(0b110, 3)
            continue
        if length == before:
            writer.write(0, 1)
        elif abs(length - before) == 1:
            writer.write(0b100 | (length < before), 3)
        else:
            writer.write(0b111 << 5 | length, 8)
        before = length


def read_small_table(reader: BitReader) -> Code:
    symbols, lengths = [], []
    before, kraft = FIRST_LENGTH, 0  # Kraft's sum in units of 2**-31
    for symbol in range(SMALL_ALPHABET):
        length = before
        if reader.read(1):
            kind = reader.read(2)
            if kind == 2:
                continue
            length = reader.read(5) if kind == 3 else before + 1 - 2 * kind
            if kind == 3 and abs(length - before) < 2:
                raise HuffmanError("a code length in a longer form than needed")
        if not 0 <= length <= 31:
            raise HuffmanError("a code length outside 0 to 31")
        symbols.append(symbol)
        lengths.append(length)
        before = length
        kraft += 1 << (31 - length)
        if kraft >= 1 << 31:
            break
    return Code.checked(np.array(symbols, np.int64), np.array(lengths, np.uint8))
