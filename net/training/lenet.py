"""The networks of the paper's first two tables."""

import torch
from torch import nn
from torch.nn import functional as F


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
