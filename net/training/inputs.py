"""What a model takes, and how the batches of a data set are made to fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn import functional as F

from ..errors import UserError

AS_THEY_ARE = "as they are"
FEW_CHANNELS = 4  # whose figures fit a line

# "none" leaves inputs as they are, "unit" takes bytes to [0, 1], "data" normalises by the training
# inputs' own mean and deviation. "auto" is the figures of the model where it brings any, else
# "data" for named data sets and folders, "none" for a user's own factory.
Normalise = Literal["auto", "none", "unit", "data"]
NORMALISE: tuple[str, ...] = get_args(Normalise)


@dataclass(frozen=True)
class Input:
    """The images that a model takes; None stands for whatever the data set has."""

    channels: int | None = None
    size: tuple[int, int] | None = None  # exactly this height and width
    smallest: int = 1  # where `size` is None: at least this
    usual: int = 224  # where `size` is None: what photographs are scaled to
    # One number per channel, or one for all, of images in [0, 1]: x -> (x - mean) / std.
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Adapt:
    """From a batch as it is stored, [N, C, ...], to the batch that the model takes: float32, or
    bytes that nothing normalises.

    `mean` and `std`, [C] or [1], normalise what is stored as it was read; None: it stays.
    `channels` and `size` (height, width), of images [N, C, H, W], change nothing if they are None.
    """

    mean: torch.Tensor | None = None
    std: torch.Tensor | None = None
    channels: int | None = None
    size: tuple[int, int] | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.mean is not None and self.std is not None:
            # Grey images that are normalised as colours become colours first.
            channels = max(images.shape[1], len(self.mean))
            images = images.expand(-1, channels, *images.shape[2:])
            images = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            of_batch = (-1, *[1] * (images.dim() - 2))
            images = images.sub_(self.mean.view(of_batch)).div_(self.std.view(of_batch))
        return as_floats(self._fitted, images)

    def _fitted(self, images: torch.Tensor) -> torch.Tensor:
        if self.channels == 1:
            images = images.mean(1, keepdim=True)
        if self.size is not None:
            images = F.interpolate(
                images, self.size, mode="bilinear", align_corners=False, antialias=True
            )
        if self.channels is not None:
            images = images.expand(-1, self.channels, -1, -1)
        return images

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Of one input in a batch, where one is stored with the shape `stored`."""
        if len(stored) != 3:
            return stored
        return self.channels or stored[0], *(self.size or stored[1:])


def as_floats(change: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """`change(images)` in float32; of images in bytes in bytes again."""
    changed = change(images.float())
    if images.dtype != torch.uint8:
        return changed
    return changed.round().clamp(0, 255).to(torch.uint8)


def normaliser(
    mean: Sequence[float], std: Sequence[float], device: torch.device | str, white: float = 1.0
) -> Adapt:
    """For batches in [0, `white`], by figures of inputs in [0, 1]."""
    mean_of_stored, std_of_stored = (
        (torch.tensor(figures, dtype=torch.float64) * white).float().to(device)
        for figures in (mean, std)
    )
    return Adapt(mean_of_stored, std_of_stored)


def normalisation(
    how: str,
    wanted: Input,
    own: Callable[[], tuple[list[float], list[float]]],
    channels: int,
    device: torch.device | str,
    white: float,
) -> tuple[Adapt | None, str]:
    """(what normalises inputs of so many `channels` with values in [0, `white`], the same in
    words).

    `how` is "none", "unit", "data" or "model"; `own()` gives the mean and the deviation of the
    training inputs as they are stored. Raises UserError for a model's figures of another number of
    channels.
    """
    if how == "none":
        return None, AS_THEY_ARE
    if how == "unit":
        return normaliser([0.0], [white], device), f"values in [0, {white:g}] to [0, 1]"
    if how == "model" and wanted.mean and wanted.std:
        if len(wanted.mean) not in (1, channels) and channels != 1:
            raise UserError(
                f"the model's input_mean has {len(wanted.mean)} numbers, the inputs have "
                f"{channels} channels; give one number for each"
            )
        text = f"normalised by the model's {_in_words(wanted.mean, wanted.std)} of values in [0, 1]"
        return normaliser(wanted.mean, wanted.std, device, white), text
    mean, std = own()
    text = f"normalised by the training inputs' own {_in_words(mean, std)}"
    return normaliser(mean, std, device), text


def _in_words(mean: Sequence[float], std: Sequence[float]) -> str:
    if len(mean) > FEW_CHANNELS:
        return f"means and deviations ({len(mean)})"
    shown = (" ".join(f"{value:.4g}" for value in part) for part in (mean, std))
    return "mean {} and deviation {}".format(*shown)
