import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from net.prune import Pruner
from net.training.architectures import LeNet5
from net.training.splits import Split
from net.training.units import drop_idle, fold_constant_inputs, gather_live_units


@pytest.fixture
def split():
    torch.manual_seed(1)
    return Split(torch.randn(30, 1, 28, 28), torch.arange(30) % 10)


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 10))
    )


def pruned(model, **keep):
    """`model` and its masks; `keep` gives for a layer (by index) a function that clears entries."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    for index, clear in keep.items():
        with torch.no_grad():
            clear(weights[int(index[1:])])
    return model, Pruner(model, sensitivity=0).masks


def rows(*which):
    return lambda weight: weight.index_fill_(0, torch.tensor(which), 0.0)


def columns(*which):
    return lambda weight: weight.index_fill_(1, torch.tensor(which), 0.0)


def test_a_unit_without_inputs_is_folded_into_the_next_bias(split):
    model, masks = pruned(perceptron(), l0=rows(2, 5))
    with torch.no_grad():
        model[1].bias[2], model[1].bias[5] = 0.7, -0.7
    expected = model(split.inputs)
    fold_constant_inputs(model, masks, split)
    assert torch.allclose(model(split.inputs), expected, atol=1e-5)
    assert (model[3].weight[:, [2, 5]] == 0).all()
    assert not masks["3.weight"][:, [2, 5]].any()
    assert masks["3.weight"][:, 0].all()


def test_convolutions_are_folded_too(split):
    torch.manual_seed(0)
    model, masks = pruned(LeNet5(), l0=rows(3))
    expected = model(split.inputs)
    fold_constant_inputs(model, masks, split)
    assert torch.allclose(model(split.inputs), expected, atol=1e-4)
    assert not masks["conv2.weight"][:, 3].any()


class OnSequences(nn.Module):
    """Linear layers, which take features last, and a Conv1d, which takes channels first, on
    sequences [N, 28 positions, 28 features]."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.embed, self.mix = nn.Linear(28, width), nn.Linear(width, 6)
        self.conv, self.head = nn.Conv1d(6, 5, 3), nn.Linear(5, 10)

    def forward(self, x):  # [N, 1, 28, 28] -> [N, 10]
        x = F.relu(self.mix(input=F.relu(self.embed(x.squeeze(1)))))  # [N, 28, 6]
        return self.head(F.relu(self.conv(x.transpose(1, 2))).mean(2))


@pytest.mark.parametrize("width", [8, 28])  # 28: as many features as positions
def test_linear_layers_on_sequences_are_folded_by_feature(split, width):
    torch.manual_seed(0)
    model, masks = pruned(OnSequences(width), l0=rows(2, 5), l1=rows(3))
    with torch.no_grad():
        model.embed.bias[2], model.mix.bias[3] = 0.7, 0.4
    expected = model(split.inputs)
    fold_constant_inputs(model, masks, split)
    assert torch.allclose(model(split.inputs), expected, atol=1e-5)
    assert masks["mix.weight"].any(0).nonzero().flatten().tolist() == [
        i for i in range(width) if i not in (2, 5)
    ]
    assert not masks["conv.weight"][:, 3].any()
    assert masks["embed.weight"][0].all()
    drop_idle(model, masks, split, F.cross_entropy)
    gather_live_units(model, masks, split.inputs)
    assert torch.allclose(model(split.inputs), expected, atol=1e-4)


def test_units_without_outputs_lose_their_inputs_and_bias(split):
    model, masks = pruned(perceptron(), l1=columns(4), l2=columns(1))
    expected = model(split.inputs)
    drop_idle(model, masks, split, F.cross_entropy)
    assert torch.allclose(model(split.inputs), expected, atol=1e-5)
    assert not masks["1.weight"][4].any()
    assert model[1].bias[4] == 0
    assert not masks["3.weight"][1].any()
    assert masks["5.weight"][:, 0].all()


def test_fold_then_drop_leaves_dead_units_without_anything(split):
    model, masks = pruned(perceptron(), l0=rows(2))
    expected = model(split.inputs)
    fold_constant_inputs(model, masks, split)
    drop_idle(model, masks, split, F.cross_entropy)
    assert torch.allclose(model(split.inputs), expected, atol=1e-5)
    assert model[1].bias[2] == 0


@pytest.mark.parametrize("make", [perceptron, LeNet5])
def test_live_units_come_first_and_the_function_stays(split, make):
    model = make()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        for layer in layers[:-1]:
            layer.weight[::2] = 0.0
            layer.bias[::2] = 0.0
    masks = Pruner(model, sensitivity=0).masks
    expected = model(split.inputs)
    gather_live_units(model, masks, split.inputs)
    assert torch.allclose(model(split.inputs), expected, atol=1e-4)
    for layer, mask in zip(layers[:-1], masks.values(), strict=False):
        live = layer.weight.flatten(1).any(1)
        assert live.tolist() == sorted(live.tolist(), reverse=True)
        assert torch.equal(mask, layer.weight != 0)


def test_layers_that_do_not_feed_one_another_stay(split):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(784, 8), nn.Linear(8, 8), nn.Linear(8, 10)

        def forward(self, x):
            x = self.a(x.flatten(1))
            return self.c(x + F.relu(self.b(x)))

    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        model.b.weight[:4] = 0.0
    masks = Pruner(model, sensitivity=0).masks
    before = copy.deepcopy(model.state_dict())
    gather_live_units(model, masks, split.inputs)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
