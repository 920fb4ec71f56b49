import pytest
import torch
from torch import nn

from net.errors import UserError
from net.models import build, compressible_layers


@pytest.mark.parametrize(("arch", "parameters"), [("lenet-300-100", 266_610), ("lenet-5", 431_080)])
def test_the_papers_networks(arch, parameters):
    model = build(arch)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_other_classes_and_channels():
    for arch in ("lenet-300-100", "lenet-5"):
        assert build(arch, num_classes=7, in_channels=3)(torch.zeros(2, 3, 28, 28)).shape == (2, 7)


def test_unknown_architecture():
    with pytest.raises(UserError, match=r"unknown architecture 'lenet-6'.*lenet-300-100"):
        build("lenet-6")


def test_compressible_layers_are_linear_and_convolutions_once_each():
    tied = nn.Linear(4, 4)
    other = nn.Linear(4, 4)
    other.weight = tied.weight
    model = nn.Sequential(
        nn.Conv1d(2, 2, 3, groups=2),
        nn.ConvTranspose2d(2, 2, 3),
        nn.Conv3d(1, 1, 1),
        nn.BatchNorm1d(4),
        nn.Embedding(5, 4),
        tied,
        other,
    )
    assert list(compressible_layers(model)) == ["0", "1", "2", "5"]
