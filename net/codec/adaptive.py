"""An adaptive arithmetic coder of the levels of a matrix, and the trellis that these may follow.

The weights of a layer are alike in size along its rows and its columns, and under a kernel in sign
as well. So each level is coded in binary decisions (is it zero, is it negative, is it beyond 1, 2,
...) with probabilities that were learned where the same was to be expected (Marpe, Schwarz and
Wiegand 2003, CABAC), by a range coder (Martin 1979). docs/format.md, section "Levels", has every
step. All of it is in integers: every processor decodes the same.

Dependent quantization (trellis-coded: Joshi, Crump and Fischer 1995; Haase et al. 2020): a machine
of four states walks down the rows of a column. In the states 0 and 1 a level is 2 k, in 2 and 3 it
is 2 k - sign(k): the levels that one state admits lie two apart, those of all together one. The
parity of k says which state is next, so that a decoder follows without being told.

The loops are compiled by numba: import this where it is needed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .compiled import helper, kernel

STRIP = 128  # rows, whose columns are coded one after the other
NEXT = np.array([[0, 2], [2, 0], [1, 3], [3, 1]])  # [state, parity of k]

# The constants below were chosen on the levels of five networks that no figure is reported of (two
# face detectors, a small ResNet and a small GPT-2 of our own, a recurrent speaker encoder); halving
# or doubling any of them changes the bytes by less than 0.3 %.
UNIT = 256  # sizes are in units of 1 / UNIT
CLASSES = 64  # of expected sizes, two in an octave
DEPTH = 14  # decisions "beyond 0" to "beyond 13"; what is larger has an Exp-Golomb code
FINE = 21  # class from which on low bits are stored as they are, one more with every octave; for
# the trellis, where k is half of a level, an octave before
START, LIMIT = 8, 400  # uses that a probability counts for at first, and at most
SURE = 3072  # of 2**22: no probability comes nearer to 0 or 1
ROW, COLUMN, ALL = 4, 5, 8  # the mean sizes move by 1 / 2**this
FEW = 8  # levels, of which chance may make all multiples of four
MAX_BITS = 24  # of an Exp-Golomb code, behind its leading one
MAX_LEVEL = 1 << 17

HALF = np.uint64(1 << 15)  # of 2**16
RENORM, SPAN = np.uint64(1 << 32), np.uint64(0xFFFFFFFFFFFFFFFF)
U1, U8, U16, U32 = np.uint64(1), np.uint64(8), np.uint64(16), np.uint64(32)
RATES = np.array([5 * 65536 // (5 * n + 8) for n in range(LIMIT + 1)])  # by uses: 1 / (n + 1.6)
LOGS = np.array([0, *((v**16).bit_length() - 1 for v in range(1, 1 << 12))])  # 16 log2(v)
SIZES = np.array([int(2 ** ((c + 0.5) / 2)) for c in range(CLASSES)])  # in the middle of a class


def initial(trellis: bool) -> np.ndarray:
    """What is known of the decisions at first: uint32 [class, quantizer, agreement, DEPTH], flat.

    The upper 22 bits are a probability, the lower 10 how often it was used. Sizes are those of a
    geometric distribution; on the trellis k is half of the level.
    """
    size = SIZES >> 1 if trellis else SIZES
    least = [UNIT * 2 // 3] + [UNIT] * (DEPTH - 1)
    likely = np.stack([(size << 22) // (size + each) for each in least], axis=1)
    likely = likely.clip(1 << 16, (1 << 22) - (1 << 16)) << 10 | START
    return np.repeat(likely[:, None], 6, axis=1).astype(np.uint32).ravel()


@helper
def log_of(size: Any) -> Any:
    """16 log2(size), rounded down, 0 of 0; from 4096 on the last 4, 8, ... bits are left out."""
    octaves = 0
    while size >= len(LOGS):
        size, octaves = size >> 4, octaves + 4
    return LOGS[size] + 16 * octaves


@helper
def put(low: Any, span: Any, at: int, out: np.ndarray, probability: Any, bit: Any) -> Any:
    """Code a bit that is 1 with `probability` / 2**16; bytes beyond `out` are only counted."""
    bound = (span >> U16) * probability
    if bit:
        span = bound
    else:
        low += bound
        span -= bound
        if low < bound and at <= len(out):
            carry(out, at)
    if span < RENORM:
        if at + 4 <= len(out):
            for i in range(4):
                out[at + i] = low >> np.uint64(56 - 8 * i)
        low, span, at = low << U32, span << U32, at + 4
    return low, span, at


@helper
def carry(out: np.ndarray, at: int) -> None:
    """Add 1 to the number in the bytes before `at`."""
    at -= 1
    while out[at] == 255:
        out[at] = 0
        at -= 1
    out[at] += 1


@helper
def get(low: Any, span: Any, at: int, data: np.ndarray, probability: Any) -> Any:
    """The bit that `put` was given. `low` is how far the data lie above the coder's."""
    bound = (span >> U16) * probability
    bit = low < bound
    if bit:
        span = bound
    else:
        low -= bound
        span -= bound
    if span < RENORM:
        low, span = low << U32 | word(data, at, 4), span << U32
        at += 4
    return bit, low, span, at


@helper
def word(data: np.ndarray, at: int, size: int) -> Any:
    """The next bytes as a number, with zeros behind the end."""
    found = np.uint64(0)
    for i in range(at, at + size):
        found = found << U8 | np.uint64(data[i] if i < len(data) else 0)
    return found


@helper
def finish(low: Any, span: Any, at: int, out: np.ndarray) -> int:
    """Write the fewest bytes that, with zeros behind them, are in the interval; returns how many
    there are in all, or -1 if `out` has no room."""
    if at + 8 > len(out):
        return -1
    code = low
    for zeros in range(63, -1, -1):  # at its end
        mask = (U1 << np.uint64(zeros)) - U1
        code = (low + mask) & ~mask
        if code - low < span:
            break
    if code < low:
        carry(out, at)
    for i in range(8):
        out[at + i] = code >> np.uint64(56 - 8 * i)
    at += 8
    while at > 0 and out[at - 1] == 0:
        at -= 1
    return at


@helper
def used(entry: Any, bit: Any) -> Any:
    """A probability after one more use."""
    times, probability = np.int64(entry & np.uint32(1023)), np.int64(entry >> np.uint32(10))
    aim = (1 << 22) - SURE if bit else SURE
    probability += ((aim - probability) * RATES[times]) >> 16
    return np.uint32(probability << 10 | min(times + 1, LIMIT))


@kernel
def code_levels(
    levels: np.ndarray,
    shape: Sequence[int],
    steps: Sequence[int],
    window: Sequence[int],
    trellis: bool,
    tables: np.ndarray,
    data: np.ndarray,
    out: np.ndarray,
) -> int:
    """Write levels int32 [n] to `out`, or read them from `data`, which is empty for writing.

    The level in row r and column c of a matrix of `shape` is number r * steps[0] + c * steps[1].
    `window`: height and width of the kernel in whose order the columns are. `tables`: as of
    `initial`, used up. Returns the bytes; -1 if `out` has no room, or nothing can be in `data`.

    One model for both directions. That each bit is put or taken in place, not in a helper which
    chooses, is for speed: with one it takes twice the time.
    """
    rows, columns = shape
    height, width = window
    decoding = len(data) > 0
    end = len(data) + 8 if decoding else len(out)
    low, span, at = np.uint64(0), SPAN, 0
    if decoding:
        low, at = word(data, 0, 8), 8
    signs = np.full(7, 1 << 31 | START, np.uint32)
    row_sizes = np.empty(STRIP, np.int64)
    column_sizes = np.full(columns, UNIT, np.int64)
    mean = np.int64(UNIT)
    fine = FINE - 2 if trellis else FINE
    for first in range(0, rows, STRIP):
        row_sizes[:] = mean
        for c in range(columns):
            if at > end:
                return -1
            state = 0
            column_size = column_sizes[c - 1 if first == 0 and c > 0 else c]
            beside, above = c % width > 0, c // width % height > 0
            for r in range(min(STRIP, rows - first)):
                place = (first + r) * steps[0] + c * steps[1]

                # What is to be expected: a size, and from its neighbours in the kernel a sign.
                log_size = log_of(row_sizes[r]) + log_of(column_size)
                near = near_size = np.int64(0)
                if beside or above:
                    if beside:
                        near = np.int64(levels[place - steps[1]])
                        near_size = abs(near)
                    if above:
                        other = np.int64(levels[place - width * steps[1]])
                        near, near_size = near + other, near_size + abs(other)
                    if beside and above:
                        near_size >>= 1
                    log_size = (3 * log_size + 2 * log_of(near_size * UNIT + UNIT // 2)) >> 2
                size_class = min(log_size >> 4, CLASSES - 1)
                raw = max(0, (size_class - fine) >> 1)
                pull = abs(near) * 3 << 8 if beside and above else abs(near) << 10
                expected = SIZES[size_class]
                sure = int(pull > expected) + int(pull > 3 * expected) + int(pull > 5 * expected)
                quantizer = state >> 1

                k: Any = np.int64(0)
                negative: Any = False
                if not decoding:
                    level = np.int64(levels[place])
                    k, negative = abs(level), level < 0
                    if trellis:
                        k = (k + quantizer) >> 1
                top = ((k - 1) >> raw) + 1 if k > 0 else 0
                tables_of = (size_class * 2 + quantizer) * 3 * DEPTH
                table = tables_of + min(sure, 2) * DEPTH
                beyond = 0
                while beyond < DEPTH:
                    bit, p = top > beyond, np.uint64(tables[table + beyond] >> np.uint32(16))
                    if decoding:
                        bit, low, span, at = get(low, span, at, data, p)
                    else:
                        low, span, at = put(low, span, at, out, p, bit)
                    tables[table + beyond] = used(tables[table + beyond], bit)
                    if not bit:
                        break
                    beyond += 1
                    if beyond == 1:
                        sign = sure + 3 if sure > 0 and near < 0 else sure
                        p = np.uint64(signs[sign] >> np.uint32(16))
                        if decoding:
                            negative, low, span, at = get(low, span, at, data, p)
                        else:
                            low, span, at = put(low, span, at, out, p, negative)
                        signs[sign] = used(signs[sign], negative)
                        agreement = 0 if sure == 0 else 1 if negative == (near < 0) else 2
                        table = tables_of + agreement * DEPTH
                if beyond == DEPTH:
                    rest, bits = top - DEPTH + 1, 0
                    while True:
                        bit = rest >> (bits + 1) > 0
                        if decoding:
                            bit, low, span, at = get(low, span, at, data, HALF)
                        else:
                            low, span, at = put(low, span, at, out, HALF, bit)
                        if not bit:
                            break
                        bits += 1
                        if bits > MAX_BITS:
                            return -1
                    whole = 1
                    for i in range(bits - 1, -1, -1):
                        bit = rest >> i & 1 > 0
                        if decoding:
                            bit, low, span, at = get(low, span, at, data, HALF)
                        else:
                            low, span, at = put(low, span, at, out, HALF, bit)
                        whole = whole << 1 | int(bit)
                    beyond = whole + DEPTH - 1
                found: Any = np.int64(beyond)
                if beyond > 0:
                    found -= 1
                    for i in range(raw - 1, -1, -1):
                        bit = (k - 1) >> i & 1 > 0
                        if decoding:
                            bit, low, span, at = get(low, span, at, data, HALF)
                        else:
                            low, span, at = put(low, span, at, out, HALF, bit)
                        found = found << 1 | int(bit)
                    found += 1
                k = found
                magnitude = 2 * k - quantizer if trellis and k > 0 else k
                if magnitude > MAX_LEVEL:
                    return -1
                if decoding:
                    levels[place] = -magnitude if negative else magnitude
                if trellis:
                    state = NEXT[state, k & 1]
                size = magnitude * UNIT
                column_size += (size - column_size) >> COLUMN
                row_sizes[r] += (size - row_sizes[r]) >> ROW
                mean += (size - mean) >> ALL
            column_sizes[c] = column_size
    return at if decoding else finish(low, span, at, out)


@kernel
def walks(levels: np.ndarray, shape: Sequence[int], steps: Sequence[int]) -> bool:
    """Whether the levels of a matrix, laid out as for `code_levels`, follow the trellis, and leave
    its first state at all."""
    rows, columns = shape
    left = False
    for first in range(0, rows, STRIP):
        for c in range(columns):
            state = 0
            for r in range(first, min(first + STRIP, rows)):
                level = levels[r * steps[0] + c * steps[1]]
                quantizer = state >> 1
                if level != 0 and level & 1 != quantizer:
                    return False
                left |= state != 0
                state = NEXT[state, (abs(level) + quantizer) >> 1 & 1]
    return left


@kernel
def row_shifts(levels: np.ndarray, usual: int, shifts: np.ndarray) -> bool:
    """Whether int32 `levels` [rows, columns] follow the trellis, those of each row divided by two
    to the power of its `shifts` int64 [rows], which are found.

    The first row of a strip has even levels only, others hardly ever; of FEW levels that are not
    zero it is open, and tried first, whether they have the shift `usual`, or with -1 that of the
    row above.
    """
    rows, columns = levels.shape
    states = np.zeros(columns, np.int64)
    guess = max(usual, 0)
    for r in range(rows):
        if r % STRIP == 0:
            states[:] = 0
        bits = live = most = 0
        for c in range(columns):
            bits |= abs(levels[r, c])
            live += levels[r, c] != 0
        while bits and not bits >> most & 1:
            most += 1
        found = guess
        fits = live == 0
        for attempt in range(-1 if live < FEW else 0, most + 1):
            if not fits:
                found = guess if attempt < 0 else most - attempt
                fits = found <= most
                for c in range(columns):
                    level = abs(levels[r, c]) >> found
                    fits &= level == 0 or level & 1 == states[c] >> 1
        if not fits:
            return False
        for c in range(columns):
            k = ((abs(levels[r, c]) >> found) + (states[c] >> 1)) >> 1
            states[c] = NEXT[states[c], k & 1]
        shifts[r] = found
        if usual < 0:
            guess = found
    return True
