#!/usr/bin/env python
"""Train a network, prune its small weights, and retrain the survivors.

    python pruning.py
    python pruning.py --arch lenet-5 --sensitivity 0.7 --retrain-epochs 30
    python pruning.py --scan --plot scan.png

Writes OUTPUT/initial_model.ptmodel and OUTPUT/model_after_retraining.ptmodel.
With --scan only the former, unless it is there by the same options, and shows
how much pruning each layer bears.
"""

import sys

if __name__ == "__main__":  # before anything is imported that takes time
    from net.pipeline import process

    process.start()

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from net.pipeline import cli
from net.pipeline.deep_compressing import add_pruning
from net.pipeline.fields import Parser, in_range
from net.pipeline.options import file_name, picture_name

if TYPE_CHECKING:
    from net.pipeline.options import PruningOptions
    from net.pipeline.runs import Run


def parser() -> Parser:
    parser = Parser(__doc__)
    cli.add_preset(parser)
    cli.add_folders(parser, directory=False)
    add_pruning(parser)
    add_scan(parser)
    cli.add_common(parser)
    return parser


def add_scan(parser: Parser) -> None:
    group = parser.add_argument_group("sensitivity scan")
    group.add_argument(
        "--scan",
        action="store_true",
        help="prune nothing; show the held-out error of the dense model with each layer pruned "
        "alone, and the densities per layer that suit --scan-target",
    )
    group.add_argument(
        "--scan-target",
        type=lambda text: in_range(text, float, 0, 1),
        default=0.05,
        metavar="R",
        help="fraction of all weights to keep (default: 0.05)",
    )
    group.add_argument("--json", type=file_name, metavar="FILE", help="write the scan as JSON")
    group.add_argument(
        "--plot", type=picture_name, metavar="FILE", help="draw it (.png, .svg or .pdf)"
    )


def body(args: Namespace) -> None:
    from net.report import tables

    with cli.runtime(args, args.output) as runtime:
        run = cli.new_run(args, runtime, args.output)
        options = cli.chosen(args, run).pruning
        if args.scan:
            show_scan(run, options, args)
            return
        for name in ("json", "plot"):
            if getattr(args, name):
                cli.no_effect(f"--{name}", "without --scan")
        run.announce(options)
        retrained = run.prune(options, args.resume)
    print(tables.pruning_table(retrained.state_dict))


def show_scan(run: "Run", options: "PruningOptions", args: Namespace) -> None:
    from net.files import check_output
    from net.pipeline import scan
    from net.report import plots, tables

    for file in (args.json, args.plot):  # before any training
        if file:
            check_output(file)
    if args.plot:
        plots.require()
    if args.resume:
        run.runtime.log.note("--resume has no effect with --scan, whose training begins anew")
    run.check(options)
    figures = scan.scan_initial(run, options, args.scan_target)
    print(tables.scan_text(figures))
    if args.json:
        tables.write_json(args.json, figures)
    if args.plot:
        plots.save(plots.scan_page(figures), args.plot)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
