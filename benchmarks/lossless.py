"""Dense tensors kept bit for bit, beside ZipNN: size, speed of encoding and of decoding.

    python benchmarks/lossless.py [--quick]
    python benchmarks/lossless.py --file model.safetensors

Weights of a normal distribution, as most trained ones have them, in float32 and in bfloat16. Both
sides map memory to memory, in one process, taking turns; megabytes of dense data a second, from
the median of 5. Ours works on whole tensors in threads and ZipNN on chunks, both with as many
threads as PyTorch: the state is several tensors. ZipNN (pip install zipnn, 0.5.4) is optional.
Then what it costs to read back what is written, as `encoding.save` does unless verify=False.

With --file a real one, as it is and with its floating-point tensors in bfloat16, beside whichever
of ZipNN, lmzip 1.3.0 and bigsmall 4.0.0 are installed: bytes, and megabytes a second of processor
time with one thread. From a file to a file and from there to tensors; lmzip decodes to a file, and
ZipNN, which has no files of its own, maps the bytes of the tensors from memory to memory.
"""

import argparse
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from timing import medians

from net import encoding, shards
from net.codec.bits import BitReader
from net.codec.tensors import read_tensor, write_tensor
from net.tensors import info_of

BARS = {"size": 1.01, "encode": 0.5, "decode": 0.25}  # of ZipNN's
VERIFY_BAR = 0.4  # of the time of encoding


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small tensors: seconds")
    parser.add_argument("--file", metavar="SAFETENSORS", help="a real one, with one thread")
    arguments = parser.parse_args(argv)
    if arguments.file:
        torch.set_num_threads(1)
    threads = torch.get_num_threads()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, Python "
        f"{platform.python_version()}, PyTorch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    if arguments.file:
        with tempfile.TemporaryDirectory() as folder:
            for dtype in (None, torch.bfloat16):
                of_file(arguments.file, dtype, Path(folder))
        return 0
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


Codec = tuple[Callable[[], object], Callable[[], object], Callable[[], int]]  # encode, decode, size


def of_file(path: str, dtype: torch.dtype | None, folder: Path) -> None:
    """Prints a line for every codec: one real file, its floating-point tensors as `dtype`."""
    source = shards.Shards(Path(path))
    state = {name: source[name] for name in source}
    if dtype:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    kind = str(dtype or "as it is").removeprefix("torch.")
    given = folder / f"{kind}.safetensors"
    shards.write(given, {k: info_of(state, k) for k in state}, state.values())
    dense = sum(tensor.nbytes for tensor in state.values())
    print(f"{path}, {kind}: {dense:,} bytes of tensors; MB/s of processor time, encode / decode")

    target = folder / f"{kind}.dc"

    def save(verify: bool) -> None:
        encoding.save(shards.Shards(given), target, verify=verify)

    def written() -> int:
        return target.stat().st_size

    codecs: dict[str, Codec] = {
        "ours": (lambda: save(False), lambda: encoding.load(target), written),
        **{name: make(given) for name, make in PEERS.items() if importlib.util.find_spec(name)},
    }
    works = [work for encode, decode, _ in codecs.values() for work in (encode, decode)]
    taken = iter(medians(*works, repeat=3, clock=processor_seconds))
    for name, (_, _, size) in codecs.items():
        rates = " / ".join(f"{dense / next(taken) / 1e6:.0f}" for _ in range(2))
        print(f"  {name:8} {size():>12,} bytes, {rates}")
    decoded = encoding.load(target)[0]
    assert all(torch.equal(decoded[name], tensor) for name, tensor in state.items())
    times = medians(lambda: save(True), lambda: save(False), repeat=3, clock=processor_seconds)
    print(f"  ours, verified: {times[0] / times[1]:.2f} x the time of encoding")


def zipnn_codec(given: Path) -> Codec:
    from zipnn import ZipNN

    state = shards.Shards(given)
    tensors = [state[name] for name in state]
    kind = str(max(tensors, key=torch.Tensor.numel).dtype).removeprefix("torch.")
    raw = b"".join(each.reshape(-1).view(torch.uint8).numpy().tobytes() for each in tensors)
    codec = ZipNN(input_format="byte", bytearray_dtype=kind, threads=1)
    packed = bytes(codec.compress(bytearray(raw)))  # a copy: it reorders what it is given
    assert bytes(codec.decompress(packed)) == raw
    return (
        lambda: codec.compress(bytearray(raw)),
        lambda: codec.decompress(packed),
        lambda: len(packed),
    )


def lmzip_codec(given: Path) -> Codec:
    from lmz import api

    packed, back = given.with_suffix(".lmz"), given.with_suffix(".back")
    return (
        lambda: api.compress(str(given), str(packed), workers=1),
        lambda: api.decompress(str(packed), str(back), workers=1, overwrite=True),
        lambda: packed.stat().st_size,
    )


def bigsmall_codec(given: Path) -> Codec:
    import bigsmall

    packed = given.with_suffix(".bs")
    return (
        lambda: bigsmall.compress(given, packed, workers=1, progress=False),
        lambda: bigsmall.decompress(packed, progress=False),
        lambda: packed.stat().st_size,
    )


PEERS = {"zipnn": zipnn_codec, "lmz": lmzip_codec, "bigsmall": bigsmall_codec}


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    sys.exit(main())
