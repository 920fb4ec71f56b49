#!/usr/bin/env python
"""Compare the stages: error, non-zeros and bytes, beside the paper's figures.

python compare_stages.py
python compare_stages.py --json figures.json --plot figures.png
"""

import sys

if __name__ == "__main__":  # before anything is imported that takes time
    from net.pipeline import process

    process.start()

from argparse import Namespace
from collections.abc import Sequence

from net.pipeline import cli
from net.pipeline.fields import Parser, built
from net.pipeline.options import ReportOptions


def parser() -> Parser:
    parser = Parser(__doc__)
    cli.add_path(parser, "--path", "saves/", "the folder of the models")
    parser.add_argument(
        "--initial", metavar="FILE", help="the dense model, where it is not in that folder"
    )
    cli.add_folders(parser, output=False)
    parser.add_fields("comparison", ReportOptions)
    cli.add_common(parser, hide=["log"], seed=True)
    return parser


def body(args: Namespace) -> None:
    from net.errors import UserError
    from net.pipeline import runs
    from net.report import comparison, plots

    shown = built(args, ReportOptions)
    if shown.plot:
        plots.require()
    found = comparison.read(args.path, args.directory, args.initial, cli.MADE_BY)
    if not found.found:
        raise UserError(f"no stage is in {args.path}; run deep_compressing.py or pruning.py first")
    if found.encoded_bytes is None:
        found.missing.append(f"no encoded model in {args.directory}; run huffman_encode.py first")
    with cli.runtime(args) as runtime:
        dataset = None
        if found.reference.arch:
            options = cli.data_options(args, found.reference.dataset)
            dataset = runs.load_data(found.reference.arch, options, runtime)
        figures = comparison.compare(found, dataset, runtime.device, runtime.test_batch_size)
    if shown.latency:
        figures["latency"] = comparison.latency(found, dataset)
    comparison.show(figures, shown.json, shown.csv, shown.plot)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
