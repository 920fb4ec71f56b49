"""A user's own data: photographs in folders, or what a function of the user's own returns.

`folder:PATH` has one folder of images per class, in PATH/train and PATH/val, or in PATH alone.
The factory `package.module:factory` takes nothing and returns (train, test) or (train, validation,
test), map-style data sets as PyTorch's: len(data), and data[i] -> (input tensor of any shape and
type, class number).
"""

import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..extras import needs
from . import own_code, splits
from .inputs import Adapt, Input, Kind, normalisation
from .log import Log
from .reading import Source, first_pass
from .splits import FOLDER, Dataset, Split, is_factory, with_held_out

MOST_CLASSES = 1 << 24
SMALLEST_IMAGE = 8  # height and width; what is lower is a row of numbers rather than an image

Parts = list[tuple[Source, torch.Tensor]]  # of train, perhaps validation, test; and in which order


def load(
    name: str,
    device: torch.device | str,
    wanted: Input,
    how: str,
    val_fraction: float,
    skip_broken: bool,
    log: Log,
) -> Dataset:
    """The data set `name` on `device`, kept in memory where all of it fits, else read in every
    epoch; `how` it is normalised: "none", "unit", "data" or "model".

    Of a folder the images have the size that the model takes. PATH/val is the test set; where there
    is none, the fraction `val_fraction` of PATH/train, or of PATH itself where there is no such
    folder either. Every image is decoded once before anything else: that finds the files that are
    broken, gives the mean and the deviation of the training images, and fills the memory.

    Raises UserError for a broken file, unless `skip_broken`, which passes over it with a note; for
    code that fails, in one line with its place; and for items that are not what they must be.
    """
    factory = is_factory(name)
    parts = _of_factory(name) if factory else _of_folder(name, wanted, val_fraction)
    like = parts[0][0].like
    kind = image_kind(like) if factory else "photographs"
    if factory:
        how = _applicable(how, name, like, wanted)
    keep = like.nbytes * sum(len(order) for _, order in parts) <= splits.IN_MEMORY
    found = [
        first_pass(source, order, device, keep, how != "none", skip_broken and not factory)
        for source, order in parts
    ]
    for (source, _), part in zip(parts, found, strict=True):
        for i in part.skipped:
            log.note(f"skipped {source.name_of(i)}, which is broken")
    if len(found[0].labels) < 2 or len(found[-1].labels) < 1:
        what, few = name.removeprefix(FOLDER), (len(found[0].labels), len(found[-1].labels))
        raise UserError(f"{what} has too few images: {few[0]} to train on, {few[1]} to test on")
    sums = [part.sums for part in found]
    white = 255.0 if like.dtype == torch.uint8 else 1.0
    low, high = min(part.low for part in sums), max(part.high for part in sums)
    span = f"values from {low:.4g} to {high:.4g}"
    outside = how in ("model", "unit") and not (low >= 0 and high <= white)
    if outside and how == "unit":
        raise UserError(
            f"the data set {name} has {span}; to [0, 1] only bytes can be brought, so normalise by "
            "data, or in the function itself"
        )
    own, channels = sums[0].mean_and_std, like.shape[0] if like.dim() else 1
    adapt, treatment = normalisation(
        "none" if outside else how, wanted, own, channels, device, white
    )
    if outside:
        treatment += f": {span}, the model's figures are for [0, 1]"
    if kind and adapt is None:
        adapt = Adapt()
    read = [Split(part.inputs, part.labels, adapt, kind) for part in found]
    if len(read) == 2:
        return with_held_out(name, read[0], read[1], treatment)
    return Dataset(name, read[0], read[1], read[2], treatment)


# Photographs in folders


@dataclass(frozen=True)
class Files:
    """Image files, a source (net.training.reading) of uint8 [3, height, width]."""

    samples: list[tuple[str, int]]  # path, class number
    classes: list[str]  # the names of the folders, sorted
    size: tuple[int, int]  # height, width

    @property
    def like(self) -> torch.Tensor:
        return torch.empty(3, *self.size, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        path, label = self.samples[i]
        return read_image(path, self.size), label

    def name_of(self, i: int) -> str:
        return self.samples[i][0]

    def broken(self, i: int, why: str) -> UserError:
        path = self.name_of(i)
        return UserError(
            f"{path} cannot be read as an image ({why.removesuffix(repr(path)).strip()}); "
            "repair or remove it, or pass over broken files (--skip-broken)"
        )


def read_image(path: str, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [3, height, width]: scaled until it covers `size`, the middle cut out."""
    from PIL import Image, ImageOps

    height, width = size
    with Image.open(path) as image:
        grey = image.mode[0] in "IF"  # of more than 8 bits, which convert() cuts off at 255
        usual = Image.fromarray(_in_8_bits(np.asarray(image))) if grey else image
        fitted = ImageOps.fit(usual.convert("RGB"), (width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()


def _in_8_bits(values: np.ndarray) -> np.ndarray:
    """Of grey values of 16 bits. Raises ValueError for others, of which nobody says what white is.

    Example: [0, 256, 65535] -> [0, 1, 255]
    """
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= 1 << 16:
        raise ValueError("grey values that are not of 8 or 16 bits")
    return (values >> 8).astype(np.uint8)


def _of_folder(name: str, wanted: Input, val_fraction: float) -> Parts:
    path = Path(name.removeprefix(FOLDER))
    size = wanted.size or (wanted.usual, wanted.usual)
    divided = any((path / part).is_dir() for part in ("train", "val"))
    train = _listed(path / "train" if divided else path, size)
    order = _shuffled(len(train))  # they are listed class by class
    if (path / "val").is_dir():
        test = _listed(path / "val", size, train.classes)
        return [(train, order), (test, torch.arange(len(test)))]
    n = max(1, round(len(train) * val_fraction))
    return [(train, order[n:]), (train, order[:n])]


def _shuffled(n: int) -> torch.Tensor:
    """A fixed random order, whatever the seed."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _listed(path: Path, size: tuple[int, int], classes: list[str] | None = None) -> Files:
    """The images below `path`, whose folders must be of `classes`."""
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
    if not found.samples:
        raise UserError(f"{path} holds no images")
    numbers = {name: number for number, name in enumerate(classes)}
    samples = [(file, numbers[found.classes[label]]) for file, label in found.samples]
    return Files(samples, classes, size)


# What a function returns


class Items:
    """A user's data set, a source (net.training.reading) of inputs that all look the same."""

    def __init__(self, data: Any, what: str) -> None:
        """`what` names it in errors. Raises UserError unless it is a map-style data set."""
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise UserError(
                f"{what} is of the type {type(data).__name__}; it must be a map-style data set, "
                "with len(data) and data[i]"
            )
        with own_code.one_line(f"the length of {what}"):
            count = len(data)
        if count == 0:
            raise UserError(f"{what} is empty")
        self.data, self.what = data, what
        try:
            self.like, _ = self.item(0)
        except Exception as error:
            raise self.broken(0, str(error)) from None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        inputs, number = self.item(i)
        if _looks(inputs) != _looks(self.like):
            raise ValueError(
                f"its input is {_looks(inputs)}, that of item 0 {_looks(self.like)}; make all alike"
            )
        return inputs, number

    def item(self, i: int) -> tuple[torch.Tensor, int]:
        """(input, class number). Raises ValueError, with what is wrong, for anything else."""
        try:
            item = self.data[i]
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        if not (isinstance(item, tuple | list) and len(item) == 2):
            raise ValueError(f"it is {_described(item)}, not (input tensor, class number)")
        inputs, label = item
        if isinstance(inputs, np.ndarray | np.generic):
            inputs = torch.as_tensor(inputs)
        if not isinstance(inputs, torch.Tensor):
            raise ValueError(f"its input is {_described(inputs)}, not a tensor")
        try:
            number = operator.index(label)
        except TypeError:
            raise ValueError(f"its class is {_described(label)}, not a whole number") from None
        if not 0 <= number < MOST_CLASSES:
            raise ValueError(f"its class is {number}; classes are counted from 0")
        if inputs.layout != torch.strided:
            raise ValueError(f"its input is of the layout {inputs.layout}; make it dense")
        return inputs.detach(), number

    def name_of(self, i: int) -> str:
        return f"{self.what}: item {i}"

    def broken(self, i: int, why: str) -> UserError:
        return UserError(f"{self.name_of(i)} cannot be used: {why}")


def _looks(inputs: torch.Tensor) -> str:
    shape = "x".join(map(str, inputs.shape)) or "a number"
    return f"{shape} {str(inputs.dtype).removeprefix('torch.')}"


def _described(thing: object) -> str:
    if isinstance(thing, tuple | list):
        return f"a {type(thing).__name__} of {len(thing)}"
    return f"something of type {type(thing).__name__}"


def _of_factory(name: str) -> Parts:
    factory = own_code.find(name, "the data set")
    with own_code.one_line(f"the data set {name}"):
        data = factory()
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise UserError(
            f"the data set {name} returns {_described(data)}; it must return "
            "(train, test) or (train, validation, test)"
        )
    names = ("train", "test") if len(data) == 2 else ("train", "validation", "test")
    sources = [
        Items(part, f"the data set {name}: the {which} data set")
        for part, which in zip(data, names, strict=True)
    ]
    first = sources[0]
    for source in sources[1:]:
        if _looks(source.like) != _looks(first.like):
            raise UserError(
                f"{source.what} has inputs of {_looks(source.like)}, training has "
                f"{_looks(first.like)}"
            )
    if len(first) < 2:
        raise UserError(f"{first.what} has one item only")
    orders = [torch.arange(len(source)) for source in sources]
    if len(sources) == 2:  # the last are held out
        orders[0] = _shuffled(len(first))
    return list(zip(sources, orders, strict=True))


def image_kind(inputs: torch.Tensor) -> Kind:
    """Images are uint8 or floating [1 or 3, height, width] of 8 pixels a side at least."""
    if inputs.dim() != 3 or not (inputs.dtype == torch.uint8 or inputs.is_floating_point()):
        return None
    if min(inputs.shape[1:]) < SMALLEST_IMAGE:
        return None
    kinds: dict[int, Kind] = {1: "strokes", 3: "photographs"}
    return kinds.get(inputs.shape[0])


def _applicable(how: str, name: str, like: torch.Tensor, wanted: Input) -> str:
    """`how` inputs such as `like` are normalised, where that can be done to them."""
    figures = like.dim() and (like.dtype == torch.uint8 or like.is_floating_point())
    if how in ("unit", "data") and not figures:
        raise UserError(
            f"the data set {name} has inputs of {_looks(like)}, which cannot be normalised; they "
            "must be floating-point numbers or bytes, of one dimension or more"
        )
    # The model's figures per channel are not for token ids, rows of numbers or sequences.
    fits = figures and (len(wanted.mean or ()) == 1 or like.dim() == 3)
    return "none" if how == "model" and not fits else how
