import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from net import WeightSharing, compensation, rounding
from net.codec import adaptive
from net.codec.tensors import write_tensor
from net.compensation import compensate, prices, prior
from net.errors import UserError
from net.plan import plan
from net.rounding import (
    COARSEST,
    MAX_LEVEL,
    SIZE_POWER,
    TRELLIS_STEP,
    TYPICAL,
    Spread,
    cast,
    fineness,
    fold_statistics,
    grid,
    round_vector,
    scale_of,
    share_tensor,
    spread,
    spreads_of,
    steps,
)
from net.treatments import SharingConfig, treated

SHAPES = [(40,), (12, 30), (30, 1), (8, 6, 5), (8, 6, 3, 3), (8, 1, 3, 3), (4, 3, 2, 2, 2)]
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def dense_prior(blocks, kernel):
    """H of `prior`, whole."""
    s = np.ones((1, 1))
    for extent in kernel:
        place = np.arange(extent)
        s = np.kron(s, compensation.NEIGHBOURS ** np.abs(place[:, None] - place))
    return np.kron(np.eye(blocks), s) + compensation.COMMON


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_value_is_a_multiple_of_the_step(shape, dtype):
    torch.manual_seed(0)
    tensor = torch.randn(shape).to(dtype)
    shared = share_tensor(tensor, 0.25)
    assert shared.shape == tensor.shape
    assert shared.dtype == dtype
    assert torch.equal(shared / 0.25, (shared / 0.25).round())
    assert (shared - tensor).abs().max() < 1.5
    assert not torch.equal(shared, tensor)


def test_the_tensor_is_left_as_it_is():
    tensor = torch.randn(6, 5)
    before = tensor.clone()
    share_tensor(tensor, 1.0)
    assert torch.equal(tensor, before)


def test_zeros_stay_zeros():
    torch.manual_seed(0)
    tensor = torch.randn(20, 30, 3) * (torch.rand(20, 30, 3) < 0.2)
    assert not share_tensor(tensor, 0.3)[tensor == 0].any()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2)])
def test_nothing_to_share(shape):
    assert share_tensor(torch.zeros(shape), 1.0).shape == shape


def test_all_zero():
    assert not share_tensor(torch.zeros(4, 3), 1.0).any()


def test_strided_and_permuted():
    tensor = torch.randn(8, 3, 5).permute(2, 0, 1)
    assert torch.equal(share_tensor(tensor, 0.5), share_tensor(tensor.contiguous(), 0.5))


def test_parts_give_what_the_whole_gives(monkeypatch):
    torch.manual_seed(0)
    tensor = torch.randn(64, 20)
    whole = share_tensor(tensor, 0.4)
    monkeypatch.setattr("net.rounding.SAMPLE", 20 * 32)
    monkeypatch.setattr("net.rounding.CHUNK", 20 * 7)
    parts = share_tensor(tensor, 0.4)
    # the prices are those of half of the rows
    assert (parts == whole).double().mean() > 0.9
    assert torch.equal(parts, share_tensor(tensor, 0.4))


def test_an_outlier_far_away_keeps_the_codebook_small():
    tensor = torch.ones(4, 4)
    tensor[0, 0] = 1e9
    shared = share_tensor(tensor, 1e-6)
    assert shared[0, 0] == pytest.approx(1e9, rel=2 / MAX_LEVEL)


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_steps(step):
    with pytest.raises(ValueError, match="the step must be a positive number"):
        share_tensor(torch.ones(2, 2), step)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(bad):
    tensor = torch.tensor([[1.0, bad]])
    with pytest.raises(ValueError, match="not all values are finite"):
        share_tensor(tensor, 1.0)
    with pytest.raises(UserError, match=r"cannot share fc\.weight: not all values are finite"):
        spreads_of({"fc.weight": tensor}, ["fc.weight"])


# --- errors that cancel -------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "gain"), [((64, 100), 0.95), ((32, 20, 3, 3), 0.8)])
def test_errors_cancel_in_what_inputs_have_in_common(shape, gain):
    torch.manual_seed(0)
    tensor = torch.randn(shape)
    h = torch.from_numpy(dense_prior(shape[1], shape[2:]))

    def loss(shared):
        error = (shared - tensor).flatten(1).double()
        return ((error @ h) * error).sum()

    nearest = (tensor / 0.5).round() * 0.5
    assert loss(share_tensor(tensor, 0.5)) < gain * loss(nearest)


@pytest.mark.parametrize(("blocks", "kernel"), [(7, ()), (5, (3,)), (4, (3, 3)), (1, (2, 2))])
def test_blocks_round_as_the_whole_prior_would(blocks, kernel):
    rng = np.random.default_rng(0)
    k = int(np.prod(kernel))
    weights = rng.standard_normal((6, blocks, k))
    levels = np.arange(-20, 21) * 0.3
    price = prices(np.ones((1, 41)), 0.001)
    labels = np.empty(weights.shape, np.int16)
    compensation.feed_errors(weights, *prior(blocks, kernel), 0.3, levels, price, labels)
    upper = np.linalg.cholesky(np.linalg.inv(dense_prior(blocks, kernel))).T
    expected = np.zeros((6, blocks * k), np.int16)
    changed = weights.reshape(6, -1).copy()
    group = np.zeros(6, np.int64)
    compensate(changed, np.ascontiguousarray(upper)[None], group, 0.3, levels, price, expected)
    assert np.array_equal(labels.reshape(6, -1), expected)


def test_the_loss_is_that_of_the_errors():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 60)).cumsum(axis=0)
    h = x @ x.T
    upper = np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(h)).T)
    weights = rng.standard_normal((5, 12))
    levels = np.arange(-40, 41) * 0.25
    labels = np.zeros((5, 12), np.int64)
    group, price = np.zeros(5, np.int64), np.zeros((1, 81))
    loss = compensate(weights.copy(), upper[None], group, 0.25, levels, price, labels)
    error = (weights - levels[labels]) @ x
    assert loss == pytest.approx((error**2).sum())
    nearest = (weights - np.rint(weights / 0.25) * 0.25) @ x
    assert loss < 0.8 * (nearest**2).sum()


def test_a_dear_value_is_not_taken():
    weights = np.full((1, 1, 1), 0.6)
    levels = np.array([-1.0, 0.0, 1.0])
    for dear, expected in ((0.0, 2), (10.0, 1)):
        labels = np.empty((1, 1, 1), np.int16)
        price = np.array([[dear, 0.0, dear]])
        compensation.feed_errors(weights, *prior(1, ()), 1.0, levels, price, labels)
        assert labels.item() == expected


def test_prices_are_lengths_of_code_words():
    assert prices(np.array([4, 2, 1, 1]), 3.0) == pytest.approx([3.0, 6.0, 9.0, 9.0])
    assert np.isfinite(prices(np.array([0, 5, 0]), 1.0)).all()


# --- steps --------------------------------------------------------------------------------------


def test_spread_counts_what_is_not_zero():
    assert spread(torch.tensor([[3.0, 0.0], [-4.0, 0.0]])) == Spread(2, pytest.approx(12.5**0.5))
    assert spread(torch.zeros(3)) == Spread(0, 0.0)


def test_a_few_rows_of_large_weights_do_not_count():
    """What is noise to them would drown all others; rows of zeros do not count either."""
    tensor = torch.full((9, 5), 2.0)
    tensor[0] *= 50
    tensor[1:3] = 0
    assert spread(tensor) == Spread(35, pytest.approx(2 * TYPICAL))
    assert spread(tensor[3:]).deviation == pytest.approx(2)


@pytest.mark.parametrize("chunk", [1, 3, 4, 11, 1 << 22])
@pytest.mark.parametrize("shape", [(7,), (4, 3), (3, 2, 2), (0, 3), (3, 0), (1, 13)])
def test_spread_in_parts(monkeypatch, shape, chunk):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    whole = spread(tensor)
    monkeypatch.setattr("net.rounding.CHUNK", chunk)
    assert spread(tensor) == Spread(tensor.numel(), pytest.approx(whole.deviation))


def gates():
    """Recurrent weights [40, 20], one of whose four gates has weights a twentieth as large."""
    weights = torch.randn(40, 20, generator=torch.Generator().manual_seed(0))
    weights[20:30] /= 20
    weights[5] = 0
    return weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("step", [0.004, 0.2])
def test_shared_values_in_another_type_stay_on_their_grid(dtype, step):
    torch.manual_seed(0)
    weight = torch.randn(200, 96).bfloat16().float()
    shared = share_tensor(weight, step, trellis=True)
    found = cast(shared, dtype)
    assert (found.dtype, found.shape) == (dtype, shared.shape)
    torch.testing.assert_close(found.float(), shared, rtol=0.005, atol=0)
    usual = write_tensor(share_tensor(weight.to(dtype), step, trellis=True)).length
    assert write_tensor(found).length < 1.01 * usual
    others = torch.randn(5, 7)
    assert cast(others, dtype).equal(others.to(dtype))
    assert cast(shared, torch.float32) is shared


def test_rows_of_recurrent_weights_have_steps_of_their_own():
    weights = gates()
    finer = fineness(weights, "rnn")
    assert finer.dtype == torch.int64
    assert finer[5] == 0
    live = [i for i in range(40) if i != 5]
    size = weights[live].square().mean(1).sqrt()
    half = size / weights[live].square().mean().sqrt() / 2  # of the step
    assert bool((half.log2() + finer[live]).abs().le(0.5 + 1e-6).all())
    assert fineness(torch.zeros(3, 2), "rnn").tolist() == [0, 0, 0]
    assert not fineness(weights, "linear").any()


def test_the_first_rows_of_a_vocabulary_are_finer():
    finer = fineness(torch.zeros(6400, 2), "embedding")
    assert finer.tolist() == [3] * 100 + [2] * 300 + [1] * 1200 + [0] * 4800
    assert not fineness(torch.zeros(4095, 2), "embedding").any()
    assert not fineness(torch.zeros(6400, 2), "linear").any()


def test_rows_of_small_weights_are_those_of_frequent_tokens():
    sizes = torch.ones(6400, 1)
    sizes[100:1600] = 0.1  # behind unused ones
    sizes[3000] = 0.0  # padding
    finer = fineness(sizes * torch.tensor([1.0, -1.0]), "embedding")
    assert finer[100:200].tolist() == [3] * 100
    assert finer[200:500].tolist() == [2] * 300
    assert finer[500:1600].tolist() == [1] * 1100
    assert finer[:100].tolist() == [1] * 100
    assert not finer[1600:].any()
    # Where the first have larger weights, nothing follows from the sizes.
    first = fineness(2 - sizes.flip(0), "embedding")
    assert first.tolist() == [3] * 100 + [2] * 300 + [1] * 1200 + [0] * 4800


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_gates_of_recurrent_weights_survive(dtype):
    weights = gates().to(dtype)
    alike = share_tensor(weights, 0.4)
    shared = share_tensor(weights, 0.4, "rnn")
    assert not alike[20:30].any()
    assert bool((shared[weights == 0] == 0).all())
    lost = (weights - shared).double().square().sum(1) / weights.double().square().sum(1)
    assert float(lost.nan_to_num().max()) < 0.05
    assert torch.equal(shared, share_tensor(weights, 0.4, "rnn"))


def test_steps_follow_deviation_and_size():
    found = steps({"a": Spread(100, 1.0), "b": Spread(400, 1.0), "c": Spread(100, 3.0)}, 0.1)
    assert found["b"] == pytest.approx(4 ** (SIZE_POWER / 2) * found["a"])
    assert found["c"] == pytest.approx(3 * found["a"])
    assert steps({"a": Spread(100, 2.0)}, 0.1)["a"] == pytest.approx(0.2)
    assert steps({"a": Spread(0, 0.0)}, 0.1)["a"] > 0


def test_steps_by_traces():
    """Halved where the trace is four times as large, and as fine as before on average."""
    spreads = {name: Spread(100, 1.0) for name in "abc"} | {"large": Spread(400, 1.0)}
    plain = steps(spreads, 0.01)
    found = steps(spreads, 0.01, {"a": 1.0, "b": 4.0, "large": 4.0})
    assert found["c"] == plain["c"]  # whose trace is not known
    assert found["a"] == pytest.approx(2 * found["b"])
    assert found["large"] == pytest.approx(found["a"])
    names, sizes = ("a", "b", "large"), (100, 100, 400)
    moved = [np.log(found[name] / plain[name]) for name in names]
    assert np.dot(sizes, moved) == pytest.approx(0, abs=1e-9)
    assert steps(spreads, 0.01, {}) == steps(spreads, 0.01, None) == plain
    assert steps(spreads, 0.01, {"b": 7.0}) == pytest.approx(plain)  # beside nothing


def test_no_trace_makes_a_step_coarser_than_what_it_holds_for():
    spreads = {"a": Spread(100, 1.0), "b": Spread(100, 1.0), "c": Spread(100, 3.0)}
    found = steps(spreads, 0.3, {"a": 1e-12, "b": 1.0, "c": 1.0})
    assert found["a"] == pytest.approx(COARSEST)
    assert found["b"] == pytest.approx(found["c"])
    product = found["a"] * found["b"] * found["c"]
    assert product == pytest.approx(np.prod(list(steps(spreads, 0.3).values())))
    # Where they are coarser than that already, they stay so.
    assert steps(spreads, 2.0, {"a": 1e-12, "b": 1.0}) == pytest.approx(steps(spreads, 2.0))


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_noise(noise):
    with pytest.raises(ValueError, match="noise must be a positive number"):
        steps({"a": Spread(1, 1.0)}, noise)


def test_the_grid_is_symmetric_and_stored_exactly():
    step, levels = grid(0.1, 1.0, torch.float32)
    assert step == 0.1
    assert levels[levels.size // 2] == 0.0
    assert np.array_equal(levels, -levels[::-1])
    assert np.array_equal(levels, levels.astype(np.float16))
    assert np.array_equal(grid(1e-9, 1e-8, torch.float32)[1][11:], np.float32(1e-9 * np.arange(12)))


# --- vectors ------------------------------------------------------------------------------------


def test_vectors_are_rounded_relative_to_themselves():
    torch.manual_seed(0)
    vector = torch.randn(1000) * torch.logspace(-6, 6, 1000)
    coarse, fine = (round_vector(vector, noise) for noise in (0.4, 0.1))
    error = float(((coarse - vector) / vector).abs().max())
    assert 1 / 256 < error <= 1 / 128
    assert float(((fine - vector) / vector).abs().max()) == pytest.approx(error / 4, rel=0.2)


def test_values_that_cannot_be_rounded_stay():
    vector = torch.tensor([0.0, float("inf"), float("-inf"), 1.0])
    assert torch.equal(round_vector(vector), vector)
    assert round_vector(torch.tensor([float("nan")])).isnan().all()


def test_the_least_values_of_a_double_stay():
    """As of a channel that gives nothing, after thousands of steps."""
    norm = nn.BatchNorm1d(4).double()
    values = torch.tensor([5e-324, 1e-321, 1.0, 3.0], dtype=torch.float64)
    norm.running_mean.copy_(values)
    norm.running_var.copy_(values)
    WeightSharing(nn.Sequential(nn.Linear(4, 4).double(), norm), bits=2)
    assert norm.running_var.tolist() == values.tolist()
    assert norm.running_mean.isfinite().all()
    assert round_vector(-values).tolist() == (-values).tolist()


STATE = {
    "conv.weight": torch.randn(4, 3, 3, 3),
    "norm.weight": torch.tensor([1.2345, 0.5432, 0.9, 1.0]),
    "norm.bias": torch.tensor([1e-7, 0.3, -0.2, 0.0]),
    "norm.running_mean": torch.tensor([5.0, 1e-6, -0.1, 0.0]),
    "norm.running_var": torch.tensor([1.0, 4.0, 0.01, 1e-8]),
    "norm.num_batches_tracked": torch.tensor(7),
    "scale": torch.tensor(0.123456),
    "ids": torch.arange(4),
    "fc.weight": torch.randn(3, 9),
    "fc.bias": torch.tensor([0.0, 1e-9, 3.21]),
    "odd.weight": torch.randn(3, 9),
    "odd.bias": torch.tensor([float("inf"), float("nan"), 1.0]),
}


def rounded(noise):
    names = treated(plan(STATE, SharingConfig("auto")), "round")
    return {name: round_vector(STATE[name], noise, scale_of(name, STATE)) for name in names}


def test_only_vectors_of_numbers_are_rounded():
    names = [n for n in STATE if n.startswith("norm.") and n[5] != "n"]
    assert list(rounded(0.4)) == [*names, "fc.bias", "odd.bias"]


def test_rounding_is_relative_to_what_an_error_is_small_beside():
    found = rounded(0.4)
    for name in ("norm.weight", "norm.running_var", "fc.bias"):
        error = (found[name] - STATE[name]).abs()
        assert (error <= STATE[name].abs() / 32).all(), name
    error = (found["norm.running_mean"] - STATE["norm.running_mean"]).abs()
    scale = torch.maximum(STATE["norm.running_var"].sqrt(), STATE["norm.running_mean"].abs())
    assert (error <= scale / 32).all()
    assert found["norm.running_mean"][1] == 0  # nothing beside a deviation of 2
    assert found["norm.bias"][0] == 0
    assert torch.equal(found["odd.bias"].isnan(), STATE["odd.bias"].isnan())
    assert found["odd.bias"][0] == float("inf")


def test_less_noise_rounds_less():
    errors = [
        sum(float((tensor - STATE[n]).abs().sum()) for n, tensor in found.items() if "norm" in n)
        for found in (rounded(noise) for noise in (0.05, 0.4))
    ]
    assert errors[0] < errors[1] / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folded_statistics_do_the_same_in_evaluation(dtype):
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(40).eval().to(dtype)
    with torch.no_grad():
        norm.weight.normal_()
        norm.weight[:2] = 0
        norm.bias.normal_()
        norm.running_mean.normal_(0, 3)
        norm.running_var.uniform_(0.001, 9)
        norm.running_var[3] = 0
    # As inputs that these are the statistics of.
    x = torch.randn(8, 40, 5, 5, dtype=dtype) * norm.running_var.sqrt().view(-1, 1, 1)
    x += norm.running_mean.view(-1, 1, 1)
    before = norm(x)
    size, bias = (each.detach().abs().view(-1, 1, 1) for each in (norm.weight, norm.bias))
    fold_statistics(norm, 0.4)
    assert torch.equal(norm.running_mean, torch.zeros(40, dtype=dtype))
    assert torch.equal(norm.running_var, torch.ones(40, dtype=dtype))
    # 1/64 of the weight times an input of up to five deviations, and of the weight or the bias.
    allowed = (5 * size + torch.maximum(size, bias)) / 64
    assert ((norm(x) - before).abs() <= allowed + 1e-4).all()
    assert (norm.weight.frexp().mantissa * 128 % 1 == 0).all()
    unit = torch.ldexp(torch.ones(40), torch.maximum(size, bias).flatten().frexp().exponent - 7)
    assert (norm.bias / unit % 1 == 0).all()


# --- the trellis --------------------------------------------------------------------------------


def levels_of(shared: torch.Tensor, step: float) -> np.ndarray:
    levels = shared.double().numpy() / step
    assert np.abs(levels - np.rint(levels)).max() < 0.2  # rounded to the type
    return np.rint(levels).astype(np.int32)


def follows(levels: np.ndarray) -> bool:
    rows, columns = levels.shape
    return adaptive.walks(levels.ravel(), (rows, columns), (columns, 1))


@pytest.mark.parametrize("density", [0.05, 0.15, 0.3])
@pytest.mark.parametrize("step", [0.2, 0.6])
@pytest.mark.parametrize("rows", [30, 300])
def test_pruned_weights_follow_the_trellis_only_where_that_pays(monkeypatch, density, step, rows):
    """A gap around zero suits steps of its width, and places cost more than values do."""
    torch.manual_seed(0)
    tensor = torch.randn(rows, 8, 3, 3)
    tensor[tensor.abs() < tensor.abs().quantile(1 - density)] = 0

    def cost(shared):
        error = float((shared - tensor).double().square().sum())
        return error + math.log(2) / 6 * step**2 * write_tensor(shared).length

    chosen = cost(share_tensor(tensor, step, trellis=True))
    alone = cost(share_tensor(tensor, step))
    monkeypatch.setattr(rounding, "MANY_PRUNED", 1)
    walking = cost(share_tensor(tensor, step, trellis=True))
    assert chosen == pytest.approx(min(alone, walking), rel=0.01)
    if density <= 0.15 and step == 0.6:
        assert chosen < 0.99 * walking


def test_whether_the_trellis_pays_is_seen_in_a_part(monkeypatch):
    torch.manual_seed(0)
    tensor = torch.randn(400, 40)
    tensor[tensor.abs() < 1.5] = 0
    sizes = []
    shared = rounding._shared
    monkeypatch.setattr(rounding, "PROBE", 128 * 20)
    monkeypatch.setattr(
        rounding, "_shared", lambda *args: sizes.append(args[0].numel()) or shared(*args)
    )
    share_tensor(tensor, 0.6, trellis=True)
    assert sizes == [128 * 20, 128 * 20, tensor.numel()]


@pytest.mark.parametrize("shape", [(16, 1), (200, 40), (130, 6, 3, 3), (40, 2, 5), (3, 20, 9)])
@pytest.mark.parametrize("dtype", TYPES)
def test_values_follow_the_trellis(shape, dtype):
    torch.manual_seed(0)
    tensor = torch.randn(shape).to(dtype)
    tensor[:, 0] = 0
    kind = "linear" if shape == (3, 20, 9) else ""
    shared = share_tensor(tensor, 0.3, kind, trellis=True)
    assert shared.shape == tensor.shape
    assert shared.dtype == dtype
    assert not shared[:, 0].any()
    matrix = shared.flatten(0, -2) if kind else shared.flatten(1)
    assert follows(levels_of(matrix, 0.3 * TRELLIS_STEP)) == bool(shared.any())
    if len(shape) == 2 and shape[0] > 16:  # as far from the weights as without
        error = (shared - tensor).double().square().mean()
        alone = (share_tensor(tensor, 0.3) - tensor).double().square().mean()
        assert error < 1.1 * alone


def test_few_rows_have_no_trellis():
    torch.manual_seed(0)
    few = torch.randn(15, 40)
    assert torch.equal(share_tensor(few, 0.3, trellis=True), share_tensor(few, 0.3))


def test_the_trellis_takes_fewer_bytes_at_the_same_error():
    torch.manual_seed(0)
    tensor = torch.randn(256, 200)

    def found(step, trellis):
        shared = share_tensor(tensor, step, trellis=trellis)
        error = float((shared - tensor).double().square().mean())
        return write_tensor(shared).length / tensor.numel() + 0.5 * np.log2(error)

    assert found(0.4, True) < found(0.4, False) - 0.1


def test_weights_beyond_the_grid_come_to_its_end():
    levels = np.arange(-12, 13) * 0.4
    weights, labels = np.full((40, 1, 1), 30.0), np.empty((40, 1, 1), np.int16)
    weights[::2] = -30
    compensation.feed_errors(weights, *prior(1, ()), 0.4, levels, np.zeros((2, 25)), labels)
    assert (np.abs(labels.ravel() - 12) >= 9).all()  # of one quantizer and parity every fourth
    assert (np.sign(labels.ravel() - 12) == np.sign(weights.ravel())).all()


def test_the_cheapest_way_is_found():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(5, 1, 1))
    levels = np.arange(-12, 13) * 0.4
    price = rng.random((2, 25)) * 0.1
    labels = np.empty((5, 1, 1), np.int16)
    compensation.feed_errors(weights, *prior(1, ()), 0.4, levels, price, labels)
    d = prior(1, ())[0].item()

    def cost(chosen):
        state, total = 0, 0.0
        for w, label in zip(weights.ravel(), chosen, strict=True):
            level = label - 12
            if level != 0 and level % 2 != state >> 1:
                return np.inf
            total += ((w - levels[label]) / d) ** 2 + price[state >> 1, label]
            state = adaptive.NEXT[state, (abs(level) + (state >> 1)) // 2 % 2]
        return total

    near = [np.argsort(np.abs(levels - w))[:5].tolist() + [12] for w in weights.ravel()]
    least = min(map(cost, itertools.product(*near)))
    assert cost(labels.ravel()) == pytest.approx(least)


def test_what_is_rounded_to_zero_has_no_sign():
    vector = torch.tensor([-1e-3, 1e-3, -2.0, -0.0])
    rounded = round_vector(vector, scale=torch.ones(4))
    assert rounded.tolist() == [0.0, 0.0, -2.0, 0.0]
    assert not rounded[[0, 1, 3]].signbit().any()
