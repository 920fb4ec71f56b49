"""The architectures that `--arch` names, and the layers of a model that can be compressed."""

import torch
from torch import nn
from torch.nn import functional as F

from net.errors import UserError


class LeNet300100(nn.Module):
    """LeNet-300-100 (LeCun et al. 1998): 784-300-100-10, 266,610 parameters."""

    input_shape = (1, 28, 28)

    def __init__(self, num_classes: int = 10, in_channels: int = 1):
        super().__init__()
        self.fc1 = nn.Linear(in_channels * 28 * 28, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)
        self.dropout = nn.Dropout(0.0)  # set per training phase

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, C, 28, 28] -> [N, classes]
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        x = self.dropout(F.relu(self.fc2(x)))
        return self.fc3(x)


class LeNet5(nn.Module):
    """LeNet-5 in Caffe's variant, which the paper uses: 20 and 50 filters, 431,080 parameters."""

    input_shape = (1, 28, 28)

    def __init__(self, num_classes: int = 10, in_channels: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, num_classes)
        self.dropout = nn.Dropout(0.0)  # set per training phase

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, C, 28, 28] -> [N, classes]
        x = F.max_pool2d(self.conv1(x), 2)  # [N, 20, 12, 12]
        x = F.max_pool2d(self.conv2(x), 2)  # [N, 50, 4, 4]
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        return self.fc2(x)


BUILT_IN = {"lenet-300-100": LeNet300100, "lenet-5": LeNet5}


def build(arch: str, num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """The model named `arch`, with fresh weights drawn from torch's global generator."""
    if arch not in BUILT_IN:
        raise UserError(f"unknown architecture {arch!r}; known: {', '.join(BUILT_IN)}")
    return BUILT_IN[arch](num_classes, in_channels)


# _ConvNd is the base of Conv1d/2d/3d and of their transposed forms, grouped and depthwise included.
COMPRESSIBLE = (nn.Linear, nn.modules.conv._ConvNd)


def layer_kind(layer: nn.Module) -> str:
    return "linear" if isinstance(layer, nn.Linear) else "conv"


def compressible_layers(model: nn.Module) -> dict[str, nn.Module]:
    """{name: layer} of every layer whose `weight` is pruned and shared, in definition order.

    The one way in which the stages walk a model.  A weight that several layers tie together
    appears once, under the first name.
    """
    found, seen = {}, set()
    for name, module in model.named_modules():
        if isinstance(module, COMPRESSIBLE) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            found[name] = module
    return found
