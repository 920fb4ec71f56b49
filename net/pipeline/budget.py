"""How much a model bears within --error-budget: the noise of --bits auto, the pruning of --density
auto."""

import copy
import math
from collections.abc import Callable

import torch
from torch import nn

from ..post_training import NOISE
from ..prune import prunable
from ..sharing import WeightSharing
from ..training.distillation import Distorted
from ..training.log import Log
from ..training.loop import divergence, error_percent, outputs
from ..training.splits import Dataset, Split
from .options import PruningOptions, SharingOptions, changed_options

BATCH = 250
HELD_OUT = 2000  # inputs that noise is judged on
# Tried with data, from the most on: twice what is the default without. Held-out training inputs
# that a published network has learnt by heart would allow for more.
NOISES = [2 * NOISE / 2 ** (i / 2) for i in range(5)]
# What noise may cost per point of the budget, everything shared at once and without training, which
# takes a part back: answers that change, in percent, of a model that is shared in parts then; nats
# of divergence of the outputs, of one that tells by it how far it can be pruned.
CHANGED = 4.8
DIVERGENCE = 0.075
NOISE_RANGE = (0.1, 6.4)
HALVINGS = 7  # of the range, in the logarithm: to within 4 %
# What gradual pruning leaves, to be shared more roughly after it, is this power of the fraction of
# weights that are not zero at that noise: set by a ResNet-20, of which 39 % are not zero, and which
# pruning to 25 % suited better than pruning to 13 %.
POWER = 1.48
# Held-out inputs, changed as in training, for each.
TO_SHARE, TO_PRUNE = 4000, 1000


def begin_sharing(
    model: nn.Module,
    dataset: Dataset,
    options: SharingOptions,
    reassign: int,
    parts: int,
    log: Log,
    batch_size: int,
) -> tuple[nn.Module, WeightSharing]:
    """(`model` or a copy of it, with the values of the first of `parts` shared, its sharing): with
    bits "auto" at `options.noise`, or at what the error budget allows."""
    if options.bits != "auto":
        return model, begun(model, options, reassign=reassign, parts=parts)
    if parts == 1:
        return share_within_budget(model, dataset, options, reassign, log, batch_size)
    inputs = calibration_inputs(dataset, options)
    noise = options.noise
    if noise == "auto":
        noise = tolerated_noise(model, dataset, inputs, options, log)
    return model, begun(model, options, noise, inputs, reassign, parts)


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
    for noise in NOISES if options.noise == "auto" else [options.noise]:
        found = copy.deepcopy(model)
        sharing = begun(found, options, noise, inputs, reassign)
        logits, _ = outputs(found, held_out, batch_size)
        lost = lost_confidence(logits, reference)
        text = f"noise {noise:.2f}: {lost:.2f} points of confidence lost on held-out inputs"
        log.result(text, event="noise", noise=noise, lost_confidence=lost)
        if lost <= options.error_budget:
            break
    return found, sharing


def begun(
    model: nn.Module,
    options: SharingOptions,
    noise: float = NOISE,
    inputs: list[torch.Tensor] | None = None,
    reassign: int = 0,
    parts: int = 1,
) -> WeightSharing:
    """The sharing of `model` by the options, the first of `parts` done; `noise` and the `inputs`
    of calibration are for bits "auto"."""
    return WeightSharing(
        model,
        options.bits,
        noise=noise,
        calibration=inputs or None,
        exact_vectors=options.exact_vectors,
        bias_bits=options.bits_of_biases,
        init=options.init,
        seed=options.seed,
        reassign=reassign,
        parts=parts,
        include=options.include,
        exclude=options.exclude,
    )


def tolerated_noise(
    model: nn.Module,
    dataset: Dataset,
    inputs: list[torch.Tensor],
    options: SharingOptions,
    log: Log,
) -> float:
    """The noise at which `model` can be expected to end within the error budget, if training goes
    on while it is shared in parts."""
    held_out = distorted_held_out(dataset, options.distortion, TO_SHARE)

    def bearable(noise: float, logits: torch.Tensor, reference: torch.Tensor) -> bool:
        changed = error_percent(logits, reference.argmax(1))
        text = f"noise {noise:.2f}: {changed:.2f} % of the answers change without training"
        log.result(text, event="noise", noise=noise, changed_answers_percent=changed)
        return changed <= CHANGED * options.error_budget

    return most_noise(model, held_out, inputs, options, bearable)


def tolerated_density(
    model: nn.Module, dataset: Dataset, options: PruningOptions, log: Log
) -> float:
    """The density to which gradual pruning of the dense `model` can be expected to end within the
    error budget, to two digits: by the zeros that noise would give it."""
    sharing = changed_options(SharingOptions(bits="auto"), vars(options))
    held_out = distorted_held_out(dataset, options.distortion, TO_PRUNE)
    inputs = calibration_inputs(dataset, sharing)

    def bearable(noise: float, logits: torch.Tensor, reference: torch.Tensor) -> bool:
        moved = divergence(logits, reference)
        text = f"noise {noise:.2f}: divergence {moved:.3f} without training"
        log.result(text, event="noise", noise=noise, divergence=moved)
        return moved <= DIVERGENCE * options.error_budget

    found = copy.deepcopy(model)
    begun(found, sharing, most_noise(model, held_out, inputs, sharing, bearable), inputs)
    weights = [
        found.get_parameter(name) for name in prunable(found, options.include, options.exclude)
    ]
    left = sum(int(weight.count_nonzero()) for weight in weights)
    kept = left / max(1, sum(weight.numel() for weight in weights))
    density = float(f"{kept**POWER:.2g}")
    text = f"density {density}: at that noise {100 * kept:.1f} % of the weights are not zero"
    log.result(text, event="density", density=density, not_zero=kept)
    return density


def most_noise(
    model: nn.Module,
    held_out: Split,
    inputs: list[torch.Tensor],
    options: SharingOptions,
    bearable: Callable[[float, torch.Tensor, torch.Tensor], bool],
) -> float:
    """The most noise in NOISE_RANGE at which `model`, shared all at once, is still `bearable`: a
    function of the noise, the logits on the held-out inputs and those of `model` itself."""
    reference, _ = outputs(model, held_out, BATCH)
    low, high = NOISE_RANGE
    for _ in range(HALVINGS):
        noise = math.sqrt(low * high)
        found = copy.deepcopy(model)
        begun(found, options, noise, inputs)
        logits, _ = outputs(found, held_out, BATCH)
        low, high = (noise, high) if bearable(noise, logits, reference) else (low, noise)
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


def distorted_held_out(dataset: Dataset, strength: float, count: int) -> Split:
    """`count` held-out inputs, changed as in training, once for all looks at them."""
    held_out = Distorted(dataset.validation[:count], strength)
    inputs, labels = zip(*held_out.batches(BATCH), strict=True)
    return Split(torch.cat(inputs), torch.cat(labels))
