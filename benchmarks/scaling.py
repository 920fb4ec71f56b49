#!/usr/bin/env python
"""Seconds, memory and bytes over the network of what several processes do, by their number.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --parameters 1.1e9 --processes 1 2
    python benchmarks/scaling.py --quick                     # a small model, 1 and 2 processes

Compression of a folder (net.shardwise): a decoder of random bfloat16 weights in eight files, by
processes of gloo with one thread each. Processor time is of the process that took the most, and
tells more than seconds on a machine with other work; a step is one exchange of all processes, of
which there are five. The files must be the same bytes every time.
"""

import argparse
import json
import math
import multiprocessing
import os
import pickle
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from safetensors.torch import save_file
from torch import distributed

import net
from net.report.tables import table

FILES = 8
LAYER = 12  # times width**2 parameters


def make(folder: Path, parameters: float) -> int:
    """A decoder of about so many parameters; how many they are."""
    torch.manual_seed(0)
    layers = max(FILES, min(24, round(parameters / 4e7)))
    width = 8 * round(math.sqrt(parameters / layers / LAYER) / 8)
    shapes = {"q": (1, 1), "k": (1, 1), "v": (1, 1), "o": (1, 1), "up": (4, 1), "down": (1, 4)}
    places, total = {}, 0
    for number, own in enumerate(torch.arange(layers).tensor_split(FILES), 1):
        file = f"model-{number:05}-of-{FILES:05}.safetensors"
        state = {}
        for layer in own.tolist():
            for name, (height, length) in shapes.items():
                weight = torch.randn(height * width, length * width) * 0.02
                state[f"layers.{layer}.{name}_proj.weight"] = weight.bfloat16()
            state[f"layers.{layer}.norm.weight"] = torch.ones(width).bfloat16()
        total += sum(tensor.numel() for tensor in state.values())
        save_file(state, folder / file, {"format": "pt"})
        places |= dict.fromkeys(state, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return total


def one_of(rank: int, count: int, folder: str, results) -> None:
    """Compress with the others, and tell what it took."""
    torch.set_num_threads(1)
    if count > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting-{count}", rank=rank, world_size=count
        )
    gather, sent = distributed.all_gather_object, []

    def counted(everything, own, group=None) -> None:
        sent.append(len(pickle.dumps(own)) * (count - 1))  # to each of the others
        gather(everything, own, group)

    distributed.all_gather_object = counted
    start, used = time.perf_counter(), time.process_time()
    net.compress(f"{folder}/model", f"{folder}/by-{count}", noise=0.2)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put((seconds, used, peak if sys.platform == "darwin" else 1024 * peak, sent))
    if count > 1:
        distributed.destroy_process_group()


def measure(folder: Path, count: int) -> list:
    """[seconds, processor time of one, peak memory of one, bytes over the network in all]."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=one_of, args=(rank, count, str(folder), results))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(f"a process has ended with {process.exitcode}")
    seconds, used, peak, sent = zip(*(results.get() for _ in processes), strict=True)
    return [max(seconds), max(used), max(peak), [sum(step) for step in zip(*sent, strict=True)]]


def digest(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=float, default=1e8, help="default: 1e8")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    if args.quick:
        args.parameters, args.processes = 1e6, [1, 2]
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.platform()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        total = make(folder / "model", args.parameters)
        print(f"compression of {total:,} bfloat16 parameters in {FILES} files")
        rows, same = [], True
        for count in args.processes:
            seconds, used, peak, sent = measure(folder, count)
            steps = ", ".join(f"{step:,}" for step in sent) or "none"
            row = [f"{seconds:.1f}", f"{used:.1f}", f"{peak / 1e6:,.0f}", steps]
            rows.append([str(count), *row])
            same &= digest(folder / f"by-{count}") == digest(folder / f"by-{args.processes[0]}")
    heads = ["processes", "seconds", "processor time", "MB of one", "bytes sent, by step"]
    print(table(heads, rows))
    print("ok     the same bytes every time" if same else "MISSED the bytes differ")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
