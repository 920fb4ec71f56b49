import warnings

import kmeans1d
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from net import quantization
from net.quantization import INITS, kmeans_1d

VALUES = hnp.arrays(
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 80),
    # Few and repeated values as often as arbitrary ones; the range keeps tolerances meaningful.
    elements=st.one_of(
        st.integers(-5, 5).map(float), st.floats(-1000.0, 1000.0, width=32, allow_subnormal=False)
    ),
)
CLUSTERS = st.integers(1, 40)
STARTS = st.sampled_from(INITS)


def pruned_weights(n, seed=0):
    """Gaussian weights without the 89 % nearest zero: a gap in the middle."""
    weights = np.random.default_rng(seed).standard_normal(10 * n)
    return (0.02 * weights[np.abs(weights) > 1.6][:n]).astype(np.float32)


def inertia(values, centroids, labels):
    return np.sum((values.astype(np.float64) - centroids[labels]) ** 2)


def nearest(values, centroids):
    return np.abs(values.astype(np.float64)[:, None] - centroids).argmin(axis=1)


def start_centroids(values, k, init):
    """Section 3.2, written the plain way; "random" has no other definition than the code's."""
    if init == "linear":
        return np.linspace(values.min(), values.max(), k)
    return np.quantile(values.astype(np.float64), (np.arange(k) + 0.5) / k, method="inverted_cdf")


@given(VALUES, CLUSTERS, STARTS)
def test_shapes_types_and_every_label_used(values, k, init):
    centroids, labels = kmeans_1d(values, k, init)
    assert centroids.dtype == np.float64
    assert labels.dtype == np.int64
    assert centroids.size == min(k, np.unique(values).size)
    assert np.all(np.diff(centroids) > 0)
    assert labels.shape == values.shape
    assert np.array_equal(np.unique(labels), np.arange(centroids.size))


@given(VALUES.filter(len), CLUSTERS, STARTS)
def test_labels_name_the_nearest_centroid_and_centroids_are_means(values, k, init):
    centroids, labels = kmeans_1d(values, k, init)
    distance = np.abs(values.astype(np.float64)[:, None] - centroids)
    chosen = np.take_along_axis(distance, labels[:, None], axis=1)[:, 0]
    assert np.all(chosen <= distance.min(axis=1) + 1e-9)
    means = [values[labels == label].mean(dtype=np.float64) for label in range(centroids.size)]
    np.testing.assert_allclose(centroids, means, rtol=1e-12, atol=1e-9)


def test_rounding_that_leads_into_a_cycle_is_noticed(monkeypatch):
    """Three values apart by less than the rounding of the means, beside an outlier."""
    steps = []
    assign = quantization._assign
    monkeypatch.setattr(quantization, "_assign", lambda *a: steps.append(1) or assign(*a))
    values = [0, *(sign * i for i in range(1, 6) for sign in (1, -1)), *range(6, 20)]
    values += [0, 1.25, 1.5, 2.220446e-16, -2.220446e-16, -6, -7, -246]
    kmeans_1d(np.array(values, np.float32), 31)
    assert len(steps) < 100


@given(VALUES.filter(len), CLUSTERS, st.sampled_from(["linear", "density"]))
def test_inertia_is_never_worse_than_at_the_start(values, k, init):
    centroids = start_centroids(values, k, init)
    before = inertia(values, centroids, nearest(values, centroids))
    assert inertia(values, *kmeans_1d(values, k, init)) <= before + 1e-6


@given(VALUES, CLUSTERS, STARTS, st.integers(0, 3), st.randoms())
def test_deterministic_and_indifferent_to_the_order(values, k, init, seed, random):
    order = list(range(values.size))
    random.shuffle(order)
    centroids, labels = kmeans_1d(values, k, init, seed)
    again, shuffled = kmeans_1d(values[order], k, init, seed)
    assert np.array_equal(centroids, again)
    assert np.array_equal(labels[order], shuffled)


@given(VALUES, st.integers(80, 100), STARTS)
def test_no_more_distinct_values_than_clusters_are_kept_exactly(values, k, init):
    centroids, labels = kmeans_1d(values, k, init)
    assert np.array_equal(centroids, np.unique(values))
    assert np.array_equal(centroids[labels], values)


# Many values are counted in bins first


@pytest.fixture
def few_are_many(monkeypatch):
    monkeypatch.setattr(quantization, "BINNED", 1000)
    monkeypatch.setattr(quantization, "CHUNK", 3000)  # several of them


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bins_hardly_differ_from_sorted_values(monkeypatch, few_are_many, dtype, init):
    values = pruned_weights(20_000).astype(dtype)
    monkeypatch.setattr(quantization, "BINS", 1 << 15)
    bins = quantization._Bins.of(values, 32)
    assert bins.counts.sum() == values.size
    centroids, labels = kmeans_1d(values, 32, init)
    assert labels.dtype == np.int64
    assert np.array_equal(np.unique(labels), np.arange(32))
    assert np.all(np.diff(labels[np.argsort(values, kind="stable")]) >= 0)
    means = [values[labels == label].mean(dtype=np.float64) for label in range(32)]
    np.testing.assert_allclose(centroids, means, rtol=1e-12)
    distance = np.abs(values.astype(np.float64)[:, None] - centroids)
    chosen = np.take_along_axis(distance, labels[:, None], axis=1)[:, 0]
    assert np.all(chosen <= distance.min(axis=1) + 2 * np.ptp(values) / (1 << 15))
    monkeypatch.setattr(quantization, "BINNED", 1 << 40)
    exact = inertia(values, *kmeans_1d(values, 32, init))
    assert inertia(values, centroids, labels) <= 1.005 * exact


@pytest.mark.parametrize(
    "values",
    [
        np.append(pruned_weights(2000), np.float32(1e9)),  # all others in one bin
        np.repeat(pruned_weights(40), 50),
        np.full(2000, 0.5),
        np.append(np.full(2000, 1e308), -1e308),  # a range beyond float64
        np.append(np.zeros(2000), 5e-324),
    ],
    ids=["outlier", "few values", "constant", "infinite range", "denormal range"],
)
def test_where_bins_are_too_coarse_values_are_sorted(few_are_many, values):
    assert quantization._Bins.of(values, 32) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        centroids, labels = kmeans_1d(values, 32)
    assert len(centroids) == len(np.unique(labels)) == min(32, len(np.unique(values)))


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("k", [1, 2, 32, 300])
def test_empty_one_constant(k, init):
    centroids, labels = kmeans_1d(np.empty((0, 4), np.float32), k, init)
    assert centroids.shape == labels.shape == (0,)
    assert centroids.dtype == np.float64
    assert labels.dtype == np.int64
    for n in (1, 100):
        centroids, labels = kmeans_1d(np.full(n, 0.1, np.float32), k, init)
        assert centroids.tolist() == [float(np.float32(0.1))]
        assert labels.tolist() == [0] * n


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint64, bool])
def test_every_real_type_in_any_shape_and_layout(dtype):
    values = np.array([[0, 1, 1], [1, 0, 0]], dtype)
    for view in (values, values.T, values[:, ::2], values.tolist()):
        centroids, labels = kmeans_1d(view, 2)
        assert centroids.tolist() == [0.0, 1.0]
        assert labels.tolist() == [int(x) for x in np.ravel(view)]


def test_known_clusters():
    centroids, labels = kmeans_1d([10.0, 1.0, 2.0, 11.0, -7.0, 3.0], 3)
    assert centroids.tolist() == [-7.0, 2.0, 10.5]
    assert labels.tolist() == [2, 1, 1, 2, 0, 1]
    assert kmeans_1d([1.0, 2.0, 6.0], 1)[0].tolist() == [3.0]


@pytest.mark.parametrize("init", INITS)
def test_extreme_magnitudes_neither_overflow_nor_vanish(init):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        largest = np.finfo(np.float64).max
        centroids, _ = kmeans_1d([-largest, largest, largest / 2, 0.0], 3, init)
        assert np.all(np.isfinite(centroids))
        assert centroids.size == 3
        assert kmeans_1d([0.0, 5e-324], 1, init)[0].size == 1
        assert kmeans_1d([1e-200, 2e-200, 9e-200], 2, init)[1].tolist() == [0, 0, 1]
        offset = 1e9 + np.array([0.0, 0.001, 1.0, 1.001])
        assert kmeans_1d(offset, 2, init)[1].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize(("k", "bound"), [(4, 1.002), (32, 1.005), (256, 1.05)])
def test_close_to_the_exact_optimum_across_the_gap(k, bound, init):
    values = pruned_weights(4000)
    optimum = kmeans1d.cluster(values, k)
    least = inertia(values, np.array(optimum.centroids), np.array(optimum.clusters))
    assert inertia(values, *kmeans_1d(values, k, init)) <= bound * least


def test_refinement_never_loses_and_helps_across_the_gap():
    distinct, counts = np.unique(pruned_weights(4000), return_counts=True)
    line = quantization._SortedValues.of(distinct / np.abs(distinct).max(), counts)
    stuck = quantization._lloyd(line, quantization._start(line, 256, "linear", seed=0))
    refined = quantization._refine(line, stuck)
    assert refined.size == stuck.size
    assert np.all(np.diff(refined) > 0)
    assert line.gain(refined) > line.gain(stuck)


def test_more_clusters_than_are_refined():
    values = pruned_weights(4000)
    centroids, labels = kmeans_1d(values, quantization.MAX_REFINED_CLUSTERS + 1)
    assert np.unique(labels).size == centroids.size == quantization.MAX_REFINED_CLUSTERS + 1
    assert inertia(values, centroids, labels) < inertia(values, *kmeans_1d(values, 128))


def test_seed_matters_to_the_random_start_alone():
    distinct, counts = np.unique(pruned_weights(1000), return_counts=True)
    line = quantization._SortedValues.of(distinct, counts)
    for init in INITS:
        starts = [quantization._start(line, 32, init, seed) for seed in (1, 1, 2)]
        assert np.array_equal(starts[0], starts[1])
        assert np.array_equal(starts[0], starts[2]) == (init != "random")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, np.nan, np.inf], 2), "finite values; 2 of 3 are NaN or infinite"),
        (([1.0, -np.inf], 2), "finite values; 1 of 2 are NaN or infinite"),
        (([1.0 + 2.0j], 2), "real numbers, not an array of complex128"),
        ((["a"], 2), "real numbers, not an array of <U1"),
        (([1.0], 0), "k must be an integer of at least 1, not 0"),
        (([1.0], -3), "k must be an integer of at least 1, not -3"),
        (([1.0], 2.0), "k must be an integer of at least 1, not 2.0"),
        (([1.0], None), "k must be an integer of at least 1, not None"),
        (([1.0], 2, "forgy"), "init must be one of linear, density, random, not 'forgy'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the whole line is compared below
        kmeans_1d(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [torch.ones(3, dtype=torch.bfloat16), torch.nn.Parameter(torch.ones(3)), [[1], [1, 2]]],
)
def test_what_is_no_array_of_numbers(values):
    with pytest.raises(ValueError, match="needs an array of real numbers"):
        kmeans_1d(values, 2)


def test_a_number_of_centroids_is_no_truth():
    with pytest.raises(ValueError, match="k must be an integer"):
        kmeans_1d([1.0, 2.0], True)
