"""Photographs in folders, one per class: of PATH/train and PATH/val, or of PATH alone."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UserError
from ..extras import needs
from . import splits
from .inputs import Input, Normalise, chosen, normalisation
from .log import Log
from .splits import Dataset, with_held_out
from .streaming import FirstPass, first_pass


@dataclass(frozen=True)
class Files:
    """Image files, a source (net.training.streaming) of uint8 [3, height, width]."""

    paths: list[str]
    labels: list[int]
    size: tuple[int, int]  # height, width

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return read_image(self.paths[i], self.size), self.labels[i]

    def broken(self, i: int, reason: str) -> UserError:
        path = self.paths[i]
        return UserError(
            f"{path} cannot be read as an image ({reason.removesuffix(repr(path)).strip()}); "
            "repair or remove it, or have broken files passed over"
        )


def read_image(path: str, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [3, height, width]: scaled until it covers `size`, the middle cut out."""
    from PIL import Image, ImageOps

    height, width = size
    with Image.open(path) as image:
        fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, 3).permute(2, 0, 1).contiguous()


def load(
    name: str,
    device: torch.device | str,
    wanted: Input,
    val_fraction: float,
    skip_broken: bool,
    normalise: Normalise,
    log: Log,
) -> Dataset:
    """The data set "folder:PATH": images of the size that the model takes, on `device`.

    PATH/val is the test set; where there is none, the fraction `val_fraction` of PATH/train, or of
    PATH itself where there is no such folder either.
    Every image is decoded once before anything else: that finds the files that are broken, gives
    the mean and the deviation of the training images, and fills the memory if all of them fit.
    Raises UserError for a broken file, unless `skip_broken`, which passes over it with a note.
    """
    path = Path(name.removeprefix("folder:"))
    size = wanted.size or (wanted.usual, wanted.usual)
    divided = any((path / part).is_dir() for part in ("train", "val"))
    classes, train_files = listed(path / "train" if divided else path, size)
    # Listed class by class; a fixed order of its own, whatever the seed.
    train = torch.randperm(len(train_files), generator=torch.Generator().manual_seed(0))
    if (path / "val").is_dir():
        test_files = listed(path / "val", size, classes)[1]
        test = torch.arange(len(test_files))
    else:
        n = max(1, round(len(train) * val_fraction))
        test_files, train, test = train_files, train[n:], train[:n]
    keep = 3 * size[0] * size[1] * (len(train) + len(test)) <= splits.IN_MEMORY

    def read(files: Files, order: torch.Tensor) -> FirstPass:
        found = first_pass(files, order, device, keep, "photographs", True, skip_broken)
        for i in found.skipped:
            log.note(f"skipped {files.paths[i]}, which is broken")
        return found

    trained, tested = read(train_files, train), read(test_files, test)
    if len(trained.split) < 2 or len(tested.split) < 1:
        raise UserError(f"{path} has too few images: {len(trained.split)} to train on")
    how, own = chosen(normalise, wanted, own=False), trained.sums.mean_and_std
    adapt, treatment = normalisation(how, wanted, own, (3, *size), device)
    train_split, test_split = (part.split.changed(adapt=adapt) for part in (trained, tested))
    return with_held_out(name, train_split, test_split, treatment)


def listed(
    path: Path, size: tuple[int, int], classes: list[str] | None = None
) -> tuple[list[str], Files]:
    """The classes (names of the folders, sorted) and the images below `path`."""
    ImageFolder = needs("torchvision.datasets", "a folder of images").ImageFolder
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
    paths, labels = zip(*found.samples, strict=True)
    return classes, Files(list(paths), [number[label] for label in labels], size)
