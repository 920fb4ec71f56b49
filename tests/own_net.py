"""A network such as a user might bring, `--arch tests.own_net:OwnNet`: every kind of layer."""

import torch
from torch import nn
from torch.nn import functional as F


class OwnNet(nn.Module):
    """Grouped, depthwise and transposed convolutions in one to three dimensions, a BatchNorm, and
    an Embedding whose weight is that of the last Linear layer, too."""

    input_shape = (1, 16, 16)

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.volume = nn.Conv3d(1, 2, 3, padding=1)
        self.line = nn.Conv1d(32, 32, 3, padding=1)
        self.words = nn.Embedding(num_classes, 32)
        self.head = nn.Linear(32, num_classes, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, 1, 16, 16] -> [N, classes]
        x = F.relu(self.norm(self.stem(x)))  # [N, 16, 8, 8]
        x = F.relu(self.depthwise(F.relu(self.grouped(x))))  # [N, 32, 8, 8]
        x = F.max_pool2d(F.relu(self.up(x)), 4)  # [N, 16, 4, 4]
        x = F.relu(self.volume(x[:, None]))  # [N, 2, 16, 4, 4]
        x = F.relu(self.line(x.flatten(1, 2).flatten(2)))  # [N, 32, 16]
        bias = self.words(torch.arange(self.words.num_embeddings, device=x.device)).sum(1)
        return self.head(x.mean(2) + x.amax(2)) + bias
