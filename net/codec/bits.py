"""Bit strings, most significant bit first: the layer below every stream of the format."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import codec
from ..errors import UserError

PAD = 16  # bytes behind the end that the kernels may look at


class HuffmanError(UserError):
    """A bit string that no encoder of this format writes, or symbols that it cannot take."""


class BitWriter:
    """Collects parts and packs them at the end; ``length`` counts their bits so far."""

    def __init__(self) -> None:
        self.length = 0
        self._parts: list[tuple[Callable, tuple]] = []  # kernel, its arguments before (out, at)
        self._values: list[int] = []  # single fields since the last part
        self._widths: list[int] = []

    def write(self, value: int, width: int) -> None:
        """Append ``value`` (0 <= value < 2**width) in ``width`` bits, 64 at most."""
        self._values.append(value)
        self._widths.append(width)
        self.length += width

    def write_number(self, value: int) -> None:
        """Append any integer in [0, 2**63) in Elias' delta code of ``value + 1``.

        Example: 0 -> 0b1, 1 -> 0b0100, 2 -> 0b0101, 3 -> 0b01100
        """
        bits = (value + 1).bit_length()
        size = bits.bit_length()
        self.write(bits, 2 * size - 1)  # size - 1 zeros, then `bits` in `size` bits
        self.write(value + 1 - (1 << (bits - 1)), bits - 1)

    def write_fields(self, values: np.ndarray, widths: np.ndarray) -> None:
        """Append the low widths[i] (uint8, 0 to 64) bits of values[i] (uint64) for every i."""
        self.append(int(widths.sum(dtype=np.int64)), codec.kernels.pack_fields, values, widths)

    def append(self, length: int, pack: Callable, *arguments: np.ndarray | np.uint64) -> None:
        """Append what ``pack(*arguments, out, at)`` will write, which is ``length`` bits."""
        self._flush()
        self._parts.append((pack, arguments))
        self.length += length

    def extend(self, other: "BitWriter") -> None:
        """Append everything that ``other`` holds."""
        self._flush()
        other._flush()
        self._parts += other._parts
        self.length += other.length

    def finish(self) -> np.ndarray:
        """uint8[n + PAD]: the bits, padded with zeros to n bytes, and PAD zeros.

        The writer is empty then: what is packed is let go, since the largest tensors need the
        memory.
        """
        self._flush()
        out, at = np.zeros(((self.length + 7) >> 3) + PAD, np.uint8), 0
        self._parts.reverse()
        while self._parts:
            pack, arguments = self._parts.pop()
            at = pack(*arguments, out, at)
        self.length = 0
        return out

    def _flush(self) -> None:
        if self._values:
            fields = np.array(self._values, np.uint64), np.array(self._widths, np.uint8)
            self._parts.append((codec.kernels.pack_fields, fields))
            self._values, self._widths = [], []


class BitReader:
    """Reads what BitWriter wrote; raises HuffmanError instead of reading past the end.

    ``data``: uint8[n + PAD], as ``finish`` gives it. ``describe``: keep the codes, for reports.
    """

    def __init__(self, data: np.ndarray, describe: bool = False) -> None:
        self.data, self._bytes = data, data.data
        self.end = 8 * (len(data) - PAD)
        self.position = 0
        # for reports: bits by section; (section, code, counts of its symbols) of every code
        self.sections: dict[str, int] = {}
        self.codes: list[tuple[str, Any, np.ndarray]] | None = [] if describe else None
        self._section, self._begun = "header", 0

    @property
    def remaining(self) -> int:
        return self.end - self.position

    def read(self, width: int) -> int:
        """The next ``width`` bits as an integer."""
        end = self.position + width
        if end > self.end:
            raise HuffmanError("the data ends early")
        last = (end + 7) >> 3
        value = int.from_bytes(self._bytes[self.position >> 3 : last], "big") >> (8 * last - end)
        self.position = end
        return value & ((1 << width) - 1)

    def peek(self, width: int) -> int:
        """As ``read``, of up to 56 bits, with zeros behind the end, and stay where it is."""
        first = self.position >> 3
        bits = int.from_bytes(self._bytes[first : first + 8], "big")
        return bits >> (64 - width - (self.position & 7)) & ((1 << width) - 1)

    def read_number(self) -> int:
        """An integer in [0, 2**63) written by ``write_number``."""
        size = 1
        while not self.read(1):
            size += 1
            if size > 7:
                raise HuffmanError("a number of more than 64 bits")
        bits = 1 << (size - 1) | self.read(size - 1)
        if bits > 64:
            raise HuffmanError("a number of more than 64 bits")
        value = (1 << (bits - 1) | self.read(bits - 1)) - 1
        if value >= 1 << 63:
            raise HuffmanError("a number beyond 2**63")
        return value

    def ahead(self, most: int) -> str:
        """The next ``most`` bits as a text of 0 and 1, and the PAD's zeros behind the end."""
        first = self.position >> 3
        data = self._bytes[first : first + (most >> 3) + 1]
        text = f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}"
        return text[self.position & 7 :]

    def skip(self, bits: int) -> int:
        """Leave ``bits`` bits out; return where they begin."""
        self.need(bits)
        self.position += bits
        return self.position - bits

    def move(self, end: int) -> None:
        """Go on from bit ``end`` on, where a kernel has stopped; refuse -1 and beyond the end."""
        if not self.position <= end <= self.end:
            raise HuffmanError("the data ends early")
        self.position = end

    def need(self, bits: int) -> None:
        if bits > self.remaining:
            raise HuffmanError("the data ends early")

    def begin(self, section: str) -> None:
        """Charge the bits read since the last call to the section begun then."""
        charged = self.sections.get(self._section, 0) + self.position - self._begun
        self.sections[self._section] = charged
        self._section, self._begun = section, self.position

    def note(self, code: Any, symbols: np.ndarray) -> None:
        """Keep a Huffman code and how often each of its symbols came, if ``codes`` is a list."""
        if self.codes is not None:
            if not self.codes or self.codes[-1][1] is not code:
                self.codes.append((self._section, code, np.zeros(len(code.symbols), np.int64)))
            counts = codec.kernels.count(symbols, int(code.symbols[-1]) + 1)
            self.codes[-1][2][:] += counts[code.symbols]

    def finish(self) -> None:
        """Refuse anything but zero padding up to the next byte."""
        self.begin("header")
        if self.remaining >= 8:
            raise HuffmanError(f"{self.remaining // 8} unexpected bytes at the end")
        if self.read(self.remaining):
            raise HuffmanError("the padding bits at the end are not zero")


# --- sets ----------------------------------------------------------------------------------------

# In binary interpolative code (Moffat and Stuiver 2000): the middle member is coded among the
# values that it can have, then the members below it, then those above it. Runs cost next to
# nothing, and no table is needed. One of c values takes b = ceil(log2(c)) bits, the first
# 2**b - c of them one less.


def write_set(writer: BitWriter, members: np.ndarray, largest: int) -> None:
    """Ascending distinct integers in [0, largest], below 2**64.

    The reader has to know how many there are.

    Example: [2, 3] of 0 to 3 -> 0b11, 0b11: the 3 is the last of 1 to 3, the 2 that of 0 to 2
    """
    values, widths = np.zeros(len(members), np.uint64), np.zeros(len(members), np.uint8)
    nothing = np.zeros(0, np.uint8)
    codec.kernels.code_set(
        members.astype(np.uint64), np.uint64(largest), nothing, 0, 0, values, widths
    )
    writer.write_fields(values, widths)


def read_set(reader: BitReader, count: int, largest: int) -> np.ndarray:
    """``count`` (<= largest + 1) members as uint64, written by ``write_set``."""
    members, nothing = np.zeros(count, np.uint64), np.zeros(0, np.uint64)
    arguments = reader.data, reader.position, reader.end, nothing, nothing.astype(np.uint8)
    reader.move(codec.kernels.code_set(members, np.uint64(largest), *arguments))
    return members
