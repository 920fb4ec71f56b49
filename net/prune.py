"""Pruning: which weights go (pure functions: tensor -> mask) and how they stay gone.

A pruned weight is exactly zero.  Each compressible layer carries a boolean buffer `mask`; the
training loop applies it to the weight after every optimiser step, so that neither momentum nor
weight decay can revive or move a pruned weight.  The buffer is not persistent: a state dict stays
that of the plain architecture, and the mask of a loaded model is `weight != 0`.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .training.architectures import compressible_layers


def threshold_mask(weight: torch.Tensor, sensitivity: float) -> torch.Tensor:
    """Bool mask of the weights to keep: |w| >= sensitivity * std(w) (Han et al. 2015, section 3).

    A constant weight has the standard deviation 0 and is kept whole.
    """
    return weight.abs() >= sensitivity * weight.std(correction=0)


def top_masks(scores: dict[str, torch.Tensor], density) -> dict[str, torch.Tensor]:
    """Bool masks of the weights with the greatest scores, {layer: mask} for {layer: score}.

    A number as `density` is the fraction to keep of all layers together; a dict {layer: fraction}
    that of each.  A weight with the score 0 is never kept.
    """
    if isinstance(density, dict):
        return {n: top_masks({n: s}, density[n])[n] for n, s in scores.items()}
    every = torch.cat([score.flatten() for score in scores.values()])
    keep = max(1, round(density * len(every)))
    threshold = every.topk(keep).values[-1]
    return {name: (score >= threshold) & (score > 0) for name, score in scores.items()}


def cubic_density(done: float, start: float, end: float) -> float:
    """The density after the fraction `done` of the schedule (Zhu and Gupta 2017, eq. 1)."""
    return end + (start - end) * (1 - min(1.0, done)) ** 3


def saliency(weight: torch.Tensor, squared_gradient: torch.Tensor) -> torch.Tensor:
    """How much the loss rises without each weight: w**2 times its curvature.

    Optimal brain damage (LeCun et al. 1990, eq. 5), with the mean squared gradient, which Adam
    keeps anyway, for the diagonal of the Hessian (empirical Fisher, Theis et al. 2018).
    """
    return weight.square() * squared_gradient


def bits_of(mask: torch.Tensor) -> torch.Tensor:
    """About what each weight costs in the encoded model, in bits: a value and a position.

    A position in a row and a column with many survivors takes few bits, a lone one many; so that
    saliency per bit empties whole rows and columns, which then cost nothing.  The probability of
    a survivor is estimated from its row and its column as if these were independent.
    """
    rows = mask.flatten(1).float()  # [out, in * kernel]
    a_row, a_column, total = rows.sum(1, True), rows.sum(0, True), rows.sum()
    smooth = 0.3
    p = (a_row + smooth) * (a_column + smooth) / (total + smooth * sum(rows.shape))
    position = -p.clamp(max=0.9).log2()
    return (3 + position.clamp(0, 12)).view_as(mask)


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


class GradualPruning:
    """A hook for after each step that lowers the density on the cubic schedule.

    In `UPDATES` steps the weights with the least saliency / bits**2 go, from ten times `density`
    (which costs nothing yet) to `density` itself after `RAMP` of the phase.  `density` is the
    fraction to keep of all layers together, or {layer: fraction}.  The square is a measured choice:
    on LeNet-5 12 % fewer bytes than saliency / bits at the same error.
    """

    UPDATES = 100
    RAMP = 0.7

    def __init__(self, model: nn.Module, density):
        self.model, self.density = model, density

    @torch.no_grad()
    def __call__(self, step) -> None:
        before, now = step.done_before / self.RAMP, step.done / self.RAMP
        if int(now * self.UPDATES) > int(before * self.UPDATES) and before < 1:
            self.prune(now, step.optimizer)
        apply_masks(self.model)

    def prune(self, done: float, optimizer) -> None:
        layers = compressible_layers(self.model)
        scores = {
            name: saliency(layer.weight, optimizer.state[layer.weight]["exp_avg_sq"])
            / bits_of(layer.mask).square()
            for name, layer in layers.items()
            if layer.weight in optimizer.state  # else frozen or unused, and left whole
        }

        def now(density):
            return cubic_density(done, min(1.0, 10 * density), density)

        by_layer = isinstance(self.density, dict)
        density = {n: now(d) for n, d in self.density.items()} if by_layer else now(self.density)
        for name, mask in top_masks(scores, density).items():
            layers[name].mask.copy_(mask)
