"""A text classifier and its data such as a user might bring: token ids, and an Embedding."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

WORDS, LENGTH = 200, 12


class Text(nn.Module):
    """The mean of the words' vectors, and two linear layers."""

    def __init__(self, num_classes: int = 2):
        super().__init__()
        self.words = nn.Embedding(WORDS, 16)
        self.hidden = nn.Linear(16, 24)
        self.out = nn.Linear(24, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # int64 [N, 12] -> [N, classes]
        return self.out(torch.relu(self.hidden(self.words(x).mean(1))))


def sentences(n: int, seed: int) -> TensorDataset:
    """Of four classes, each with words of its own among those that all use."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=generator)
    words = torch.randint(WORDS, (n, LENGTH), generator=generator)
    telling = torch.rand(n, LENGTH, generator=generator) < 0.5
    own = torch.randint(20, (n, LENGTH), generator=generator) + 20 * labels[:, None]
    return TensorDataset(torch.where(telling, own, words), labels)


def data() -> tuple[TensorDataset, TensorDataset]:
    return sentences(800, 0), sentences(200, 1)
