"""What a model takes, how the batches of a data set are made to fit, and how training changes them.

Two kinds of images bear random changes that leave what they show the same: "strokes", grey ones of
a written sign, a garment, which are rotated, scaled and sheared a little; and "photographs" in
colour, which are shifted and shown in a mirror. Inputs that are not images stay unchanged.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn import functional as F

from ..errors import UserError

Kind = Literal["strokes", "photographs"] | None
WHOLE = (0, 1)  # a shard: process 0 of 1

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


# Random changes of training images


def augment(
    images: torch.Tensor, kind: Kind, strength: float, shard: tuple[int, int] = WHOLE
) -> torch.Tensor:
    """A batch of images [N, C, H, W], each changed on its own in the way of its kind.

    `strength` is 1 for what suits most data sets, and 0 for nothing. The numbers come from torch's
    global generator; of several processes all draw the same, and each takes its own part.
    """
    if kind is None or not strength:
        return images
    change = distort if kind == "strokes" else shift_and_mirror
    return as_floats(lambda images: change(images, strength, shard), images)


def distort(images: torch.Tensor, strength: float, shard: tuple[int, int] = WHOLE) -> torch.Tensor:
    """Each image of a batch [N, C, H, W] under a small random affine map of its own.

    At strength 1: rotations of up to 10 degrees, scales of up to 10 %, shears of up to 7 %, shifts
    of up to 1.5 pixels in 28. What comes in from outside has the colour of the edge.
    """
    n, device = len(images), images.device
    rank, processes = shard
    # Uniform in [-strength, strength]: rotation, scale x, scale y, shear, shift x, shift y.
    u = torch.rand(6, n * processes)[:, rank::processes]
    u = (u * 2 - 1).to(device) * strength
    angle = math.radians(10) * u[0]
    cos, sin = angle.cos(), angle.sin()
    scale_x, scale_y, shear = 1 + 0.1 * u[1], 1 + 0.1 * u[2], 0.07 * u[3]
    shift_x, shift_y = 1.5 / 14 * u[4], 1.5 / 14 * u[5]  # in halves of the image
    theta = torch.stack(
        [scale_x * cos, shear - scale_y * sin, shift_x, scale_x * sin, scale_y * cos, shift_y], 1
    ).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def shift_and_mirror(
    images: torch.Tensor, strength: float, shard: tuple[int, int] = WHOLE
) -> torch.Tensor:
    """Each image of a batch [N, C, H, W] shifted by whole pixels, every second one in a mirror.

    At strength 1: shifts of up to an eighth of the side, 4 pixels in 32 (He et al. 2016, section
    4.2). What comes in from outside is 0, the mean colour of normalised images. Below 1 mirror
    images are rarer in proportion.
    """
    n, device = len(images), images.device
    height, width = images.shape[2:]
    rank, processes = shard
    u = torch.rand(3, n * processes)[:, rank::processes].to(device)
    reach_y, reach_x = round(strength * height / 8), round(strength * width / 8)
    top, left = (
        (u[i] * (2 * reach + 1)).long().clamp(max=2 * reach)
        for i, reach in enumerate((reach_y, reach_x))
    )
    padded = F.pad(images, (reach_x, reach_x, reach_y, reach_y))
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)  # [N, C, tops, lefts, H, W], a view
    shifted = crops[torch.arange(n, device=device), :, top, left]
    mirrored = u[2] < min(1.0, strength) / 2
    return torch.where(mirrored[:, None, None, None], shifted.flip(3), shifted)
