"""How much noise a trained model bears: --bits auto with data, within --error-budget."""

import copy

import torch
from torch import nn

from ..post_training import NOISE
from ..sharing import WeightSharing
from ..training.log import Log
from ..training.loop import outputs
from ..training.splits import Dataset
from .options import SharingOptions

CALIBRATION_BATCH = 250
HELD_OUT = 2000  # inputs that noise is judged on
# Tried with data, from the most on: twice what is the default without. Held-out training inputs
# that a published network has learnt by heart would allow for more.
NOISES = [2 * NOISE / 2 ** (i / 2) for i in range(5)]


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
        sharing = WeightSharing(
            found,
            "auto",
            noise=noise,
            calibration=inputs or None,
            exact_vectors=options.exact_vectors,
            reassign=reassign,
        )
        logits, _ = outputs(found, held_out, batch_size)
        lost = lost_confidence(logits, reference)
        text = f"noise {noise:.2f}: {lost:.2f} points of confidence lost on held-out inputs"
        log.result(text, event="noise", noise=noise, lost_confidence=lost)
        if lost <= options.error_budget:
            break
    for name, reason in sharing.without_data.items():
        log.note(f"{name} was shared without data: {reason}")
    return found, sharing


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
    return [inputs for inputs, _ in wanted.batches(CALIBRATION_BATCH)]
