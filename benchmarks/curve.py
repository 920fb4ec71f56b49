#!/usr/bin/env python
"""Error against bytes: the record of LeNet-5 at one density after the other.

    python benchmarks/curve.py --dataset mnist --plot docs/curve.png
    python benchmarks/curve.py --dataset mnist --densities 0.0095 --json curve.json
    python benchmarks/curve.py --quick

One dense model is pruned to each density, weight-shared and encoded; the bytes
are those of all files.  A point that --json FILE has already is not measured
again: several runs, or several processes, may fill one FILE.  Takes any option
of deep_compressing.py; --quick is a check on the digits, and shows nothing.
"""

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tradeoff import progress, size_on_disk

from net.pipeline import choosing, cli
from net.pipeline.fields import Parser, built, in_range
from net.pipeline.options import ReportOptions

DENSITIES = (0.0185, 0.0095, 0.0046)
QUICK = ["--dataset", "digits", "--arch", "lenet-300-100", "--share-parts", "1"]
QUICK += [f"--{phase}epochs=1" for phase in ("", "prune-", "retrain-", "finetune-")]
# What others report, {architecture: {source: [(bytes, error percent)]}}.
OTHERS = {"lenet-5": {"MIRACLE (Havasi et al. 2019)": [(3030, 0.69), (1520, 0.96)]}}


def parser() -> Parser:
    import deep_compressing

    parser = deep_compressing.parser()
    parser.description = __doc__
    parser.add_argument(
        "--densities",
        nargs="+",
        type=lambda text: in_range(text, float, 0, 1),
        default=DENSITIES,
        metavar="R",
        help="to prune to",
    )
    parser.add_argument("--quick", action="store_true", help="two points, on the digits")
    return parser


def body(args) -> None:
    from net.report import plots, tables

    shown = built(args, ReportOptions)
    if shown.plot:
        plots.require()
    with cli.runtime(args) as runtime:
        run = cli.new_run(args, runtime, args.output)
        found = earlier(shown.json)
        known = {(point["density"], point["seed"]) for point in found}
        options = cli.chosen(args, run)
        figures = figures_of(run.arch, run.dataset, found)
        wanted = [d for d in args.densities if (d, options.pruning.seed) not in known]
        for point in measured(run, options, wanted):
            found = sorted([*earlier(shown.json, found), point], key=lambda p: p["bytes"])
            figures = figures_of(run.arch, run.dataset, found)
            if shown.json:
                tables.write_json(shown.json, figures)
    print(text(found))
    if shown.plot:
        plots.save(page(figures), shown.plot)


def earlier(path: str | None, otherwise: list[dict] | None = None) -> list[dict]:
    """The points in the file, which another process may have written to, or else `otherwise`."""
    if path and Path(path).exists():
        return json.loads(Path(path).read_text())["points"]
    return otherwise or []


def measured(run, options, densities):
    """Yield the point of each density as it is found."""
    from net.pipeline import stages
    from net.report.comparison import parameters_of

    if not densities:
        return
    initial = run.initial(options.pruning.training())
    data, runtime = run.dataset, run.runtime
    pruning = choosing.schedules(options.pruning, data, runtime.device)
    sharing = choosing.without_auto(choosing.schedules(options.sharing, data, runtime.device))
    for density in progress("density", densities):
        changed = replace(pruning, density=density)
        pruned = stages.prune(initial, data, changed, runtime, run.targets(changed, initial))
        learn_from = run.targets(sharing, initial)
        shared, _ = stages.share(pruned, data, sharing, runtime, learn_from)
        yield {
            "density": density,
            "seed": options.pruning.seed,
            "dense_error_percent": initial.metrics["test_error_percent"],
            "error_percent": shared.metrics["test_error_percent"],
            "bytes": size_on_disk(shared),
            "original_bytes": 4 * sum(p.numel() for p in parameters_of(initial)),
        }


def figures_of(arch: str, dataset, points: list[dict]) -> dict:
    return {
        "arch": arch,
        "dataset": dataset.name,
        "points": points,
        "others": OTHERS.get(arch.partition("(")[0], {}),
    }


def text(points: list[dict]) -> str:
    from net.report.tables import table

    head = ["density %", "seed", "bytes", "ratio", "error %", "dense error %"]
    rows = [
        [
            *(100 * p["density"], p["seed"], p["bytes"], p["original_bytes"] / p["bytes"]),
            *(p["error_percent"], p["dense_error_percent"]),
        ]
        for p in points
    ]
    return table(head, rows)


def page(figures: dict):
    points = figures["points"]
    curve = [
        p | {"note": f"{p['original_bytes'] / p['bytes']:.0f}x", "error": p["error_percent"]}
        for p in points
    ]
    title = f"{figures['arch']} on {figures['dataset']}"
    dense = points[0]["dense_error_percent"]
    return curve_page(title, {"this suite": curve}, figures["others"], dense)


def curve_page(title: str, curves: dict, others: dict, dense: float | None = None):
    """Error against bytes of encoded models, {label: points}, beside what others report, {source:
    [(bytes, error percent)]}, and the error of a dense model.

    A point has `bytes`, `error`, a `note` and, if it is known, a `standard_error`."""
    from net.report.plots import LAYER_COLOURS, bare, log_scale, new_figure

    figure = new_figure(4.5)
    axes = figure.subplots()
    axes.set_title(title, fontweight="bold")
    colours = itertools.cycle(LAYER_COLOURS)
    for label, points in curves.items():
        places = [(p["bytes"], p["error"]) for p in points]
        axes.plot(*zip(*places, strict=True), "o-", color=(colour := next(colours)), label=label)
        for p, place in zip(points, places, strict=True):
            if "standard_error" in p:
                axes.errorbar(*place, p["standard_error"], color=colour)
            axes.annotate(p["note"], place, xytext=(4, 6), textcoords="offset points", color="0.4")
    for label, places in others.items():  # not of one curve
        axes.plot(*zip(*places, strict=True), "s", color=next(colours), label=label)
    if dense is not None:
        axes.axhline(dense, color="0.6", linewidth=1, zorder=0, label="dense model")
    axes.set_ylim(bottom=0)
    log_scale(axes.xaxis, axes.set_xscale)
    axes.set_xlabel("bytes of the encoded model (log scale)")
    axes.set_ylabel("test error, percent")
    axes.legend(frameon=False, fontsize="small")
    bare(axes)
    return figure


def main(argv=None) -> int:
    given = sys.argv[1:] if argv is None else argv
    first = ["--preset", "lenet-5"]
    if "--quick" in given:
        first += [*QUICK, "--densities", "0.1", "0.05"]
    return cli.run(parser(), body, [*first, *given])


if __name__ == "__main__":
    sys.exit(main())
