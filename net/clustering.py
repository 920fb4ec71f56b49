"""What sharing has made of a tensor: how few values, at what noise, in about how many bytes."""

import math
from typing import NamedTuple

import numpy as np
import torch

COUNTED = 1 << 22
CHUNK = 1 << 20  # values at a time where more would leave the cache, or need twice the memory


class Clustering(NamedTuple):
    """What a user wants to know of a tensor that was shared."""

    nonzero: int  # afterwards
    values_before: int | None  # distinct ones but 0; None among more than COUNTED: it takes a sort
    values_after: int
    noise: float  # root of the mean squared change, over that of the mean square before
    coded_bytes: float  # the entropy of all values, zeros included, and 2 bytes for each distinct

    @classmethod
    def of(cls, before: torch.Tensor, after: torch.Tensor) -> "Clustering":
        """From the tensor as it was and as it is, of any floating-point type and one shape."""
        counts: dict[float, int] = {}
        change = power = 0.0
        pairs = zip(before.flatten().split(CHUNK), after.flatten().split(CHUNK), strict=True)
        for a, b in pairs:
            a, b = a.detach().cpu().double(), b.detach().cpu().double()
            change += float((a - b).square().sum())
            power += float(a.square().sum())
            for value, count in zip(*np.unique(b.numpy(), return_counts=True), strict=True):
                counts[value] = counts.get(value, 0) + int(count)
        zeros = counts.get(0.0, 0)
        distinct = len(counts) - (0.0 in counts)
        known = before.numel() <= COUNTED
        return cls(
            nonzero=before.numel() - zeros,
            values_before=int((before.detach().unique() != 0).sum()) if known else None,
            values_after=distinct,
            noise=math.sqrt(change / power) if power else 0.0,
            coded_bytes=entropy(list(counts.values())) / 8 + 2 * distinct,
        )


def relative_change(
    before: torch.Tensor, after: torch.Tensor, beside: torch.Tensor | None = None
) -> float:
    """Root of the mean squared change over that of the mean square before, or over that of what
    the values count beside, where that is larger; 0 for no change."""
    finite = before.isfinite()
    size = 0.0 if beside is None else float(beside[beside.isfinite()].detach().double().norm())
    before, after = before[finite].detach().double(), after[finite].detach().double()
    change = float((after - before).norm())
    return change / max(float(before.norm()), size) if change else 0.0


def entropy(counts: list[int]) -> float:
    """Bits of all values together in an ideal code for their frequencies."""
    total = sum(counts)
    return sum(count * math.log2(total / count) for count in counts)
