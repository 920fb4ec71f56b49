import pytest
import torch
from torch import nn

from net.prune import apply_masks, set_masks, threshold_mask


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
