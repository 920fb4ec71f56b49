"""The vectors beside shared weights, rounded: biases, normalisation and its running statistics.

They are few and yet not free: in float32, the BatchNorm layers of a ResNet-20 take 15 % of its
compressed file. Which vectors are rounded says net.plan.
"""

import math
from collections.abc import Mapping

import torch
from torch import nn

from .parameters import layer_of
from .post_training import round_beside, round_vector
from .shards import info_of

FOLDED = ("weight", "bias", "running_mean", "running_var")  # of a batch normalisation


def rounded_vector(name: str, state: Mapping[str, torch.Tensor], noise: float) -> torch.Tensor:
    """The tensor `name` of a state dict, rounded as roughly as `noise` allows
    (post_training.round_vector)."""
    return round_vector(state[name], noise, scale_of(name, state))


def scale_of(name: str, state: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """What an error in the vector is small beside, [n]: the deviation that a running mean is
    divided by, the factor that the bias of a normalisation is added to; None where neither is
    known."""
    layer, last = layer_of(name), name.rpartition(".")[2]
    if last == "running_mean" and f"{layer}.running_var" in state:
        return state[f"{layer}.running_var"].sqrt()
    factor_name = f"{layer}.{'weight' if last == 'bias' else 'gamma'}"
    if last not in ("bias", "beta") or factor_name not in state:
        return None
    alike = info_of(state, factor_name).shape == info_of(state, name).shape
    return state[factor_name] if alike else None


@torch.no_grad()
def fold_statistics(norm: nn.modules.batchnorm._BatchNorm, noise: float) -> None:
    """Give a batch normalisation, which has all of FOLDED, the mean 0 and the variance 1, which
    cost next to nothing, and a weight and a bias, rounded, with which it does the same in
    evaluation. In training it does not: batches bring their own mean and variance.
    """
    own = norm.state_dict()
    weight, bias, mean, variance = (own[name].double() for name in FOLDED)
    divisor = math.sqrt(1 + norm.eps)  # that is left
    own["running_mean"].zero_()
    own["running_var"].fill_(1.0)
    own["weight"].copy_(round_vector(weight * divisor / (variance + norm.eps).sqrt(), noise))
    # Of the weight as it is rounded: its error must not show in inputs whose mean is far from zero.
    # Nor must that of the bias, which is as large as that mean then.
    shift = bias - own["weight"].double() / divisor * mean
    own["bias"].copy_(round_beside(shift, torch.maximum(weight.abs(), bias.abs()), noise))
