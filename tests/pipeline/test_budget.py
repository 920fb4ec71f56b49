import pytest
import torch
from torch import nn
from torch.nn import functional as F

from net import Pruner
from net.pipeline.budget import Brake
from net.pipeline.options import PruningOptions
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
