#!/usr/bin/env python
"""The whole of Deep Compression: train, prune, share, encode, decode, compare.

    python deep_compressing.py
    python deep_compressing.py --dataset digits

What it does is in net/pipeline/deep_compressing.py: the command `deep-compression` of an installed
copy, which does not have this file, is the same function.
"""

import sys

if __name__ == "__main__":  # before anything is imported that takes time
    from net.pipeline import process

    process.start()


from net.pipeline.deep_compressing import main, parser

__all__ = ["main", "parser"]


if __name__ == "__main__":
    sys.exit(main())
