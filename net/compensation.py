"""Rounding a matrix to a grid so that its errors cancel in the outputs, and so that it codes short.

A layer's outputs change by E X, with the errors E of its weights and the inputs X: the squared
error is tr(E H E^T), H = X X^T. Inputs are correlated, so an error can be made up for by the
weights of the same output that are still to be rounded. With the upper Cholesky factor U of H^-1,
rounding w_j to q adds ((w_j - q) / U_jj)**2, after the best correction of the weights k > j,
w_k -= (w_j - q) / U_jj * U_jk (optimal brain surgeon in a fixed order: Frantar et al. 2023, GPTQ).
Among the nearest values and zero that value is taken which is cheapest with its code word:
((w_j - q) / U_jj)**2 + price of q (entropy-constrained, as in Chou, Lookabaugh and Gray 1989).

With a trellis (dependent quantization, net.codec.adaptive), the values that a weight may take
follow from those above it in its column. Viterbi's algorithm finds the cheapest way down a strip
of rows, column by column, so that errors are made up for as exactly as without.

The loops are compiled by numba: import this where it is needed.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from .codec.adaptive import NEXT, STRIP
from .codec.compiled import helper, kernel

# What is known of inputs without seeing any, in units of their variance: neighbours under a
# convolution's kernel are alike, and inputs have a mean in common (they come out of a ReLU, or
# are brightnesses). Flat optima: correlations from 0.6 to 0.9, means from 0.3 to 1 differ by 3 %.
NEIGHBOURS, COMMON = 0.7, 0.5
# What a bit may cost, in units of step**2 times the average sensitivity: less than half of what is
# optimal at high rates (ln 2 / 6), where it buys little: rounding further makes noise less white.
BIT = 0.05
UNUSED = 0.1  # occurrences that a value without any is priced as
PASSES = 2  # on a sample, after each of which the code words are those of its values


@helper
def _choose(w: float, weight: float, step: float, levels: np.ndarray, price: np.ndarray) -> int:
    """Label in [0, 2 m] minimising weight * (w - level)**2 + price: nearest two, and zero (m)."""
    m = (levels.size - 1) // 2
    near = min(max(int(np.rint(w / step)), -m), m)
    best, least = m, weight * w * w + price[m]
    inner = near - 1 if near > 0 else near + 1
    outer = near + 1 if w > levels[near + m] else near - 1
    for q in (near, inner, outer):
        if -m <= q <= m:
            cost = weight * (w - levels[q + m]) ** 2 + price[q + m]
            if cost < least:
                best, least = q + m, cost
    return best


@helper
def _cheapest(
    size: float,
    sign: int,
    first: int,
    w: float,
    weight: float,
    levels: np.ndarray,
    price: np.ndarray,
) -> tuple[int, float]:
    """(label, cost) of the best of the multiples sign * (first + 4 i) of the step, i >= 0: the two
    nearest to `w`, which is sign * size steps."""
    m = (levels.size - 1) // 2
    inner = first + 4 * max(int(np.floor((min(size, m) - first) / 4)), 0)
    best, least = m, np.inf
    for multiple in (inner, inner + 4):
        if multiple <= m:
            q = m + sign * multiple
            cost = weight * (w - levels[q]) ** 2 + price[q]
            if cost < least:
                best, least = q, cost
    return best, least


@helper
def _walk(
    w: np.ndarray,
    weight: np.ndarray,
    step: float,
    levels: np.ndarray,
    price: np.ndarray,
    back: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Round a column of a strip, w [rows], by the cheapest way through the trellis (Viterbi).

    `weight` [rows]: of the squared error of each. `back` [rows, 4, 2]: room for the best label and
    the state before it, of every state. A label of -1 is pruned, and becomes that of zero.
    """
    rows, m = w.size, (levels.size - 1) // 2
    costs, after = np.empty(4), np.empty(4)
    label, cost = np.empty((2, 2), np.int64), np.empty((2, 2))  # [quantizer, parity]
    costs[:] = np.inf
    costs[0] = 0.0
    for r in range(rows):
        if labels[r] < 0:
            label[:], cost[:, 0], cost[:, 1] = m, 0.0, np.inf
        else:
            sign, size = (-1 if w[r] < 0 else 1), abs(w[r]) / step
            for quantizer in range(2):
                each = price[quantizer]
                for parity in range(2):
                    first = 2 * parity if quantizer == 0 else 3 - 2 * parity
                    found = _cheapest(size, sign, first, w[r], weight[r], levels, each)
                    label[quantizer, parity], cost[quantizer, parity] = found
                zero = weight[r] * w[r] ** 2 + each[m]
                if zero < cost[quantizer, 0]:
                    label[quantizer, 0], cost[quantizer, 0] = m, zero
        after[:] = np.inf
        for state in range(4):
            for parity in range(2):
                then = NEXT[state, parity]
                whole = costs[state] + cost[state >> 1, parity]
                if whole < after[then]:
                    after[then] = whole
                    back[r, then, 0], back[r, then, 1] = label[state >> 1, parity], state
        for other in range(4):  # costs[:] = after takes two seconds to compile: the words of errors
            costs[other] = after[other]
    state = 0
    for other in range(1, 4):  # np.argmin takes a quarter of a second to compile
        if costs[other] < costs[state]:
            state = other
    for r in range(rows - 1, -1, -1):
        labels[r], state = back[r, state, 0], back[r, state, 1]


@helper
def _round_column(
    w: np.ndarray,
    weight: np.ndarray,
    step: float,
    levels: np.ndarray,
    price: np.ndarray,
    back: np.ndarray,
    labels: np.ndarray,
) -> None:
    """As `_walk`, or with one row of `price`, each weight by itself."""
    if len(price) > 1:
        _walk(w, weight, step, levels, price, back, labels)
    else:
        for r in range(w.size):
            q = levels.size // 2
            if labels[r] >= 0:
                q = _choose(w[r], weight[r], step, levels, price[0])
            labels[r] = q


@kernel
def feed_errors(
    weights: np.ndarray,
    factors: np.ndarray,
    feedback: np.ndarray,
    step: float,
    levels: np.ndarray,
    price: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Round `weights` [rows, blocks, k] block by block, with H = I ⊗ S + c 1 1^T (`prior`).

    Of the blocks that are done, only the sum of the errors matters to the others: a constant
    amount of work per weight, whatever the number of blocks. `price` [1 or 2, labels]: of each
    value; 2 for the two quantizers of the trellis.
    """
    rows, blocks, k = weights.shape
    back = np.empty((STRIP, 4, 2), np.int64)
    w, column, weight = np.empty((STRIP, k)), np.empty(STRIP), np.empty(STRIP)
    chosen, total = np.empty(STRIP, np.int64), np.empty(STRIP)
    for first in range(0, rows, STRIP):
        height = min(STRIP, rows - first)
        total[:] = 0.0  # errors of each row so far
        for b in range(blocks):
            for r in range(height):
                for i in range(k):
                    w[r, i] = weights[first + r, b, i] + feedback[b, i] * total[r]
            for i in range(k):
                d = factors[b, i, i]
                for r in range(height):
                    # Pruned weights stay so.
                    chosen[r] = 0 if weights[first + r, b, i] != 0 else -1
                    column[r], weight[r] = w[r, i], 1 / (d * d)
                _round_column(column[:height], weight, step, levels, price, back, chosen[:height])
                for r in range(height):
                    labels[first + r, b, i] = chosen[r]
                    value = levels[chosen[r]]
                    error = (w[r, i] - value) / d
                    for j in range(i + 1, k):
                        w[r, j] -= error * factors[b, i, j]
                    total[r] += weights[first + r, b, i] - value


@kernel
def compensate(
    weights: np.ndarray,
    factors: np.ndarray,
    group: np.ndarray,
    step: float,
    levels: np.ndarray,
    price: np.ndarray,
    labels: np.ndarray,
) -> float:
    """Round `weights` [rows, columns], which it changes, from the first column to the last.

    `factors` [groups, columns, columns]: the upper Cholesky factors of the inverses of H, that of
    row r being number group[r]. A label of -1 says that the weight is pruned, and stays so.
    `price` as in `feed_errors`. Returns tr(E H E^T).
    """
    rows, columns = weights.shape
    back = np.empty((STRIP, 4, 2), np.int64)
    column, weight, chosen = np.empty(STRIP), np.empty(STRIP), np.empty(STRIP, np.int64)
    loss = 0.0
    for first in range(0, rows, STRIP):
        height = min(STRIP, rows - first)
        for j in range(columns):
            for r in range(height):
                d = factors[group[first + r], j, j]
                column[r], weight[r] = weights[first + r, j], 1 / (d * d)
                chosen[r] = labels[first + r, j]
            _round_column(column[:height], weight, step, levels, price, back, chosen[:height])
            for r in range(height):
                factor, w = factors[group[first + r]], weights[first + r]
                labels[first + r, j] = chosen[r]
                error = (w[j] - levels[chosen[r]]) / factor[j, j]
                loss += error * error
                for k in range(j + 1, columns):
                    w[k] -= error * factor[j, k]
    return loss


@kernel
def count(labels: np.ndarray, quantizers: int, size: int) -> np.ndarray:
    """How often each of `size` labels [rows, columns] occurs with each quantizer, float64."""
    rows, columns = labels.shape
    counts = np.zeros((quantizers, size))
    for first in range(0, rows, STRIP):
        for j in range(columns):
            state = 0
            for r in range(first, min(first + STRIP, rows)):
                quantizer = state >> 1 if quantizers > 1 else 0
                counts[quantizer, labels[r, j]] += 1
                k = (abs(labels[r, j] - size // 2) + quantizer) // 2
                state = NEXT[state, k & 1]
    return counts


@functools.lru_cache(maxsize=8)
def prior(blocks: int, kernel: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(factors [blocks, k, k], feedback [blocks, k]) of H = I ⊗ S + COMMON 1 1^T for `feed_errors`.

    A block is the k = prod(kernel) weights of one input channel; S is the correlation
    NEIGHBOURS**distance. With n blocks to come, the sum t of the errors so far and in this block
    costs g t**2, g = c / (1 + c n 1^T S^-1 1), once those have been corrected for it.
    """
    s: np.ndarray = np.ones((1, 1))
    for extent in kernel:
        place = np.arange(extent)
        s = np.kron(s, NEIGHBOURS ** np.abs(place[:, None] - place))
    to_come = np.arange(blocks - 1, -1, -1)
    g = COMMON / (1 + COMMON * to_come * np.linalg.inv(s).sum())
    inverse = np.linalg.inv(s + g[:, None, None])
    factors = np.linalg.cholesky(inverse).transpose(0, 2, 1)
    return np.ascontiguousarray(factors), g[:, None] * inverse.sum(axis=2)


def prices(counts: np.ndarray, bit: float) -> np.ndarray:
    """What each label costs if its share of `counts` [..., labels] is its code word's length."""
    counts = np.maximum(counts, UNUSED)
    return bit * np.log2(counts.sum(axis=-1, keepdims=True) / counts)


def settled_prices(
    sample: np.ndarray,
    factors: np.ndarray,
    step: float,
    levels: np.ndarray,
    rounded: Callable[[np.ndarray, np.ndarray], np.ndarray],
    quantizers: int,
) -> np.ndarray:
    """The prices [quantizers, labels] of `levels` when code words follow what is chosen, and
    choices the code words.

    `rounded`(sample, price) gives the labels of `sample`, part of what is to be rounded, as
    [rows, ...]; `factors` [..., k, k] are those of H, whose diagonals say how sensitive weights
    are. 2 `quantizers`: those of the trellis, whose values lie two steps apart.
    """
    apart = quantizers * step
    bit = BIT * apart**2 * float(np.mean(np.diagonal(factors, axis1=-2, axis2=-1) ** -2.0))
    middle = levels.size // 2
    near = np.rint(sample.ravel() / apart).astype(np.int64)
    counts = np.empty((quantizers, levels.size))
    for quantizer in range(quantizers):
        multiples = near * quantizers - quantizer * np.sign(near)
        labels = np.clip(multiples, -middle, middle) + middle
        counts[quantizer] = np.bincount(labels, minlength=levels.size)
    for _ in range(PASSES):
        labels = rounded(sample, prices(counts, bit))
        counts = count(labels.reshape(len(labels), -1), quantizers, levels.size)
    return prices(counts, bit)
