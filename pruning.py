#!/usr/bin/env python
"""Train a network, prune its small weights, and retrain the survivors.

    python pruning.py
    python pruning.py --arch lenet-300-100 --sensitivity 0.7 --epochs 25 --retrain-epochs 30

Writes OUTPUT/initial_model.ptmodel and OUTPUT/model_after_retraining.ptmodel.
"""

import sys

from net import cli


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    cli.add_preset(parser)
    cli.add_output_folder(parser)
    cli.add_training(parser)
    cli.add_pruning(parser)
    cli.add_log(parser)
    cli.add_common(parser)
    return parser


def body(args) -> None:
    from net import report, stages

    with stages.open_log(args) as log:
        dataset = stages.load_data(args)
        retrained = stages.run_pruning(args, log, dataset)
        print(report.pruning_table(retrained.state_dict))


def main(argv=None) -> int:
    return cli.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
