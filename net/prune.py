"""Pruning: which weights go (pure functions: weight -> mask) and how they stay gone.

A pruned weight is exactly zero.  Each compressible layer carries a boolean buffer `mask`; the
training loop multiplies it into the weight after every optimiser step, so that neither momentum
nor weight decay can revive or move a pruned weight.  The buffer is not persistent: a state dict
stays that of the plain architecture, and the mask of a loaded model is `weight != 0`.
"""

import torch
from torch import nn
from torch.nn import functional as F

from net.models import compressible_layers


def threshold_mask(weight: torch.Tensor, sensitivity: float) -> torch.Tensor:
    """Bool mask of the weights to keep: |w| >= sensitivity * std(w) (Han et al. 2015, section 3).

    A constant weight has the standard deviation 0 and is kept whole.
    """
    return weight.abs() >= sensitivity * weight.std(correction=0)


def set_masks(model: nn.Module, rule) -> None:
    """Give every compressible layer the mask `rule(name, weight)` and apply it."""
    for name, layer in compressible_layers(model).items():
        with torch.no_grad():
            layer.register_buffer("mask", rule(name, layer.weight), persistent=False)
    apply_masks(model)


@torch.no_grad()
def apply_masks(model: nn.Module) -> None:
    """Set every pruned weight to exactly +0.0."""
    for layer in compressible_layers(model).values():
        # masked_fill rather than a product: 0 * negative would leave -0.0, and 0 * inf a NaN.
        layer.weight.masked_fill_(~layer.mask, 0.0)


@torch.no_grad()
def shrink(model: nn.Module, amount: float) -> None:
    """Move every compressible weight towards zero by `amount`, and no further.

    With `amount` = penalty x learning rate after each step this is the proximal step of an L1
    penalty.  Apart from the gradient, so that Adam does not scale it: it pulls on every weight
    alike, and those that do not matter gather at zero, below any threshold.
    """
    if amount:
        for layer in compressible_layers(model).values():
            layer.weight.copy_(F.softshrink(layer.weight, amount))
