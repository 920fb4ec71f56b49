from itertools import pairwise

import pytest
import torch
from torch import nn

from net.prune import (
    GradualPruning,
    apply_masks,
    bits_of,
    cubic_density,
    saliency,
    set_masks,
    shrink,
    threshold_mask,
    top_masks,
)
from net.training.loop import Step


def test_threshold_is_sensitivity_times_the_standard_deviation():
    weight = torch.tensor([[-2.0, -1.0], [1.0, 2.0]])  # standard deviation sqrt(2.5) = 1.58
    assert threshold_mask(weight, 1.0).tolist() == [[True, False], [False, True]]
    assert threshold_mask(weight, 0.0).all()
    assert not threshold_mask(weight, 2.0).any()


def test_a_constant_weight_is_kept():
    assert threshold_mask(torch.full((3, 3), 0.5), 2.0).all()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 5))


def test_the_mask_is_a_buffer_that_is_not_saved(model):
    names = list(model.state_dict())
    set_masks(model, lambda name, w: threshold_mask(w, 1.0))
    assert list(model.state_dict()) == names
    assert {name for name, _ in model.named_buffers()} == {"0.mask", "2.mask"}
    assert len(list(model.parameters())) == 4


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    ],
)
def test_momentum_and_weight_decay_do_not_revive_a_pruned_weight(model, optimizer):
    x = torch.randn(8, 1, 4, 4)
    optimizer = optimizer(model.parameters())
    for _ in range(3):  # momentum gathers on every weight before pruning
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    set_masks(model, lambda name, w: threshold_mask(w, 1.0))
    masks = [layer.mask.clone() for layer in (model[0], model[2])]
    assert all(0 < mask.sum() < mask.numel() for mask in masks)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        apply_masks(model)
    for layer, mask in zip((model[0], model[2]), masks, strict=True):
        assert torch.equal(layer.weight != 0, mask)
        assert (layer.weight[~mask].view(torch.int32) == 0).all()  # +0.0, no sign left behind


def test_shrink_moves_towards_zero_and_no_further(model):
    with torch.no_grad():
        model[2].weight[0, :3] = torch.tensor([0.5, -0.5, 0.001])
    bias = model[2].bias.clone()
    shrink(model, 0.1)
    assert torch.allclose(model[2].weight[0, :3], torch.tensor([0.4, -0.4, 0.0]))
    assert torch.equal(model[2].bias, bias)


def test_top_masks_over_all_layers_or_each():
    scores = {"a": torch.tensor([[9.0, 8.0], [7.0, 0.0]]), "b": torch.tensor([3.0, 2.0, 1.0, 0.0])}
    together = top_masks(scores, 0.5)
    assert together["a"].tolist() == [[True, True], [True, False]]
    assert together["b"].tolist() == [True, False, False, False]
    each = top_masks(scores, {"a": 0.25, "b": 0.75})
    assert each["a"].sum() == 1
    assert each["b"].tolist() == [True, True, True, False]
    assert top_masks(scores, 1.0)["b"].tolist() == [True, True, True, False]  # never a score of 0


def test_cubic_schedule():
    assert cubic_density(0.0, 0.5, 0.1) == 0.5
    assert cubic_density(0.5, 0.5, 0.1) == pytest.approx(0.1 + 0.4 / 8)
    assert cubic_density(1.0, 0.5, 0.1) == cubic_density(1.5, 0.5, 0.1) == 0.1


def test_saliency_is_the_loss_of_a_quadratic():
    """For L = sum h/2 w^2 at its minimum shifted to w, removing w costs w^2 h / 2."""
    weight, curvature = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 0.5])
    assert saliency(weight, curvature).tolist() == [4.0, 2.0]


def test_a_lone_weight_costs_more_bits():
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[0, :20] = True  # a crowded row
    mask[10, 25] = True
    bits = bits_of(mask)
    assert bits.shape == mask.shape
    assert bits[10, 25] > bits[0, 5] + 2
    assert (bits >= 3).all()
    assert bits_of(torch.ones(4, 2, 3, 3, dtype=torch.bool)).shape == (4, 2, 3, 3)
    assert torch.isfinite(bits_of(torch.zeros(3, 3, dtype=torch.bool))).all()


def test_gradual_pruning_leaves_frozen_layers_whole(model):
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.Adam(model[2].parameters(), lr=0.01)
    set_masks(model, lambda name, weight: torch.ones_like(weight, dtype=torch.bool))
    prune = GradualPruning(model, 0.2)
    for i in range(10):
        optimizer.zero_grad()
        model(torch.randn(16, 1, 4, 4)).square().sum().backward()
        optimizer.step()
        prune(Step(i / 10, (i + 1) / 10, 0.01, optimizer))
    assert model[0].mask.all()
    assert model[2].mask.sum() == round(0.2 * model[2].mask.numel())


@pytest.mark.parametrize("density", [0.2, {"0": 0.5, "2": 0.1}])
def test_gradual_pruning_reaches_its_density_and_never_goes_back(model, density):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    set_masks(model, lambda name, weight: torch.ones_like(weight, dtype=torch.bool))
    prune = GradualPruning(model, density)
    layers = {"0": model[0], "2": model[2]}
    history = []
    for i in range(40):
        optimizer.zero_grad()
        model(torch.randn(16, 1, 4, 4)).square().sum().backward()
        optimizer.step()
        prune(Step(i / 40, (i + 1) / 40, 0.01, optimizer))
        history.append(torch.cat([layer.mask.flatten() for layer in layers.values()]))
    for before, after in pairwise(history):
        assert not (after & ~before).any()
    assert history[0].sum() > history[-1].sum()
    assert torch.equal(history[28], history[-1])  # 0.7 of 40 steps
    if isinstance(density, dict):
        for name, layer in layers.items():
            assert layer.mask.sum() == round(density[name] * layer.mask.numel())
    else:
        assert history[-1].sum() == round(density * len(history[-1]))
    for layer in layers.values():
        assert ((layer.weight != 0) == layer.mask).all()
