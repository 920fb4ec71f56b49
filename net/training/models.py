"""The built-in networks: the LeNets of the paper, ResNets and a VGG-16 for CIFAR-10.

A model says what it takes: `input_shape`, and `input_mean` and `input_std` where its inputs are to
be normalised by figures of its own.
"""

import torch
from torch import nn
from torch.nn import functional as F

# The filters of VGG-16, as multiples of the first's, group by group of 3x3 convolutions; a maximum
# of 2x2 follows each group.
VGG_GROUPS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))


class LeNet300100(nn.Module):
    """LeNet-300-100 (LeCun et al. 1998): 784-300-100-10, 266,610 parameters."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1):
        super().__init__()
        self.input_shape = (in_channels, 28, 28)
        self.fc1 = nn.Linear(in_channels * 28 * 28, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)
        self.dropout = nn.Dropout(0.0)  # set per training phase

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, C, 28, 28] -> [N, classes]
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        x = self.dropout(F.relu(self.fc2(x)))
        return self.fc3(x)


class LeNet5(nn.Module):
    """LeNet-5 in Caffe's variant, which the paper uses: 20 and 50 filters, 431,080 parameters.

    With a ReLU after each pooling, which Caffe's has not: it costs no parameter.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1):
        super().__init__()
        self.input_shape = (in_channels, 28, 28)
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, num_classes)
        self.dropout = nn.Dropout(0.0)  # set per training phase

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, C, 28, 28] -> [N, classes]
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # [N, 20, 12, 12]
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # [N, 50, 4, 4]
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        return self.fc2(x)


class CifarResNet(nn.Module):
    """ResNet-`depth` for CIFAR-10 (He et al. 2016, section 4.2): 6n + 2 layers with weights.

    Three groups of n blocks with 16, 32 and 64 filters on 32x32, 16x16 and 8x8. The names of the
    layers, and the inputs, normalised as for ImageNet, are those of the models that Yerlan
    Idelbayev has published (pytorch_resnet_cifar10), so that these can be loaded as they are.
    """

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


class CifarVGG16(nn.Module):
    """VGG-16 for CIFAR-10: the convolutions of Simonyan and Zisserman 2015 (table 1, D).

    With batch normalisation, and one linear layer in place of the three, which were for 224x224:
    the 15 million parameters that those who compress VGG-16 on CIFAR-10 report. `width` is the
    number of filters of the first group, which the others are multiples of.
    """

    input_shape = (3, 32, 32)

    def __init__(self, num_classes: int = 10, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for group in VGG_GROUPS:
            for filters in (width * multiple for multiple in group):
                layers += [
                    nn.Conv2d(inputs, filters, 3, padding=1, bias=False),
                    nn.BatchNorm2d(filters),
                    nn.ReLU(),
                ]
                inputs = filters
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")  # He et al. 2015

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, 3, 32, 32] -> [N, classes]
        return self.linear(self.features(x).flatten(1))
