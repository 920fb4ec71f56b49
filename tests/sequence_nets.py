"""Networks that read an image row by row, `--arch tests.sequence_nets:Recurrent`."""

import torch
from torch import nn


class Recurrent(nn.Module):
    input_shape = (1, 28, 28)

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.lstm = nn.LSTM(28, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [N, 1, 28, 28] -> [N, classes]
        return self.head(self.lstm(images.squeeze(1))[0][:, -1])


class Attending(nn.Module):
    """A transformer encoder, with places that are a parameter of two dimensions and no weight."""

    input_shape = (1, 28, 28)

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.rows = nn.Linear(28, 32)
        self.places = nn.Parameter(0.02 * torch.randn(28, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [N, 1, 28, 28] -> [N, classes]
        return self.head(self.encoder(self.rows(images.squeeze(1)) + self.places).mean(1))
