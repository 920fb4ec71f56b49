import copy

import torch
from torch import nn

from net.pipeline.budget import (
    NOISE_RANGE,
    calibration_inputs,
    most_noise,
    tolerated_density,
    tolerated_noise,
)
from net.pipeline.options import PruningOptions, SharingOptions
from net.training.log import Log
from net.training.splits import Dataset, Split


def dataset():
    torch.manual_seed(0)
    inputs = torch.randn(600, 20)
    labels = (inputs @ torch.randn(20, 4)).argmax(1)
    split = Split(inputs, labels)
    return Dataset("made up", split[:500], split[500:], split[500:])


def test_a_larger_budget_allows_for_more_noise():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 4))
    nn.init.normal_(model[2].weight)  # answers with some confidence
    found = []
    for budget in (0, 0.5, 3, 1e6):  # percent of 100 answers, times 5.5
        options = SharingOptions(bits="auto", error_budget=budget)
        data = dataset()
        inputs = calibration_inputs(data, options)
        found.append(tolerated_noise(model, data, inputs, options, Log(silent=True)))
    low, high = NOISE_RANGE
    assert most_noise(model, data.validation, inputs, options, lambda *_: False) == low
    assert low <= found[0] < found[1] < found[2] < found[3] < high < found[3] * 1.04


def test_a_larger_budget_allows_for_a_lower_density():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 4))
    nn.init.normal_(model[2].weight)
    before = copy.deepcopy(model.state_dict())
    found = []
    for budget in (0, 0.1, 1.0, 100):
        torch.manual_seed(1)
        options = PruningOptions(density="auto", error_budget=budget)
        found.append(tolerated_density(model, dataset(), options, Log(silent=True)))
    assert 1 >= found[0] > found[1] > found[2] > found[3] > 0
    assert found[0] > 0.9  # a model that bears no noise is not pruned
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
