"""Rounding a matrix to a grid so that its errors cancel in the outputs, and so that it codes short.

A layer's outputs change by E X, with the errors E of its weights and the inputs X: the squared
error is tr(E H E^T), H = X X^T. Inputs are correlated, so an error can be made up for by the
weights of the same output that are still to be rounded. With the upper Cholesky factor U of H^-1,
rounding w_j to q adds ((w_j - q) / U_jj)**2, after the best correction of the weights k > j,
w_k -= (w_j - q) / U_jj * U_jk (optimal brain surgeon in a fixed order: Frantar et al. 2023, GPTQ).
Among the nearest values and zero that value is taken which is cheapest with its code word:
((w_j - q) / U_jj)**2 + price of q (entropy-constrained, as in Chou, Lookabaugh and Gray 1989).

The loops are compiled by numba: import this where it is needed.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

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
    amount of work per weight, whatever the number of blocks.
    """
    rows, blocks, k = weights.shape
    w = np.empty(k)
    for r in range(rows):
        total = 0.0  # errors of this row so far
        for b in range(blocks):
            for i in range(k):
                w[i] = weights[r, b, i] + feedback[b, i] * total
            for i in range(k):
                d = factors[b, i, i]
                q = levels.size // 2
                if weights[r, b, i] != 0:  # pruned weights stay so
                    q = _choose(w[i], 1 / (d * d), step, levels, price)
                labels[r, b, i] = q
                error = (w[i] - levels[q]) / d
                for j in range(i + 1, k):
                    w[j] -= error * factors[b, i, j]
                total += weights[r, b, i] - levels[q]


@kernel
def compensate(
    weights: np.ndarray,
    factor: np.ndarray,
    step: float,
    levels: np.ndarray,
    price: np.ndarray,
    labels: np.ndarray,
) -> float:
    """Round `weights` [rows, columns], which it changes, from the first column to the last.

    `factor` [columns, columns]: the upper Cholesky factor of the inverse of H. A label of -1 says
    that the weight is pruned, and stays so. Returns tr(E H E^T).
    """
    rows, columns = weights.shape
    loss = 0.0
    for r in range(rows):
        w = weights[r]
        for j in range(columns):
            d = factor[j, j]
            q = levels.size // 2
            if labels[r, j] >= 0:
                q = _choose(w[j], 1 / (d * d), step, levels, price)
            labels[r, j] = q
            error = (w[j] - levels[q]) / d
            loss += error * error
            for k in range(j + 1, columns):
                w[k] -= error * factor[j, k]
    return loss


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
    """What each label costs, float64[k], if its share of `counts` is its code word's length."""
    counts = np.maximum(counts, UNUSED)
    return bit * np.log2(counts.sum() / counts)


def settled_prices(
    sample: np.ndarray,
    factors: np.ndarray,
    step: float,
    levels: np.ndarray,
    rounded: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """The prices of `levels` when code words follow what is chosen, and choices the code words.

    `rounded`(sample, price) gives the labels of `sample`, part of what is to be rounded;
    `factors` [..., k, k] are those of H, whose diagonals say how sensitive weights are.
    """
    bit = BIT * step**2 * float(np.mean(np.diagonal(factors, axis1=-2, axis2=-1) ** -2.0))
    middle = levels.size // 2
    labels = np.clip(np.rint(sample / step).astype(np.int64), -middle, middle) + middle
    for _ in range(PASSES):
        price = prices(np.bincount(labels.ravel(), minlength=levels.size), bit)
        labels = rounded(sample, price)
    return prices(np.bincount(labels.ravel(), minlength=levels.size), bit)
