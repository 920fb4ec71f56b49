"""A number for every "auto" of a stage's options, before the stage begins; shown and recorded.

Inputs are held out of the training set, and changed as in training: what a network has learnt by
heart would bear more.
"""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from .. import choose
from ..choose import Choice
from ..errors import UserError
from ..modules import copied
from ..prune import Pruner
from ..rounding import NOISE
from ..sharing import WeightSharing
from ..training import distributed
from ..training.distillation import Distorted
from ..training.log import Log
from ..training.loop import batch_size_for, in_bfloat16, measure_statistics
from ..training.splits import Dataset
from ..treatments import SharingConfig
from .options import Options, PruningOptions, SharingOptions

HELD_OUT = 2000  # inputs
BATCH = 250
DENSITIES = (1.0, 0.005)  # between which the density is looked for
NOISES = (0.05, 6.4)


def schedules(options: Options, dataset: Dataset, device: torch.device | str) -> Options:
    """The same with a batch size, with or without bfloat16, and beside it what was asked for."""
    size = options.batch_size
    if size == "auto":
        processes = distributed.shard()[1]
        size = batch_size_for(len(dataset.train), options.largest_batch, processes)
    amp = in_bfloat16(torch.device(device), options.amp)
    return replace(options, batch_size=size, amp=amp, asked=options.asked or options)


def without_auto(options: SharingOptions) -> SharingOptions:
    """The same with numbers for what needs no look at the model: `bias_bits`, `share_parts`."""
    asked = options.asked or options
    if options.bias_bits == "auto":  # biases that are not trained on are worth more
        options = replace(options, bias_bits=0 if options.bits == "auto" else 3, asked=asked)
    if not options.finetune_epochs:
        return replace(options, share_parts=1, asked=asked)
    if options.finetune_epochs < options.share_parts:
        raise UserError(
            f"{options.finetune_epochs} epochs of fine-tuning cannot be divided among "
            f"{options.share_parts} parts; give more epochs, or fewer parts"
        )
    return options


def density(model: nn.Module, dataset: Dataset, options: PruningOptions, log: Log) -> float:
    """The least density at which `model`, pruned at once, keeps within the error budget.

    With the statistics that BatchNorm would have of the pruned model, as retraining ends with; so
    has what it is compared with: those of published weights may be of other inputs.
    """
    known = Distorted(dataset.train[:HELD_OUT], options.distortion)
    model = copied(model)
    measure_statistics(model, known, BATCH)

    def prune(changed: nn.Module, value: float) -> None:
        Pruner(changed, density=value, include=options.include, exclude=options.exclude)
        measure_statistics(changed, known, BATCH)

    nats = choose.per_point(options.prune_epochs + options.retrain_epochs)
    return search(model, dataset, options, log, "density", prune, DENSITIES, nats)


def noise(model: nn.Module, dataset: Dataset, options: SharingOptions, log: Log) -> float:
    """The most noise at which `model`, shared at once, keeps within the error budget."""
    inputs: Any = calibration_inputs(dataset, options)
    if inputs is not None:  # what the outputs feel is measured once, not at every noise
        from ..samples import Samples

        inputs = Samples.of(model, inputs)
    final = not options.finetune_epochs

    def share(changed: nn.Module, value: float) -> None:
        at_once = replace(options, noise=value, share_parts=1)
        WeightSharing(changed, config(at_once), calibration=inputs, final=final)

    return search(model, dataset, options, log, "noise", share, NOISES)


def search(
    model: nn.Module,
    dataset: Dataset,
    options: PruningOptions | SharingOptions,
    log: Log,
    what: str,
    change: Callable[[nn.Module, float], object],
    span: tuple[float, float],
    per_point: float = choose.PER_POINT,
) -> float:
    """choose.farthest to three digits, told to the log. `per_point`: nats per point of budget."""
    limit = per_point * options.error_budget
    batches = held_out(dataset, options.distortion)

    def tell(tried: Choice) -> None:
        text = f"{what} {tried.value:.3g} would move the outputs by {tried.divergence:.4f} nats"
        log.result(text, event="tried", **{what: tried.value}, divergence=tried.divergence)

    found = choose.farthest(*span, choose.moved_by(model, batches, change), limit, tell)
    which = "the least that is tried: none" if math.isnan(found.divergence) else "what"
    reason = f"{which} moves held-out outputs by at most {limit:.3g} nats before training"
    value = float(f"{found.value:.3g}")
    log.result(
        f"{what} {value:g}: {reason} (an error budget of {options.error_budget:g} points)",
        **{"event": "chosen", what: value, "divergence": found.divergence},
    )
    return value


def held_out(dataset: Dataset, strength: float) -> list[torch.Tensor]:
    """Held-out inputs in batches, changed as in training, the same for all looks at them."""
    split = Distorted(dataset.validation[:HELD_OUT], strength)
    return [inputs for inputs, _ in split.batches(BATCH)]


def calibration_inputs(dataset: Dataset, options: SharingOptions) -> list[torch.Tensor] | None:
    """Training inputs without their labels, in batches; None where they are not wanted."""
    if not options.calibration_images or options.bits != "auto":
        return None
    wanted = dataset.train[: options.calibration_images]
    return [inputs for inputs, _ in wanted.batches(BATCH)]


def config(options: SharingOptions, reassign: int = 0) -> SharingConfig:
    """What the library takes, of options that are numbers; `reassign` in training steps."""
    own = {field.name for field in fields(SharingConfig)} & (vars(options).keys() - {"reassign"})
    values = {name: getattr(options, name) for name in own}
    if values["noise"] == "auto":  # of k-means, or without data
        values["noise"] = NOISE
    return SharingConfig(**values, parts=options.share_parts, reassign=reassign)
