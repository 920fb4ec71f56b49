import torch
from torch import nn

from net.plan import SharingConfig, plan, treated
from net.vectors import fold_statistics, rounded_vector

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
    return {name: rounded_vector(name, STATE, noise) for name in names}


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


def test_folded_statistics_do_the_same_in_evaluation():
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(40).eval()
    with torch.no_grad():
        norm.weight.normal_()
        norm.weight[:2] = 0
        norm.bias.normal_()
        norm.running_mean.normal_(0, 3)
        norm.running_var.uniform_(0.001, 9)
        norm.running_var[3] = 0
    # As inputs that these are the statistics of.
    x = torch.randn(8, 40, 5, 5) * norm.running_var.sqrt().view(-1, 1, 1)
    x += norm.running_mean.view(-1, 1, 1)
    before = norm(x)
    size, bias = (each.detach().abs().view(-1, 1, 1) for each in (norm.weight, norm.bias))
    fold_statistics(norm, 0.4)
    assert torch.equal(norm.running_mean, torch.zeros(40))
    assert torch.equal(norm.running_var, torch.ones(40))
    # 1/64 of the weight times an input of up to five deviations, and of the weight or the bias.
    allowed = (5 * size + torch.maximum(size, bias)) / 64
    assert ((norm(x) - before).abs() <= allowed + 1e-4).all()
    assert (norm.weight.frexp().mantissa * 128 % 1 == 0).all()
    unit = torch.ldexp(torch.ones(40), torch.maximum(size, bias).flatten().frexp().exponent - 7)
    assert (norm.bias / unit % 1 == 0).all()
