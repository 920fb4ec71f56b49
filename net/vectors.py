"""Everything of a model that is no matrix: biases, normalisation, running statistics, rounded.

They are few and yet not free: in float32, the BatchNorm layers of a ResNet-20 take 15 % of its
compressed file. Integers and what has no dimension stay exact.
"""

from collections.abc import Mapping

import torch

from .parameters import layer_of
from .post_training import round_vector
from .shards import info_of


def rounded_vector(name: str, state: Mapping[str, torch.Tensor], noise: float) -> torch.Tensor:
    """The tensor `name` of a state dict, rounded as roughly as `noise` allows
    (post_training.round_vector)."""
    return round_vector(state[name], noise, scale_of(name, state))


def vector_names(state: Mapping[str, torch.Tensor]) -> list[str]:
    """The one-dimensional floating-point tensors of a state dict."""
    found = {name: info_of(state, name) for name in state}
    return [
        name
        for name, each in found.items()
        if len(each.shape) == 1 and each.dtype.is_floating_point
    ]


def scale_of(name: str, state: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """What an error in the vector is small beside, [n]: the deviation that a running mean is
    divided by, the factor that the bias of a normalisation is added to; None where neither is
    known."""
    layer, last = layer_of(name), name.rpartition(".")[2]
    if last == "running_mean" and f"{layer}.running_var" in state:
        return state[f"{layer}.running_var"].sqrt()
    if last == "bias" and f"{layer}.weight" in state:
        factor = state[f"{layer}.weight"]
        return factor if factor.shape == state[name].shape else None
    return None
