"""Size, speed and memory of the codec beside its rivals.

    OMP_NUM_THREADS=1 python benchmarks/codec.py [--quick] [--only streams sizes alexnet]
        [--nncodec PYTHON]

Speeds are medians of 5, alternating with the rival in the same process. Rivals that are not
installed are named and left out: bitarray, zstandard, and nncodec, which needs an environment of
its own, since it pins old packages (--nncodec names the Python of that environment).
"""

import argparse
import importlib
import io
import lzma
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from timing import medians

from net import encoding, huffman

NNCODEC = """
import sys
import numpy as np
from nncodec import tensor
total = 0
for array in np.load(sys.argv[1]).values():
    data = tensor.encode(array, args={"use_dq": False, "results": sys.argv[2]})
    assert np.array_equal(np.asarray(tensor.decode(data)).reshape(array.shape), array)
    total += len(data)
print("bytes", total)
"""


def main(argv: list[str] | None = None) -> int:
    parts = {"streams": streams, "sizes": sizes, "alexnet": alexnet}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--nncodec", metavar="PYTHON", help="a Python that has nncodec")
    parser.add_argument("--quick", action="store_true", help="the smallest case of each: seconds")
    arguments = parser.parse_args(argv)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"NumPy {np.__version__}, PyTorch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    for part in arguments.only:
        print(f"\n{part}")
        parts[part](arguments)
    return 0


def optional(name: str) -> object | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"  {name} is not installed: left out")
        return None


# --- streams ------------------------------------------------------------------------------------


def streams(arguments: argparse.Namespace) -> None:
    """5-bit k-means codes, entropy 4.25 bits, against bitarray's C extension."""
    bitarray = optional("bitarray")
    for count in (24_000,) if arguments.quick else (24_000, 1_000_000, 10_000_000):
        rng = np.random.default_rng(0)
        symbols = np.clip(np.round(rng.normal(16, 4.6, count)), 0, 31).astype(np.uint8)
        counts = np.bincount(symbols)
        counts = counts[counts > 0]
        entropy = float(np.sum(counts * np.log2(count / counts))) / 8
        data = huffman.encode(symbols)
        assert np.array_equal(huffman.decode(data), symbols)
        print(f"  {count:>10,} symbols: {len(data):,} bytes, {len(data) / entropy:.4f} x entropy")
        works = [lambda s=symbols: huffman.encode(s), lambda d=data: huffman.decode(d)]
        if bitarray:
            works += bitarray_works(symbols)
        taken = medians(*works)
        for name, ours, theirs in zip(
            ("encode", "decode"), taken, taken[2:] or [0, 0], strict=False
        ):
            rival = (
                f", bitarray {count / theirs / 1e6:.0f}: {theirs / ours:.1f} x" if theirs else ""
            )
            print(f"    {name} {count / ours / 1e6:.0f} M symbols/s{rival}")


def bitarray_works(symbols: np.ndarray) -> list[Callable[[], object]]:
    """The same symbols, given as bytes, and the same code lengths; decoded into int64."""
    from bitarray import bitarray
    from bitarray.util import canonical_decode, canonical_huffman

    code, counts, order = canonical_huffman(dict(enumerate(np.bincount(symbols).tolist())))
    raw = symbols.tobytes()
    bits = bitarray()
    bits.encode(code, raw)

    def decode() -> np.ndarray:
        return np.fromiter(canonical_decode(bits, counts, order), np.int64, len(raw))

    assert np.array_equal(decode(), symbols)
    return [lambda: bitarray().encode(code, raw), decode]


# --- sizes --------------------------------------------------------------------------------------


def sizes(arguments: argparse.Namespace) -> None:
    """LeNet-300-100 against general compressors over CSR and gap arrays, and nncodec."""
    optional("zstandard")
    if not arguments.nncodec:
        print("  no --nncodec PYTHON given: nncodec left out")
    print("  ours: the whole folder; rivals: index arrays, codebooks and biases (no container)")
    for clusters in (8,) if arguments.quick else (8, 32):
        for density in (0.01,) if arguments.quick else (0.01, 0.03, 0.08):
            state = lenet(density, clusters)
            with tempfile.TemporaryDirectory() as folder:
                meta = {"arch": "lenet-300-100", "dataset": "mnist"}
                ours = encoding.save(state, folder, meta)
                decoded, _ = encoding.load(folder)
                assert all(torch.equal(state[name], decoded[name]) for name in state)
            print(f"  {density:.0%} dense, {clusters} clusters: {ours:,} bytes")
            rivals = general(state)
            if arguments.nncodec:
                rivals["nncodec"] = nncodec(state, arguments.nncodec) + loose_bytes(state)
            for name, size in rivals.items():
                print(f"    {name:<14} {size:>8,}  ours is {ours / size:.3f} x")


def lenet(density: float, clusters: int) -> dict[str, torch.Tensor]:
    """Magnitude-pruned and weight-shared; pixels at the edge of the image matter little."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:28, :28] - 13.5
    pixels = np.exp(-(x**2 + y**2) / (2 * 6.5**2)).ravel()
    pixels[np.maximum(np.abs(x), np.abs(y)).ravel() > 11.5] *= 0.02
    units = np.exp(rng.normal(0, 0.5, 300))
    scales = [
        (units[:, None] * pixels, density),
        (np.exp(rng.normal(0, 0.5, 100))[:, None] * units, min(1.5 * density, 1)),
        (np.ones((10, 100)), min(6 * density, 1)),
    ]
    state = {}
    for i, (scale, share) in enumerate(scales, start=1):
        weight = rng.laplace(size=scale.shape) * scale
        kept = np.abs(weight) > np.quantile(np.abs(weight), 1 - share)
        # equal intervals over the surviving weights, as linear initialisation leaves them
        low, high = weight[kept].min(), weight[kept].max()
        index = np.rint((weight - low) / (high - low) * (clusters - 1)).clip(0, clusters - 1)
        book = np.linspace(low, high, clusters) + rng.normal(0, 1e-3, clusters)
        shared = book.astype(np.float16).astype(np.float32)[index.astype(int)]
        state[f"fc{i}.weight"] = torch.from_numpy(np.where(kept, shared, np.float32(0)))
        bias = rng.normal(0, 0.05, scale.shape[0]).astype(np.float16)
        state[f"fc{i}.bias"] = torch.from_numpy(bias.astype(np.float32))
    return state


def indexes(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codebook, and int32 numbers of its entries with 0 for zero, signed like the values."""
    book = np.unique(weight[weight != 0])
    number = np.searchsorted(book, weight) - np.count_nonzero(book < 0)
    return book, np.where(weight != 0, number + (number >= 0), 0).astype(np.int32)


def loose_bytes(state: dict[str, torch.Tensor]) -> int:
    """Biases and codebooks in half precision, which the rivals' index arrays leave out."""
    weights = [tensor.numpy() for tensor in state.values() if tensor.dim() == 2]
    biases = sum(tensor.numel() for tensor in state.values() if tensor.dim() == 1)
    return 2 * (biases + sum(len(indexes(weight)[0]) for weight in weights))


def general(state: dict[str, torch.Tensor]) -> dict[str, int]:
    """Bytes of each general-purpose compressor over the CSR arrays and over the gap arrays."""
    layouts = {"CSR": b"", "gaps": b""}
    for tensor in state.values():
        if tensor.dim() == 2:
            _, index = indexes(tensor.numpy())
            row, column = np.nonzero(index)
            numbers = index[row, column].astype(np.int8).tobytes()
            starts = np.searchsorted(row, np.arange(len(index) + 1)).astype(np.uint16)
            layouts["CSR"] += starts.tobytes() + column.astype(np.uint16).tobytes() + numbers
            gaps = np.diff(np.flatnonzero(index), prepend=-1) - 1
            layouts["gaps"] += byte_gaps(gaps) + numbers
    compressors = {
        "zlib -9": lambda data: zlib.compress(data, 9),
        "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME),
    }
    try:
        import zstandard

        compressors["zstd -19"] = zstandard.ZstdCompressor(level=19).compress
    except ImportError:
        pass
    return {
        f"{name} {layout}": len(compress(data)) + loose_bytes(state)
        for name, compress in compressors.items()
        for layout, data in layouts.items()
    }


def byte_gaps(gaps: np.ndarray) -> bytes:
    """Gaps as bytes, 255 for "255 more"."""
    out = bytearray()
    for gap in gaps.tolist():
        out += b"\xff" * (gap // 255) + bytes([gap % 255])
    return bytes(out)


def nncodec(state: dict[str, torch.Tensor], python: str) -> int:
    """Bytes of the reference implementation of ISO/IEC 15938-17 for the index arrays."""
    arrays = {k: indexes(v.numpy())[1] for k, v in state.items() if v.dim() == 2}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "indexes.npz"
        np.savez(path, **arrays)
        command = [python, "-c", NNCODEC, str(path), folder]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout.split("bytes")[-1])


# --- a large model ------------------------------------------------------------------------------


def alexnet(arguments: argparse.Namespace) -> None:
    """61 million parameters, 11 % dense: 8-bit convolutions, 5-bit fully connected layers."""
    shapes = {
        "conv1": (64, 3, 11, 11),
        "conv2": (192, 64, 5, 5),
        "conv3": (384, 192, 3, 3),
        "conv4": (256, 384, 3, 3),
        "conv5": (256, 256, 3, 3),
        "fc6": (4096, 9216),
        "fc7": (4096, 4096),
        "fc8": (1000, 4096),
    }
    if arguments.quick:
        shapes = {name: shape for name, shape in shapes.items() if name.startswith("conv")}
    rng = np.random.default_rng(0)
    state = {}
    for name, shape in shapes.items():
        clusters, density = (256, 0.35) if len(shape) == 4 else (32, 0.105)
        book = np.sort(rng.normal(0, 0.05, clusters)).astype(np.float16).astype(np.float32)
        weight = torch.zeros(shape)
        for part in weight.view(shape[0], -1).numpy():
            index = rng.normal(clusters / 2, clusters / 7, part.size).clip(0, clusters - 1)
            kept = rng.random(part.size, np.float32) < density
            np.copyto(part, book[index.astype(np.int32)], where=kept)
        state[f"{name}.weight"] = weight
        state[f"{name}.bias"] = torch.from_numpy(rng.normal(0, 0.05, shape[0]).astype(np.float32))
    measure("AlexNet", state)
    size = math.prod(max(shapes.values(), key=math.prod))
    measure("one raw tensor", {"w": torch.from_numpy(rng.normal(0, 1, size).astype(np.float32))})


def measure(name: str, state: dict[str, torch.Tensor]) -> None:
    """Seconds and peak memory, above what was held before (and above the decoded state)."""
    largest = max(tensor.numel() for tensor in state.values()) * 4 / 2**20
    dense = sum(tensor.numel() for tensor in state.values()) * 4
    with tempfile.TemporaryDirectory() as folder:
        held = reset_peak()
        start = time.perf_counter(), time.process_time()
        size = encoding.save(state, folder)
        encoded = time.perf_counter() - start[0], time.process_time() - start[1]
        encode_peak = peak() - held
        held = reset_peak()
        start = time.perf_counter(), time.process_time()
        decoded, _ = encoding.load(folder)
        decoding = time.perf_counter() - start[0], time.process_time() - start[1]
        decode_peak = peak() - held - dense / 2**20
    assert all(torch.equal(state[key], decoded[key]) for key in state)
    print(f"  {name}: {dense:,} bytes as {size:,}, 1/{dense / size:.1f}")
    for what, seconds, megabytes in [
        ("encode", encoded, encode_peak),
        ("decode", decoding, decode_peak),
    ]:
        times = megabytes / largest
        spent = f"{seconds[0]:.1f} s ({seconds[1]:.1f} s of processor time)"
        print(f"    {what} {spent}, {megabytes:.0f} MB, {times:.1f} x the largest tensor")


def reset_peak() -> float:
    """MB in use now; from here on the peak counts anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    status = io.StringIO(Path("/proc/self/status").read_text())
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    sys.exit(main())
