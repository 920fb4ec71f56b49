"""Photographs in folders, `PATH/train/CLASS/*.jpg` and `PATH/val/CLASS/*.jpg`."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..errors import UserError
from .architectures import Input
from .datasets import (
    IN_MEMORY,
    WHOLE,
    Adapt,
    Dataset,
    Split,
    batch_indexes,
    normaliser,
    with_held_out,
)

FEW = 512  # images that are read sooner than processes to read them would have started


@dataclass
class Files:
    """Image files, read to uint8 [3, height, width]; what a DataLoader's workers index."""

    paths: list[str]
    labels: torch.Tensor  # int64 [N]
    size: tuple[int, int]  # height, width

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[int, torch.Tensor | str]:
        """(i, image), or (i, why it cannot be read)."""
        try:
            return i, read_image(self.paths[i], self.size)
        except Exception as error:  # Pillow raises whatever a damaged file leads to
            return i, str(error).splitlines()[0] if str(error) else type(error).__name__

    def take(self, index) -> "Files":
        index = torch.as_tensor(index)
        paths = [self.paths[i] for i in index.tolist()]
        return replace(self, paths=paths, labels=self.labels[index])

    def read(self, batches) -> Iterator["Read"]:
        """Yield what `batches`, sequences of indexes, name."""
        workers = min(8, os.cpu_count() or 1) if len(self) > FEW else 0
        # A generator of its own, since the loader would draw from torch's global one.
        yield from DataLoader(
            self,
            batch_sampler=[index.tolist() for index in batches],
            num_workers=workers,
            collate_fn=gathered,
            generator=torch.Generator(),
        )


class Read(NamedTuple):
    """A batch of images as a worker hands it over.

    In one tensor, which is one piece of shared memory and one open file until it is let go; one
    per image would soon be more open files than a process may have.
    """

    images: torch.Tensor  # uint8 [n, 3, height, width]
    index: torch.Tensor  # int64 [n]
    broken: list[tuple[int, str]]  # the index of every image that is missing, and why


def gathered(batch: list[tuple[int, torch.Tensor | str]]) -> Read:
    good = [(i, image) for i, image in batch if isinstance(image, torch.Tensor)]
    images = torch.stack([image for _, image in good]) if good else torch.empty(0)
    index = torch.tensor([i for i, _ in good], dtype=torch.int64)
    return Read(images, index, [pair for pair in batch if isinstance(pair[1], str)])


def read_image(path: str, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [3, height, width]: scaled until it covers `size`, the middle cut out."""
    from PIL import Image, ImageOps

    height, width = size
    with Image.open(path) as image:
        fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, 3).permute(2, 0, 1).contiguous()


@dataclass
class StreamedSplit:
    """A split that is read from its files in every epoch; as datasets.Split is."""

    files: Files
    adapt: Adapt
    device: torch.device

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, part: slice) -> "StreamedSplit":
        return replace(self, files=self.files.take(range(len(self))[part]))

    @property
    def labels(self) -> torch.Tensor:
        return self.files.labels

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        return 3, *self.files.size

    def batches(self, batch_size: int, shuffle: bool = False, shard=WHOLE):
        """Yield (images float32, labels); shuffled by torch's global generator."""
        for batch in self.files.read(batch_indexes(len(self), batch_size, shuffle, shard)):
            for i, reason in batch.broken:  # it could be read when the run began
                raise broken(self.files.paths[i], reason)
            yield self.adapt(batch.images.to(self.device)), self.labels[batch.index].to(self.device)


def load(name: str, device, wanted: Input, val_fraction: float, skip_broken: bool) -> Dataset:
    """The data set "folder:PATH": images of the size that the model takes, on `device`.

    PATH/val is the test set; where there is none, the fraction `val_fraction` of PATH/train.
    Every image is decoded once before anything else: that finds the files that are broken, gives
    the mean and the deviation of the training images, and fills the memory if all of them fit.
    Raises UserError for a broken file, unless `skip_broken`, which passes over it with a note.
    """
    path = Path(name.removeprefix("folder:"))
    size = wanted.size or (wanted.usual, wanted.usual)
    classes, train = listed(path / "train", size)
    # Listed class by class; a fixed order of its own, whatever the seed.
    train = train.take(torch.randperm(len(train), generator=torch.Generator().manual_seed(0)))
    if (path / "val").is_dir():
        test = listed(path / "val", size, classes)[1]
    else:
        n = max(1, round(len(train) * val_fraction))
        train, test = train.take(range(n, len(train))), train.take(range(n))
    keep = 3 * size[0] * size[1] * (len(train) + len(test)) <= IN_MEMORY
    train_split, sums = first_pass(train, keep, skip_broken, device)
    test_split, _ = first_pass(test, keep, skip_broken, device)
    if len(train_split) < 2 or len(test_split) < 1:
        raise UserError(f"{path} has too few images: {len(train_split)} to train on")
    adapt = normaliser(*sums, device)
    train_split.adapt = test_split.adapt = adapt
    return with_held_out(name, train_split, test_split)


def listed(path: Path, size, classes: list[str] | None = None) -> tuple[list[str], Files]:
    """The classes (names of the folders, sorted) and the images below `path`."""
    from torchvision.datasets import ImageFolder

    if not path.is_dir():
        raise UserError(f"no folder {path}; it must hold one folder of images per class")
    try:
        found = ImageFolder(path, allow_empty=True)
    except FileNotFoundError:
        raise UserError(f"{path} holds no folders; it must hold one per class") from None
    classes = classes or found.classes
    unknown = sorted(set(found.classes) - set(classes))
    if unknown:
        raise UserError(f"{path / unknown[0]} is a class that the training images do not have")
    number = {found.class_to_idx[name]: classes.index(name) for name in found.classes}
    if not found.samples:
        raise UserError(f"{path} holds no images")
    labels = torch.tensor([number[label] for _, label in found.samples])
    return classes, Files([file for file, _ in found.samples], labels, size)


def first_pass(files: Files, keep: bool, skip_broken: bool, device):
    """(a split of the images that can be read, (mean, mean square) of each of their channels)."""
    good, skipped = [], []
    total, square = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    kept = torch.empty(len(files) if keep else 0, 3, *files.size, dtype=torch.uint8)
    batches = batch_indexes(len(files), 64, shuffle=False)
    for images, index, failures in tqdm(
        files.read(batches), "reading images", total=len(batches), leave=False, disable=None
    ):
        for i, reason in failures:
            if not skip_broken:
                raise broken(files.paths[i], reason)
            skipped.append(files.paths[i])
        for image in images:
            total += image.flatten(1).sum(1)
            square += image.flatten(1).int().square().sum(1)
        if keep and len(images):
            kept[len(good) : len(good) + len(images)] = images
        good += index.tolist()
    for path in skipped:
        print(f"NOTE: skipped {path}, which is broken", file=sys.stderr)
    files = files.take(good) if skipped else files
    pixels = max(1, len(good) * files.size[0] * files.size[1])
    sums = (total / pixels).tolist(), (square / pixels).tolist()
    if not keep or not good:
        return StreamedSplit(files, Adapt(), device), sums
    return Split(kept[: len(good)].to(device), files.labels.to(device)), sums


def broken(path: str, reason: str) -> UserError:
    return UserError(
        f"{path} cannot be read as an image ({reason.removesuffix(repr(path)).strip()}); repair or "
        "remove it, or pass over such files with --skip-broken"
    )
