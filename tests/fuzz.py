"""Damage real encodings and see that no damage gets through.

    python -m tests.fuzz --count 100000 [--seed 0]

Half of the mutations leave the checksums as they were: such data must be refused, or decode to
the original. The other half repair the checksums, as an attacker would: such data may decode to
anything, but must not raise another exception than HuffmanError or EncodingError, nor take over
2 s or 512 MB.
"""

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch

from net import encoding, huffman
from net.codec import manifest
from net.codec.codes import LANES_FROM
from net.codec.tensors import DTYPES, patterns

MAX_SECONDS = 2.0
MAX_MEGABYTES = 512


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="mutations")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    counts = fuzz(arguments.count, arguments.seed)
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return 0


def fuzz(count: int, seed: int) -> dict[str, float]:
    """Mutate so often; AssertionError with the seed for the first mutation that gets through."""
    rng = random.Random(seed)
    streams = example_streams()
    counts = {"mutations": 0, "refused": 0, "slowest s": 0.0, "MB more": 0}
    before = _peak_megabytes()
    with tempfile.TemporaryDirectory() as folder:
        examples = [Example(state, Path(folder) / str(i)) for i, state in enumerate(states())]
        for number in range(count):
            started = time.process_time()
            if rng.random() < 0.5:
                refused = try_stream(rng, streams)
            else:
                refused = rng.choice(examples).attempt(rng, examples)
            took = time.process_time() - started
            counts["mutations"] = number + 1
            counts["refused"] += refused
            counts["slowest s"] = max(counts["slowest s"], round(took, 3))
            counts["MB more"] = _peak_megabytes() - before
            where = f"mutation {counts['mutations']} of seed {seed}"
            assert took < MAX_SECONDS, f"{where} took {took:.1f} s"
            assert counts["MB more"] < MAX_MEGABYTES, f"{where} took {counts['MB more']} MB"
    return counts


def _peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


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


def try_stream(rng: random.Random, streams: list[tuple[np.ndarray, bytes]]) -> bool:
    """Whether a mutated stream was refused."""
    symbols, data = rng.choice(streams)
    other = rng.choice(streams)[1]
    repair = rng.random() < 0.5
    if repair:
        body = mutate(rng, data[:-4], other[:-4])
        data = body + zlib.crc32(body).to_bytes(4, "big")
    else:
        data = mutate(rng, data, other)
    try:
        decoded = huffman.decode(data)
    except huffman.HuffmanError:
        return True
    known = [symbols] if repair else [array for array, _ in streams]
    assert repair or any(np.array_equal(decoded, array) for array in known), "wrong symbols"
    return False


def states() -> list[dict[str, torch.Tensor]]:
    """Small state dicts in every form that a tensor can have."""
    rng = np.random.default_rng(1)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))

    codebook = np.array([-0.5, -0.25, 0.125, 0.3], np.float32)
    density = np.linspace(0, 0.4, 40)[:, None] * np.linspace(0, 1, 60)
    sparse = np.where(rng.random((40, 60)) < density, rng.choice(codebook, (40, 60)), 0)
    kernels = rng.normal(size=(6, 5, 3, 3)) * (rng.random((6, 5, 3, 3)) < 0.3)
    return [
        {
            "fc1.weight": tensor(sparse.astype(np.float32)),
            "fc1.bias": tensor(rng.normal(size=40).astype(np.float32)),
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
    ]


class Example:
    """A folder with an encoding, a scratch folder beside it, and the ways to damage it."""

    def __init__(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        self.state, self.folder, self.scratch = state, folder, folder.with_suffix(".scratch")
        encoding.save(state, folder, {"arch": "lenet-300-100"})
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.names = sorted(self.files.keys() - {encoding.MANIFEST})

    def attempt(self, rng: random.Random, others: list["Example"]) -> bool:
        """Whether a mutated folder was refused."""
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
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        for name, data in files.items():
            (self.scratch / name).write_bytes(data)
        try:
            state, _ = encoding.load(self.scratch)
        except encoding.EncodingError as error:
            lines = str(error).count("\n") + 1
        else:
            lines = 0
        if lines:
            assert lines == 1, "a message of several lines"
            return True
        assert repair or same(state, self.state), "a wrong tensor"
        return False

    def _repaired(self, rng: random.Random, other: "Example", files: dict[str, bytes]) -> None:
        """Change a tensor file or the text of the manifest, and make every checksum match."""
        packed = files[encoding.MANIFEST]
        unpacker = zlib.decompressobj(-15, zdict=manifest.DICTIONARY)
        text = unpacker.decompress(packed[8:])
        sums = np.frombuffer(unpacker.unused_data, ">u4").tolist()
        if rng.random() < 0.3:
            text = mutate_text(rng, text)
        else:
            i = rng.randrange(len(self.names))
            donor = other.files[rng.choice(other.names)]
            sums[i] = zlib.crc32(data := mutate(rng, files.pop(self.names[i]), donor))
            files[self.names[i][:-13] + f"{sums[i]:08x}.huff"] = data
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=manifest.DICTIONARY)
        body = packer.compress(text) + packer.flush() + np.array(sums, ">u4").tobytes()
        files[encoding.MANIFEST] = manifest.MAGIC + zlib.crc32(body).to_bytes(4, "big") + body


def mutate_text(rng: random.Random, text: bytes) -> bytes:
    """Another number, type or structure, or any other damage."""
    if rng.random() < 0.3:
        return mutate(rng, text, b"[" * 100_000)
    document = json.loads(text)
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


def same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Equal names, types, shapes and bits."""
    return list(state) == list(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and np.array_equal(patterns(a), patterns(b))
        for a, b in zip(state.values(), other.values(), strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
