#!/usr/bin/env python
"""Train a network, prune its small weights, and retrain the survivors.

    python pruning.py
    python pruning.py --arch lenet-5 --sensitivity 0.7 --retrain-epochs 30
    python pruning.py --scan --plot scan.png

Writes OUTPUT/initial_model.ptmodel and OUTPUT/model_after_retraining.ptmodel.
With --scan only the former, unless it is there, and shows how much pruning each
layer bears.
"""

import sys

if __name__ == "__main__":  # before anything is imported that takes time
    from net.pipeline import process

    process.start()

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from net.pipeline import arguments, cli

if TYPE_CHECKING:
    from net.pipeline.options import PruningOptions
    from net.pipeline.runs import Run


def parser() -> arguments.Parser:
    parser = arguments.Parser(__doc__)
    arguments.add_preset(parser)
    arguments.add_output_folder(parser)
    arguments.add_training(parser)
    arguments.add_pruning(parser)
    arguments.add_budget(parser)
    arguments.add_scan(parser)
    arguments.add_log(parser)
    arguments.add_common(parser)
    return parser


def body(args: Namespace) -> None:
    from net.report import tables

    with cli.setting(args) as setting:
        run = cli.new_run(args, setting, args.output)
        options = cli.chosen(args, run).pruning
        if args.scan:
            show_scan(run, options, args)
            return
        retrained = run.prune(options, args.resume)
    print(tables.pruning_table(retrained.state_dict))


def show_scan(run: "Run", options: "PruningOptions", args: Namespace) -> None:
    from net.pipeline import scan
    from net.report import plots, tables

    if args.plot:
        plots.require()
    figures = scan.scan_initial(run, options.training(), args.scan_target)
    print(tables.scan_text(figures))
    if args.json:
        tables.write_json(args.json, figures)
    if args.plot:
        plots.save(plots.scan_page(figures), args.plot)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
