"""Weight sharing: 1-D k-means for the shared values (section 3 of Deep Compression).

In one dimension k-means is cheap: the clusters of sorted values are intervals, so a clustering is
a list of cut positions, and prefix sums give the mean of any interval in constant time.
"""

import operator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

INITS = ("linear", "density", "random")
# A round of _refine costs O(k**2): 0.05 s for k = 256, 0.5 s for 1024, minutes soon after.
MAX_REFINED_CLUSTERS = 1024
# So many values are counted in bins, which takes a sixth of the time of sorting them.
BINNED, BINS = 1 << 20, 1 << 18
CHUNK = 1 << 20  # values at a time where more would leave the cache, or need twice the memory


def kmeans_1d(
    values: ArrayLike, k: int, init: str = "linear", seed: int = 42
) -> tuple[np.ndarray, np.ndarray]:
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

    Args:
        values: real array of any shape, flattened; finite; may be empty.
        k: the most centroids, at least 1.
        init: "linear", "density" or "random".
        seed: of the random start; the others ignore it.

    Returns:
        centroids: float64[k'], ascending, k' = min(k, number of distinct values); no more distinct
            values than k are their own centroids, exactly (as far as float64 has them).
        labels: int64[n], of the nearest centroid (up to rounding, and for a million values or more
            up to 1/262144 of their range). Every label is used.

    Raises:
        ValueError: values that are not real or not finite; a bad k or init.
    """
    values = _checked(values, k, init)
    bins = _Bins.of(values, k) if values.size >= BINNED else None
    if bins is not None:
        centroids, cuts = _clusters(bins.means, bins.counts, k, init, seed)
        return centroids, bins.labels(values, cuts)
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size <= k:
        return distinct.astype(np.float64), np.searchsorted(distinct, values)
    centroids, cuts = _clusters(distinct.astype(np.float64), counts, k, init, seed)
    centroids = np.clip(centroids, distinct[cuts[:-1]], distinct[cuts[1:] - 1])
    return centroids, np.searchsorted(distinct[cuts[1:-1]], values, side="right")


def _clusters(
    x: np.ndarray, counts: np.ndarray, k: int, init: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(centroids float64[k'], cuts int64[k' + 1]) of the sorted values x float64[m], m > 0.

    Cluster j is x[cuts[j] : cuts[j + 1]], each with its multiplicity.
    """
    # Mapped to [-1, 1]: squares and sums neither overflow nor lose a small range to a large offset.
    low, high = float(x[0]), float(x[-1])
    middle, unit = low / 2 + high / 2, high / 2 - low / 2 or 1.0
    line = _SortedValues.of((x - middle) / unit, counts)
    cuts = _k_means(line, _start(line, min(k, x.size), init, seed))
    # Summed afresh, since differences of prefix sums lose digits of small clusters.
    means = np.add.reduceat(line.x * counts, cuts[:-1]) / np.add.reduceat(counts, cuts[:-1])
    return middle + unit * means, cuts


def _checked(values: ArrayLike, k: int, init: str) -> np.ndarray:
    """The values flattened, as float32 if they are that (twice as fast), else as float64."""
    try:
        values = np.asarray(values).ravel()
    except (TypeError, ValueError, RuntimeError) as error:  # bfloat16, ragged, of a parameter
        raise ValueError(f"k-means needs an array of real numbers: {error}") from None
    if values.dtype.kind not in "fiub":
        raise ValueError(f"k-means needs real numbers, not an array of {values.dtype}")
    if values.dtype != np.float32:
        values = values.astype(np.float64)
    bad = values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        raise ValueError(f"k-means needs finite values; {bad} of {values.size} are NaN or infinite")
    try:
        usable = operator.index(k) >= 1 and not isinstance(k, bool)
    except TypeError:
        usable = False
    if not usable:
        raise ValueError(f"k must be an integer of at least 1, not {k!r}")
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, not {init!r}")
    return values


class _Bins(NamedTuple):
    """Bins of equal width from the least value to the greatest, those without a value left out."""

    low: np.generic
    scale: np.generic  # bins per unit, both in the values' type
    used: np.ndarray  # int64[m]: numbers of the bins
    means: np.ndarray  # float64[m]
    counts: np.ndarray  # int64[m]

    @classmethod
    def of(cls, values: np.ndarray, k: int) -> "_Bins | None":
        """None where the bins are too coarse for k clusters: a cluster of average size must hold
        16 of them, so that it hardly matters that none is ever divided.

        An outlier far away or few distinct values make them coarse, whose sums then show it.
        """
        low, high = values.min(), values.max()
        with np.errstate(all="ignore"):
            scale = (BINS - 1) / (high - low)
        if not 0 < scale < np.inf:
            return None
        counts, sums = np.zeros(BINS, np.int64), np.zeros(BINS)
        for i in range(0, values.size, CHUNK):
            part = values[i : i + CHUNK]
            place = cls.place(part, low, scale)
            counts += np.bincount(place, minlength=BINS)
            sums += np.bincount(place, part, BINS)
        if 16 * k * int(counts.max()) > values.size:
            return None
        used = np.flatnonzero(counts)
        return cls(low, scale, used, sums[used] / counts[used], counts[used])

    @staticmethod
    def place(values: np.ndarray, low: np.generic, scale: np.generic) -> np.ndarray:
        return ((values - low) * scale).astype(np.int64)

    def labels(self, values: np.ndarray, cuts: np.ndarray) -> np.ndarray:
        """int64[n]: the cluster of the bin that each value is in."""
        cluster = np.zeros(BINS, np.int64)
        cluster[self.used] = np.repeat(np.arange(cuts.size - 1), np.diff(cuts))
        labels = np.empty(values.size, np.int64)
        for i in range(0, values.size, CHUNK):
            place = self.place(values[i : i + CHUNK], self.low, self.scale)
            cluster.take(place, out=labels[i : i + CHUNK], mode="clip")
        return labels


class _SortedValues(NamedTuple):
    """Sorted values and their prefix sums. A cluster is x[cuts[j] : cuts[j + 1]]."""

    x: np.ndarray  # float64[m]
    sums: np.ndarray  # float64[m + 1]: of the first i values, with multiplicity
    counts: np.ndarray  # float64[m + 1]: how many values these are

    @classmethod
    def of(cls, x: np.ndarray, counts: np.ndarray) -> "_SortedValues":
        return cls(
            x,
            np.concatenate(([0.0], np.cumsum(x * counts))),
            np.concatenate(([0.0], np.cumsum(counts))),
        )

    def means(self, cuts: np.ndarray) -> np.ndarray:
        return np.diff(self.sums[cuts]) / np.diff(self.counts[cuts])

    def gain(self, cuts: np.ndarray) -> float:
        """sum(x**2) - inertia, which the best clustering maximises.

        Blind to inertias below 1e-15 of sum(x**2): one outlier at 1e7 times the spread hides them.
        """
        return np.sum(np.diff(self.sums[cuts]) ** 2 / np.diff(self.counts[cuts]))

    def cut_at(self, thresholds: np.ndarray) -> np.ndarray:
        """Cut positions int64[k + 1]: values up to a threshold, included, lie left of it."""
        inner = np.searchsorted(self.x, thresholds, side="right")
        return np.concatenate(([0], inner, [self.x.size]))


def _start(line: _SortedValues, k: int, init: str, seed: int) -> np.ndarray:
    if init == "linear":
        centroids = np.linspace(-1.0, 1.0, k)
    elif init == "density":
        quantiles = (np.arange(k) + 0.5) / k * line.counts[-1]
        centroids = line.x[np.searchsorted(line.counts[1:], quantiles)]
    else:
        chosen = np.random.default_rng(seed).choice(line.x.size, k, replace=False)
        centroids = line.x[np.sort(chosen)]
    return _assign(line, centroids)


def _assign(line: _SortedValues, centroids: np.ndarray) -> np.ndarray:
    """Cuts halfway between the centroids, pushed apart so that no cluster is empty."""
    cuts = line.cut_at((centroids[1:] + centroids[:-1]) / 2)
    place = np.arange(cuts.size)
    cuts = np.maximum.accumulate(cuts - place) + place
    return np.minimum(cuts, line.x.size - place[::-1])


def _lloyd(line: _SortedValues, cuts: np.ndarray) -> np.ndarray:
    """Iterate until the cuts stay, or are again what they were: rounding can lead into a cycle.

    Hundreds of steps, seldom thousands.
    """
    seen = set()
    while (state := hash(cuts.tobytes())) not in seen:
        seen.add(state)
        cuts = _assign(line, line.means(cuts))
    return cuts


def _k_means(line: _SortedValues, cuts: np.ndarray) -> np.ndarray:
    """Refine and iterate in turn until the inertia no longer falls."""
    if cuts.size - 1 > MAX_REFINED_CLUSTERS:
        return _lloyd(line, cuts)
    while True:
        before, cuts = cuts, _lloyd(line, _refine(line, cuts))
        if line.gain(cuts) <= line.gain(before):
            return cuts


def _refine(line: _SortedValues, cuts: np.ndarray) -> np.ndarray:
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


def _shifted(a: np.ndarray, rows: int, pad: float) -> np.ndarray:
    """View [rows, a.size] whose entry [w - 1, i] is a[i - w], or pad where i < w."""
    padded = np.concatenate((np.full(rows, pad), a))
    return np.lib.stride_tricks.sliding_window_view(padded, a.size)[rows - 1 :: -1]
