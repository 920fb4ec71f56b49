#!/usr/bin/env python
"""A loop of plain PyTorch: an LSTM that reads handwritten digits row by row.

python examples/own_loop.py
"""

import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the clone that holds `net`
import net  # installed: import deep_compression as net


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 64, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:  # [N, 8, 8] -> [N, 10]
        return self.head(self.lstm(rows)[0][:, -1])


torch.manual_seed(42)
torch.set_num_threads(1)  # the model is tiny: more threads only wait for each other
digits = load_digits()
order = torch.randperm(1797)
rows, labels = torch.tensor(digits.images).float()[order] / 16, torch.tensor(digits.target)[order]
model = Reader()


def train(optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        batch = torch.randint(360, 1797, (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(rows[batch]), labels[batch]).backward()
        optimizer.step()


def percent_wrong() -> float:
    return 100 * (model(rows[:360]).argmax(1) != labels[:360]).float().mean().item()


train(torch.optim.Adam(model.parameters(), 5e-3), 400)
before = percent_wrong()

pruner = net.Pruner(model, density=0.12, steps=400)
optimizer = torch.optim.Adam(model.parameters(), 5e-3)
pruner.attach(optimizer)
train(optimizer, 600)
pruner.detach()

sharing = net.WeightSharing(model, bits=4, bias_bits=4)
optimizer = torch.optim.Adam(sharing.parameters(), 1e-3)
sharing.attach(optimizer)
train(optimizer, 200)
sharing.detach()

with tempfile.TemporaryDirectory() as folder:
    size = net.encoding.save(model.state_dict(), folder)
    model.load_state_dict(net.encoding.load(folder)[0])
dense = 4 * sum(p.numel() for p in model.parameters())
print(f"{dense:,} -> {size:,} bytes, {dense / size:.1f}x")
print(f"test error {before:.2f} % -> {percent_wrong():.2f} %")
