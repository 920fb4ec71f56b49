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
from . import own_data
from .download import downloading
from .inputs import NORMALISE, Input, Kind, Normalise, normalisation
from .log import Log
from .reading import Sums
from .splits import FOLDER, Dataset, Split, adapted, is_factory, with_held_out

# torchvision's classes; these three share the file layout and the shape [N, 28, 28].
DOWNLOADABLE = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
NAMES = ("auto", *DOWNLOADABLE, "cifar10", "digits", "folder:PATH", "package.module:factory")

VAL_FRACTION = 0.2
# A data set that an option has normalised, or divided, otherwise than by default: a later stage
# must do the same, or it would test on images that an earlier one has trained on.
DESCRIBED = re.compile(
    rf"(.*?)(?:\(val_fraction=(0\.\d+)\))?(?:\(normalise=({'|'.join(NORMALISE)})\))?"
)

# (training images, their labels, test images, their labels): images [N, C, H, W]
Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def load(
    name: str,
    data_dir: str | Path,
    device: torch.device | str,
    wanted: Input | None = None,
    val_fraction: float | None = None,
    skip_broken: bool = False,
    normalise: Normalise = "auto",
    log: Log | None = None,
) -> Dataset:
    """The data set `name` on `device`, its images as the model `wanted` them (None: as they are).

    `normalise` says how (net.training.inputs). It and `val_fraction`, other than "auto" and
    VAL_FRACTION, become parts of the name of what is returned, and may be parts of `name`. The log
    says what is done. "auto" is MNIST where its files are in `data_dir` or can be downloaded, and
    scikit-learn's digits otherwise, of which a note tells. For folder:PATH, `val_fraction`,
    `skip_broken` and package.module:factory see own_data.load. Raises UserError for an unknown
    name, a named data set that is neither there nor to be had, and one that cannot be adapted to
    the model.
    """
    wanted, log = wanted or Input(), log or Log()
    name, *parts = described(name)
    normalise = cast(Normalise, parts[1] or "auto") if normalise == "auto" else normalise
    fraction = val_fraction or float(parts[0] or VAL_FRACTION)
    how: str = normalise
    if how == "auto":
        by_default = "none" if is_factory(name) else "data"
        how = "model" if wanted.mean and wanted.std else by_default
    if ":" in name:
        found = own_data.load(name, device, wanted, how, fraction, skip_broken, log)
    elif name in NAMES:
        found = load_named(name, Path(data_dir), device, wanted, how, log)
    else:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(NAMES)}")
    found = adapted(found, wanted)
    divided = not name.startswith(FOLDER) or Path(name.removeprefix(FOLDER), "val").is_dir()
    if divided and val_fraction is not None:
        log.note(f"a part to test on has no effect: {name} has images of its own for that")
    if not divided and fraction != VAL_FRACTION:
        found = replace(found, name=f"{found.name}(val_fraction={fraction})")
    if normalise != "auto":
        found = replace(found, name=f"{found.name}(normalise={normalise})")
    text = f"inputs of {found.name}: {found.treatment}"
    log.result(text, event="inputs", dataset=found.name, treatment=found.treatment)
    return found


def described(name: str) -> tuple[str, str | None, str | None]:
    """(the data set, `val_fraction`, `normalise`) of the `name` of a Dataset; None: by default."""
    found = DESCRIBED.fullmatch(name)
    return (found[1], found[2], found[3]) if found else (name, None, None)


def load_named(
    name: str, data_dir: Path, device: torch.device | str, wanted: Input, how: str, log: Log
) -> Dataset:
    """Images stay as they are read, in bytes: a quarter of the memory."""
    if name == "auto":
        try:
            return load_named("mnist", data_dir, device, wanted, how, log)
        except UserError as error:
            log.note(f"MNIST is not available ({error}).")
        log.note(
            "using scikit-learn's bundled digits instead: 1,797 scans of 8x8, scaled to 28x28. "
            "The figures below are for digits, NOT for MNIST."
        )
        name = "digits"
    kind: Kind = "strokes"
    white = 255.0
    if name == "digits":
        arrays, white = read_digits(), 16.0
    elif name == "cifar10":
        arrays, kind = read_cifar10(data_dir), "photographs"
    else:
        arrays = read_torchvision(name, data_dir)
    images, labels, test_images, test_labels = (tensor.to(device) for tensor in arrays)

    def own() -> tuple[list[float], list[float]]:
        if kind == "strokes":
            floats = images.float()
            return [floats.mean().item()], [floats.std().item()]
        sums = Sums()
        for part in images.split(1000):
            sums.add(part)
        return sums.mean_and_std()

    adapt, treatment = normalisation(how, wanted, own, images.shape[1], device, white)
    train = Split(images, labels.long(), adapt, kind)
    test = Split(test_images, test_labels.long(), adapt, kind)
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


RECORD = 1 + 3 * 32 * 32  # the class, then the red, the green and the blue plane, row by row


def read_cifar10(data_dir: Path) -> Arrays:
    """CIFAR-10 in either of its published layouts, DATA_DIR/cifar-10-batches-py/ as torchvision's
    or DATA_DIR/cifar-10-batches-bin/; downloaded if it is in none."""
    CIFAR10 = needs("torchvision.datasets", "the data set cifar10").CIFAR10

    pickled, binary = data_dir / CIFAR10.base_folder, data_dir / "cifar-10-batches-bin"
    files = [pickled / name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    if binary.is_dir() and not all(file.is_file() for file in files):
        names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
        *parts, test_part = [read_records(binary / name) for name in names]
        images, labels = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(labels), *test_part
    problem = f"the data set 'cifar10' is not in {pickled} or {binary}"
    # torchvision checks the files' MD5 sums before it unpickles them.
    train, test = _torchvisions(CIFAR10, files, [CIFAR10.url], data_dir, problem)
    train_images, test_images = (
        torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)
    )
    return train_images, torch.tensor(train.targets), test_images, torch.tensor(test.targets)


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
    problem = f"the data set {name!r} is not in {raw}"
    train, test = _torchvisions(kind, files, kind.mirrors, data_dir, problem)
    return train.data[:, None], train.targets, test.data[:, None], test.targets


def _torchvisions(
    kind: Any, files: Sequence[Path], hosts: Sequence[str], data_dir: Path, problem: str
) -> tuple[Any, Any]:
    """The training and the test set of torchvision's class `kind`, downloaded unless all `files`
    are there; `problem` says that they are not."""
    if not all(file.is_file() for file in files):
        hint = "put its files there, give another folder, or take the data set digits"
        with downloading(hosts, problem, hint):
            kind(data_dir, download=True)
    try:
        return kind(data_dir, train=True), kind(data_dir, train=False)
    except (RuntimeError, ValueError, AssertionError, EOFError, OSError) as error:
        where = files[0].parent
        raise UserError(f"the files in {where} are damaged ({error}); delete them") from None
