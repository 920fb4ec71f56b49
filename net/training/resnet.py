"""Residual networks for CIFAR-10 (He et al. 2016, section 4.2).

Three groups of n blocks with 16, 32 and 64 filters on 32x32, 16x16 and 8x8: 6n + 2 layers with
weights. The names of the layers, and the inputs, are those of the models that Yerlan Idelbayev has
published (pytorch_resnet_cifar10), so that these can be loaded as they are.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters ("option A")."""

    def __init__(self, inputs: int, filters: int, stride: int) -> None:
        super().__init__()
        self.stride, self.added = stride, filters - inputs
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.added:  # channels of zeros, half of them on each side
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added // 2))
        return F.relu(residual + shortcut)


class CifarResNet(nn.Module):
    """ResNet-`depth`; the inputs are normalised as for ImageNet, as the published ones were."""

    input_shape = (3, 32, 32)
    input_mean = (0.485, 0.456, 0.406)
    input_std = (0.229, 0.224, 0.225)

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = group(blocks, 16, 16)
        self.layer2 = group(blocks, 16, 32)
        self.layer3 = group(blocks, 32, 64)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)  # He et al. 2015

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, 3, 32, 32] -> [N, classes]
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))  # [N, 64, 8, 8]
        return self.linear(x.mean((2, 3)))


def group(blocks: int, inputs: int, filters: int) -> nn.Sequential:
    """Blocks of which the first halves the size where the number of filters grows."""
    first = Block(inputs, filters, stride=filters // inputs)
    return nn.Sequential(first, *(Block(filters, filters, 1) for _ in range(blocks - 1)))
