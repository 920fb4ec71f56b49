"""Tensors as bit strings: everything below ``net.encoding`` and ``net.huffman``."""

import importlib
from typing import Any

LANES = 8  # pieces of a long stream, which are decoded at the same time (codes.py, kernels.py)
BLOCK, LONGEST = 1 << 12, 12  # values in a block, bits of the code word of a head (heads.py)


def __getattr__(name: str) -> Any:
    """The compiled loops, imported when they are first used: numba takes half a second to load."""
    if name in ("adaptive", "kernels"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
