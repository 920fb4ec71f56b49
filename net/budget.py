"""The least noise at which a model takes no more than so many bytes.

Noises between two that are known are tried, those first at which the entropy of the rounded
weights, times what the encoder made of it the last time, comes to the goal.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch

from .codec.tensors import write_tensor
from .shared_tensor import entropy

NOISES = 0.001, 6.4  # between which it is looked for
FILLED = 0.98  # of a budget
GOAL = 0.992  # at which is aimed
TRIES = 14  # of the encoder; each takes the error of the estimate down tenfold, as a rule
CLOSE = 1.001  # noises that are the same
SAMPLE = 1 << 16  # weights of a tensor whose entropy stands for it


class Fit(NamedTuple):
    """What was found: None for no noise, with the fewest bytes that can be had."""

    noise: float | None
    bytes: int


def fitting(
    most: float, estimated: Callable[[float], float], encoded: Callable[[float], int]
) -> Fit:
    """The least noise, about, at which the encoder makes no more than `most` bytes, and FILLED of
    them unless a bound of NOISES is met.

    `estimated`(noise) is about what the weights take, `encoded`(noise) what the whole does, which
    may be anything larger than `most` where it is no less.
    """
    factor = 1.0
    # Noises between which the one is that is looked for: at `fine` the file is too large.
    fine, coarse = NOISES
    bounds = set(NOISES)  # that have not been tried
    best: Fit | None = None
    size = 0
    for left in reversed(range(TRIES)):
        noise = noise_of(estimated, GOAL * most / factor)
        if not left or not fine * CLOSE < noise < coarse / CLOSE:
            # At the end of the range, or the estimate is wrong. What fits is wanted first.
            bound = coarse if best is None else fine
            noise = bound if bound in bounds else math.sqrt(fine * coarse)
        bounds.discard(noise)
        size = encoded(noise)
        if size <= most:
            best, coarse = Fit(noise, size), noise
        else:
            fine = noise
        factor = size / estimated(noise)
        close = fine == coarse if best is None else coarse / fine < CLOSE**2
        if FILLED * most <= size <= most or close:
            break
    return best or Fit(None, size)  # of the coarsest, the last of all


def told(fit: Fit, most: float) -> list[str]:
    """What a user should know of it."""
    if fit.bytes >= FILLED * most:
        return []
    return [
        f"a noise of {fit.noise:.3g} is the least that fits, or that is tried; without loss it "
        "does not"
    ]


def bytes_as_they_are(state: Mapping[str, torch.Tensor], names: Iterable[str], most: float) -> int:
    """Of the tensors of these names; the first sum above `most`, if there is one."""
    total = 0
    for name in names:
        total += len(write_tensor(state[name]).finish())
        if total > most:
            break
    return total


class Estimate:
    """About the bytes that weights take at a noise, as their entropy says: of those tensors of
    `state` that have their steps at a noise of 1 in `units`."""

    def __init__(self, state: Mapping[str, torch.Tensor], units: Mapping[str, float]) -> None:
        self.samples = []
        for name, unit in units.items():
            values = state[name].detach().flatten()
            count = values.numel()
            values = values[:: max(1, count // SAMPLE)].double().cpu()
            self.samples.append((count / max(1, len(values)), values / unit))

    def bytes(self, noise: float) -> float:
        total = 1.0
        for share, values in self.samples:
            counts = (values / noise).round().unique(return_counts=True)[1]
            total += share * entropy(counts.tolist()) / 8
        return total


def noise_of(estimated: Callable[[float], float], wanted: float) -> float:
    """At which that many bytes are taken."""
    low, high = NOISES
    for _ in range(24):
        middle = math.sqrt(low * high)
        if estimated(middle) > wanted:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)
