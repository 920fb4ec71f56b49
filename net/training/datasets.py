"""Data sets by name, read once into tensors on the device where they fit."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import UserError
from ..extras import needs
from . import folder, own_data
from .download import bounded_waiting, reachable, reason_of
from .inputs import NORMALISE, Input, Normalise, chosen, normalisation
from .log import Log
from .splits import Dataset, Split, adapted, with_held_out
from .streaming import Sums

# torchvision's classes; these three share the file layout and the shape [N, 28, 28].
DOWNLOADABLE = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
NAMES = ("auto", *DOWNLOADABLE, "cifar10", "digits", "folder:PATH", "package.module:factory")

# A data set whose inputs an option has normalised: a later stage must do the same.
NORMALISED = re.compile(rf"(.*)\(normalise=({'|'.join(NORMALISE)})\)")

# (training images, their labels, test images, their labels): images [N, C, H, W]
Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def load(
    name: str,
    data_dir: str | Path,
    device: torch.device | str,
    wanted: Input | None = None,
    val_fraction: float = 0.2,
    skip_broken: bool = False,
    normalise: Normalise = "auto",
    log: Log | None = None,
) -> Dataset:
    """The data set `name` on `device`, its images as the model `wanted` them (None: as they are).

    `normalise` says how (net.training.inputs); other than "auto" it becomes a part of the name of
    what is returned, and may be one of `name`. The log says what is done. "auto" is MNIST where its
    files are in `data_dir` or can be downloaded, and scikit-learn's digits otherwise, of which a
    note tells. `val_fraction` and `skip_broken`: see folder.load; package.module:factory: see
    own_data.load. Raises UserError for an unknown name, a named data set that is neither there nor
    to be had, and one that cannot be adapted to the model.
    """
    wanted, log = wanted or Input(), log or Log()
    if described := NORMALISED.fullmatch(name):
        name = described[1]
        normalise = cast(Normalise, described[2]) if normalise == "auto" else normalise
    if name.startswith("folder:"):
        found = folder.load(name, device, wanted, val_fraction, skip_broken, normalise, log)
    elif ":" in name:
        found = own_data.load(name, device, wanted, normalise)
    elif name in NAMES:
        how = chosen(normalise, wanted, own=False)
        found = load_named(name, Path(data_dir), device, wanted, how, log)
    else:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(NAMES)}")
    found = adapted(found, wanted)
    if normalise != "auto":
        found = replace(found, name=f"{found.name}(normalise={normalise})")
    text = f"inputs of {found.name}: {found.treatment}"
    log.result(text, event="inputs", dataset=found.name, treatment=found.treatment)
    return found


def load_named(
    name: str, data_dir: Path, device: torch.device | str, wanted: Input, how: str, log: Log
) -> Dataset:
    """`how` is what inputs.chosen returns."""
    if name == "digits":
        return digits(device, wanted, how)
    if name == "cifar10":
        return photographs("cifar10", read_cifar10(data_dir), device, wanted, how)
    found = "mnist" if name == "auto" else name
    try:
        return grey(found, read_torchvision(found, data_dir), device, wanted, how)
    except UserError as error:
        if name != "auto":
            raise
        log.note(f"MNIST is not available ({error}).")
        log.note(
            "using scikit-learn's bundled digits instead: 1,797 scans of 8x8, scaled to 28x28. "
            "The figures below are for digits, NOT for MNIST."
        )
        return digits(device, wanted, how)


def digits(device: torch.device | str, wanted: Input, how: str) -> Dataset:
    return grey("digits", read_digits(), device, wanted, how, white=16)


def grey(
    name: str,
    arrays: Arrays,
    device: torch.device | str,
    wanted: Input,
    how: str,
    white: float = 255,
) -> Dataset:
    """From images [N, 1, H, W] in [0, `white`]: stored as normalised float32 where their own
    figures do that, else as they are; those of the model may be of colours."""
    train_images, train_labels, test_images, test_labels = (t.to(device) for t in arrays)
    train_labels, test_labels = train_labels.long(), test_labels.long()
    mean, std = train_images.float().mean(), train_images.float().std()

    def own() -> tuple[list[float], list[float]]:
        return [mean.item()], [std.item()]

    adapt, treatment = normalisation(how, wanted, own, train_images.shape[1:], device, white)
    if how == "data":
        adapt = None
        train_images, test_images = train_images.float(), test_images.float()
        train_images.sub_(mean).div_(std)
        test_images.sub_(mean).div_(std)
    train = Split(train_images, train_labels, adapt, "strokes")
    return with_held_out(name, train, Split(test_images, test_labels, adapt, "strokes"), treatment)


def photographs(
    name: str, arrays: Arrays, device: torch.device | str, wanted: Input, how: str
) -> Dataset:
    """From images uint8 [N, 3, H, W], which stay bytes: a quarter of the memory."""
    train_images, train_labels, test_images, test_labels = arrays

    def own() -> tuple[list[float], list[float]]:
        sums = Sums()
        for part in train_images.split(1000):
            sums.add(part)
        return sums.mean_and_std()

    adapt, treatment = normalisation(how, wanted, own, train_images.shape[1:], device)
    train = Split(train_images.to(device), train_labels.long().to(device), adapt, "photographs")
    test = Split(test_images.to(device), test_labels.long().to(device), adapt, "photographs")
    return with_held_out(name, train, test, treatment)


def read_digits() -> Arrays:
    """scikit-learn's digits: 1,437 to train on, 360 to test on, shuffled once and for all."""
    # It takes a second, and only this data set needs it.
    digits = needs("sklearn.datasets", "the data set digits").load_digits()
    images = torch.from_numpy(digits.images).float()[:, None]  # [1797, 1, 8, 8], 0..16
    images = F.interpolate(images, size=(28, 28), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(digits.target)
    # The scans are ordered by writer and digit; a fixed order of its own, whatever the seed.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return images[360:], labels[360:], images[:360], labels[:360]


CIFAR10_BINARY = "cifar-10-batches-bin"
RECORD = 1 + 3 * 32 * 32  # the class, then the red, the green and the blue plane, row by row


def read_cifar10(data_dir: Path) -> Arrays:
    """CIFAR-10 in either of its published layouts, DATA_DIR/cifar-10-batches-py/ as torchvision's
    or DATA_DIR/cifar-10-batches-bin/; downloaded if it is in none."""
    CIFAR10 = needs("torchvision.datasets", "the data set cifar10").CIFAR10

    pickled = data_dir / CIFAR10.base_folder
    files = [pickled / name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    if not all(file.is_file() for file in files):
        if (data_dir / CIFAR10_BINARY).is_dir():
            return read_cifar10_binary(data_dir / CIFAR10_BINARY)
        problem = f"the data set 'cifar10' is not in {pickled} or {data_dir / CIFAR10_BINARY}"
        download(CIFAR10, [CIFAR10.url], data_dir, problem)
    try:  # torchvision checks the files' MD5 sums before it unpickles them
        train, test = CIFAR10(data_dir, train=True), CIFAR10(data_dir, train=False)
    except (RuntimeError, OSError) as error:
        raise UserError(f"the files in {pickled} are damaged ({error}); delete them") from None
    images = [
        torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)
    ]
    return images[0], torch.tensor(train.targets), images[1], torch.tensor(test.targets)


def read_cifar10_binary(path: Path) -> Arrays:
    """The binary layout; each file may hold any whole number of records."""
    parts = [read_records(path / f"data_batch_{i}.bin") for i in range(1, 6)]
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels), *read_records(path / "test_batch.bin")


def read_records(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(images uint8 [N, 3, 32, 32], labels uint8 [N]) of a file of CIFAR-10's binary layout."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; put the file there") from None
    records, rest = divmod(len(content), RECORD)
    if rest or not records:
        raise UserError(
            f"{path} is damaged: its {len(content)} bytes are not a whole number of records of "
            f"{RECORD}; download it again"
        )
    table = torch.from_numpy(content).view(records, RECORD)
    images, labels = table[:, 1:].reshape(records, 3, 32, 32), table[:, 0].contiguous()
    if labels.max() > 9:
        wrong = int((labels > 9).nonzero()[0])
        raise UserError(
            f"{path} is damaged: record {wrong} is of class {int(labels[wrong])}, and there are "
            f"0 to 9 only; download it again"
        )
    return images, labels


def read_torchvision(name: str, data_dir: Path) -> Arrays:
    """A data set in torchvision's layout, DATA_DIR/MNIST/raw/..., downloaded if it is missing."""
    kind = getattr(needs("torchvision.datasets", f"the data set {name}"), DOWNLOADABLE[name])
    raw = data_dir / DOWNLOADABLE[name] / "raw"
    files = [raw / Path(archive).stem for archive, _ in kind.resources]
    if not all(file.is_file() for file in files):
        download(kind, kind.mirrors, data_dir, f"the data set {name!r} is not in {raw}")
    try:
        train, test = kind(data_dir, train=True), kind(data_dir, train=False)
    except (RuntimeError, ValueError, AssertionError, EOFError, OSError) as error:
        raise UserError(f"the files in {raw} are damaged ({error}); delete them") from None
    return train.data[:, None], train.targets, test.data[:, None], test.targets


def download(kind: Any, hosts: Sequence[str], data_dir: Path, problem: str) -> None:
    """Let torchvision's class `kind` download, after a probe that bounds what a silent host can
    cost to 6 s."""
    hint = "put its files there, give another folder, or take the data set digits"
    if not reachable(hosts):
        raise UserError(f"{problem} and no host that has it answers; {hint}")
    try:
        with bounded_waiting():
            kind(data_dir, download=True)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{problem} and cannot be downloaded ({reason_of(error)}); {hint}"
        ) from None
