"""Sets of integers in binary interpolative code (Moffat and Stuiver 2000).

The middle member is coded among the values that it can have, then the members below it, then
those above it likewise: runs cost next to nothing, and no table is needed. One of c values takes
b = ceil(log2(c)) bits, the first 2**b - c of them one less.
"""

import numpy as np

from .. import codec
from .bits import BitReader, BitWriter


def write_set(writer: BitWriter, members: np.ndarray, largest: int) -> None:
    """Ascending distinct integers in [0, largest], below 2**64.

    The reader has to know how many there are.

    Example: [2, 3] of 0 to 3 -> 0b11, 0b11: the 3 is the last of 1 to 3, the 2 that of 0 to 2
    """
    values, widths = np.zeros(len(members), np.uint64), np.zeros(len(members), np.uint8)
    nothing = np.zeros(0, np.uint8)
    codec.kernels.code_set(
        members.astype(np.uint64), np.uint64(largest), nothing, 0, 0, values, widths
    )
    writer.write_fields(values, widths)


def read_set(reader: BitReader, count: int, largest: int) -> np.ndarray:
    """``count`` (<= largest + 1) members as uint64, written by ``write_set``."""
    members, nothing = np.zeros(count, np.uint64), np.zeros(0, np.uint64)
    arguments = reader.data, reader.position, reader.end, nothing, nothing.astype(np.uint8)
    reader.move(codec.kernels.code_set(members, np.uint64(largest), *arguments))
    return members
