"""Bit strings, most significant bit first: the layer below every stream of the format.

The writer takes whole arrays of (value, width) pairs and sums the shifted values into 64-bit
words; the reader gathers 64-bit windows. Neither loops over single bits in Python.
"""

import sys

import numpy as np

from ..errors import UserError

PACK_CHUNK = 1 << 16  # codes packed at once: the temporaries stay in the L2 cache


class HuffmanError(UserError):
    """A bit string that no encoder of this format writes, or symbols that it cannot take."""


class BitWriter:
    """Collects values of 0 to 64 bits; ``length`` counts the bits so far."""

    def __init__(self) -> None:
        self.length = 0
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._values: list[int] = []  # scalars since the last array
        self._widths: list[int] = []

    def write(self, value: int, width: int) -> None:
        """Append ``value`` (0 <= value < 2**width) in ``width`` bits."""
        self._values.append(value)
        self._widths.append(width)
        self.length += width

    def write_number(self, value: int) -> None:
        """Append any integer in [0, 2**63) in Elias' delta code of ``value + 1``."""
        bits = (value + 1).bit_length()
        size = bits.bit_length()
        self.write(bits, 2 * size - 1)  # size - 1 zeros, then `bits` in `size` bits
        self.write(value + 1 - (1 << (bits - 1)), bits - 1)

    def write_array(self, values: np.ndarray, widths: np.ndarray) -> None:
        """Append ``values[i]`` in ``widths[i]`` bits (0 to 64) for every i, in order."""
        self._flush()
        self._parts.append((values, widths))
        self.length += int(np.sum(widths, dtype=np.int64))

    def write_bytes(self, values: np.ndarray) -> None:
        """Append a uint8 array, 8 bits each."""
        whole = len(values) // 8 * 8
        words = values[:whole].view(">u8").astype(np.uint64)
        self.write_array(words, np.full(len(words), 64, np.uint8))
        for value in values[whole:].tolist():
            self.write(value, 8)

    def extend(self, other: "BitWriter") -> None:
        """Append everything that ``other`` holds."""
        self._flush()
        other._flush()
        self._parts.extend(other._parts)
        self.length += other.length

    def finish(self) -> bytes:
        """The bits, padded with zeros to a whole number of bytes; the writer is empty then.

        Parts are let go once they are packed: the largest tensors need the memory.
        """
        self._flush()
        size = (self.length + 7) >> 3
        words = np.zeros((self.length >> 6) + 2, np.uint64)
        end = 0
        self._parts.reverse()
        while self._parts:
            values, widths = self._parts.pop()
            for i in range(0, len(values), PACK_CHUNK):
                chunk = widths[i : i + PACK_CHUNK]
                end = _pack(words, end, values[i : i + PACK_CHUNK], chunk)
        self.length = 0
        if sys.byteorder == "little":
            words.byteswap(inplace=True)
        return words.view(np.uint8)[:size].tobytes()

    def _flush(self) -> None:
        if self._values:
            self._parts.append(
                (np.array(self._values, np.uint64), np.array(self._widths, np.uint8))
            )
            self._values, self._widths = [], []


def _pack(words: np.ndarray, start: int, values: np.ndarray, widths: np.ndarray) -> int:
    """OR the values into ``words`` (uint64, zero from bit ``start`` on); return the end bit.

    No two values overlap, so OR equals addition, and one ``add.reduceat`` per chunk sums all
    the values that end in the same word.
    """
    used = widths > 0
    if not used.all():
        values, widths = values[used], widths[used]
    if not len(values):
        return start
    ends = np.cumsum(widths, dtype=np.int64)
    ends += start
    last = (ends - 1) >> 6  # the word that holds the last bit of each value
    left = (-ends & 63).astype(np.uint64)
    values = values.astype(np.uint64, copy=False)
    firsts = np.flatnonzero(last[1:] != last[:-1]) + 1  # the first value that ends in a new word
    firsts = np.concatenate([[0], firsts])
    words[last[firsts]] |= np.add.reduceat(values << left, firsts)
    # only the first value that ends in a word can have begun in the word before
    begun = ends[firsts] - widths[firsts].astype(np.int64)
    cut = firsts[begun >> 6 < last[firsts]]
    words[last[cut] - 1] |= values[cut] >> (np.uint64(64) - left[cut])
    return int(ends[-1])


class BitReader:
    """Reads what BitWriter wrote; raises HuffmanError instead of reading past the end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.end = 8 * len(data)
        self.position = 0
        # what net.encoding.describe reports: bits by section, codes by section
        self.sections: dict[str, int] = {}
        self.notes: list[tuple[str, object, np.ndarray]] | None = None
        self._section, self._begun = "header", 0

    @property
    def remaining(self) -> int:
        return self.end - self.position

    def windows(self, bits: int) -> np.ndarray:
        """uint64 array that covers the next ``bits`` bits, with zeros beyond the end of the data.

        Element i holds the 64 bits from bit ``32 * i`` on, counted from the last multiple of 32
        at or before the position: a shift left by ``at & 31`` leaves 33 bits at least.
        """
        first = (self.position >> 5) * 4
        last = ((self.position + bits) >> 5) * 4 + 12
        part = self.data[first:last]
        part += bytes(last - first - len(part))
        halves = np.frombuffer(part, ">u4").astype(np.uint64)
        return halves[:-1] << np.uint64(32) | halves[1:]

    def read(self, width: int) -> int:
        """The next ``width`` bits as an integer."""
        self._need(width)
        first, last = self.position >> 3, (self.position + width + 7) >> 3
        self.position += width
        value = int.from_bytes(self.data[first:last], "big") >> (8 * last - self.position)
        return value & ((1 << width) - 1)

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

    def read_array(self, widths: np.ndarray) -> np.ndarray:
        """uint64 values of ``widths[i]`` bits (0 to 64) each."""
        ends = np.cumsum(widths, dtype=np.int64)
        total = int(ends[-1]) if len(ends) else 0
        self._need(total)
        windows = self.windows(total)
        widths = widths.astype(np.int64, copy=False)
        starts = ends - widths + (self.position & 31)
        self.position += total
        low = np.minimum(widths, 32)
        values = peek(windows, starts + widths - low, low)
        if len(widths) and widths.max() > 32:
            values |= peek(windows, starts, widths - low) << np.uint64(32)
        return values

    def read_fixed(self, count: int, width: int) -> np.ndarray:
        """``count`` uint64 values of ``width`` bits each; the size is checked first."""
        self._need(count * width)
        return self.read_array(np.full(count, width, np.int64))

    def read_bytes(self, count: int) -> np.ndarray:
        """``count`` uint8 values of 8 bits each."""
        self._need(8 * count)
        shift = self.position & 7
        first = self.position >> 3
        self.position += 8 * count
        values = np.frombuffer(self.data, np.uint8, count + (shift > 0 and count > 0), first)
        return values[:-1] << shift | values[1:] >> (8 - shift) if shift else values

    def begin(self, section: str) -> None:
        """Charge the bits read since the last call to the section begun then."""
        self.sections[self._section] = self.sections.get(self._section, 0) + (
            self.position - self._begun
        )
        self._section, self._begun = section, self.position

    def note(self, code: object, ranks: np.ndarray) -> None:
        """Keep a Huffman code and how often each of its symbols came, if ``notes`` is a list."""
        if self.notes is not None:
            self.notes.append((self._section, code, np.bincount(ranks)))

    def finish(self) -> None:
        """Refuse anything but zero padding up to the next byte."""
        if self.remaining >= 8:
            raise HuffmanError(f"{self.remaining // 8} unexpected bytes at the end")
        if self.read(self.remaining):
            raise HuffmanError("the padding bits at the end are not zero")

    def _need(self, bits: int) -> None:
        if bits > self.remaining:
            raise HuffmanError("the data ends early")


def peek(windows: np.ndarray, at: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """uint64: the ``widths[i]`` (at most 33) bits from bit ``at[i]`` of the windows on."""
    window = windows.take(at >> 5, mode="clip")
    window <<= (at & 31).astype(np.uint64)
    # in two steps, since a shift by 64 (width 0) is undefined
    window >>= np.uint64(1)
    return window >> (63 - widths).astype(np.uint64)
