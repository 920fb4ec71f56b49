#!/usr/bin/env python
"""Seconds per epoch: our loop against the same training written the usual way.

    python benchmarks/training.py --data-dir data
    python benchmarks/training.py --data-dir data --arch resnet-20 --dataset cifar10 --images 5000
    python benchmarks/training.py --dataset digits --device cuda

The usual way is torchvision's data set with ToTensor and Normalize per sample behind a DataLoader,
photographs with RandomCrop and RandomHorizontalFlip, as ours are shifted and mirrored.  Both run
Adam on the same images, alternating; the ratio is of the medians.  Ours is in the precision that
the presets take for the architecture, and ends with the pass over 10,000 images that measures
BatchNorm's statistics, once in a phase of any length.
"""

import argparse
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from timing import medians
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from net.training import datasets
from net.training.architectures import build, input_of
from net.training.distillation import Distorted
from net.training.loop import Schedule, adam, evaluate, fit, in_bfloat16
from net.training.weights import placed


class PerSample(Dataset):
    """Images as a torchvision data set gives them: a PIL image through transforms, one by one."""

    def __init__(self, split):
        from PIL import Image
        from torchvision import transforms

        inputs = split.inputs.float()
        low, high = inputs.min(), inputs.max()
        as_bytes = ((inputs - low) / (high - low) * 255).byte().movedim(1, -1).cpu().numpy()
        self.images = as_bytes.squeeze(-1) if as_bytes.shape[-1] == 1 else as_bytes
        self.labels = split.labels.tolist()
        mean, std = (
            (each(axis=(0, 1, 2)) / 255).tolist() for each in (as_bytes.mean, as_bytes.std)
        )
        self.open = Image.fromarray
        changes = []
        if split.kind == "photographs":
            side = as_bytes.shape[1]
            changes = [transforms.RandomCrop(side, side // 8), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose(
            [*changes, transforms.ToTensor(), transforms.Normalize(mean, std)]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(self.open(self.images[i])), self.labels[i]


def usual_epoch(model, dataset, batch_size, device):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for images, labels in DataLoader(dataset, batch_size=batch_size, shuffle=True):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def our_epoch(model, split, batch_size, amp):
    if split.kind == "photographs":
        split = Distorted(split, 1.0)
    fit(model, adam(model.parameters(), 1e-3), split, Schedule(1, batch_size, amp))


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="lenet-300-100")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--images", type=int, help="so many of the training images")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one run of one size, on the digits")
    args = parser.parse_args(argv)
    if args.quick:
        args.dataset, args.runs = "digits", 1

    device = torch.device(args.device)
    dataset = datasets.load(args.dataset, args.data_dir, device, input_of(args.arch))
    train = dataset.train[: args.images]
    per_sample = PerSample(train)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {args.device}; {args.arch}, {args.dataset}, "
        f"{len(train):,} images, medians of {args.runs}"
    )
    amp = in_bfloat16(device, "auto")
    print("ours in bfloat16" if amp else "both in float32")
    print(
        "batch  ours s/epoch  usual s/epoch  ratio  held-out error after these epochs, ours/usual"
    )
    for batch_size in (250,) if args.quick else (50, 250):
        ours, usual = placed(build(args.arch), device), build(args.arch).to(device)
        a, b = medians(
            lambda m=ours, n=batch_size: our_epoch(m, train, n, amp),
            lambda m=usual, n=batch_size: usual_epoch(m, per_sample, n, device),
            repeat=args.runs,
        )
        errors = [evaluate(model, dataset.validation)[1] for model in (ours, usual)]
        figures = f"{batch_size:5}  {a:12.2f}  {b:13.2f}  {b / a:4.1f}x"
        print(f"{figures}  {errors[0]:.2f} / {errors[1]:.2f} %")


if __name__ == "__main__":
    main()
