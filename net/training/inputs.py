"""What a model takes, and how the batches of a data set are made to fit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F


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
    """From a batch as it is stored, [N, C, H, W], to the float32 batch that the model takes.

    `mean` and `std` [1, C or 1, 1, 1] normalise what is stored as it was read; None: it is
    normalised already. `channels` and `size` (height, width) of None change nothing.
    """

    mean: torch.Tensor | None = None
    std: torch.Tensor | None = None
    channels: int | None = None
    size: tuple[int, int] | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.mean is not None and self.std is not None:
            # Grey images that are normalised as colours become colours first.
            images = images.expand(-1, max(images.shape[1], self.mean.shape[1]), -1, -1)
            images = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            images = images.sub_(self.mean).div_(self.std)
        images = images.float()  # of a user's, perhaps in another type
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


def normaliser(
    mean: Sequence[float], std: Sequence[float], device: torch.device | str, white: float = 1.0
) -> Adapt:
    """For images in [0, `white`], by figures of images in [0, 1]."""
    mean_of_batch, std_of_batch = (
        (torch.tensor(figures, dtype=torch.float64) * white).float().view(1, -1, 1, 1).to(device)
        for figures in (mean, std)
    )
    return Adapt(mean_of_batch, std_of_batch)
