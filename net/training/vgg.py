"""VGG-16 for CIFAR-10: the convolutions of Simonyan and Zisserman 2015 (table 1, D), on 32x32.

With batch normalisation, and one linear layer in place of the three, which were for 224x224: the
15 million parameters that those who compress VGG-16 on CIFAR-10 report.
"""

import torch
from torch import nn

# The filters of each group of 3x3 convolutions; the maximum of 2x2 is taken after a group.
GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class CifarVGG16(nn.Module):
    """Inputs are normalised by the data set's own figures."""

    input_shape = (3, 32, 32)

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for group in GROUPS:
            for filters in group:
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
