"""A second decoder, written from docs/format.md alone: no NumPy, no speed, no shortcuts.

It takes nothing from net/: the preset dictionary is docs/dictionary.bin.
"""

import json
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

DICTIONARY = Path(__file__).parent.parent / "docs" / "dictionary.bin"

BITS = {
    "float16": 16, "bfloat16": 16, "float32": 32, "float64": 64, "complex32": 16, "complex64": 32,
    "complex128": 64, "bool": 8, "int8": 8, "int16": 16, "int32": 32, "int64": 64, "uint8": 8,
    "uint16": 16, "uint32": 32, "uint64": 64, "float8_e4m3fn": 8, "float8_e5m2": 8,
    "float8_e4m3fnuz": 8, "float8_e5m2fnuz": 8, "float8_e8m0fnu": 8,
}  # fmt: skip


class Bits:
    def __init__(self, data: bytes) -> None:
        self.bits = "".join(f"{byte:08b}" for byte in data)
        self.at = 0

    def u(self, width: int) -> int:
        assert self.at + width <= len(self.bits)
        self.at += width
        return int(self.bits[self.at - width : self.at] or "0", 2)

    def number(self) -> int:
        s = 1
        while self.u(1) == 0:
            s += 1
        b = int("1" + format(self.u(s - 1), f"0{s - 1}b") if s > 1 else "1", 2)
        return (1 << (b - 1)) + self.u(b - 1) - 1

    def end(self) -> None:
        assert len(self.bits) - self.at < 8
        assert "1" not in self.bits[self.at :]


def read_set(bits: Bits, count: int, low: int, high: int) -> list[int]:
    """``count`` members in [low, high]."""
    if not count:
        return []
    half = count // 2
    least = low + half
    choices = high - (count - 1 - half) - least + 1
    b = (choices - 1).bit_length()
    short = 2**b - choices
    value = bits.u(b - 1) if b else 0
    if b and value >= short:
        value = 2 * value + bits.u(1) - short
    member = least + value
    below = read_set(bits, half, low, member - 1)
    return below + [member] + read_set(bits, count - 1 - half, member + 1, high)


def small_table(bits: Bits) -> dict[int, int]:
    lengths, before, total = {}, 4, 0.0
    for symbol in range(1024):
        if bits.u(1):
            kind = bits.u(2)
            if kind == 2:
                continue
            before = bits.u(5) if kind == 3 else before + (1, -1)[kind]
        lengths[symbol] = before
        total += 2.0**-before
        if total == 1:
            return lengths
    raise AssertionError("no complete code")


def table(bits: Bits) -> dict[int, int]:
    if not bits.u(1):
        return small_table(bits)
    n = bits.number() + 1
    last = bits.number() + n - 1
    symbols = [*read_set(bits, n - 1, 0, last - 1), last]
    return dict(zip(symbols, coded(bits, small_table(bits), n), strict=True))


def coded(bits: Bits, lengths: dict[int, int], count: int) -> list[int]:
    if len(lengths) == 1:
        bits.u(count // 1024)
        return list(lengths) * count
    if count >= 2**17:
        for _ in range(7):
            bits.number()
    words = code_words(lengths)
    return [symbol(bits, words) for _ in range(count)]


def code_words(lengths: dict[int, int]) -> dict[str, int]:
    """Which symbol each code word stands for; "" for the only one."""
    words, word, before = {}, -1, 0
    for each in sorted(lengths, key=lambda s: (lengths[s], s)):
        word = (word + 1) << (lengths[each] - before)
        before = lengths[each]
        words[format(word, f"0{before}b") if before else ""] = each
    return words


def symbol(bits: Bits, words: dict[str, int]) -> int:
    start = bits.at
    while bits.bits[start : bits.at] not in words:
        bits.u(1)
    return words[bits.bits[start : bits.at]]


def integers(bits: Bits, count: int) -> list[int]:
    if not count:
        return []
    split, kept = bits.u(4), bits.u(2)
    values = []
    for token in coded(bits, small_table(bits), count):
        if token >= 2**split:
            x = token - 2**split
            r = (x >> kept) + split - kept
            values.append(((2**kept + x % 2**kept) * 2**r, r))
        else:
            values.append((token, 0))
    return [value + bits.u(r) for value, r in values]


def values(bits: Bits, count: int, w0: int, floating: bool) -> list[int]:
    if not count:
        return []
    half, shift, w, split = *form(bits, w0), False
    if (shift, w) == (63, 64):
        half, shift, w, split = *form(bits, w0), True
    assert shift + w <= w0
    if split:
        found = heads_and_tails(bits, count, w)
    elif bits.u(1):
        k = bits.number() + 1
        book = read_set(bits, k, 0, 2**w - 1)
        if half or (floating and shift + w == w0):
            book = [e ^ (2 ** (w - 1) if e >> (w - 1) else 2**w - 1) for e in book]
        found = [book[i] for i in coded(bits, table(bits), count)]
    else:
        found = [0] * count
        for low in range(0, w, 8):
            width = min(8, w - low)
            plane = coded(bits, table(bits), count) if bits.u(1) else None
            for i in range(count):
                found[i] |= (plane[i] if plane else bits.u(width)) << low
    if half:
        return [_widened(v, w0) for v in found]
    return [value << shift for value in found]


def form(bits: Bits, w0: int) -> tuple[int, int, int]:
    """half, shift and w."""
    if bits.u(1):
        return 1, 0, 16
    return (0, bits.u(6), bits.u(6) + 1) if bits.u(1) else (0, 0, w0)


def heads_and_tails(bits: Bits, count: int, w: int) -> list[int]:
    h, blocks = bits.u(4), -(-count // 4096)
    tables = [code_words(table(bits)) for _ in range(bits.number() + 1)]
    kinds = [divmod(kind, 64) for kind in coded(bits, table(bits), blocks)]
    sizes = [bits.number() for _ in range(7)]
    found = [0] * count
    for lane in range(8):
        start = bits.at
        for i in range(lane, count, 8):
            which, a = kinds[i // 4096]
            found[i] = symbol(bits, tables[which]) << (w - h)
            found[i] += bits.u(a) << (w - h - a)
        assert lane == 7 or bits.at - start == sizes[lane]
    return found


def _float16(pattern: int) -> float:
    return struct.unpack("<e", struct.pack("<H", pattern))[0]


def lines(bits: Bits, m: int) -> list[list[int]]:
    dead = bits.number()
    gone = set(read_set(bits, dead, 0, m - 1))
    live = [line for line in range(m) if line not in gone]
    if not live:
        return []
    c = bits.u(3) + 1
    classes = coded(bits, table(bits), len(live)) if c > 1 else [0] * len(live)
    assert max(classes, default=0) == c - 1
    return [[line for line, k in zip(live, classes, strict=True) if k == i] for i in range(c)]


def positions(bits: Bits, shape: list[int]) -> list[int]:
    n = math.prod(shape)
    left = bits.number()
    if not left:
        return []
    view = bits.u(2)
    height = math.prod(shape[: 2 if view & 2 else 1])
    width = n // height
    if max(shape[0] if shape else 1, n // (shape[0] if shape else 1)) > 2**20:
        height, width = -(-n // 16384), 16384
    rows, columns = lines(bits, (height, width)[view & 1]), lines(bits, (width, height)[view & 1])
    blocks = [(row, column) for row in rows for column in columns]
    found = []
    for i, (row, column) in enumerate(blocks):
        count = bits.number() if i < len(blocks) - 1 else left
        left -= count
        at = -1
        for gap in integers(bits, count):
            at += gap + 1
            r, c = row[at // len(column)], column[at % len(column)]
            found.append(c * width + r if view & 1 else r * width + c)
    return found


def tensor(data: bytes, kind: str, shape: list[int]) -> list[int]:
    """The bit patterns of all elements."""
    floating = "float" in kind or "complex" in kind
    shape = shape + [2] * ("complex" in kind)
    bits, n = Bits(data), math.prod(shape)
    if bits.u(1):
        at = positions(bits, shape)
        patterns = [0] * n
        for where, value in zip(at, values(bits, len(at), BITS[kind], floating), strict=True):
            patterns[where] = value
    elif bits.bits[1:15] == f"01000000{BITS[kind] - 1:06b}":
        return levels(bits, data, kind, shape)
    else:
        patterns = values(bits, n, BITS[kind], floating)
    bits.end()
    return patterns


STATES = ((0, 2), (2, 0), (1, 3), (3, 1))


def log(v: int) -> int:
    return max(v**16, 1).bit_length() - 1 if v < 4096 else 64 + log(v // 16)


class Probability:
    def __init__(self, p: int) -> None:
        self.p, self.n = p, 8


class Coder:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.low, self.span = data, 8, 0, 2**64 - 1
        self.low = int.from_bytes(data[:8].ljust(8, b"\0"), "big")

    def bit(self, p: int = 2**15) -> int:
        bound = self.span // 2**16 * p
        bit = int(self.low < bound)
        if bit:
            self.span = bound
        else:
            self.low, self.span = self.low - bound, self.span - bound
        if self.span < 2**32:
            following = self.data[self.at : self.at + 4].ljust(4, b"\0")
            self.low = self.low * 2**32 + int.from_bytes(following, "big")
            self.span, self.at = self.span * 2**32, self.at + 4
        return bit

    def learned(self, which: Probability) -> int:
        bit = self.bit(which.p // 2**6)
        aim = 2**22 - 3072 if bit else 3072
        which.p += (aim - which.p) * (327680 // (5 * which.n + 8)) // 2**16
        which.n = min(which.n + 1, 400)
        return bit

    def number(self, width: int) -> int:
        found = 0
        for _ in range(width):
            found = 2 * found + self.bit()
        return found


def levels(bits: Bits, data: bytes, kind: str, shape: list[int]) -> list[int]:
    """A whole tensor of the form "Levels"."""
    w0 = BITS[kind]
    bits.u(14)
    grid, shifts = bits.u(1), None
    if grid:
        half, e, d = bits.u(1), bits.u(11), bits.u(6)
        assert 0 < e < 2047
        if d == 63:
            shifts = integers(bits, shape[0])
            assert max(shifts) <= 13
            d = bits.u(6)
        assert d <= 52
        step = 2.0 ** (e - 1023) * (1 + bits.u(d) / 2**d)
    else:
        half, shift, w = bits.u(1), 0, w0
        if half:
            w = 16
        elif bits.u(1):
            shift, w = bits.u(6), bits.u(6) + 1
        book = read_set(bits, bits.number() + 1, 0, 2**w - 1)
        if half or ("float" in kind and shift + w == w0):
            book = [e ^ (2 ** (w - 1) if e >> (w - 1) else 2**w - 1) for e in book]
        zero = bits.number()
    trellis, view = bits.u(1), bits.u(2)
    assert bits.u(-bits.at % 8) == 0
    found = _levels(Coder(data[bits.at // 8 :]), shape, view, trellis)
    if not grid:
        assert zero + min(found) >= 0
        assert zero + max(found) < len(book)
        return [
            _widened(book[zero + each], w0) if half else book[zero + each] << shift
            for each in found
        ]
    if shifts:
        assert (trellis, view) == (1, 0)
        columns = len(found) // len(shifts)
        found = [each * 2 ** shifts[i // columns] for i, each in enumerate(found)]
    least = min((abs(each) for each in found if each), default=0)
    assert not least or kind == "float64" or least * step >= 2.0**-126
    return [_rounded(each * step, kind, half) for each in found]


def _levels(coder: Coder, shape: list[int], view: int, trellis: int) -> list[int]:
    rows = shape[0] * (shape[1] if view & 2 else 1)
    columns = math.prod(shape) // rows
    steps = (columns, 1)
    if view & 1:
        rows, columns, steps = columns, rows, (1, columns)
    w, h = 1, 1
    if view == 0 and len(shape) >= 3:
        w, h = shape[-1], shape[-2] if len(shape) > 3 else 1
    expected = [math.floor(2 ** ((c + 0.5) / 2)) for c in range(64)]

    def first(c: int, i: int) -> int:
        s = expected[c] // 2 if trellis else expected[c]
        return min(max(2**22 * s // (s + (256 if i else 170)), 2**16), 2**22 - 2**16)

    decisions: dict[tuple[int, int, int, int], Probability] = {}
    signs = [Probability(2**21) for _ in range(7)]
    found = [0] * (rows * columns)
    column_sizes, mean = [256] * columns, 256
    for strip in range(0, rows, 128):
        row_sizes = [mean] * 128
        for c in range(columns):
            state = 0
            if strip == 0 and c > 0:
                column_sizes[c] = column_sizes[c - 1]
            for r in range(min(128, rows - strip)):
                place = (strip + r) * steps[0] + c * steps[1]
                beside = [c - 1] * (c % w > 0) + [c - w] * (c // w % h > 0)
                neighbours = [found[(strip + r) * steps[0] + b * steps[1]] for b in beside]
                x, near = log(row_sizes[r]) + log(column_sizes[c]), sum(neighbours)
                if neighbours:
                    a = sum(map(abs, neighbours)) // len(neighbours)
                    x = (3 * x + 2 * log(256 * a + 128)) // 4
                at = min(x // 16, 63)
                pull = abs(near) * (768 if len(neighbours) == 2 else 1024)
                sure = sum(pull > n * expected[at] for n in (1, 3, 5))
                raw, quantizer = max(0, (at - (19 if trellis else 21)) // 2), state // 2
                t, negative = 0, 0
                agreement = min(sure, 2)
                while t < 14:
                    which = at, quantizer, agreement, t
                    if which not in decisions:
                        decisions[which] = Probability(first(at, t))
                    if not coder.learned(decisions[which]):
                        break
                    t += 1
                    if t == 1:
                        negative = coder.learned(signs[sure + 3 * (sure > 0 and near < 0)])
                        agreement = 0 if not sure else 1 if bool(negative) == (near < 0) else 2
                if t == 14:
                    b = 0
                    while coder.bit():
                        b += 1
                    assert b <= 24
                    t = 13 + 2**b + coder.number(b)
                k = 2**raw * (t - 1) + coder.number(raw) + 1 if t else 0
                size = 2 * k - quantizer if trellis and k else k
                assert size <= 2**17
                found[place] = -size if negative else size
                if trellis:
                    state = STATES[state][k % 2]
                column_sizes[c] += (256 * size - column_sizes[c]) // 32
                row_sizes[r] += (256 * size - row_sizes[r]) // 16
                mean += (256 * size - mean) // 256
    assert coder.data[-1]
    assert coder.at >= len(coder.data)
    return found


def _rounded(exact: float, kind: str, half: int) -> int:
    if kind == "float64" and not half:
        return struct.unpack("<Q", struct.pack("<d", exact))[0]
    number = exact if kind == "float64" else struct.unpack("<f", struct.pack("<f", exact))[0]
    if half or kind == "float16":
        pattern = struct.unpack("<H", struct.pack("<e", number))[0]
        return pattern if kind == "float16" else _widened(pattern, BITS[kind])
    pattern = struct.unpack("<I", struct.pack("<f", number))[0]
    if kind == "float32":
        return pattern
    return (pattern + 0x7FFF + (pattern >> 16 & 1)) >> 16


def _widened(pattern: int, w0: int) -> int:
    wide = {32: "<If", 64: "<Qd"}[w0]
    packed = struct.pack("<" + wide[2], _float16(pattern))
    return struct.unpack("<" + wide[1], packed)[0]


def stream(data: bytes) -> list[int]:
    """What ``net.huffman.encode`` was given."""
    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "big")
    bits = Bits(data[:-4])
    n = bits.number()
    symbols = coded(bits, table(bits), n) if n else []
    bits.end()
    return symbols


State = dict[str, tuple[str, list[int], list[int]]]


def inflate(data: bytes) -> tuple[dict, bytes]:
    """A JSON text, and what follows it."""
    unpacker = zlib.decompressobj(-15, zdict=DICTIONARY.read_bytes())
    text = unpacker.decompress(data)
    assert unpacker.eof
    return json.loads(text), unpacker.unused_data


def manifest(data: bytes) -> tuple[list[list], list[int], dict]:
    """The lines of the tensors, the checksums of those that have one, and the meta data."""
    assert data[:4] in (b"DCE\x03", b"DCE\x04", b"DCE\x05", b"DCE\x06")
    assert zlib.crc32(data[8:]) == int.from_bytes(data[4:8], "big")
    text, sums = inflate(data[8:])
    tensors = text["tensors"]
    return (
        tensors if isinstance(tensors, list) else [*below(tensors)],
        [each for (each,) in struct.iter_unpack(">I", sums)],
        text.get("meta", {}),
    )


def below(tree: dict, names: tuple[str, ...] = ()) -> Iterator[list]:
    for name, inner in tree.items():
        if isinstance(inner, dict):
            yield from below(inner, (*names, name))
        else:
            yield [".".join((*names, name)), *inner]


def streams(lines: list[list]) -> list[list[int]]:
    """The numbers of the tensors in each stream."""
    found: list[list[int]] = []
    joined: dict[tuple[str, str], list[int]] = {}
    for number, (name, *fields) in enumerate(lines):
        if len(fields) < 2:
            continue
        assert fields[2:] in ([], [1])
        kind = fields[0], name.split(".")[-1]
        if len(fields) == 3 and kind in joined:
            joined[kind].append(number)
            continue
        found.append([number])
        if len(fields) == 3:
            joined[kind] = found[-1]
    assert all(len(each) > 1 for each in joined.values())
    return found


def decoded(lines: list[list], sums: list[int], contents: list[bytes]) -> State:
    found = {}
    for numbers, checksum, content in zip(streams(lines), sums, contents, strict=True):
        assert zlib.crc32(content) == checksum
        kind, shape = lines[numbers[0]][1:3]
        if len(lines[numbers[0]]) == 3:
            found[numbers[0]] = kind, shape, tensor(content, kind, shape)
            continue
        sizes = [math.prod(lines[number][2]) for number in numbers]
        assert sum(sizes) <= 2**17
        elements = tensor(content, kind, [sum(sizes)])
        for number, size in zip(numbers, sizes, strict=True):
            size *= 2 if kind.startswith("complex") else 1
            found[number] = kind, lines[number][2], elements[:size]
            elements = elements[size:]
    return {
        line[0]: found[line[1] if len(line) == 2 else number] for number, line in enumerate(lines)
    }


def folder(directory: Path) -> tuple[State, dict]:
    """{name: (type, shape, patterns)} and the meta data."""
    lines, sums, meta = manifest((directory / "manifest.huff").read_bytes())
    contents = []
    for (number, *_), checksum in zip(streams(lines), sums, strict=True):
        safe = re.sub(r"[^A-Za-z0-9_.]", "_", lines[number][0])[-40:]
        contents.append((directory / f"{number:02d}-{safe}-{checksum:08x}.huff").read_bytes())
    return decoded(lines, sums, contents), meta


def one_file(path: Path) -> tuple[State, dict, dict[str, bytes], dict]:
    """{name: (type, shape, patterns)}, the meta data, the other files, and the layout."""
    data = path.read_bytes()
    assert data[:4] in (b"DCF\x03", b"DCF\x04", b"DCF\x05", b"DCF\x06")
    m, t = struct.unpack(">II", data[8:16])
    at = 16 + m + t
    assert zlib.crc32(data[8:at]) == int.from_bytes(data[4:8], "big")
    lines, sums, meta = manifest(data[16 : 16 + m])
    table, rest = inflate(data[16 + m : at])
    assert not rest
    parts = []
    others = table.get("files", [])
    for size in [*table.get("sizes", []), *(stored for _, _, stored, _ in others)]:
        parts.append(data[at : at + size])
        at += size
    assert at == len(data)
    files = {}
    for (name, size, stored, checksum), part in zip(others, parts[len(sums) :], strict=True):
        assert zlib.crc32(part) == checksum
        files[name] = part if stored == size else zlib.decompress(part, -15)
        assert len(files[name]) == size
    return decoded(lines, sums, parts[: len(sums)]), meta, files, table.get("layout", {})
