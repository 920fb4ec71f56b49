#!/usr/bin/env python
"""Seconds, peak memory and on-disk ratio of AlexNet and VGG-16 through all stages but training.

    python benchmarks/large_models.py
    python benchmarks/large_models.py --models alexnet
    python benchmarks/large_models.py --quick              # a small model, no bars

torchvision's networks with random weights, pruned by magnitude to the densities of the paper's
tables 4 and 5, shared at 8 bits (convolutions) and 5 bits (fully connected), encoded, decoded, and
compared bit for bit.  Accuracy is no part of it, since the weights are random.

The weights are normal, times a log-normal scale of each input and of each output unit, since units
of trained networks differ: at the default deviation of 0.5 a 2048 x 2048 layer of fc6's density
takes 3.4 bits per index and 4.1 per weight, close to the paper's 3.2 and 3.9 for AlexNet's fc6.
--spread 0 makes all weights alike, the worst case for any code of the positions.
"""

import argparse
import contextlib
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from net import encoding, parameters
from net.report.tables import table
from net.shared_tensor import SharedTensor
from net.training import architectures

# Densities after pruning in percent (tables 4 and 5 of the paper), layer by layer, and what
# table 1 gives for the whole.
DENSITIES = {
    "alexnet": [84, 38, 35, 37, 37, 9, 9, 25],
    "vgg16": [58, 22, 34, 36, 53, 24, 42, 32, 27, 34, 35, 29, 36, 4, 4, 23],
    "lenet-300-100": [8, 9, 26],
}
PAPER_RATIO = {"alexnet": 35, "vgg16": 49}
BARS = {"alexnet": 40, "vgg16": 100}  # seconds for all stages, on 2 cores
CODEC_BARS = {"alexnet": 1.5, "vgg16": 3.5}  # seconds to encode and decode
DENSE_BAR = 4.0  # seconds to encode VGG-16 as it is
BITS = {"conv": 8, "linear": 5}


class Stages:
    """Times each stage and notes the most memory that the process held during it."""

    def __init__(self):
        self.rows, self.taken, self.peak = [], [], 0

    def __call__(self, name, work):
        reset_peak()
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        self.rows.append([name, f"{seconds:.1f} s", f"{peak_bytes() / 1e6:,.0f} MB"])
        self.taken.append(seconds)
        self.peak = max(self.peak, peak_bytes())
        return result

    @property
    def seconds(self):
        return sum(self.taken)


def reset_peak() -> None:
    """Let Linux count the peak anew; elsewhere peaks are since the start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@torch.no_grad()
def draw(weights: list[torch.Tensor], spread: float) -> None:
    """Random weights; `spread` is the deviation of the logarithms of the units' scales."""
    for weight in weights:
        weight.normal_(0, 0.01)
        for dim in (0, 1):  # output units, input units
            shape = [1] * weight.dim()
            shape[dim] = weight.shape[dim]
            weight.mul_(torch.randn(shape).mul_(spread).exp_())


def prune(state: dict, kinds: dict[str, str], densities: list[float]) -> None:
    """Keep the largest magnitudes of every layer's weight, in place."""
    for name, percent in zip(kinds, densities, strict=True):
        weight = state[name]
        magnitude = weight.abs().flatten().numpy()
        dropped = round((1 - percent / 100) * weight.numel())
        magnitude.partition(dropped)
        threshold = float(magnitude[dropped])
        del magnitude  # as large as the weight
        weight.masked_fill_(weight.abs() < threshold, 0.0)


def share(state: dict, kinds: dict[str, str]) -> None:
    for name, kind in kinds.items():
        SharedTensor.clustered(state[name], BITS[kind]).write(state[name])


def same_bits(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(tensor.view(torch.int32), b[name].view(torch.int32))
        for name, tensor in a.items()
    )


def drawn(arch: str, spread: float) -> tuple[dict, dict[str, str]]:
    """A state dict of random weights, and the kind of every one that is compressed."""
    torch.manual_seed(0)
    state = {name: t.detach() for name, t in architectures.build(arch).state_dict().items()}
    names = parameters.compressible(state)
    draw([state[name] for name in names], spread)
    return state, {name: "conv" if state[name].dim() == 4 else "linear" for name in names}


def measure(arch: str, spread: float) -> bool:
    state, kinds = drawn(arch, spread)
    dense = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    stages = Stages()
    with tempfile.TemporaryDirectory() as folder:
        encoding.save({"warm.up": torch.randn(99, 99).relu()}, folder)  # compiles what is missing
        stages("prune", lambda: prune(state, kinds, DENSITIES[arch]))
        stages("share", lambda: share(state, kinds))
        encoded = stages("encode", lambda: encoding.save(state, folder))
        decoded = stages("decode", lambda: encoding.load(folder)[0])
    coding = sum(stages.taken[-2:])
    equal = stages("compare", lambda: same_bits(state, decoded))
    decoded = None
    ratio, limit = dense / encoded, 2 * dense + 1e9
    stages.rows.append(["all", f"{stages.seconds:.1f} s", f"{stages.peak / 1e6:,.0f} MB"])
    print(f"\n{arch}: {dense:,} bytes dense, {encoded:,} encoded")
    print(table(["stage", "seconds", "peak memory"], stages.rows))
    verdicts = [(equal, "decoded equals weight-shared, bit for bit")]
    if arch in BARS:
        time_limit, codec_limit = BARS[arch], CODEC_BARS[arch]
        verdicts += [
            (ratio >= PAPER_RATIO[arch], f"ratio {ratio:.1f}x (paper: {PAPER_RATIO[arch]}x)"),
            (coding <= codec_limit, f"encode and decode {coding:.2f} s (bar: {codec_limit} s)"),
            (stages.seconds <= time_limit, f"{stages.seconds:.0f} s (bar: {time_limit} s)"),
            (stages.peak <= limit, f"{stages.peak / 1e6:,.0f} MB (bar: {limit / 1e6:,.0f} MB)"),
        ]
    without = Stages()
    without("encode", lambda: save_afresh(state, verify=False))
    print(f"encode without verifying: {without.seconds:.2f} s")
    del state
    state, _ = drawn(arch, spread)
    whole = Stages()
    raw = whole("encode", lambda: save_afresh(state))
    whole("encode, not verified", lambda: save_afresh(state, verify=False))
    print(f"\n{arch} as it is: {dense:,} bytes dense, {raw:,} encoded")
    print(table(["stage", "seconds", "peak memory"], whole.rows))
    if arch == "vgg16":
        seconds = whole.taken[0]
        verdicts.append((seconds <= DENSE_BAR, f"as it is {seconds:.1f} s (bar: {DENSE_BAR} s)"))
    for passed, text in verdicts:
        print("ok    " if passed else "MISSED", text)
    return all(passed for passed, _ in verdicts)


def warm_up() -> float:
    """Seconds of a first encoding and decoding of a sparse and of a dense tensor."""
    start = time.perf_counter()
    weight = torch.randn(400, 500)
    sparse = weight.masked_fill(weight.abs() < 1.5, 0.0)
    SharedTensor.clustered(sparse, 5).write(sparse)
    with tempfile.TemporaryDirectory() as folder:
        encoding.save({"dense": weight, "sparse": sparse}, folder)
        encoding.load(folder)
    return time.perf_counter() - start


def save_afresh(state: dict, verify: bool = True) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return encoding.save(state, folder, verify=verify)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=tuple(BARS), default=tuple(BARS))
    parser.add_argument("--quick", action="store_true", help="LeNet-300-100 alone: seconds")
    parser.add_argument("--spread", type=float, default=0.5, help="default: 0.5")
    args = parser.parse_args(argv)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.platform()}")
    print("random weights: accuracy is not part of this")
    print(f"loading the compiled loops, once in a process: {warm_up():.1f} s, not counted below")
    models = ["lenet-300-100"] if args.quick else args.models
    passed = [measure(arch, args.spread) for arch in models]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
