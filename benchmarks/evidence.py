#!/usr/bin/env python
"""Error against bytes on 10,000 images that the network has not seen, nor any part of the search.

    python benchmarks/evidence.py --arch resnet-20 --data-dir data --output evidence
    python benchmarks/evidence.py --arch resnet-20 --json evidence.json --plot evidence.png
    python benchmarks/evidence.py --arch benchmarks.networks:narrow_vgg16 --data-dir data --l1 0
    python benchmarks/evidence.py --quick

A network is trained on four of CIFAR-10's training batches, compressed by the presets `trained`
and `smallest` with the same images, and tested on the fifth batch: the test images are not
touched. Hours; a run of the same options that was killed goes on, and what is finished is not run
again. --quick is a check on the digits, and shows nothing.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from curve import curve_page

import deep_compressing
from net.report import plots
from net.report.tables import table, write_json
from net.training.datasets import RECORD

BATCHES, IMAGES = "cifar-10-batches-bin", 10_000
PRESETS = ("trained", "smallest")
# What others report of CIFAR-10, {source: [(bytes, error percent)]}, networks of their own.
OTHERS = {
    "LilNetX, VGG-16 (Girish et al. 2023)": [(129_000, 7.4), (76_000, 10.0)],
    "MIRACLE, VGG-16 (Havasi et al. 2019), corrected since": [(417_000, 6.57), (168_000, 10.0)],
    "a wide ResNet-20 (Oktay et al. 2020)": [(128_000, 8.8)],
    "a wide ResNet-20 (LilNetX)": [(66_000, 8.5)],
}


def divided(source: Path, target: Path) -> Path:
    """A folder as CIFAR-10's, of four of its training batches and the fifth for testing."""
    folder = target / BATCHES
    folder.mkdir(parents=True, exist_ok=True)
    files = [(source / BATCHES / f"data_batch_{i}.bin").read_bytes() for i in range(1, 6)]
    whole, size = b"".join(files[:4]), 4 * IMAGES // 5 * RECORD
    for i in range(5):
        (folder / f"data_batch_{i + 1}.bin").write_bytes(whole[i * size : (i + 1) * size])
    (folder / "test_batch.bin").write_bytes(files[4])
    return target


def measured(preset: str, common: list[str], output: Path, first: list[str]) -> dict:
    """What the preset comes to; run, unless its file is there."""
    found = output / f"{preset}.json"
    if not found.exists():
        own = output / preset
        argv = [*common, *first, "--preset", preset, "--resume", "--output", str(own / "saves")]
        argv += ["--directory", str(own / "encodings"), "--json", str(own / "stages.json")]
        begun = time.process_time()
        if code := deep_compressing.main(argv):
            sys.exit(code)
        figures = json.loads((own / "stages.json").read_text())
        figures |= {"command": argv, "processor_seconds": time.process_time() - begun}
        write_json(found, figures)
    return json.loads(found.read_text())


def points_of(results: dict[str, dict]) -> list[dict]:
    """The dense network, and what each preset makes of it."""
    points = []
    for preset, figures in results.items():
        errors = {each["stage"]: each["error_percent"] for each in figures["stages"]}
        dense = {"name": "dense", "bytes": figures["original_bytes"], "error": errors["initial"]}
        points += [] if points else [dense]
        size, seconds = figures["encoded_bytes"], figures["processor_seconds"]
        points.append(
            {"name": preset, "bytes": size, "error": errors["decoded"], "seconds": seconds}
        )
    return points


def standard_error(error: float, images: int) -> float:
    """Of an error in percent of so many images, in points."""
    return math.sqrt(error * (100 - error) / images)


def text(points: list[dict], images: int) -> str:
    head = ["", "bytes", "ratio", "error %", "+-", "processor minutes"]
    rows = [
        [p["name"], p["bytes"], points[0]["bytes"] / p["bytes"], p["error"]]
        + [standard_error(p["error"], images), p.get("seconds", 0) / 60 or None]
        for p in points
    ]
    return table(head, rows)


def page(networks: dict[str, dict]):
    """Error against bytes of all networks, with standard errors, beside what others report."""
    curves = {}
    for arch, network in networks.items():
        dense, *_ = points = network["points"]
        curves[f"{arch}: dense, {', '.join(p['name'] for p in points[1:])}"] = [
            p
            | {
                "note": f"{dense['bytes'] / p['bytes']:.0f}x" if p is not dense else "",
                "standard_error": standard_error(p["error"], network["images"]),
            }
            for p in points
        ]
    return curve_page("CIFAR-10: training images that the network has not seen", curves, OTHERS)


def added(file: Path | None, arch: str, network: dict) -> dict[str, dict]:
    """The networks in the file, and this one, which it has from here on."""
    before = json.loads(file.read_text()) if file and file.exists() else {}
    networks = before | {arch: network}
    if file:
        write_json(file, networks)
    return networks


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--arch", default="resnet-20", help="a network for CIFAR-10")
    found.add_argument("--data-dir", type=Path, default="data", help=f"where {BATCHES} is")
    found.add_argument("--output", type=Path, default="evidence", help="a folder for everything")
    found.add_argument("--epochs", type=int, default=30, help="of dense training")
    found.add_argument("--l1", type=float, help="of dense training, in place of its default")
    found.add_argument("--seed", type=int, default=42, help="of everything that is random")
    found.add_argument("--json", type=Path, metavar="FILE", help="the networks so far, this added")
    found.add_argument("--plot", metavar="PNG", help="draw error against bytes of all of them")
    found.add_argument("--quick", action="store_true", help="a check, on the digits")
    return found


def main(argv=None) -> int:
    args = parser().parse_args(argv)
    if args.plot:
        plots.require()
    common = ["--arch", args.arch, "--dataset", "cifar10", "--seed", str(args.seed)]
    first = ["--epochs", str(1 if args.quick else args.epochs)]
    first += [] if args.l1 is None else ["--l1", str(args.l1)]
    with tempfile.TemporaryDirectory() as temporary:
        if args.quick:
            args.output, args.arch, images = Path(temporary), "lenet-300-100", 360
            common = ["--arch", args.arch, "--dataset", "digits"]
            for phase in ("prune", "retrain", "finetune"):
                common += [f"--{phase}-epochs", "4"]
        else:
            images = IMAGES
            common += ["--data-dir", str(divided(args.data_dir, args.output / "data"))]
        results = {}
        for preset in PRESETS:
            results[preset] = measured(preset, common, args.output, first)
            dense = args.output / PRESETS[0] / "saves" / "initial_model.ptmodel"
            first = ["--weights", str(dense), "--epochs", "0"]
        points = points_of(results)
        print(text(points, images))
        network = {"images": images, "seed": args.seed, "points": points}
        networks = added(args.json, args.arch, network)
        if args.plot:
            plots.save(page(networks), args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
