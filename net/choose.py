"""Numbers for what is left to choose, found before anything is trained.

One measure: the mean Kullback-Leibler divergence of a model's outputs from those before, in nats,
on inputs without labels. Every input counts, which makes it far less noisy than a difference of
errors. One search: bisection, from what certainly keeps within a limit towards what saves most.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .modules import copied
from .parameters import compressible
from .rounding import NOISE
from .tensors import info_of

# Nats of divergence per point of error, before any training takes some back. A ResNet-20 of the
# suite, trained on four of CIFAR-10's training batches and shared without training so that held-out
# images moved by .008, .031, .100 and .200 nats, lost .18, .54, 2.67 and 5.48 points on the fifth
# (10,000 images, standard error about .3): .036 to .058 nats a point; pruned instead, .030 to .037
# (docs/results.md).
PER_POINT = 0.04
# The same for each epoch of training that follows on pruning, which takes most of it back; 1.0 for
# the eight of the preset `trained`. After the twelve of `smallest`, and its sharing, two networks
# of the suite's own had lost 0.9 (of two runs) and 0.4 points where 1.0 had been allowed, and 1.3
# and 1.2 where 1.5 had: 1.25 lies between, and is the most however long one trains
# (docs/results.md).
PER_POINT_EPOCH = 0.125
MOST_PER_POINT = 1.25
SENSITIVE = 0.7  # of the noise: half its power (docs/results.md)
HALVINGS = 7  # of the range, in the logarithm: to within 4 % of a value


class Choice(NamedTuple):
    """What was chosen, and the divergence that it costs before any training."""

    value: float
    divergence: float


def per_point(epochs: int) -> float:
    """Nats of divergence that cost a point of error once `epochs` of training have followed."""
    return min(max(PER_POINT, PER_POINT_EPOCH * epochs), MOST_PER_POINT)


def divergence(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean Kullback-Leibler divergence of outputs from those of a reference, in nats.

    Both are logits [N, classes].
    """
    log_q, log_p = (F.log_softmax(each.double(), 1) for each in (logits, reference))
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean").item()


@torch.no_grad()
def outputs(model: nn.Module, batches: Iterable[Any]) -> torch.Tensor:
    """What `model` answers in evaluation, float32 [N, classes]; each batch an argument of it."""
    training = model.training
    model.eval()
    found = torch.cat([model(batch).float() for batch in batches])
    model.train(training)
    return found


def farthest(
    near: float,
    far: float,
    cost: Callable[[float], float],
    limit: float,
    tell: Callable[[Choice], None] = lambda _: None,
) -> Choice:
    """The value between `near` and `far`, both positive, that is as close to `far` as `cost`, which
    rises towards it, keeps within `limit`; `near` where nothing does.

    HALVINGS steps in the logarithm. `tell` hears of every value that is tried.
    """
    best = Choice(near, math.nan)
    for _ in range(HALVINGS):
        value = math.sqrt(near * far)
        tried = Choice(value, cost(value))
        tell(tried)
        if tried.divergence <= limit:
            near, best = value, tried
        else:
            far = value
    return best


def moved_by(
    model: nn.Module,
    batches: list[Any],
    change: Callable[[nn.Module, float], object],
) -> Callable[[float], float]:
    """The function value -> divergence of a copy of `model` after change(copy, value)."""
    reference = outputs(model, batches)

    def cost(value: float) -> float:
        changed = copied(model)
        change(changed, value)
        return divergence(outputs(changed, batches), reference)

    return cost


def default_noise(state: Mapping[str, torch.Tensor]) -> float:
    """For a state dict whose outputs nobody can see: NOISE, more or less as its shapes say.

    More for convolutions over images between batch normalisations: of the errors under a kernel of
    extents e, rounding takes off the part (1 - NEIGHBOURS**2)**sum(1 - 1/e) by which their inputs
    are known (compensation.prior), so that steps may be larger at the same noise in the outputs.
    SENSITIVE of it where errors are not averaged over many inputs, kernels of one channel and
    embeddings, or come round again, in recurrent weights.
    """
    from .compensation import NEIGHBOURS  # which takes numba along

    normalised = any(name.rpartition(".")[2] == "running_var" for name in state)
    total, known, sensitive, of_one = 0, 0.0, False, 0
    for name, kind in compressible(state).items():
        shape = info_of(state, name).shape
        size = math.prod(shape)
        is_kernel = kind == "conv" and math.prod(shape[2:]) > 1
        sensitive |= kind in ("rnn", "embedding")
        of_one += is_kernel and shape[1] == 1
        total += size
        if is_kernel and normalised and len(shape) == 4 and min(shape[2:]) > 1:  # not of sounds
            known += size * sum(1 - 1 / extent for extent in shape[2:])
    factor = (1 - NEIGHBOURS**2) ** (-known / (2 * max(total, 1)))
    return NOISE * factor * (SENSITIVE if sensitive or of_one > 1 else 1.0)  # one: of grey images
