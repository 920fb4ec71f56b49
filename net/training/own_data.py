"""A user's own data: `--dataset package.module:factory`.

The factory takes nothing and returns (train, test) or (train, validation, test), map-style data
sets as PyTorch's: len(data), and data[i] -> (input tensor of any shape and type, class number).
"""

import operator
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from . import own_code, splits
from .augmentation import Kind
from .inputs import AS_THEY_ARE, Adapt, Input, Normalise, chosen, normalisation
from .splits import Dataset, with_held_out
from .streaming import first_pass

SMALLEST_IMAGE = 8  # height and width; what is lower is a row of numbers rather than an image


class Items:
    """A user's data set, a source (net.training.streaming) of inputs that all look the same."""

    def __init__(self, data: Any, what: str) -> None:
        """`what` names it in errors. Raises UserError unless it is a map-style data set."""
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise UserError(
                f"{what} is of the type {type(data).__name__}; it must be a map-style data set, "
                "with len(data) and data[i]"
            )
        if len(data) == 0:
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
        if looks(inputs) != looks(self.like):
            raise ValueError(
                f"its input is {looks(inputs)}, that of item 0 {looks(self.like)}; make all alike"
            )
        return inputs, number

    def item(self, i: int) -> tuple[torch.Tensor, int]:
        """(input, class number). Raises ValueError, with what is wrong, for anything else."""
        try:
            item = self.data[i]
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        if not (isinstance(item, tuple | list) and len(item) == 2):
            raise ValueError(f"it is {described(item)}, not (input tensor, class number)")
        inputs, label = item
        if isinstance(inputs, np.ndarray | np.generic):
            inputs = torch.as_tensor(inputs)
        if not isinstance(inputs, torch.Tensor):
            raise ValueError(f"its input is {described(inputs)}, not a tensor")
        try:
            number = operator.index(label)
        except TypeError:
            raise ValueError(f"its class is {described(label)}, not a whole number") from None
        if number < 0:
            raise ValueError(f"its class is {number}; classes are counted from 0")
        return inputs.detach(), number

    def broken(self, i: int, reason: str) -> UserError:
        return UserError(f"{self.what}: item {i} cannot be used: {reason}")


def looks(inputs: torch.Tensor) -> str:
    shape = "x".join(map(str, inputs.shape)) or "a number"
    return f"{shape} {str(inputs.dtype).removeprefix('torch.')}"


def described(thing: object) -> str:
    kind = type(thing).__name__
    return (
        f"a {kind} of {len(thing)}"
        if isinstance(thing, tuple | list)
        else f"something of type {kind}"
    )


def load(
    name: str, device: torch.device | str, wanted: Input, normalise: Normalise = "auto"
) -> Dataset:
    """The data set that the factory `name` returns, on `device`.

    Kept in memory where all of it fits, else read in every epoch. Inputs reach the model as they
    are unless it brings figures, or `normalise` says otherwise; what image_kind takes for images is
    changed at random in training. Raises UserError for code that fails, in one line with its place,
    and for items that are not what they must be.
    """
    parts = called(name)
    names = ("train", "test") if len(parts) == 2 else ("train", "validation", "test")
    sources = [
        Items(part, f"the data set {name}: the {which} data set")
        for part, which in zip(parts, names, strict=True)
    ]
    first = sources[0].like
    for source in sources[1:]:
        if looks(source.like) != looks(first):
            raise UserError(
                f"{source.what} has inputs of {looks(source.like)}, training has {looks(first)}"
            )
    if len(sources[0]) < 2:
        raise UserError(f"{sources[0].what} has one item only")
    kind = image_kind(first)
    size = first.numel() * first.element_size() * sum(map(len, sources))
    keep = size <= splits.IN_MEMORY
    orders = [torch.arange(len(source)) for source in sources]
    if len(sources) == 2:  # the last are held out: a fixed random order, whatever the seed
        orders[0] = torch.randperm(len(sources[0]), generator=torch.Generator().manual_seed(0))
    how = how_to_normalise(name, first, wanted, normalise)
    found = [
        first_pass(source, order, device, keep, kind, measure=how != "none")
        for source, order in zip(sources, orders, strict=True)
    ]
    sums = [part.sums for part in found]
    white = 255.0 if first.dtype == torch.uint8 else 1.0
    low, high = min(part.low for part in sums), max(part.high for part in sums)
    if how in ("model", "unit") and not (low >= 0 and high <= white):
        span = f"values from {low:.4g} to {high:.4g}"
        if how == "unit":
            raise UserError(
                f"the data set {name} has {span}; to [0, 1] only bytes can be brought, so "
                "normalise by data, or in the function itself"
            )
        adapt, treatment = None, f"{AS_THEY_ARE}: {span}, the model's figures are for [0, 1]"
    else:
        own = sums[0].mean_and_std
        adapt, treatment = normalisation(how, wanted, own, first.shape, device, white)
    if kind and adapt is None:
        adapt = Adapt()
    read = [part.split.changed(adapt=adapt) for part in found]
    if len(read) == 2:
        return with_held_out(name, read[0], read[1], treatment)
    return Dataset(name, read[0], read[1], read[2], treatment)


def how_to_normalise(name: str, like: torch.Tensor, wanted: Input, normalise: Normalise) -> str:
    """What inputs.chosen says of inputs such as `like`, where it can be done to them."""
    how = chosen(normalise, wanted, own=True)
    figures = like.dim() and (like.dtype == torch.uint8 or like.is_floating_point())
    if how == "none" or (figures and how != "model"):
        return how
    if normalise != "auto":
        raise UserError(
            f"the data set {name} has inputs of {looks(like)}, which cannot be normalised; they "
            "must be floating-point numbers or bytes, of one dimension or more"
        )
    # Figures per channel are not for token ids, rows of numbers or sequences.
    one = len(wanted.mean or ()) == 1
    return how if figures and (one or like.dim() == 3) else "none"


def called(name: str) -> tuple[Any, ...]:
    """What the factory returns, two or three data sets."""
    factory = own_code.find(name, "the data set")
    try:
        parts = factory()
    except (Exception, SystemExit) as error:
        raise own_code.failed(f"the data set {name}", error) from None
    if not isinstance(parts, tuple | list) or len(parts) not in (2, 3):
        raise UserError(
            f"the data set {name} returns {described(parts)}; it must return "
            "(train, test) or (train, validation, test)"
        )
    return tuple(parts)


def image_kind(inputs: torch.Tensor) -> Kind:
    """Images are uint8 or floating [1 or 3, height, width] of 8 pixels a side at least."""
    if inputs.dim() != 3 or not (inputs.dtype == torch.uint8 or inputs.is_floating_point()):
        return None
    if min(inputs.shape[1:]) < SMALLEST_IMAGE:
        return None
    kinds: dict[int, Kind] = {1: "strokes", 3: "photographs"}
    return kinds.get(inputs.shape[0])
