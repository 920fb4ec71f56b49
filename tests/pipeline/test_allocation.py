import pytest
import torch

from net.pipeline.allocation import choose_bits, coded_bits
from net.prune import set_masks, threshold_mask
from net.sharing import SharedWeight
from net.training.architectures import build
from net.training.log import Log
from net.training.loop import Recipe, evaluate, fit

LAYERS = ["fc1", "fc2", "fc3"]


@pytest.fixture
def model(blobs):
    torch.manual_seed(0)
    model = build("lenet-300-100", num_classes=3)
    parameters = list(model.parameters())
    recipe = Recipe(3, 16, 1e-3)
    fit(model, parameters, blobs.train, blobs.validation, recipe, phase="train", log=Log())
    set_masks(model, lambda name, weight: threshold_mask(weight, 1.0))
    return model


def test_stays_within_the_budget_and_leaves_the_model_alone(model, blobs):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, error = evaluate(model, blobs.validation)
    bits = choose_bits(model, LAYERS, blobs.validation, 0.0, "linear", 42)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert set(bits) == set(LAYERS)
    assert all(1 <= b <= 8 for b in bits.values())
    for name, layer in model.named_children():
        if name in bits:
            SharedWeight(layer.weight, bits[name]).write(layer.weight)
    assert evaluate(model, blobs.validation)[1] <= error


def test_an_unlimited_budget_ends_at_one_bit(model, blobs):
    bits = choose_bits(model, LAYERS, blobs.validation, 100.0, "linear", 42)
    assert bits == dict.fromkeys(LAYERS, 1)


def test_coded_bits():
    two = SharedWeight(torch.tensor([1.0, 1.0, -1.0, -1.0]), bits=1)
    assert coded_bits(two) == 4 + 2 * 16
    assert coded_bits(SharedWeight(torch.zeros(3), bits=1)) == 0
