import pytest
import torch

from net import Pruner
from net.pipeline.allocation import choose_bits, coded_bits
from net.sharing import SharedTensor
from net.training.architectures import build
from net.training.loop import Schedule, adam, evaluate, fit

NAMES = ["fc1.weight", "fc2.weight", "fc3.weight"]


@pytest.fixture
def model(blobs):
    torch.manual_seed(0)
    model = build("lenet-300-100", num_classes=3)
    fit(model, adam(model.parameters(), 1e-3), blobs.train, Schedule(3, 16))
    Pruner(model, sensitivity=1.0)
    return model


def test_stays_within_the_budget_and_leaves_the_model_alone(model, blobs):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, error = evaluate(model, blobs.validation)
    bits = choose_bits(model, blobs.validation, 0.0, "linear", 42)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert set(bits) == set(NAMES)
    assert all(1 <= b <= 8 for b in bits.values())
    for name, b in bits.items():
        weight = model.get_parameter(name)
        SharedTensor.clustered(weight, b).write(weight)
    assert evaluate(model, blobs.validation)[1] <= error


def test_an_unlimited_budget_ends_at_one_bit(model, blobs):
    bits = choose_bits(model, blobs.validation, 100.0, "linear", 42)
    assert bits == dict.fromkeys(NAMES, 1)


def test_coded_bits():
    two = SharedTensor.clustered(torch.tensor([1.0, 1.0, -1.0, -1.0]), bits=1)
    assert coded_bits(two) == 4 + 2 * 16
    assert coded_bits(SharedTensor.clustered(torch.zeros(3), bits=1)) == 0
