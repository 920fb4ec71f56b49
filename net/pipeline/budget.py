"""How much a model bears within --error-budget: the noise of --bits auto, the pruning of --density
auto."""

import copy
import math

import torch
from torch import nn

from ..hooks import StepHooks
from ..post_training import NOISE
from ..prune import Pruner
from ..sharing import WeightSharing
from ..training.distillation import Distorted
from ..training.log import Log
from ..training.loop import divergence, outputs
from ..training.splits import Dataset, Split
from .options import PruningOptions, SharingOptions

BATCH = 250
HELD_OUT = 2000  # inputs that noise is judged on
# Tried with data, from the most on: twice what is the default without. Held-out training inputs
# that a published network has learnt by heart would allow for more.
NOISES = [2 * NOISE / 2 ** (i / 2) for i in range(5)]
# Of gradual pruning: held-out inputs that are looked at, how often on the way down, and the mean
# divergence from the dense model's outputs, in nats per point of the budget, at which it stops. Set
# by two runs of a ResNet-20: one stopped at 0.47 and ended, trained on and shared, at 0.33 and 3.8
# points more, the other at 0.32, and ended at 0.20 and 1.3.
LOOKED_AT = 1000
LOOKS = 50
DIVERGENCE = 0.3
# Of the noise of weights that are shared in parts, with training between: the mean divergence in
# nats per point of the budget that sharing all at once, without training, would cost.
SHARED_DIVERGENCE = 0.075
NOISE_RANGE = (0.1, 6.4)
HALVINGS = 6  # of the range, in the logarithm: to within 7 %


def share_within_budget(
    model: nn.Module,
    dataset: Dataset,
    options: SharingOptions,
    reassign: int,
    log: Log,
    batch_size: int,
) -> tuple[nn.Module, WeightSharing]:
    """(a copy of `model` with shared values, its sharing), at `options.noise`, or at the most noise
    that keeps within the error budget; if none does, at the least that was tried."""
    held_out = dataset.validation[:HELD_OUT]
    reference, _ = outputs(model, held_out, batch_size)
    inputs = calibration_inputs(dataset, options)
    for noise in [options.noise] if options.noise else NOISES:
        found = copy.deepcopy(model)
        sharing = share_by_rate(found, noise, inputs, options, reassign)
        logits, _ = outputs(found, held_out, batch_size)
        lost = lost_confidence(logits, reference)
        text = f"noise {noise:.2f}: {lost:.2f} points of confidence lost on held-out inputs"
        log.result(text, event="noise", noise=noise, lost_confidence=lost)
        if lost <= options.error_budget:
            break
    return found, sharing


def share_in_parts(
    model: nn.Module, dataset: Dataset, options: SharingOptions, reassign: int, log: Log
) -> WeightSharing:
    """The sharing of `model`, the first part done, at `options.noise` or that of the budget."""
    inputs = calibration_inputs(dataset, options)
    noise = options.noise or noise_for_parts(model, dataset, inputs, options, log)
    return share_by_rate(model, noise, inputs, options, reassign, options.share_parts)


def share_by_rate(
    model: nn.Module,
    noise: float,
    inputs: list[torch.Tensor],
    options: SharingOptions,
    reassign: int = 0,
    parts: int = 1,
) -> WeightSharing:
    return WeightSharing(
        model,
        "auto",
        noise=noise,
        calibration=inputs or None,
        exact_vectors=options.exact_vectors,
        reassign=reassign,
        parts=parts,
    )


def noise_for_parts(
    model: nn.Module,
    dataset: Dataset,
    inputs: list[torch.Tensor],
    options: SharingOptions,
    log: Log,
) -> float:
    """The noise at which training that goes on while `model` is shared in parts can be expected to
    end within the error budget; by that of all at once, without training."""
    held_out = distorted_held_out(dataset, options.distortion)
    reference, _ = outputs(model, held_out, BATCH)
    low, high = NOISE_RANGE
    for _ in range(HALVINGS):
        noise = math.sqrt(low * high)
        found = copy.deepcopy(model)
        share_by_rate(found, noise, inputs, options)
        logits, _ = outputs(found, held_out, BATCH)
        moved = divergence(logits, reference)
        text = f"noise {noise:.2f}: divergence {moved:.3f} on held-out inputs without training"
        log.result(text, event="noise", noise=noise, divergence=moved)
        within = moved <= SHARED_DIVERGENCE * options.error_budget
        low, high = (noise, high) if within else (low, noise)
    return low


def lost_confidence(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """By how much less the reference's own answers are given, in percentage points.

    Both are logits [N, classes]. The mean fall of the probability of the class that the reference
    gives: it needs no labels, and takes every input into account, where an error only counts those
    that change sides.
    """
    answers = reference.argmax(1, keepdim=True)
    before, after = (each.double().softmax(1).gather(1, answers) for each in (reference, logits))
    return 100 * (before - after).mean().item()


def calibration_inputs(dataset: Dataset, options: SharingOptions) -> list[torch.Tensor]:
    """Training inputs without their labels, in batches; none where they are not wanted."""
    if not options.calibration_images:
        return []
    wanted = dataset.train[: options.calibration_images]
    return [inputs for inputs, _ in wanted.batches(BATCH)]


def distorted_held_out(dataset: Dataset, strength: float) -> Split:
    """LOOKED_AT held-out inputs, changed as in training, once for all looks at them."""
    held_out = Distorted(dataset.validation[:LOOKED_AT], strength)
    inputs, labels = zip(*held_out.batches(BATCH), strict=True)
    return Split(torch.cat(inputs), torch.cat(labels))


class Brake(StepHooks):
    """Stops a gradual pruning where the model's outputs have moved as far as the budget allows.

    The outputs are those on held-out inputs, changed as in training: a network answers what it has
    learnt by heart with a confidence that says little. Attach it after the pruner.
    """

    def __init__(
        self,
        model: nn.Module,
        pruner: Pruner,
        dataset: Dataset,
        options: PruningOptions,
        log: Log,
    ) -> None:
        """`model` is the dense one still."""
        super().__init__()
        self.model, self.pruner, self.log = model, pruner, log
        self.limit = DIVERGENCE * options.error_budget
        self.looked_at = distorted_held_out(dataset, options.distortion)
        self.every = max(1, pruner.steps // LOOKS)
        self.reference, _ = outputs(model, self.looked_at, BATCH)

    def after_step(self) -> None:
        if self.pruner.finished or self.pruner.steps_done % self.every:
            return
        logits, _ = outputs(self.model, self.looked_at, BATCH)
        self.model.train()
        moved = divergence(logits, self.reference)
        kept = torch.cat([mask.flatten() for mask in self.pruner.masks.values()])
        density = kept.float().mean().item()
        text = f"density {density:.3f}: divergence {moved:.3f} on held-out inputs"
        event = {"event": "density", "density": density, "divergence": moved}
        if moved <= self.limit:
            self.log.write(text, **event)
            return
        self.pruner.stop()
        self.log.result(f"{text}, over {self.limit:.3f}: pruned as far as that", **event)
