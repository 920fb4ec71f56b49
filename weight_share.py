#!/usr/bin/env python
"""Share the weights of a model: k-means per layer, then centroid fine-tuning.

    python weight_share.py saves/model_after_retraining.ptmodel
    python weight_share.py some_state_dict.pth

Writes saves/model_after_weight_sharing.ptmodel.  A state dict of somebody
else's is shared by rate, without training and without data; with --arch and
--dataset it is calibrated, and with --preset trained fine-tuned as well.
"""

import sys

if __name__ == "__main__":  # before anything is imported that takes time
    from net.pipeline import process

    process.start()

from argparse import Namespace
from collections.abc import Sequence

from net.pipeline import cli
from net.pipeline.fields import Parser, built
from net.pipeline.options import ModelOptions, SharingOptions
from net.pipeline.presets import defaults

OUTPUT = "saves/model_after_weight_sharing.ptmodel"


def parser() -> Parser:
    parser = Parser(__doc__)
    cli.add_source(parser)
    cli.add_preset(parser, "that of MODEL; of a state dict untrained")
    cli.add_path(parser, "--output", OUTPUT, "the model with shared values", metavar="FILE")
    rename = {"finetune_epochs": "epochs", "finetune_lr": "lr"}
    parser.add_fields("weight sharing", SharingOptions, rename=rename, defaults=defaults)
    cli.add_resume(parser)
    parser.add_fields("of a state dict that is no .ptmodel file", ModelOptions)
    cli.add_common(parser)
    return parser


def body(args: Namespace) -> None:
    from pathlib import Path

    from net import checkpoint
    from net.pipeline import runs
    from net.report import tables

    source, folder = checkpoint.load(args.model, args.key), Path(args.output).parent
    with cli.runtime(args, folder) as runtime:
        for note in source.notes:
            runtime.log.note(note)
        if source.arch is None and built(args, ModelOptions).arch is None:
            options = cli.chosen(args, recorded="untrained").sharing
            clusterings = runs.share_bare(source, options, args.output, runtime.log)
            runtime.log.note(
                "shared without data, so that nobody has seen what the model answers now: compare "
                "it with the original, or name --arch and --dataset"
            )
        else:
            cli.check_arch(args, source.arch, args.model)
            run = cli.new_run(args, runtime, folder, source.arch, source.dataset)
            run.folders.append(Path(args.model).parent)
            preset = source.options.get("preset") if source.arch else "untrained"
            options = cli.chosen(args, run, preset).sharing
            if source.arch is None:
                source = run.adopt(source, args.model)
            run.announce(options)
            _, clusterings = run.share(source, options, args.output, args.resume)
    print(tables.sharing_table(clusterings))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
