import torch
from torch import nn

from net.pipeline.budget import NOISE_RANGE, calibration_inputs, tolerated_noise
from net.pipeline.options import SharingOptions
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
    for budget in (1e-6, 0.1, 1.0, 1e6):
        options = SharingOptions(bits="auto", error_budget=budget)
        data = dataset()
        inputs = calibration_inputs(data, options)
        found.append(tolerated_noise(model, data, inputs, options, Log(silent=True)))
    low, high = NOISE_RANGE
    assert found[0] == low < found[1] < found[2] < found[3] < high < found[3] * 1.08
