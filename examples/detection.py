#!/usr/bin/env python
"""A loss that is a dict, targets that are boxes: a detector of torchvision, on made-up squares.

python examples/detection.py
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the clone that holds `net`
import net  # installed: import deep_compression as net

torch.manual_seed(42)
torch.set_num_threads(1)
layers = [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((3, 16), (16, 32), (32, 32))]
backbone = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU())
backbone.out_channels = 32
anchors = AnchorGenerator(sizes=((24,),), aspect_ratios=((1.0,),))
model = RetinaNet(backbone, 2, min_size=64, max_size=64, anchor_generator=anchors)


def batch(size: int) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Noise with a brighter square in each image [3, 64, 64], and where it is."""
    images, targets = torch.rand(size, 3, 64, 64) / 2, []
    for image, (x, y) in zip(images, torch.randint(40, (size, 2)).tolist(), strict=True):
        image[:, y : y + 24, x : x + 24] += 0.5
        box = torch.tensor([[x, y, x + 24, y + 24]], dtype=torch.float32)
        targets.append({"boxes": box, "labels": torch.tensor([1])})
    return list(images), targets


def train(optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        loss = sum(model(*batch(8)).values())  # that of the classes and that of the boxes
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def held_out_loss() -> float:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return float(sum(model(*batch(64)).values()))


train(torch.optim.Adam(model.parameters(), 1e-3), 100)
before = held_out_loss()

pruner = net.Pruner(model, sensitivity={"*": 1.0, "head.*": 1.2})
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
pruner.attach(optimizer)
train(optimizer, 60)
pruner.detach()

sharing = net.WeightSharing(model, bits=5)
optimizer = torch.optim.Adam(sharing.parameters(), 3e-4)
sharing.attach(optimizer)
train(optimizer, 20)
sharing.detach()

with tempfile.TemporaryDirectory() as folder:
    size = net.encoding.save(model.state_dict(), folder)
    model.load_state_dict(net.encoding.load(folder)[0])
dense = 4 * sum(p.numel() for p in model.parameters())
print(f"{dense:,} -> {size:,} bytes, {dense / size:.1f}x")
print(f"held-out loss {before:.3f} -> {held_out_loss():.3f}")
