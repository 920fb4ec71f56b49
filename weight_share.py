#!/usr/bin/env python
"""Share the weights of a model: k-means per layer, then centroid fine-tuning.

    python weight_share.py saves/model_after_retraining.ptmodel
    python weight_share.py some_state_dict.pt --epochs 0 --bits auto

Writes saves/model_after_weight_sharing.ptmodel.
"""

import sys

if __name__ == "__main__":  # before anything is imported that takes time
    from net.pipeline import process

    process.start()

from argparse import Namespace
from collections.abc import Sequence

from net.pipeline import arguments, cli, sharing_arguments


def parser() -> arguments.Parser:
    parser = arguments.Parser(__doc__)
    parser.add_argument("model", metavar="MODEL", help="a .ptmodel file or a saved state dict")
    arguments.add_preset(parser)
    parser.add_argument(
        "--output",
        default="saves/model_after_weight_sharing.ptmodel",
        metavar="FILE",
        help="default: %(default)s",
    )
    sharing_arguments.add_sharing(parser, prefix="")
    arguments.add_budget(parser)
    arguments.add_training(parser)
    arguments.add_model(parser, default=None)
    arguments.add_log(parser)
    arguments.add_common(parser)
    return parser


def body(args: Namespace) -> None:
    from pathlib import Path

    from net import checkpoint
    from net.pipeline import runs
    from net.report import tables

    source = checkpoint.load(args.model)
    with cli.setting(args) as setting:
        if source.arch is None and args.arch is None:
            options = cli.chosen(args).sharing
            _, clusterings = runs.share_bare(source, options, args.output)
            setting.log.note(
                "shared without data, so that nobody has seen what the model answers now: compare "
                "it with the original, or name --arch and --dataset"
            )
        else:
            folder = Path(args.output).parent
            run = cli.new_run(args, setting, folder, source.arch, source.dataset)
            options = cli.chosen(args, run).sharing
            if source.arch is None:
                source = run.adopt(args.model)
            _, clusterings = run.share(source, options, args.output)
    print(tables.sharing_table(clusterings))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
