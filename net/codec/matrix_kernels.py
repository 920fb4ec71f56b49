"""The loops over the non-zeros of a matrix in blocks (positions.py), compiled.

As in kernels.py, plain functions of arrays and integers.
"""

import numpy as np

from .compiled import kernel


@kernel
def transpose(starts, columns, column_sums):
    """The same non-zeros column by column: where each begins, the rows, and the i of each.

    Row r has the columns[starts[r] : starts[r + 1]].

    Example: (0, 1), (0, 3), (1, 0) -> starts [0, 1, 2, 2, 3], rows [1, 0, 0], order [2, 0, 1]
    """
    begins = np.zeros(len(column_sums) + 1, np.int64)
    begins[1:] = np.cumsum(column_sums)
    at, rows, order = begins.copy(), np.empty_like(columns), np.empty(len(columns), np.uint32)
    for row in range(len(starts) - 1):
        for i in range(starts[row], starts[row + 1]):
            column = columns[i]
            rows[at[column]] = row
            order[at[column]] = i
            at[column] += 1
    return begins, rows, order


@kernel
def block_gaps(starts, columns, row_class, row_rank, column_class, column_rank, widths):
    """Sort the non-zeros into blocks, and note the gap before each in its block.

    Row r is number row_rank[r] of class row_class[r], from 1 on; columns likewise, widths[k] in
    class k. A block is a row class and a column class. Returns the sizes of the blocks, and block
    after block the gaps and the i of each non-zero.

    Example: one block of width 4, (0, 1), (0, 3), (1, 0) -> [3], gaps [1, 1, 0], order [0, 1, 2]
    """
    classes = len(widths) - 1
    sizes = np.zeros(row_class.max() * classes, np.int64)
    gaps, order = np.empty(len(columns), np.int64), np.empty(len(columns), np.uint32)
    for row in range(len(starts) - 1):
        first = (row_class[row] - 1) * classes - 1
        for i in range(starts[row], starts[row + 1]):
            sizes[first + column_class[columns[i]]] += 1
    at, last, begin = np.empty_like(sizes), np.empty_like(sizes), 0
    for block in range(len(sizes)):
        at[block], last[block] = begin, -1
        begin += sizes[block]
    for row in range(len(starts) - 1):
        first = (row_class[row] - 1) * classes - 1
        for i in range(starts[row], starts[row + 1]):
            kind = column_class[columns[i]]
            place = row_rank[row] * widths[kind] + column_rank[columns[i]]
            gaps[at[first + kind]] = place - last[first + kind] - 1
            order[at[first + kind]] = i
            last[first + kind] = place
            at[first + kind] += 1
    return sizes, gaps, order


@kernel
def places(gaps, last, rows, columns, row_step, column_step, out):
    """The flat positions of a block's non-zeros; False if one lies outside.

    ``last``: row and column, inside the block, of the non-zero before these, [0, -1] at first;
    moved on to the last of these.

    Example: gaps [1, 1, 0], rows [0, 2], columns [0, 1, 2, 3], steps 4, 1 -> [1, 3, 8]
    """
    row, column = last
    for i in range(len(gaps)):
        if gaps[i] >= len(rows) * len(columns):
            return False
        column += gaps[i] + 1
        while column >= len(columns):
            column -= len(columns)
            row += 1
        if row >= len(rows):
            return False
        out[i] = rows[row] * row_step + columns[column] * column_step
    last[0], last[1] = row, column
    return True
