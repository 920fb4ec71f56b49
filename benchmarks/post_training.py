#!/usr/bin/env python
"""Bytes against divergence of trained networks that are shared without training.

    python benchmarks/post_training.py resnet20.th resnet56.th --data-dir data \
        --plot docs/post_training.png --json post_training.json --nncodec PYTHON
    python benchmarks/post_training.py --quick

The published ResNets for CIFAR-10 (github akamaster/pytorch_resnet_cifar10) at several noises,
without data and calibrated on the first 1,000 training images.  Divergence: the mean Kullback-
Leibler divergence of the outputs from the dense model's on the first 1,000 test images of
DATA_DIR/cifar-10-batches-bin or -py; bytes: all files of the encoding.  nncodec (ISO/IEC 15938-17;
`pip install nncodec` into an environment whose interpreter --nncodec names) codes the same ones.
Without it the points measured before are shown.  --quick: random weights and inputs, no files.
"""

import argparse
import copy
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

import net
from net.choose import divergence
from net.training import architectures, datasets, weights
from net.training.loop import error_percent

NOISES = (0.25, 0.35, 0.5, 0.7, 1.0)
IMAGES = 1000
BATCH = 125
COLOURS = ("#117733", "#332288", "#CC6677")
METHODS = {"without data": False, "calibrated": True}
# nncodec 2.1.3, (bytes, divergence) by rising quantization parameter
MEASURED = {
    "resnet-20": (
        *((242657, 0.0002), (208012, 0.0008), (193488, 0.0016), (173602, 0.0028)),
        *((159933, 0.0057), (141398, 0.0152), (128829, 0.0255), (111709, 0.0432)),
        (100026, 0.1094),
    ),
    "resnet-56": (
        *((680045, 0.0003), (525921, 0.0016), (424289, 0.0091), (331265, 0.0292)),
        (243861, 0.0814),
    ),
}
QPS = (-38, -34, -32, -30, -28, -26, -24, -22, -20)
# Run by the other interpreter: reads arrays, writes what comes back and prints how many bytes.
NNCODEC = """
import sys
import numpy as np
from nncodec import nn
given = dict(np.load(sys.argv[1]))
for qp in map(int, sys.argv[3:]):
    data = nn.encode(given, {"qp": qp, "results": sys.argv[2], "verbose": False})
    np.savez(f"{sys.argv[2]}/{qp}.npz", **nn.decode(data))
    print("bytes", len(data))
"""


class Point(NamedTuple):
    noise: float | None  # or quantization parameter; None where it was not recorded
    bytes: int
    divergence: float
    error_percent: float | None
    seconds: float | None


class Subject(NamedTuple):
    """A trained network and what it is measured on."""

    name: str
    file: str | None
    model: nn.Module
    calibration: list[torch.Tensor]
    inputs: torch.Tensor
    classes: torch.Tensor

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> torch.Tensor:
        return torch.cat([model(part) for part in self.inputs.split(BATCH)])

    def point(self, noise: float, size: int, model: nn.Module, seconds: float) -> Point:
        found = self.outputs(model)
        moved = divergence(found, self.outputs(self.model))
        return Point(noise, size, moved, error_percent(found, self.classes), seconds)


def published(file: str, data_dir: str) -> Subject:
    depth = 56 if "56" in Path(file).name else 20
    name = f"resnet-{depth}"
    model = architectures.build(name)
    weights.start_from(file, model, name)
    data = datasets.load("cifar10", data_dir, "cpu", architectures.input_of(name))
    calibration = [inputs for inputs, _ in data.train[:IMAGES].batches(BATCH)]
    inputs, classes = next(iter(data.test[:IMAGES].batches(IMAGES)))
    return Subject(name, file, model.eval(), calibration, inputs, classes)


def random_weights(images: int) -> Subject:
    torch.manual_seed(0)
    model = architectures.build("resnet-20").eval()
    inputs = torch.randn(2 * images, 3, 32, 32)
    classes = torch.randint(10, (images,))
    return Subject("resnet-20", None, model, [inputs[:images]], inputs[images:], classes)


def ours(subject: Subject, noise: float, calibrated: bool) -> Point:
    model = copy.deepcopy(subject.model)
    start = time.perf_counter()
    calibration = subject.calibration if calibrated else None
    net.WeightSharing(model, bits="auto", noise=noise, calibration=calibration, final=True)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        net.encoding.save(model.state_dict(), folder)
        size = net.encoding.directory_bytes(folder)
    return subject.point(noise, size, model, seconds)


def nncodec(subject: Subject, python: str) -> list[Point]:
    state = subject.model.state_dict()
    given = {name: each.numpy() for name, each in state.items() if each.is_floating_point()}
    points = []
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/given.npz", **given)
        command = [python, "-c", NNCODEC, f"{folder}/given.npz", folder, *map(str, QPS)]
        start = time.perf_counter()
        result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
        seconds = (time.perf_counter() - start) / len(QPS)
        lines = [line.split() for line in result.stdout.splitlines()]
        sizes = [int(line[1]) for line in lines if line[:1] == ["bytes"]]
        for qp, size in zip(QPS, sizes, strict=True):
            model = copy.deepcopy(subject.model)
            with np.load(f"{folder}/{qp}.npz") as decoded:
                found = {k: torch.from_numpy(decoded[k]).view_as(state[k]) for k in given}
            model.load_state_dict({**state, **found})
            points.append(subject.point(qp, size, model, seconds))
    return points


def bytes_at(curve: list[Point], divergence: float) -> float | None:
    """Interpolated in both logarithms; None outside of the curve."""
    ordered = sorted((math.log(max(p.divergence, 1e-9)), math.log(p.bytes)) for p in curve)
    at = math.log(max(divergence, 1e-9))
    if not ordered or not ordered[0][0] <= at <= ordered[-1][0]:
        return None
    return math.exp(np.interp(at, *zip(*ordered, strict=True)))


def measure(subject: Subject, noises: tuple[float, ...], python: str | None) -> dict:
    methods = {}
    for method, calibrated in METHODS.items():
        methods[method] = [ours(subject, noise, calibrated) for noise in noises]
        print(f"{subject.name}, {method}: measured", file=sys.stderr)
    if python:
        methods["nncodec"] = nncodec(subject, python)
    elif subject.file:
        known = MEASURED[subject.name]
        methods["nncodec"] = [Point(None, *each, None, None) for each in known]
    dense = 4 * sum(each.numel() for each in subject.model.parameters())
    return {"model": subject.name, "dense_bytes": dense, "methods": methods}


def text(figures: dict) -> str:
    from net.report.tables import table

    rival = figures["methods"].get("nncodec", [])
    head = ["noise", "bytes", "ratio", "divergence", "error %", "of nncodec's bytes", "seconds"]
    parts = []
    for method, points in figures["methods"].items():
        rows = []
        for p in points:
            least = bytes_at(rival, p.divergence)
            relative = f"{p.bytes / least:.3f}" if least else "-"
            ratio = figures["dense_bytes"] / p.bytes
            row = [p.noise, p.bytes, f"{ratio:.2f}x", f"{p.divergence:.4f}", p.error_percent]
            rows.append([*row, relative, p.seconds])
        parts.append(f"{figures['model']}, {method}\n{table(head, rows)}")
    return "\n\n".join(parts)


def plot(found: list[dict], path: str) -> None:
    """One panel for each network: bytes against divergence, both in logarithms."""
    from net.report import plots

    figure = plots.new_figure(4.4)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, figures in zip(panels, found, strict=True):
        for (method, points), colour in zip(figures["methods"].items(), COLOURS, strict=False):
            x = [figures["dense_bytes"] / p.bytes for p in points]
            y = [p.divergence for p in points]
            axes.plot(x, y, "o-", color=colour, markersize=4, label=method)
        axes.set_yscale("log")
        axes.set_ylim(1e-3, 0.15)
        axes.set_title(figures["model"])
        axes.set_xlabel("compression ratio (dense float32 over bytes on disk)")
        axes.set_ylabel("KL divergence from the dense outputs")
        axes.legend(frameon=False, loc="lower right")
        plots.bare(axes)
    plots.save(figure, path)


def main(argv: list[str] | None = None) -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("models", nargs="*", help="files of the published ResNets")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--nncodec", metavar="PYTHON", help="interpreter that has nncodec")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="one point, without files: seconds")
    args = parser.parse_args(argv)
    if args.quick:
        subjects, noises = [random_weights(8)], NOISES[-1:]
    elif args.models:
        subjects, noises = [published(file, args.data_dir) for file in args.models], NOISES
    else:
        parser.error("give the files of the ResNets, or --quick")
    start = time.perf_counter()
    found = [measure(subject, noises, args.nncodec) for subject in subjects]
    print("\n\n".join(map(text, found)))
    seconds = time.perf_counter() - start
    print(f"\n{platform.processor() or platform.machine()}, {seconds:.0f} s")
    if args.json:
        plain = [
            {**each, "methods": {k: [p._asdict() for p in v] for k, v in each["methods"].items()}}
            for each in found
        ]
        Path(args.json).write_text(json.dumps(plain, indent=1) + "\n")
    if args.plot:
        plot(found, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
