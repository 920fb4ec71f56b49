"""Damage real encodings and forge new ones, and see that nothing gets through.

    python -m tests.fuzz --count 100000 [--seed 0]

So many mutations, and as many forgeries. Half of the mutations leave the checksums as they were:
such data must be refused, or decode to the original. The other half repair the checksums, as an
attacker would. A forgery is a folder, a file or a stream with right checksums that is made to the
rules of the format, and whose claims are false: counts, shapes, names, ties, lengths, tables. What
has right checksums may decode to anything that it says, and a second decoder must find the same;
but it must not raise another exception than HuffmanError or EncodingError, nor take over 2 s, or
four times the bytes of the largest tensor and the files together.
"""

import argparse
import copy
import json
import math
import random
import shutil
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from net import container, encoding, huffman
from net.codec import BLOCK, manifest
from net.codec.bits import PAD, BitWriter
from net.codec.codes import LANES_FROM, Code, write_small_table, write_table
from net.codec.heads import MAX_TABLES, TAILS
from net.codec.levels import ESCAPE
from net.codec.tensors import DTYPES, SPLIT, SPLIT_BITS, patterns
from net.rounding import share_tensor
from tests import slow_decoder

MAX_SECONDS = 2.0
MAX_TIMES = 4  # the bytes of the largest tensor and the files
SPARE = 1 << 24  # bytes: of the objects of a manifest, and of matrices of up to 2**20 rows
WARM_UP = 100
RUN_BYTES = 1 << 10  # of a code of one symbol, which are 2**23 symbols


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="mutations, and forgeries")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    counts = fuzz(arguments.count, arguments.seed)
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return 0


def fuzz(count: int, seed: int) -> dict[str, float]:
    """So many of each; AssertionError with the seed for the first one that gets through."""
    streams = example_streams()
    with tempfile.TemporaryDirectory() as folder:
        examples = [Example(state, Path(folder) / str(i)) for i, state in enumerate(states())]

        def mutation(rng: random.Random) -> Attempt:
            if rng.random() < 0.4:
                return try_stream(rng, streams)
            example = rng.choice(examples)
            return (example.attempt if rng.random() < 0.5 else example.one_file)(rng, examples)

        def forgery(rng: random.Random) -> Attempt:
            if rng.random() < 0.2:
                return try_forged_stream(rng)
            example = rng.choice(examples)
            return example.forged(rng) if rng.random() < 0.7 else example.forged_file(rng)

        counts: dict[str, float] = {}
        for what, attempt in (("mutations", mutation), ("forgeries", forgery)):
            counts |= repeat(what, attempt, count, seed)
    return counts


# Files, and bytes that may be taken four times; whether they were refused.
Attempt = tuple[int, bool]


def repeat(
    what: str, attempt: Callable[[random.Random], Attempt], count: int, seed: int
) -> dict[str, float]:
    """Attempt so often, within the limits of time and memory."""
    refused, slowest, most = 0, 0.0, 0.0
    for number in range(WARM_UP):  # loading what is compiled takes memory, once
        attempt(random.Random(f"{what} {number}"))
    tracemalloc.start()
    try:
        for number in range(count):
            rng = random.Random(f"{seed} {what} {number}")
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            started = time.process_time()
            try:
                size, was_refused = attempt(rng)
            except Exception as error:
                raise AssertionError(f"number {number} of the {what} of seed {seed}") from error
            took = time.process_time() - started
            more = tracemalloc.get_traced_memory()[1] - before
            where = f"number {number} of the {what} of seed {seed} took"
            assert took < MAX_SECONDS, f"{where} {took:.1f} s"
            assert more < MAX_TIMES * size + SPARE, f"{where} {more} bytes for {size}"
            refused += was_refused
            slowest = max(slowest, took)
            most = max(most, (more - MAX_TIMES * size) / 2**20)
    finally:
        tracemalloc.stop()
    return {
        what: count,
        f"{what} refused": refused,
        f"slowest s of {what}": round(slowest, 3),
        f"MB beyond four times of {what}": round(most, 1),
    }


# --- mutations ----------------------------------------------------------------------------------


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """One to three of: flip, set, cut, extend, remove, repeat, swap, splice."""
    for _ in range(rng.randint(1, 3)):
        at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        if rng.random() < 0.5:  # mostly small: headers decide what happens
            at, to = min(at, 24, len(data)), min(at + rng.randrange(4), len(data))
        choice = rng.randrange(8)
        if choice <= 1 and data:
            changed = bytearray(data)
            i = min(at, len(data) - 1)
            changed[i] = changed[i] ^ 1 << rng.randrange(8) if choice else rng.randrange(256)
            data = bytes(changed)
        elif choice == 2:
            data = data[:at]
        elif choice == 3:
            data += rng.randbytes(rng.randrange(1, 9))
        elif choice == 4:
            data = data[:at] + data[to:]
        elif choice == 5:
            data = data[:to] + data[at:]
        elif choice == 6:
            data = data[to:] + data[:at]
        else:
            data = data[:at] + other[at:]
    return data


def example_streams() -> list[tuple[np.ndarray, bytes]]:
    """Symbols and their streams: all table forms, runs, lanes, wide symbols."""
    rng = np.random.default_rng(0)
    arrays = [
        np.zeros(0, np.int64),
        np.full(3000, 7),
        rng.integers(0, 2, 50),
        rng.geometric(0.2, 300),
        rng.integers(0, 1 << 62, 40),
        np.concatenate([np.arange(3000), np.zeros(500, np.int64)]),
        rng.integers(0, 3, LANES_FROM + 7),
    ]
    return [(array, huffman.encode(array)) for array in arrays]


def try_stream(rng: random.Random, streams: list[tuple[np.ndarray, bytes]]) -> Attempt:
    """A mutated stream."""
    data, other = (rng.choice(streams)[1] for _ in range(2))
    repair = rng.random() < 0.5
    if repair:
        body = mutate(rng, data[:-4], other[:-4])
        data = body + zlib.crc32(body).to_bytes(4, "big")
    else:
        data = mutate(rng, data, other)
    decoded = decoded_stream(data)
    if decoded is not None and not repair:
        assert any(np.array_equal(decoded, array) for array, _ in streams), "wrong symbols"
    return len(data) + (decoded.nbytes if decoded is not None else 0), decoded is None


def decoded_stream(data: bytes) -> np.ndarray | None:
    try:
        return huffman.decode(data)
    except huffman.HuffmanError as error:
        return one_line(error)


def one_line(error: Exception) -> None:
    if "\n" in str(error):
        raise AssertionError("a message of several lines") from error


def states() -> list[dict[str, torch.Tensor]]:
    """Small state dicts in every form that a tensor can have."""
    rng = np.random.default_rng(1)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))

    codebook = np.array([-0.5, -0.25, 0.125, 0.3], np.float32)
    density = np.linspace(0, 0.4, 40)[:, None] * np.linspace(0, 1, 60)
    sparse = np.where(rng.random((40, 60)) < density, rng.choice(codebook, (40, 60)), 0)
    walk = tensor(rng.normal(size=(40, 3, 3)).astype(np.float32))
    finer = torch.arange(40) // 4 % 3  # rows of different steps, which have shifts
    sizes = np.arange(60)[:, None] % 4
    rows = np.rint(rng.normal(size=(60, 40)) * sizes).clip(-2, 2).astype(int) + 2
    kernels = rng.normal(size=(6, 5, 3, 3)) * (rng.random((6, 5, 3, 3)) < 0.3)
    return [
        {
            "fc1.weight": tensor(sparse.astype(np.float32)),
            "fc1.bias": tensor(rng.normal(size=40).astype(np.float32)),
            "dense": tensor(rng.normal(size=8200).astype(np.float32)),  # heads and tails
            "walk": share_tensor(walk, 0.5, trellis=True),
            "shifted": share_tensor(walk.flatten(1), 0.5, trellis=True, finer=finer),
            "levels": tensor(np.array([-9, -2, 0, 3, 100], np.int16)[rows]),
        },
        {
            "conv.weight": tensor(kernels.astype(np.float32)),
            "half": tensor(rng.normal(size=30).astype(np.float16).astype(np.float32)),
            "steps": torch.tensor(1000),
            "zeros": torch.zeros(300, 200),
        },
        {
            "ids": torch.arange(200) * 1000,
            "flags": tensor(rng.random(100) < 0.5),
            "shared": tensor(rng.choice(codebook, 500)),
            "long": tensor((rng.random(200_000) < 1e-4).astype(np.float64)),
            "empty": torch.zeros(0, 3),
        },
        {  # joined
            f"{layer}.{name}": each
            for layer in range(5)
            for name, each in {
                "weight": tensor(rng.normal(size=(2, layer)).astype(np.float32)),
                "bias": tensor(rng.normal(size=8).astype(np.float16)),
                "count": torch.tensor(1000),
            }.items()
        },
    ]


class Example:
    """A folder with an encoding, a scratch folder beside it, and the ways to damage it."""

    def __init__(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        self.state, self.folder, self.scratch = state, folder, folder.with_suffix(".scratch")
        encoding.save(state, folder, {"arch": "lenet-300-100"})
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.names = sorted(self.files.keys() - {encoding.MANIFEST})
        self.path = folder.with_suffix(".dc")
        self.attached = {"config.json": b"{}" * 500, "a/tokenizer": bytes(range(256))}
        self.layout = {"weights": [{"path": "m.safetensors", "tensors": len(state)}]}
        encoding.save(state, self.path, files=self.attached, layout=self.layout)
        self.one = self.path.read_bytes()

    def attempt(self, rng: random.Random, others: list["Example"]) -> Attempt:
        """A mutated folder."""
        other = rng.choice(others)
        repair = rng.random() < 0.5
        files = dict(self.files)
        if repair:
            self._repaired(rng, other, files)
        elif rng.random() < 0.2 and len(self.names) > 1:  # two tensors in each other's place
            a, b = rng.sample(self.names, 2)
            files[a], files[b] = files[b], files[a]
        else:
            name = rng.choice(sorted(files))
            files[name] = mutate(rng, files[name], rng.choice(list(other.files.values())))
        state, size = self._loaded(files)
        assert state is None or repair or same(state, self.state), "a wrong tensor"
        return size, state is None

    def one_file(self, rng: random.Random, others: list["Example"]) -> Attempt:
        """A mutated .dc file."""
        other = rng.choice(others).one
        if rng.random() < 0.5:
            data = mutate(rng, self.one, other)
            found, size = self._opened(data, whole=data != other)  # all of it may be the other
            assert found in (None, self.attached), "another file"
            return size, found is None
        packed, table, parts = opened_up(self.one)
        choice = rng.randrange(3)
        if choice == 0:
            packed = mutate(rng, packed, other)
        elif choice == 1:
            table = mutate(rng, table, other)
        else:
            parts = mutate(rng, parts, other)
        found, size = self._opened(joined(packed, manifest.deflated(table), parts), whole=False)
        return size, found is None

    def forged_file(self, rng: random.Random) -> Attempt:
        """A .dc file whose checksums are right, and whose table is not."""
        packed, table, parts = opened_up(self.one)
        document = json.loads(table)
        for _ in range(rng.randint(1, 3)):
            parts = forge_table(rng, document, parts)
        table = forge_text(rng, document)
        body = manifest.deflated(table) if rng.random() < 0.9 else deflate(table)
        found, size = self._opened(joined(packed, body, parts), whole=False)
        if found is not None and sum(each.numel() for each in self.state.values()) < 10_000:
            state, _, files, layout = slow_decoder.one_file(self.path.with_suffix(".scratch.dc"))
            assert (list(state), files) == (list(self.state), found), "another decoder finds others"
            assert layout == json.loads(table).get("layout", {})
        return size, found is None

    def _opened(self, data: bytes, whole: bool = True) -> tuple[dict[str, bytes] | None, int]:
        """The files in a .dc file, None if it or a tensor is refused; and what it promises."""
        path = self.path.with_suffix(".scratch.dc")
        path.write_bytes(data)
        size = len(data)
        try:
            found = encoding.open(path)
            streams = (stream_bytes(found.info(name)) for name in found)
            size += max([0, *streams, *found.files.values()])
            state = dict(found)
            files = {name: found.read_file(name) for name in found.files}
        except encoding.EncodingError as error:
            return one_line(error), size
        assert not whole or same(state, self.state), "a wrong tensor"
        return files, size

    def forged(self, rng: random.Random) -> Attempt:
        """A folder whose checksums are right, and whose claims are not."""
        document, contents = self._document()
        for _ in range(rng.randint(0, 2)):
            contents = forge_document(rng, document, contents)
        before = document["tensors"]
        streams = streams_of(before)
        for lines in rng.sample(streams, min(len(streams), rng.randint(0, 2))):
            contents[id(lines[0])] = forged_tensor(rng, lines)
        datas = [contents.get(id(lines[0]), b"") for lines in streams]
        if rng.random() < 0.3:
            document["tensors"] = as_tree(rng, document["tensors"])
        text = forge_text(rng, document)
        sums = [zlib.crc32(data) for data in datas]
        if rng.random() < 0.05:
            sums = sums[1:] if rng.random() < 0.5 else [*sums, 0]
        files = {encoding.MANIFEST: packed(text, sums, rng.choice([0, 6, 9]))}
        numbers = {id(line): number for number, line in enumerate(before)}
        for (line, *_), data in zip(streams, datas, strict=True):
            if isinstance(line[0], str):
                number = numbers[id(line)]
                entry = manifest.Entry(number, line[0], torch.bool, (), zlib.crc32(data))
                files[entry.file_name] = data
        state, size = self._loaded(files)
        if state is not None:
            claims = lines_in(json.loads(text))
            assert list(state) == [name for name, *_ in claims], "other names"
            for line in filter(is_tensor, claims):
                tensor = state[line[0]]
                assert [str(tensor.dtype)[6:], list(tensor.shape)] == line[1:3], "another tensor"
            if sum(tensor.numel() for tensor in state.values()) < 1000:
                self._decoded_again(state)
        return size, state is None

    def _decoded_again(self, state: dict[str, torch.Tensor]) -> None:
        """Assert that another decoder finds the same."""
        for name, (_, _, expected) in slow_decoder.folder(self.scratch)[0].items():
            assert patterns(state[name]).tolist() == expected, "a wrong tensor"

    def _document(self) -> tuple[dict, dict[int, bytes]]:
        """The manifest, and the bytes of the tensors by the id() of their lines."""
        text, _ = unpacked(self.files[encoding.MANIFEST])
        document = json.loads(text)
        document["tensors"] = lines_in(document)
        streams = streams_of(document["tensors"])
        return document, {
            id(lines[0]): self.files[name] for lines, name in zip(streams, self.names, strict=True)
        }

    def _loaded(self, files: dict[str, bytes]) -> tuple[dict[str, torch.Tensor] | None, int]:
        """What is in these files, None if they are refused; and what they have and promise."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        for name, data in files.items():
            (self.scratch / name).write_bytes(data)
        size = sum(len(data) for data in files.values())
        try:
            state, _ = encoding.load(self.scratch)
        except encoding.EncodingError as error:
            return one_line(error), size + promised(files[encoding.MANIFEST])
        return state, size + promised(files[encoding.MANIFEST])

    def _repaired(self, rng: random.Random, other: "Example", files: dict[str, bytes]) -> None:
        """Change a tensor file or the text of the manifest, and make every checksum match."""
        text, sums = unpacked(files[encoding.MANIFEST])
        if rng.random() < 0.3:
            text = mutate_text(rng, text)
        else:
            i = rng.randrange(len(self.names))
            donor = other.files[rng.choice(other.names)]
            sums[i] = zlib.crc32(data := mutate(rng, files.pop(self.names[i]), donor))
            files[self.names[i][:-13] + f"{sums[i]:08x}.huff"] = data
        files[encoding.MANIFEST] = packed(text, sums)


def opened_up(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Of a .dc file the manifest, the text of the table, and the parts."""
    first, second = (int.from_bytes(data[i : i + 4], "big") for i in (8, 12))
    table = zlib.decompressobj(-15, zdict=manifest.DICTIONARY)
    at = 16 + first + second
    return data[16 : 16 + first], table.decompress(data[16 + first : at]), data[at:]


def joined(packed: bytes, body: bytes, parts: bytes) -> bytes:
    rest = len(packed).to_bytes(4, "big") + len(body).to_bytes(4, "big") + packed + body
    return container.MAGIC + zlib.crc32(rest).to_bytes(4, "big") + rest + parts


def deflate(text: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=manifest.DICTIONARY)
    return packer.compress(text) + packer.flush()


def forge_table(rng: random.Random, document: dict, parts: bytes) -> bytes:
    """Change one claim; return the parts, which may be others."""
    for field in ("sizes", "files"):
        if not isinstance(document.get(field), list):
            document[field] = []
    sizes, files = document["sizes"], document["files"]
    choice = rng.randrange(9)
    if choice == 0 and sizes:
        sizes[rng.randrange(len(sizes))] = rng.choice(NUMBERS)
    elif choice == 1 and len(sizes) > 1:
        i, j = rng.sample(range(len(sizes)), 2)
        if isinstance(sizes[i], int) and isinstance(sizes[j], int):
            sizes[i], sizes[j] = sizes[i] - 1, sizes[j] + 1
    elif choice == 2:
        rng.choice([sizes, files]).append(rng.choice([0, 1, None, ["x", 0, 0, 0], ["x", 1, 0, 0]]))
    elif choice == 3 and files and isinstance(files[0], list):
        files[0][rng.randrange(len(files[0])) if files[0] else 0 :] = [rng.choice(NUMBERS)]
    elif choice == 4 and files and isinstance(files[-1], list) and files[-1]:
        files[-1][0] = rng.choice([*NAMES, "config.json", "config.json/x", "C:x", "\\x", "/x"])
    elif choice == 5:
        data = bytes(rng.choice([0, 9, 5000, 1 << 21]))
        kept = rng.choice([data, zlib.compressobj(9, wbits=-15).flush(), deflate_plain(data)])
        size = rng.choice([len(data), len(data), len(kept), *NUMBERS])
        files.append([f"more {len(files)}", size, len(kept), zlib.crc32(kept)])
        parts += kept
    elif choice == 6:
        document["layout"] = rng.choice([[], 3, None, {"a": [[]] * 99}, {"weights": 3}, ""])
    elif choice == 7:
        parts = rng.choice([parts[:-1], parts + b"x", b""])
    else:
        document[rng.choice(["sizes", "files", "more"])] = rng.choice([None, {}, "", [None], 3])
    return parts


def deflate_plain(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def unpacked(data: bytes) -> tuple[bytes, list[int]]:
    """The text of a manifest, and the checksums."""
    unpacker = zlib.decompressobj(-15, zdict=manifest.DICTIONARY)
    text = unpacker.decompress(data[8:])
    return text, np.frombuffer(unpacker.unused_data, ">u4").tolist()


def packed(text: bytes, sums: list[int], level: int = 9) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, -15, zdict=manifest.DICTIONARY)
    body = packer.compress(text) + packer.flush() + np.array(sums, ">u4").tobytes()
    return manifest.MAGIC + zlib.crc32(body).to_bytes(4, "big") + body


def promised(data: bytes) -> int:
    """The bytes of the largest stream's elements in a manifest, if that can be read at all."""
    try:
        entries, _ = manifest.unpack(data)
    except (ValueError, RecursionError, zlib.error):
        return 0
    return max(map(stream_bytes, entries), default=0)


def stream_bytes(entry: manifest.Entry) -> int:
    """Of the elements in the stream of a tensor."""
    return max(entry.home.joined * entry.dtype.itemsize, entry.bytes)


def lines_in(document: dict) -> list[list]:
    tensors = document["tensors"]
    return manifest.lines_of(tensors, math.inf) if isinstance(tensors, dict) else tensors


def mutate_text(rng: random.Random, text: bytes) -> bytes:
    """Another number, type or structure, or any other damage."""
    if rng.random() < 0.3:
        return mutate(rng, text, b"[" * 100_000)
    document = json.loads(text)
    document["tensors"] = lines_in(document)
    entry = rng.choice(document["tensors"])
    numbers = [0, 1, 2, 3, 7, 300, 2**20, 2**31, 2**40, 2**60, 2**63, -1, 1.5, True, "3", None]
    field = rng.randrange(3)
    if field == 0:
        entry[0] = rng.choice(["../../etc/x", "", "a/b", "a" * 10_000, None, 3, "\0"])
    elif field == 1:
        entry[1] = rng.choice([*DTYPES, "quint8", None, 1])
    elif entry[2] and rng.random() < 0.7:
        entry[2][rng.randrange(len(entry[2]))] = rng.choice(numbers)
    else:
        entry[2].insert(0, rng.choice(numbers))
    return json.dumps(document).encode()


# --- forgeries ----------------------------------------------------------------------------------

NAMES = ["../../etc/x", "", "a/b", "a" * 10_000, None, 3, "\0", ".", "..", "\ud800", "a" * 255, []]
NUMBERS: list[Any] = [
    *(0, 1, 2, 3, 7, 300, 2**14, 2**20, 2**20 + 1, 2**31, 2**34, 2**40, 2**63, 10**4000, -1),
    *(1.5, True, "3", None, [1], 1e300),
]


def is_tensor(line: object) -> bool:
    """Whether a line of a manifest is that of a tensor, alone or joined to others."""
    return isinstance(line, list) and (len(line) == 3 or is_joined(line))


def is_joined(line: list) -> bool:
    return len(line) == 4 and line[3] == 1 and type(line[3]) is int


def streams_of(lines: list) -> list[list[list]]:
    """The lines of the tensors in each stream that a manifest claims."""
    found: list[list[list]] = []
    joined: dict[tuple[str, str], list[list]] = {}
    for line in filter(is_tensor, lines):
        kind = str(line[1]), str(line[0]).rpartition(".")[2]
        if is_joined(line) and kind in joined:
            joined[kind].append(line)
            continue
        found.append([line])
        if is_joined(line):
            joined[kind] = found[-1]
    return found


def as_tree(rng: random.Random, lines: list) -> object:
    """These lines as a tree, where they have names, now and then with what no tree has."""
    if not all(isinstance(line, list) and line and isinstance(line[0], str) for line in lines):
        return lines
    tree = manifest.tree_of(lines)
    if isinstance(tree, dict) and tree and rng.random() < 0.3:
        tree[rng.choice([*tree, "other", "a.b", ""])] = rng.choice([3, {}, [], None, {"": {}}])
    return tree


def forge_document(
    rng: random.Random, document: dict, contents: dict[int, bytes]
) -> dict[int, bytes]:
    """Change one claim; return the bytes of the tensors, which stay at their lines."""
    lines = document["tensors"]
    line = rng.choice([line for line in lines if line] or [["none", "bool", []]])
    at, first = rng.randrange(len(lines) + 1), rng.randrange(len(lines) + 1)
    choice = rng.randrange(13)
    if choice == 0:
        line[0] = rng.choice(NAMES)
    elif choice == 1 and is_tensor(line):
        line[1] = rng.choice([*DTYPES, "quint8", None, 1, [], "float32 "])
    elif choice <= 4 and is_tensor(line):
        shape = line[2] if isinstance(line[2], list) else []
        if shape and rng.random() < 0.6:
            shape[rng.randrange(len(shape))] = rng.choice(NUMBERS)
        elif rng.random() < 0.5:
            shape.insert(rng.randrange(len(shape) + 1), rng.choice(NUMBERS))
        else:
            line[2] = rng.choice(
                [[], [1] * 64, [1] * 65, [0] * 1000, {}, None, "3", [[]], [2] * 34]
            )
    elif choice == 5:
        lines.insert(at, [f"tie {at}", rng.choice([first, *NUMBERS])])
    elif choice == 6:
        name = "n" * rng.choice([1, 100, 100_000])
        lines += [[f"{name if i == 0 else ''}{i}", first] for i in range(rng.choice([1, 9, 900]))]
    elif choice == 7 and lines:
        lines.remove(line)
    elif choice == 8:
        double = copy.deepcopy(line)
        double[0] = rng.choice([double[0], "double"])
        lines.insert(at, double)
        contents = contents | {id(double): contents.get(id(line), b"")}
    elif choice == 9:
        rng.shuffle(lines)
    elif choice == 10:
        for line in rng.sample(lines, min(len(lines), rng.randint(1, 3))):
            if is_tensor(line):
                line[3:] = rng.choice([[], [1], [1], [0], [2], [True], [None], [1, 1]])
    elif choice == 11:
        document["meta"] = rng.choice([[], 3, {"arch": 3}, {"a": [[[]]] * 99}, None, {"": {}}, ""])
    else:
        line[rng.randrange(len(line)) :] = rng.choice([[], [1, 2], [None], ["bool", [1], 3]])
    return contents


def forge_text(rng: random.Random, document: dict) -> bytes:
    """The text of a manifest, now and then with what no document has."""
    text = json.dumps(document, separators=(",", ":"))
    if rng.random() < 0.9:
        return text.encode()
    size = rng.choice([10, 1000, 100_000])
    more = rng.choice(
        ["[", "{", "[],", "{},", '{"":', "9", " ", "\\", '"', "NaN,", "0,", "\U0001f600"]
    )
    return rng.choice(
        [
            text[: rng.randrange(len(text))],
            text + " " * size,
            text[:-1] + f',"more":{more * size}',
            text[:-1] + ',"tensors":[]}',
            text[:-1] + f',"meta":{{"a":"{more * size}"}}}}',
            f'{{"tensors":[{more * size}',
            f'{{"tensors":[["a","bool",[{"1," * size}1]]]}}',
            more * size,
        ]
    ).encode()


def try_forged_stream(rng: random.Random) -> Attempt:
    count = a_number(rng, 3000)
    forger = Forger(rng)
    forger.writer.write_number(count)
    forger.symbols(forger.table(count, rng.choice([1, 255, 70_000, 2**40])), count)
    body = forger.finish()
    data = body + zlib.crc32(body).to_bytes(4, "big")
    decoded = decoded_stream(data)
    if decoded is not None and len(decoded) < 1000:
        assert slow_decoder.stream(data) == decoded.tolist(), "wrong symbols"
    return len(data) + (decoded.nbytes if decoded is not None else 0), decoded is None


def forged_tensor(rng: random.Random, lines: list[list]) -> bytes:
    """A bit string for the type and the shapes of the lines of a stream, if they have any."""
    kind, shapes = lines[0][1], [line[2] for line in lines]
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None or not all(
        isinstance(shape, list)
        and all(type(n) is int and n >= 0 for n in shape)
        and manifest.fits(shape, dtype)
        for shape in shapes
    ):
        return rng.randbytes(rng.randrange(9))
    shape = [sum(map(math.prod, shapes))] if is_joined(lines[0]) else shapes[0]
    forger = Forger(rng)
    forger.tensor([*shape, 2] if dtype.is_complex else shape, 8 * patterns_bytes(dtype))
    return forger.finish()


def patterns_bytes(dtype: torch.dtype) -> int:
    return dtype.itemsize // (2 if dtype.is_complex else 1)


def a_number(rng: random.Random, most: int) -> int:
    """At most ``most`` if that is to be believed: its bounds, something between, or far beyond."""
    near = [0, 1, most // 2, most - 1, most, rng.randint(0, max(most, 0))]
    far = [most + 1, 2**20, 2**31, 2**40, 2**63 - 1]
    return min(max(rng.choice(near if rng.random() < 0.95 else far), 0), 2**63 - 1)


class Forger:
    """Bit strings made to the rules of the format (docs/format.md), but for what they claim."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.writer = rng, BitWriter()

    def finish(self) -> bytes:
        return self.writer.finish()[:-PAD].tobytes()

    def fill(self, count: int) -> None:
        """Random bits, or zeros, or ones."""
        count = min(count, 8 * RUN_BYTES)
        kind = self.rng.randrange(3)
        for width in [*[32] * (count // 32), count % 32]:
            self.writer.write(
                [self.rng.getrandbits(32) >> (32 - width), 0, (1 << width) - 1][kind], width
            )

    def number(self, most: int) -> int:
        value = a_number(self.rng, most)
        self.writer.write_number(value)
        return value

    def set(self, count: int, choices: int) -> None:
        """About as many bits as so many members of so many choices take."""
        if 0 < count < choices:
            self.fill(count * max(1, (choices // count).bit_length()))

    def code(self, most: int) -> Code:
        """A complete code of symbols up to about ``most``."""
        size = self.rng.choice([1, 1, 2, 3, 9, 200])
        most = max(most + (self.rng.random() < 0.05), 0)
        symbols = sorted({self.rng.randint(0, most) for _ in range(size)})
        lengths = [0]
        while len(lengths) < len(symbols):
            i = self.rng.randrange(len(lengths)) if self.rng.random() < 0.9 else len(lengths) - 1
            lengths[i : i + 1] = [lengths[i] + 1] * 2
        return Code(np.array(symbols), np.array(np.minimum(lengths, 31), np.uint8))

    def small_table(self, most: int) -> Code:
        code = self.code(min(most, 1023))
        write_small_table(self.writer, code)
        return code

    def table(self, count: int, most: int) -> Code:
        if self.rng.random() < 0.9:
            code = self.code(most)
            write_table(self.writer, code)
            return code
        self.writer.write(1, 1)  # of any number of symbols, of equal lengths
        size = self.number(min(count, 1 << self.rng.randrange(17)) - 1) + 1
        last = self.number(max(most - size + 1, 0)) + size - 1
        self.set(size - 1, last)
        write_small_table(
            self.writer, Code(np.array([size.bit_length() - 1]), np.zeros(1, np.uint8))
        )
        self.fill(size // 1024)
        lengths = np.full(min(size, 1 << 17), size.bit_length() - 1, np.uint8)
        return Code(np.arange(len(lengths)), lengths)

    def symbols(self, code: Code, count: int) -> None:
        bits = count // 1024
        if len(code.symbols) > 1:
            shortest, longest = int(code.lengths.min()), int(code.lengths.max())
            bits = count * self.rng.choice([shortest, longest, (shortest + longest) // 2])
            if count >= LANES_FROM:
                for _ in range(7):
                    self.number(count // 8 * self.rng.choice([shortest, longest]))
        bits = min(bits, 8 * RUN_BYTES)
        if len(code.symbols) > 1:
            self.fill(bits)
        else:
            for width in [*[32] * (bits // 32), bits % 32]:
                self.writer.write(0, width)

    def tensor(self, shape: list[int], width: int) -> None:
        count = int(np.prod(shape, dtype=object))
        if self.rng.random() < 0.2:
            return self.levels(count, width)
        sparse = self.rng.random() < 0.6
        self.writer.write(sparse, 1)
        if sparse:
            count = self.positions(shape, count)
        if count:
            self.values(count, width)

    def levels(self, count: int, width: int) -> None:
        """A grid or a codebook, and bytes: few, any, or so many that the coder needs them."""
        self.writer.write(ESCAPE, 9)
        self.writer.write(min(width, 64) - 1, 6)
        grid = self.rng.random() < 0.7
        self.writer.write(grid, 1)
        if grid:
            self.writer.write(self.rng.random() < 0.3, 1)
            self.writer.write(self.rng.choice([1015, 1015, 1023, 1, 0, 2046, 2047]), 11)
            digits = self.rng.choice([0, 3, 12, 52, 53, 63])
            self.writer.write(digits, 6)
            self.fill(digits)
        else:
            self.writer.write(0, 2)
            size = self.number(min(count, 1 << min(width, 16)) - 1) + 1
            self.set(size, 1 << width)
            self.number(size - 1)
        self.writer.write(self.rng.randrange(2), 1)
        self.writer.write(self.rng.choice([0, 0, 0, 1, 2, 3]), 2)
        self.writer.write(0, -self.writer.length % 8)
        self.fill(8 * self.rng.choice([0, 1, 9, count // 8, count // 2]))
        self.writer.write(self.rng.choice([0, 1, 255]), 8)

    def values(self, count: int, width: int) -> None:
        split = self.rng.random() < 0.3
        if split:
            self.writer.write(SPLIT, SPLIT_BITS)
        form = self.rng.randrange(3)
        self.writer.write([1, 0, 1][form], [1, 2, 2][form])
        if form == 0:
            width = 16
        elif form == 2:
            shift = self.rng.randrange(width) if self.rng.random() < 0.5 else 0
            used = self.rng.randint(1, max(width - shift - (shift == 0), 1))
            self.writer.write(min(shift, 63), 6)
            self.writer.write(min(used, 64) - 1, 6)
            width = used
        if split:
            self.heads(count, width)
        elif self.rng.random() < 0.5:
            self.writer.write(1, 1)
            size = self.number(min(count, 1 << min(width, 16)) - 1) + 1
            self.set(size, 1 << width)
            self.symbols(self.table(count, min(size, 1 << 16) - 1), count)
        else:
            self.writer.write(0, 1)
            for low in range(0, width, 8):
                bits = min(8, width - low)
                coded = self.rng.random() < 0.7
                self.writer.write(coded, 1)
                if coded:
                    self.symbols(self.table(count, (1 << bits) - 1), count)
                else:
                    self.fill(bits * count)

    def heads(self, count: int, width: int) -> None:
        """Most often words and tails of one length, so that the lanes' sizes are right."""
        head = min(self.rng.choice([1, 2, 8, 11, 12]), width - (self.rng.random() < 0.95))
        self.writer.write(head, 4)
        blocks = -(-count // BLOCK)
        tables = min(self.number(min(blocks, MAX_TABLES) - 1) + 1, 2 * MAX_TABLES)
        length = self.rng.randint(0, min(head, 3))
        for _ in range(tables):
            if self.rng.random() < 0.95:
                lengths = np.full(1 << length, length, np.uint8)
                write_table(self.writer, Code(np.arange(1 << length), lengths))
            else:
                self.table(count, (1 << head) - 1)
        least, most = (1, width - head) if self.rng.random() < 0.95 else (0, TAILS - 1)
        tail = self.rng.randint(least, max(least, most))
        if self.rng.random() < 0.9:
            which = {self.rng.randrange(tables) * TAILS + tail for _ in range(2)}
            lengths = np.full(len(which), len(which) - 1, np.uint8)
            code = Code(np.array(sorted(which)), lengths)
            write_table(self.writer, code)
        else:
            code = self.table(blocks, tables * TAILS - 1)
        self.symbols(code, blocks)
        sizes = [(count + 7 - lane) // 8 * (length + tail) for lane in range(8)]
        for size in sizes[:-1]:
            self.writer.write_number(size + self.rng.choice([0] * 50 + [1, -1 if size else 0]))
        self.fill(sum(sizes))

    def positions(self, shape: list[int], size: int) -> int:
        count = self.number(size - 1)
        if not count:
            return 0
        view = self.rng.choice([0, 0, 0, 1, 2, 3])
        self.writer.write(view, 2)
        height = max(int(np.prod(shape[: 1 + (view >> 1)], dtype=object)), 1)
        width = size // height
        if max(height, width) > 2**20:
            height, width = -(-size // 16384), 16384
        rows, columns = self.lines(height), self.lines(width)
        blocks, left = rows * columns, count
        for i in range(blocks):
            here = self.number(left) if i < blocks - 1 else left
            left -= min(here, left)
            if here:
                self.integers(here)
        return count

    def lines(self, size: int) -> int:
        """How many classes of them."""
        dead = self.number(size) if self.rng.random() < 0.3 else 0
        if not dead:
            self.writer.write_number(0)
        self.set(dead, size)
        if dead >= size:
            return 0
        classes = self.rng.choice([1, 1, 2, 8])
        self.writer.write(classes - 1, 3)
        if classes > 1:
            self.symbols(self.table(size - dead, classes - 1), size - dead)
        return classes

    def integers(self, count: int) -> None:
        split = self.rng.choice([0, 1, 4, 10])
        kept = self.rng.randint(0, min(split, 3))
        self.writer.write(split, 4)
        self.writer.write(kept, 2)
        code = self.small_table(self.rng.choice([0, 1, 5, 60, 1023]))
        self.symbols(code, count)
        if code.symbols[-1] >= 1 << split:
            self.fill(count * self.rng.choice([1, 3, 20]))


def same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Equal names, types, shapes and bits."""
    return list(state) == list(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and np.array_equal(patterns(a), patterns(b))
        for a, b in zip(state.values(), other.values(), strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
