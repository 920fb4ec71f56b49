#!/usr/bin/env python
"""Error against size, and against the initial centroids: figures 6 and 8 of the paper.

    python benchmarks/tradeoff.py --data-dir data --plot docs/tradeoff.png --json tradeoff.json
    python benchmarks/tradeoff.py --quick

One dense model is pruned at several thresholds and retrained; it and the pruned ones are weight-
shared and fine-tuned.  Sizes without Huffman coding are what the paper counts (fixed-width values
and relative indexes, codebooks); with it, the bytes of the encoded folder.  Takes any option of
deep_compressing.py; --quick is a check on the digits that takes seconds and shows nothing.
"""

import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from net.pipeline import choosing, cli
from net.pipeline.fields import Parser, built
from net.pipeline.options import ReportOptions

DENSITIES = (0.3, 0.2, 0.12, 0.08, 0.05, 0.03, 0.02, 0.01)
BITS = (1, 2, 3, 4, 5, 6, 8)
BIAS_BITS = 4
INITS = ("linear", "density", "random")
# The paper trains without an L1 penalty; the schedule is shorter than that of the pipeline.
DEFAULTS = ["--l1", "0", "--teacher", "none"]
SHORT = ["--epochs", "20", "--retrain-epochs", "10", "--finetune-epochs", "1"]
QUICK = ["--dataset", "digits", "--epochs", "1", "--retrain-epochs", "1", "--finetune-epochs", "1"]


def parser() -> Parser:
    import deep_compressing

    parser = deep_compressing.parser()
    parser.description = __doc__
    parser.add_argument("--quick", action="store_true", help="few points, on the digits")
    return parser


def body(args) -> None:
    from net.report import plots, tables

    start, shown = time.perf_counter(), built(args, ReportOptions)
    if shown.plot:
        plots.require()
    with cli.runtime(args) as runtime:
        run = cli.new_run(args, runtime, args.output)
        points = ((0.3, 0.08), (2, 5)) if args.quick else (DENSITIES, BITS)
        figures = tradeoff(run, cli.chosen(args, run), *points)
    print(text(figures))
    seconds = time.perf_counter() - start
    print(f"{platform.processor() or platform.machine()}, {seconds:.0f} s")
    if shown.json:
        tables.write_json(shown.json, figures)
    if shown.plot:
        plots.save(tradeoff_page(figures), shown.plot)


def tradeoff(run, options, densities, bits) -> dict:
    """The points of both figures; the stages themselves say nothing of each."""
    from net.pipeline import stages
    from net.training.log import Log

    runtime = replace(run.runtime, log=Log(silent=True))
    pruning = choosing.schedules(options.pruning, run.dataset, runtime.device)
    sharing = choosing.schedules(options.sharing, run.dataset, runtime.device)
    dense = stages.train(run.arch, run.dataset, pruning.training(), runtime)
    pruned = []
    for density in progress("pruning", densities):
        changed = replace(pruning, sensitivity=sensitivity_of(dense, density), density=None)
        pruned.append(stages.prune(dense, run.dataset, changed, runtime))

    def share(source, **changed):
        changed = replace(sharing, bias_bits=BIAS_BITS, **changed)
        return stages.share(source, run.dataset, changed, runtime)[0]

    shared = [share(model, bits=5) for model in progress("sharing", pruned)]
    quantized = [(share(dense, bits=b), b) for b in progress("quantization", bits)]
    middle = pruned[densities.index(0.08)]  # the paper's density
    starts = {
        init: [start_point(share, middle, init, b) for b in bits]
        for init in progress("initialisation", INITS)
    }
    methods = {
        "pruning": [point(model, fixed_size(model)) for model in pruned],
        "quantization": [
            point(model, fixed_size(model, b, BIAS_BITS, sparse=False)) for model, b in quantized
        ],
        "pruning + quantization": [
            point(model, fixed_size(model, 5, BIAS_BITS)) for model in shared
        ],
        "pruning + quantization + Huffman": [point(model, size_on_disk(model)) for model in shared],
    }
    return {
        "dataset": run.dataset.name,
        "arch": run.arch,
        "original_bytes": sum(4 * tensor.numel() for tensor in dense.state_dict.values()),
        "dense_error_percent": dense.metrics["test_error_percent"],
        "methods": methods,
        "initialisations": starts,
    }


def sensitivity_of(dense, density: float) -> float:
    """The threshold in standard deviations of each layer that keeps `density` of all weights."""
    import torch

    from net.training.weights import kinds_of

    weights = (dense.state_dict[name] for name in kinds_of(dense))
    relative = torch.cat([(w.abs() / w.std(correction=0)).flatten() for w in weights])
    return relative.topk(round(density * len(relative))).values[-1].item()


def progress(what: str, items):
    for i, item in enumerate(items, 1):
        print(f"{what} {i}/{len(items)}", file=sys.stderr)
        yield item


def point(model, size: float) -> dict:
    nonzero = sum(int(tensor.count_nonzero()) for tensor in model.state_dict.values())
    error = model.metrics["test_error_percent"]
    return {"bytes": size, "error_percent": error, "nonzero": nonzero}


def start_point(share, source, init: str, bits: int) -> dict:
    clustered = share(source, init=init, bits=bits, finetune_epochs=0)
    tuned = share(source, init=init, bits=bits)
    return {
        "bits": bits,
        "clustered_error_percent": clustered.metrics["test_error_percent"],
        "error_percent": tuned.metrics["test_error_percent"],
    }


def fixed_size(model, weight_bits=None, bias_bits=None, sparse: bool = True) -> float:
    """Bytes without Huffman coding; None bits for 32-bit values."""
    from net.report.comparison import fixed_width_bytes

    size = 0
    for name, tensor in model.state_dict.items():
        bits = weight_bits if name.endswith("weight") else bias_bits
        codebook = min(2**bits, tensor.numel()) if bits else 0
        size += fixed_width_bytes(
            tensor, bits or 32, codebook, sparse=sparse and name.endswith("weight")
        )
    return size


def size_on_disk(model) -> int:
    from net import encoding

    with tempfile.TemporaryDirectory() as folder:
        encoding.save(model.state_dict, folder, {"arch": model.arch})
        return encoding.directory_bytes(folder)


def text(figures: dict) -> str:
    from net.report.tables import table

    original = figures["original_bytes"]
    rows = [
        [name, round(p["bytes"]), 100 * p["bytes"] / original, p["nonzero"], p["error_percent"]]
        for name, points in figures["methods"].items()
        for p in points
    ]
    head = ["method", "bytes", "% of dense", "non-zeros", "test error %"]
    starts = [
        [init, p["bits"], p["clustered_error_percent"], p["error_percent"]]
        for init, points in figures["initialisations"].items()
        for p in points
    ]
    start_head = ["initial centroids", "bits", "clustered error %", "fine-tuned error %"]
    name = f"{figures['arch']} on {figures['dataset']}"
    dense = f"{name}, dense: {figures['dense_error_percent']:.2f} % test error"
    return "\n\n".join([dense, table(head, rows), table(start_head, starts)])


def tradeoff_page(figures: dict):
    """Error against size for each method (the paper's figure 6); against bits for each
    initialisation of the shared values (figure 8)."""
    from net.report.plots import LAYER_COLOURS, bare, log_scale, new_figure

    figure = new_figure(5.0)
    figure.suptitle(f"{figures['arch']} on {figures['dataset']}", fontweight="bold")
    methods, starts = figure.subplots(1, 2)
    dense = figures["dense_error_percent"]
    for i, (name, points) in enumerate(figures["methods"].items()):
        sizes = [100 * point["bytes"] / figures["original_bytes"] for point in points]
        errors = [point["error_percent"] for point in points]
        methods.plot(sizes, errors, "o-", color=LAYER_COLOURS[i], markersize=4, label=name)
    log_scale(methods.xaxis, methods.set_xscale)
    methods.set_xlabel("size, percent of dense float32 (log scale)")
    methods.set_title("Error against size")
    for i, (name, points) in enumerate(figures["initialisations"].items()):
        bits = [point["bits"] + 0.08 * (i - 1) for point in points]  # side by side, not upon
        for key, style in (("error_percent", "o-"), ("clustered_error_percent", "o--")):
            errors = [point[key] for point in points]
            label = name + (", fine-tuned" if style == "o-" else ", clustered alone")
            starts.plot(bits, errors, style, color=LAYER_COLOURS[i], markersize=4, label=label)
    starts.set_xlabel("bits per weight")
    starts.set_title("Initial centroids of weight sharing")
    for axes in (methods, starts):
        best = min(min(line.get_ydata()) for line in axes.lines)
        # What lies beyond is of no use, and would squeeze the rest.
        top = max(best, dense) + 4
        axes.set_ylim(max(0, min(best, dense) - 0.3), top)
        axes.set_xlim(*reach(axes, top))
        axes.axhline(dense, color="0.6", linewidth=1, zorder=0, label="dense model")
        axes.set_ylabel("test error, percent")
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        bare(axes)
    return figure


def reach(axes, top: float) -> tuple[float, float]:
    """The ends of the x axis, with a margin, that show every point of the lines below `top`."""
    seen = [
        x
        for line in axes.lines
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        if y <= top
    ]
    transform = axes.xaxis.get_transform()
    low, high = transform.transform([min(seen), max(seen)])
    margin = 0.05 * (high - low) or 0.5
    return tuple(transform.inverted().transform([low - margin, high + margin]))


def main(argv=None) -> int:
    given = sys.argv[1:] if argv is None else argv
    # The user's options come last, so that they win over the defaults of this benchmark.
    return cli.run(parser(), body, [*DEFAULTS, *(QUICK if "--quick" in given else SHORT), *given])


if __name__ == "__main__":
    sys.exit(main())
