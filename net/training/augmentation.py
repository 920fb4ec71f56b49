"""Random changes of training images that leave what they show the same.

Two kinds of images bear different ones: "strokes", grey ones of a written sign, a garment, which
are rotated, scaled and sheared a little; and "photographs" in colour, which are shifted and shown
in a mirror. The kind of what is no image is None, and nothing is changed.
"""

import math
from typing import Literal

import torch
from torch.nn import functional as F

from .inputs import as_floats

Kind = Literal["strokes", "photographs"] | None
WHOLE = (0, 1)  # a shard: process 0 of 1


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
