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

from net.pipeline import arguments, cli


def parser() -> arguments.Parser:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "--path", default="saves/", metavar="DIR", help="the folder of the stages (default: saves/)"
    )
    parser.add_argument(
        "--initial", metavar="FILE", help="the dense model, where it is not in that folder"
    )
    arguments.add_directory(parser)
    arguments.add_comparison(parser)
    arguments.add_common(parser)
    return parser


def body(args: Namespace) -> None:
    from net.pipeline import runs
    from net.report import comparison, plots

    if args.plot:
        plots.require()
    found = comparison.read(args.path, args.directory, initial=args.initial)
    with cli.setting(args) as setting:
        dataset = None
        if found.reference.arch:
            options = cli.data_options(args, found.reference.dataset)
            dataset = runs.load_data(found.reference.arch, options, setting)
        figures = comparison.compare(found, dataset, setting.device, setting.test_batch_size)
    if args.latency:
        figures["latency"] = comparison.latency(found, dataset)
    comparison.show(figures, args.json, args.csv, args.plot)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
