import pytest
import torch
from torch import nn
from torch.nn import functional as F

from net import Pruner
from net.pipeline.budget import NOISE_RANGE, Brake, calibration_inputs, noise_for_parts
from net.pipeline.options import PruningOptions, SharingOptions
from net.training.log import Log
from net.training.splits import Dataset, Split

STEPS = 60


def dataset():
    torch.manual_seed(0)
    inputs = torch.randn(600, 20)
    labels = (inputs @ torch.randn(20, 4)).argmax(1)
    split = Split(inputs, labels)
    return Dataset("made up", split[:500], split[500:], split[500:])


def density_within(budget):
    """Of a linear model that pruning hurts at once, pruned as far as the budget allows."""
    data = dataset()
    model = nn.Linear(20, 4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    inputs, labels = next(data.train.batches(500))

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    for _ in range(300):
        step()
    pruner = Pruner(model, density=0.02, steps=STEPS, start=0.9)
    options = PruningOptions(density="auto", error_budget=budget)
    brake = Brake(model, pruner, data, options, Log(silent=True))
    pruner.attach(optimizer)
    brake.attach(optimizer)
    for _ in range(STEPS + 5):
        step()
    assert pruner.finished
    assert model.training
    return float(pruner.masks["weight"].float().mean())


def test_pruning_stops_where_the_budget_ends():
    small, medium, unlimited = (density_within(budget) for budget in (0.1, 1.0, 1000))
    assert small > medium > unlimited
    assert unlimited == pytest.approx(0.02, abs=0.01)


def test_a_larger_budget_allows_for_more_noise():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 4))
    nn.init.normal_(model[2].weight)  # answers with some confidence
    found = []
    for budget in (1e-6, 0.1, 1.0, 1e6):
        options = SharingOptions(bits="auto", error_budget=budget)
        data = dataset()
        inputs = calibration_inputs(data, options)
        found.append(noise_for_parts(model, data, inputs, options, Log(silent=True)))
    low, high = NOISE_RANGE
    assert found[0] == low < found[1] < found[2] < found[3] < high < found[3] * 1.08
