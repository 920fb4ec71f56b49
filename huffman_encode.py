#!/usr/bin/env python
"""Encode a model without loss: positions and shared values as Huffman codes.

    python huffman_encode.py saves/model_after_weight_sharing.ptmodel

Writes a file for each tensor, one for all small vectors of a kind, and a
manifest into the folder encodings/, which docs/format.md describes.
"""

import sys

if __name__ == "__main__":  # before anything is imported that takes time
    from net.pipeline import process

    process.start()

from argparse import Namespace
from collections.abc import Sequence

from net.pipeline import cli
from net.pipeline.fields import Parser


def parser() -> Parser:
    parser = Parser(__doc__)
    cli.add_source(parser)
    cli.add_folders(parser, output=False)
    cli.add_without_effect(parser)
    return parser


def body(args: Namespace) -> None:
    from net import checkpoint
    from net.pipeline import stages
    from net.report import tables
    from net.training.log import Log

    source = checkpoint.load(args.model, args.key)
    for note in source.notes:
        Log().note(note)
    encoded = stages.encode(source, args.directory)
    print(tables.encoding_text(encoded))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
