"""Weight sharing: 1-D k-means for the shared values (section 3 of Deep Compression).

In one dimension k-means is cheap: the clusters of sorted values are intervals, so a clustering is
a list of cut positions, and prefix sums give the mean of any interval in constant time.
"""

import operator
from typing import NamedTuple

import numpy as np

INITS = ("linear", "density", "random")
# A round of _refine costs O(k**2): 0.05 s for k = 256, 0.5 s for 1024, minutes soon after.
MAX_REFINED_CLUSTERS = 1024
# Lloyd needs hundreds of steps, seldom thousands; the limit ends cycles due to rounding.
MAX_ITERATIONS = 10_000


def kmeans_1d(values, k, init="linear", seed=42, rate=0.0):
    """Share at most k centroids among the values: minimise sum((x - c[label])**2).

    Starts (section 3.2 of the paper): ``linear`` spaces the centroids evenly over [min, max],
    ``density`` over the cumulative distribution, ``random`` (Forgy) draws k distinct values.
    A cluster that is empty, as the linear ones in the gap that pruning leaves around zero, takes
    the nearest value above it as its own (below it, at the upper end).

    Lloyd's iteration from there gets stuck: it moves no centroid across the gap and few of them
    far. So it alternates with `_refine`, which moves whole clusters, until the inertia no longer
    falls. Inertia of 300,000 pruned Gaussian weights (benchmarks/kmeans.py) over the least
    possible, from the linear start: Lloyd alone 1.10 (k = 32) and 3.09 (k = 256), alternating
    1.0001 and 1.0008. The start then hardly matters. Above 1024 clusters it is Lloyd alone.

    ``rate`` > 0 goes on to the entropy-constrained optimum (Chou, Lookabaugh and Gray 1989):
    sum((x - c[label])**2 + rate * bits[label]), where bits[j] = -log2(share of cluster j) is what
    an ideal entropy coder spends on label j. Clusters that are used too rarely die.

    Args:
        values: real array of any shape, flattened; finite; may be empty.
        k: the most centroids, at least 1.
        init: "linear", "density" or "random".
        seed: of the random start; the others ignore it.
        rate: what a bit may cost, in units of squared values.

    Returns:
        centroids: float64[k'], ascending. With rate 0, k' = min(k, number of distinct values);
            no more distinct values than k are their own centroids, exactly.
        labels: int64[n], of the nearest centroid (rate 0; up to rounding). Every label is used.

    Raises:
        ValueError: values that are not real or not finite; a bad k, init or rate.
    """
    values = _checked(values, k, init, rate)
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size == 0 or (distinct.size <= k and rate == 0):
        return distinct.astype(np.float64), np.searchsorted(distinct, values)
    # Mapped to [-1, 1]: squares and sums neither overflow nor lose a small range to a large offset.
    low, high = float(distinct[0]), float(distinct[-1])
    middle, unit = low / 2 + high / 2, high / 2 - low / 2 or 1.0
    line = _Line.of((distinct.astype(np.float64) - middle) / unit, counts)
    cuts = _k_means(line, _start(line, min(k, distinct.size), init, seed))
    if rate > 0:
        # In [-1, 1] a bit at 2 already outweighs any second cluster; 1e6 only keeps it finite.
        cuts = _entropy_constrained(line, cuts, min(rate / unit / unit, 1e6))
    # Summed afresh, since differences of prefix sums lose digits of small clusters.
    means = np.add.reduceat(line.x * counts, cuts[:-1]) / np.add.reduceat(counts, cuts[:-1])
    centroids = np.clip(middle + unit * means, distinct[cuts[:-1]], distinct[cuts[1:] - 1])
    return centroids, _labels(values, distinct[cuts[1:-1]])


def _checked(values, k, init, rate):
    """The values flattened, as float32 if they are that (twice as fast), else as float64."""
    values = np.asarray(values).ravel()
    if values.dtype.kind not in "fiub":
        raise ValueError(f"k-means needs real numbers, not an array of {values.dtype}")
    if values.dtype != np.float32:
        values = values.astype(np.float64)
    bad = values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        raise ValueError(f"k-means needs finite values; {bad} of {values.size} are NaN or infinite")
    try:
        usable = operator.index(k) >= 1
    except TypeError:
        usable = False
    if not usable:
        raise ValueError(f"k must be an integer of at least 1, not {k!r}")
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, not {init!r}")
    if not 0 <= rate < np.inf:
        raise ValueError(f"rate must be a finite number of at least 0, not {rate!r}")
    return values


def _labels(values, edges):
    """int64[n]: how many of the ascending edges a value has reached."""
    if edges.size >= 64:
        return np.searchsorted(edges, values, side="right")
    # 0.035 s where the binary search takes 0.125 s (3.4 million values, 31 edges)
    labels = np.zeros(values.size, np.uint8)
    for edge in edges:
        labels += values >= edge
    return labels.astype(np.int64)


class _Line(NamedTuple):
    """Sorted distinct values and their prefix sums. A cluster is x[cuts[j] : cuts[j + 1]]."""

    x: np.ndarray  # float64[m]
    sums: np.ndarray  # float64[m + 1]: of the first i distinct values, with multiplicity
    counts: np.ndarray  # float64[m + 1]: how many values these are

    @classmethod
    def of(cls, x, counts):
        return cls(
            x,
            np.concatenate(([0.0], np.cumsum(x * counts))),
            np.concatenate(([0.0], np.cumsum(counts))),
        )

    def means(self, cuts):
        return np.diff(self.sums[cuts]) / np.diff(self.counts[cuts])

    def gain(self, cuts):
        """sum(x**2) - inertia, which the best clustering maximises.

        Blind to inertias below 1e-15 of sum(x**2): one outlier at 1e7 times the spread hides them.
        """
        return np.sum(np.diff(self.sums[cuts]) ** 2 / np.diff(self.counts[cuts]))

    def cut_at(self, thresholds):
        """Cut positions int64[k + 1]: values up to a threshold, included, lie left of it."""
        inner = np.searchsorted(self.x, thresholds, side="right")
        return np.concatenate(([0], inner, [self.x.size]))


def _start(line, k, init, seed):
    if init == "linear":
        centroids = np.linspace(-1.0, 1.0, k)
    elif init == "density":
        quantiles = (np.arange(k) + 0.5) / k * line.counts[-1]
        centroids = line.x[np.searchsorted(line.counts[1:], quantiles)]
    else:
        chosen = np.random.default_rng(seed).choice(line.x.size, k, replace=False)
        centroids = line.x[np.sort(chosen)]
    return _assign(line, centroids)


def _assign(line, centroids):
    """Cuts halfway between the centroids, pushed apart so that no cluster is empty."""
    cuts = line.cut_at((centroids[1:] + centroids[:-1]) / 2)
    place = np.arange(cuts.size)
    cuts = np.maximum.accumulate(cuts - place) + place
    return np.minimum(cuts, line.x.size - place[::-1])


def _lloyd(line, cuts):
    for _ in range(MAX_ITERATIONS):
        before, cuts = cuts, _assign(line, line.means(cuts))
        if np.array_equal(before, cuts):
            break
    return cuts


def _k_means(line, cuts):
    """Refine and iterate in turn until the inertia no longer falls."""
    if cuts.size - 1 > MAX_REFINED_CLUSTERS:
        return _lloyd(line, cuts)
    while True:
        before, cuts = cuts, _lloyd(line, _refine(line, cuts))
        if line.gain(cuts) <= line.gain(before):
            return cuts


def _refine(line, cuts):
    """The best k clusters made of whole pieces, when every cluster of `cuts` is cut into pieces.

    Dynamic programme over the pieces (Wang and Song 2011, there over single values): the best
    j clusters of the first i pieces are the best j - 1 clusters of the first i - w pieces and one
    of w pieces. The old clusters are among the choices, so the inertia does not rise.
    """
    k = cuts.size - 1
    # 8 to the cluster, but 1024 in all: cheap for small k, and 1.011 becomes 1.0003 at worst.
    pieces = max(8, 1024 // k)
    widest = 2 * pieces  # a cluster at most doubles in a round; unlimited is 4 times slower
    inside = cuts[:-1, None] + np.diff(cuts)[:, None] * np.arange(pieces) // pieces
    ends = np.unique(np.append(inside, line.x.size))
    sums, counts = line.sums[ends], line.counts[ends]
    # gain[w - 1, i]: of a cluster of the w pieces before ends[i]; any finite number if i < w
    widths = counts - _shifted(counts, widest, pad=-1.0)
    gain = (sums - _shifted(sums, widest, pad=0.0)) ** 2 / widths
    best = [np.where(np.arange(ends.size) == 0, 0.0, -np.inf)]  # best[j][i]; 0 clusters hold 0
    for _ in range(k):
        best.append((_shifted(best[-1], widest, pad=-np.inf) + gain).max(axis=0))
    chosen = [ends.size - 1]
    for j in reversed(range(k)):
        i = chosen[-1]
        total = _shifted(best[j], widest, pad=-np.inf)[:, i] + gain[:, i]
        chosen.append(i - 1 - total.argmax())
    return ends[chosen[::-1]]


def _shifted(a, rows, pad):
    """View [rows, a.size] whose entry [w - 1, i] is a[i - w], or pad where i < w."""
    padded = np.concatenate((np.full(rows, pad), a))
    return np.lib.stride_tricks.sliding_window_view(padded, a.size)[rows - 1 :: -1]


def _entropy_constrained(line, cuts, rate):
    """Lloyd's iteration with a price on every cluster; rate in units of line.x**2 per bit."""
    for _ in range(MAX_ITERATIONS):
        centroids, shares = line.means(cuts), np.diff(line.counts[cuts]) / line.counts[-1]
        before, cuts = cuts, _assign_priced(line, centroids, -rate * np.log2(shares))
        if np.array_equal(before, cuts):
            break
    return cuts


def _assign_priced(line, centroids, price):
    """Cuts of the clusters that minimise (x - centroid)**2 + price; one never chosen is dropped."""
    while True:
        # Where a cluster and the next cost the same; means apart by rounding alone count as equal.
        apart = np.maximum(np.diff(centroids), 1e-15)
        cuts = line.cut_at((centroids[1:] + centroids[:-1]) / 2 + np.diff(price) / (2 * apart))
        # Thresholds out of order: the cluster between them costs more than a neighbour everywhere.
        dead = np.argmin(np.diff(cuts))
        if cuts[dead] < cuts[dead + 1]:
            return cuts
        centroids, price = np.delete(centroids, dead), np.delete(price, dead)
