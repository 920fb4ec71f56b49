"""Canonical, length-limited prefix codes: their lengths, their words, and both ways through them.

Canonical codes are known by their lengths alone. Package-merge finds the optimal lengths within
a limit; the limit lets one lookup decode a symbol.
"""

import functools

import numpy as np

from .bits import PACK_CHUNK, BitReader, BitWriter, HuffmanError, peek

SEGMENT = 1024  # symbols between two entries of the jump table
JUMP_FROM = 1 << 17  # streams of this many symbols have one
TABLE_BITS = 16  # codes up to this length are decoded with one lookup
SMALL_ALPHABET = 1024  # largest symbol + 1 that the small table form can hold
FIRST_LENGTH = 4  # the length that the first entry of a small table is compared with
RUN = 1024  # a one-symbol alphabet costs one bit for this many symbols


class Code:
    """A prefix code: ``symbols`` (ascending int64) and the ``lengths`` of their code words.

    Code words are canonical: consecutive numbers in the order of length, ties by symbol. A code
    of one symbol has length 0.
    """

    def __init__(self, symbols: np.ndarray, lengths: np.ndarray) -> None:
        self.symbols = symbols
        self.lengths = lengths
        self.max_length = int(lengths.max())
        self._by_code = np.lexsort((symbols, lengths))  # canonical order
        sizes = np.uint64(1) << (self.max_length - lengths[self._by_code]).astype(np.uint64)
        starts = np.cumsum(sizes, dtype=np.uint64) - sizes  # code words, aligned to max_length
        self._sizes = sizes
        self.words = np.empty(len(symbols), np.uint64)
        self.words[self._by_code] = starts
        self.words >>= (self.max_length - lengths).astype(np.uint64)

    @classmethod
    def of(cls, symbols: np.ndarray) -> "Code":
        """The optimal code for the empirical distribution of a non-empty array."""
        return cls.from_counts(*histogram(symbols))

    @classmethod
    def from_counts(cls, symbols: np.ndarray, counts: np.ndarray) -> "Code":
        """The optimal code within ``length_limit``; all counts > 0."""
        return cls(symbols, code_lengths(counts, length_limit(len(symbols))))

    # -- coded symbols

    def write(self, writer: BitWriter, symbols: np.ndarray) -> None:
        """Append the code words of ``symbols``, after a jump table if there are many."""
        if len(self.symbols) == 1:
            _write_run(writer, symbols.size)
            return
        words, widths = self._merged_words(symbols)
        if symbols.size >= JUMP_FROM:
            joined = 4 if len(words) < symbols.size else 1
            _write_jump_table(writer, widths, SEGMENT // joined)
        writer.write_array(words, widths)

    def _merged_words(self, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Code words and widths, four symbols per entry where four words fit into 64 bits.

        Joining words before they are packed, and looking symbols up in pairs, takes a third of
        the time of packing them one by one.
        """
        size = int(self.symbols[-1]) + 1
        if size > max(1 << 16, 4 * symbols.size):
            symbols = np.searchsorted(self.symbols, symbols)
            size = len(self.symbols)
            table = self._packed(np.arange(size), size)
        else:
            table = self._packed(self.symbols, size)
        if self.max_length > 16:
            return _split(table[symbols])
        pairs = None
        if size <= 256 and symbols.size >= size * size:
            pairs = _join(np.stack(np.broadcast_arrays(table[:, None], table), axis=-1).ravel())
        words = np.empty(-(-symbols.size // 4), np.uint64)
        widths = np.empty(words.size, np.uint8)
        for i in range(0, symbols.size, PACK_CHUNK):
            part = symbols[i : i + PACK_CHUNK]
            if part.size % 4:  # a multiple of 4 by entries of no width
                entries = np.zeros(-(-part.size // 4) * 4, np.uint64)
                entries[: part.size] = table[part]
                entries = _join(entries)
            elif pairs is not None:
                index = part[0::2].astype(np.int64)
                index *= size
                index += part[1::2]
                entries = pairs.take(index)
            else:
                entries = _join(table.take(part))
            word, width = _split(entries)
            j = i // 4
            words[j : j + len(word) // 2] = word[0::2] << width[1::2] | word[1::2]
            widths[j : j + len(word) // 2] = width[0::2] + width[1::2]
        return words, widths

    def _packed(self, at: np.ndarray, size: int) -> np.ndarray:
        """Lookup table word << 6 | length, uint64[size], filled at the indexes ``at``."""
        table = np.zeros(size, np.uint64)
        table[at] = self.words << np.uint64(6) | self.lengths.astype(np.uint64)
        return table

    def read(self, reader: BitReader, count: int, dtype: type = np.int64) -> np.ndarray:
        """``count`` symbols as ``dtype``."""
        if self.symbols[-1] == len(self.symbols) - 1:  # 0, 1, 2, ...: the ranks are the symbols
            return self.read_ranks(reader, count, dtype)
        return gather(self.symbols.astype(dtype), self.read_ranks(reader, count))

    def read_ranks(self, reader: BitReader, count: int, dtype: type | None = None) -> np.ndarray:
        """Indexes into ``symbols`` of the next ``count`` symbols, the narrowest type if none."""
        dtype = dtype or np.min_scalar_type(len(self.symbols))
        if len(self.symbols) == 1:
            _read_run(reader, count)
            return np.zeros(count, dtype)
        if count > reader.remaining:  # every symbol takes at least one bit
            raise HuffmanError("the data ends early")
        ranks = np.empty(count, dtype)
        whole = 0
        if count >= JUMP_FROM:
            sizes = _read_jump_table(reader, count)
            whole = SEGMENT * len(sizes)
            ranks[:whole].reshape(-1, SEGMENT)[:] = self._read_segments(reader, sizes).T
        if whole < count:
            ranks[whole:] = self._read_chain(reader, count - whole)
        return ranks

    def _read_chain(self, reader: BitReader, count: int) -> np.ndarray:
        """Decode from every bit position at once, then follow the chain of the real ones."""
        span = min(reader.remaining, count * self.max_length)
        at = np.arange(span, dtype=np.int64)
        windows = reader.windows(span)
        begun = peek(windows, at + (reader.position & 31), np.int64(self.max_length))
        rank, width = self._match(begun.view(np.int64))
        following = np.append(np.minimum(at + width, span + 1), [span + 1, span + 1])
        positions = _follow(following, count)
        if int(positions[-1]) >= span or int(following[positions[-1]]) > span:
            raise HuffmanError("the data ends early")
        reader.position += int(following[positions[-1]])
        return rank[positions]

    def _read_segments(self, reader: BitReader, sizes: np.ndarray) -> np.ndarray:
        """Ranks [SEGMENT, segments]: all segments in lockstep, one symbol of each at a time."""
        ends = np.cumsum(sizes)
        total = int(ends[-1])
        if total > reader.remaining:
            raise HuffmanError("the data ends early")
        windows = reader.windows(total)
        ends += reader.position & 31
        at = ends - sizes
        ranks = np.empty((SEGMENT, len(sizes)), np.min_scalar_type(len(self.symbols)))
        window, index, width = (np.empty(len(sizes), np.int64) for _ in range(3))
        bits = window.view(np.uint64)  # the same memory: shifts to the right bring zeros in
        shift = np.uint64(64 - self.max_length)
        per_window = 33 // self.max_length  # symbols that a window surely holds
        for i in range(0, SEGMENT, per_window):
            np.right_shift(at, 5, out=index)
            windows.take(index, out=bits, mode="clip")
            np.bitwise_and(at, 31, out=index)
            np.left_shift(window, index, out=window)
            for row in ranks[i : i + per_window]:
                np.right_shift(bits, shift, out=index.view(np.uint64))
                self._match(index, row, width)
                np.left_shift(window, width, out=window)
                np.add(at, width, out=at)
        if not np.array_equal(at, ends):
            raise HuffmanError("a segment does not end where the next one begins")
        reader.position += total
        return ranks

    def _match(
        self, windows: np.ndarray, rank: np.ndarray | None = None, width: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank and length of the code word that each window of max_length bits begins with."""
        if self.max_length <= TABLE_BITS:
            ranks, widths = self._lookup
            return (
                ranks.take(windows, out=rank, mode="clip"),
                widths.take(windows, out=width, mode="clip"),
            )
        order = np.searchsorted(np.cumsum(self._sizes), windows.view(np.uint64), side="right")
        found = self._by_code[order], self.lengths[self._by_code[order]].astype(np.int64)
        if rank is not None:
            rank[:], width[:] = found
        return found

    @functools.cached_property
    def _lookup(self) -> tuple[np.ndarray, np.ndarray]:
        """Rank and length (int64) by window, [2**max_length] each."""
        sizes = self._sizes.astype(np.int64)
        ranks = self._by_code.astype(np.min_scalar_type(len(self.symbols)))
        widths = self.lengths[self._by_code].astype(np.int64)
        return np.repeat(ranks, sizes), np.repeat(widths, sizes)


def histogram(symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct symbols (ascending int64) and how often each occurs."""
    if int(symbols.max()) < max(1 << 16, symbols.size):
        size = int(symbols.max()) + 1
        counts = np.zeros(size, np.int64)
        step = max(1 << 20, size)
        for i in range(0, symbols.size, step):  # NumPy counts in a copy of 8 bytes a symbol
            counts += np.bincount(symbols[i : i + step], minlength=size)
        present = np.flatnonzero(counts)
        return present, counts[present]
    present, counts = np.unique(symbols, return_counts=True)
    return present.astype(np.int64), counts


def gather(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """``table[index]``, part by part: NumPy widens the index to 8 bytes an element."""
    found = np.empty(index.size, table.dtype)
    for i in range(0, index.size, PACK_CHUNK):
        part = slice(i, i + PACK_CHUNK)
        table.take(index[part], out=found[part], mode="clip")
    return found


def _split(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return entries >> np.uint64(6), entries & np.uint64(63)


def _join(entries: np.ndarray) -> np.ndarray:
    """Pairs of neighbours (words of at most 16 bits) as one entry each."""
    word, width = _split(entries)
    word = word[0::2] << width[1::2] | word[1::2]
    return word << np.uint64(6) | (width[0::2] + width[1::2])


def _follow(following: np.ndarray, count: int) -> np.ndarray:
    """The chain 0, following[0], following[following[0]], ... of ``count`` positions.

    Python walks every 16th link of long chains only; NumPy fills in the others.
    """
    hop, stride = following, 1
    while stride < 16 and count > 64 * stride:
        hop, stride = hop[hop], 2 * stride
    links = np.empty((stride, -(-count // stride)), np.int64)
    at = 0
    for i in range(links.shape[1]):
        links[0, i] = at
        at = hop.item(at)
    for i in range(1, stride):
        links[i] = following[links[i - 1]]
    return links.T.ravel()[:count]


def _write_run(writer: BitWriter, count: int) -> None:
    """One zero bit for every RUN symbols, so that a few bytes cannot promise gigabytes."""
    width = count // RUN
    writer.write_array(np.zeros(-(-width // 64), np.uint64), _run_widths(width))


def _read_run(reader: BitReader, count: int) -> None:
    width = count // RUN
    if width > reader.remaining:
        raise HuffmanError("the data ends early")
    if reader.read_array(_run_widths(width)).any():
        raise HuffmanError("a run with bits that are not zero")


def _run_widths(width: int) -> np.ndarray:
    widths = np.full(-(-width // 64), 64)
    if width % 64:
        widths[-1] = width % 64
    return widths


def _write_jump_table(writer: BitWriter, widths: np.ndarray, per_segment: int) -> None:
    """The size in bits of every whole segment: the least one, then the rest above it."""
    whole = len(widths) // per_segment
    sizes = widths[: whole * per_segment].reshape(whole, -1).sum(axis=1, dtype=np.int64)
    least = int(sizes.min())
    bits = (int(sizes.max()) - least).bit_length()
    writer.write_number(least)
    writer.write(bits, 6)
    writer.write_array((sizes - least).astype(np.uint64), np.full(whole, bits, np.uint8))


def _read_jump_table(reader: BitReader, count: int) -> np.ndarray:
    least, bits = reader.read_number(), reader.read(6)
    if least > reader.remaining or bits > 32:
        raise HuffmanError("a segment longer than the data")
    return reader.read_fixed(count // SEGMENT, bits).astype(np.int64) + least


# --- code lengths ---------------------------------------------------------------------------


def length_limit(alphabet: int) -> int:
    """15 bits, or 2 more than a code of fixed width needs where that is more."""
    return max(15, alphabet.bit_length() + 2)


def code_lengths(counts: np.ndarray, limit: int) -> np.ndarray:
    """Lengths (uint8) that minimise sum(counts * lengths) with no length above ``limit``.

    Package-merge (Larmore and Hirschberg 1990): ``limit`` times, pair the sorted list up and
    merge the packages with the original counts. The 2n - 2 cheapest entries of the last list
    hold each symbol as often as its code word has bits. Among equal counts the larger symbol
    gets the shorter word; among equal entries a symbol is taken before a package.
    """
    n = len(counts)
    lengths = np.zeros(n, np.uint8)
    order = np.argsort(counts, kind="stable")
    leaves = counts[order].astype(np.int64)
    packages = leaves[:0]
    is_leaf = []
    for _ in range(min(limit, n - 1)):
        merged = np.concatenate([leaves, packages])
        by_weight = np.argsort(merged, kind="stable")
        is_leaf.append(by_weight < n)
        merged = merged[by_weight[: len(merged) // 2 * 2]]
        packages = merged[0::2] + merged[1::2]
    take = 2 * n - 2
    for flags in reversed(is_leaf):
        chosen = int(np.count_nonzero(flags[:take]))
        lengths[order[:chosen]] += 1
        take = 2 * (take - chosen)
    return lengths


# --- small tables -----------------------------------------------------------------------------


def write_small_table(writer: BitWriter, code: Code) -> None:
    """One entry for each of 0, 1, 2, ... up to the last symbol, until Kraft's sum is 1.

    0: as long as the one before; 100, 101: a bit longer, shorter; 110: no code word;
    111 and 5 bits: the length. The lengths of neighbours are alike, since the symbols are
    tokens of gaps or numbers of sorted centroids.
    """
    lengths = np.full(int(code.symbols[-1]) + 1, -1)
    lengths[code.symbols] = code.lengths
    before = FIRST_LENGTH
    for length in lengths.tolist():
        if length < 0:
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
    return checked_code(np.array(symbols, np.int64), np.array(lengths, np.uint8))


def checked_code(symbols: np.ndarray, lengths: np.ndarray) -> Code:
    """Refuse code lengths that leave code words unused or use some twice."""
    if not len(symbols) or int(np.sum(1 << (31 - lengths.astype(np.int64)))) != 1 << 31:
        raise HuffmanError("the code lengths do not make a complete prefix code")
    return Code(symbols, lengths)
