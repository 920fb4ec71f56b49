#!/usr/bin/env python
"""Decode what huffman_encode.py wrote: the same model again, bit for bit.

    python huffman_decode.py

Writes saves/model_after_decoding.ptmodel; with --output FILE.safetensors tensor
by tensor, for a model larger than memory.
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
    cli.add_folders(parser, output=False)
    cli.add_path(
        parser,
        "--output",
        "saves/model_after_decoding.ptmodel",
        "a .ptmodel or a .safetensors file",
        "FILE",
    )
    cli.add_without_effect(parser)
    return parser


def body(args: Namespace) -> None:
    from net import shards
    from net.errors import printable
    from net.pipeline import runs, stages

    by_tensor = args.output.endswith(shards.SUFFIX)
    decoded = stages.open_encoded(args.directory) if by_tensor else stages.decode(args.directory)
    size = runs.write_model(args.output, decoded)
    count = len(decoded.state_dict)
    print(printable(f"{count} tensors decoded into {args.output} ({size:,} bytes)"))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
