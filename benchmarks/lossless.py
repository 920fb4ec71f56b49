"""Dense tensors kept bit for bit, beside ZipNN: size, speed of encoding and of decoding.

    python benchmarks/lossless.py [--quick]

Weights of a normal distribution, as most trained ones have them, in float32 and in bfloat16. Both
sides map memory to memory, in one process, taking turns; megabytes of dense data a second, from
the median of 5. Ours works on whole tensors in threads and ZipNN on chunks, both with as many
threads as PyTorch: the state is several tensors. ZipNN (pip install zipnn, 0.5.4) is optional.
Then what it costs to read back what is written, as `encoding.save` does unless verify=False.
"""

import argparse
import os
import platform
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from timing import medians

from net import encoding
from net.codec.bits import BitReader
from net.codec.tensors import read_tensor, write_tensor

BARS = {"size": 1.01, "encode": 0.5, "decode": 0.25}  # of ZipNN's
VERIFY_BAR = 0.4  # of the time of encoding


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small tensors: seconds")
    arguments = parser.parse_args(argv)
    threads = torch.get_num_threads()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, Python "
        f"{platform.python_version()}, PyTorch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    try:
        from zipnn import ZipNN
    except ImportError:
        print("zipnn is not installed: its side is left out")
        ZipNN = None
    met = True
    with ThreadPoolExecutor(threads) as pool:
        for dtype in (torch.float32, torch.bfloat16):
            state = normal(dtype, 1 << (18 if arguments.quick else 24))
            met &= compare(state, pool, ZipNN) & verifying(state)
    return 0 if met or arguments.quick else 1  # small tensors are no measure


def normal(dtype: torch.dtype, size: int, parts: int = 4) -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    drawn = [torch.from_numpy(rng.normal(0, 0.02, size).astype(np.float32)) for _ in range(parts)]
    return [tensor.to(dtype) for tensor in drawn]


def compare(state: list[torch.Tensor], pool: ThreadPoolExecutor, peer: type | None) -> bool:
    """Beside ZipNN; whether size and speeds are within the bars."""
    size, dtype = state[0].numel(), state[0].dtype
    dense = len(state) * size * dtype.itemsize

    def encode() -> list[bytes]:
        return list(pool.map(lambda tensor: write_tensor(tensor).finish(), state))

    def decode() -> list[torch.Tensor]:
        return list(pool.map(lambda data: read_tensor(BitReader(data), (size,), dtype), ours))

    ours = encode()
    assert all(torch.equal(a, b) for a, b in zip(decode(), state, strict=True))
    name = str(dtype).removeprefix("torch.")
    print(f"{name}: {dense / 1e6:.0f} MB, {sum(map(len, ours)) / dense:.4f} of it encoded")
    if not peer:
        taken = medians(encode, decode)
        print(
            f"  encode {dense / taken[0] / 1e6:.0f} MB/s, decode {dense / taken[1] / 1e6:.0f} MB/s"
        )
        return True
    zipped = peer(input_format="byte", bytearray_dtype=name, threads=torch.get_num_threads())
    raw = b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in state)
    theirs = bytes(zipped.compress(bytearray(raw)))
    assert bytes(zipped.decompress(theirs)) == raw
    copy = bytearray(raw)  # compress reorders its argument in place
    encoded, decoded, their_encoded, their_decoded = medians(
        encode, decode, lambda: zipped.compress(copy), lambda: zipped.decompress(theirs)
    )
    found = {
        "size": sum(map(len, ours)) / len(theirs),
        "encode": their_encoded / encoded,
        "decode": their_decoded / decoded,
    }
    met = found["size"] <= BARS["size"] and all(found[k] >= BARS[k] for k in ("encode", "decode"))
    print(f"  size {found['size']:.4f} x ZipNN's")
    for what, mine, other in (
        ("encode", encoded, their_encoded),
        ("decode", decoded, their_decoded),
    ):
        rates = f"{dense / mine / 1e6:.0f} MB/s, ZipNN {dense / other / 1e6:.0f}"
        print(f"  {what} {rates}: {found[what]:.2f} x (bar: {BARS[what]})")
    print("ok    " if met else "MISSED", "size, encode and decode within the bars")
    return met


def verifying(state: list[torch.Tensor]) -> bool:
    """Whether reading back takes no more than the bar of the time of writing without it."""
    named = {str(i): tensor for i, tensor in enumerate(state)}

    def save(verify: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            encoding.save(named, folder, verify=verify)

    verified, written = medians(lambda: save(True), lambda: save(False), repeat=9)
    cost = verified / written - 1
    met = cost <= VERIFY_BAR
    print("ok    " if met else "MISSED", f"verify {cost:.0%} of encoding (bar: {VERIFY_BAR:.0%})")
    return met


if __name__ == "__main__":
    sys.exit(main())
