"""Which layers bear pruning: error against density for each layer alone (Han et al. 2015, fig. 6).

Everything is measured on the held-out training images; the test set is left for the final figure.
"""

import math
from collections.abc import Collection, Sequence
from itertools import repeat

import numpy as np
import torch
from sklearn.isotonic import isotonic_regression
from torch import nn

from ..errors import UserError
from ..parameters import shortest_name
from ..prune import prunable, top_masks
from ..training import weights
from ..training.loop import evaluate
from ..training.splits import Split
from .options import PruningOptions
from .runs import Run

DENSITIES = (1.0, 0.7, 0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005)


def scan_initial(run: Run, options: PruningOptions, target: float) -> dict:
    """The scan of the run's dense model, trained first unless it is there with these options, and
    the densities that suit `target`, the fraction of all weights to keep."""
    model = weights.restored(run.initial(options.training()), run.runtime.device)
    kinds = prunable(model, options.include, options.exclude)
    figures = scan(model, run.dataset.validation, run.runtime.test_batch_size, kinds)
    chosen = choose(figures, target)
    sizes = {layer["name"]: layer["parameters"] for layer in figures["layers"]}
    kept = sum(density * sizes[name] for name, density in chosen.items())
    return {
        "dataset": run.dataset.name,
        "arch": run.arch,
        **figures,
        "target": target,
        "chosen": chosen,
        "reached": kept / sum(sizes.values()),  # above the target where that is below the scan's
        "density_option": option(chosen),
    }


@torch.no_grad()
def scan(
    model: nn.Module,
    split: Split,
    batch_size: int = 1000,
    kinds: Collection[str] | None = None,
    densities: Sequence[float] = DENSITIES,
) -> dict:
    """Loss and error on `split` with one layer pruned by magnitude to each density, not retrained:
    of `kinds`, or of all that are pruned by default.

    Returns {"loss", "error_percent": of the model as it is, "layers": [{"name", "parameters",
    "points": [{"density", "sensitivity", "loss", "error_percent"}]}]}.  "sensitivity" is the
    threshold in standard deviations of the layer, as `--sensitivity` takes it.  The model is left
    as it was.
    """
    loss, error = evaluate(model, split, batch_size)
    if not math.isfinite(loss):
        raise UserError("the model's loss is not finite, so that no pruning can be compared by it")
    figures: dict = {"loss": loss, "error_percent": error, "layers": []}
    kinds = prunable(model) if kinds is None else kinds
    for name, weight in model.named_parameters():
        if name not in kinds:
            continue
        original, points = weight.clone(), []
        deviation = float(original.std(correction=0))
        for density in densities:
            mask = top_masks({name: original.abs()}, {name: density})[name]
            weight.masked_fill_(~mask, 0.0)
            loss, error = evaluate(model, split, batch_size)
            weight.copy_(original)
            # An entirely pruned layer keeps nothing.
            threshold = float(original[mask].abs().min()) if mask.any() else 0.0
            sensitivity = threshold / deviation if deviation else 0.0
            point = {"density": density, "sensitivity": sensitivity}
            points.append(point | {"loss": loss, "error_percent": error})
        layer = {"name": shortest_name(name), "parameters": weight.numel(), "points": points}
        figures["layers"].append(layer)
    return figures


def choose(figures: dict, target: float) -> dict[str, float]:
    """{layer: density} with the least sum of loss increases at `target` of all weights kept.

    The increases are those of the scan, taken as additive over the layers, and between densities
    as linear.  On the lower convex hull of each curve the loss per weight removed grows, so that
    taking the cheapest step of any layer until enough weights are gone is optimal for the hulls.
    A target below what the scan has reached gives its lowest densities.
    """
    sizes = {layer["name"]: layer["parameters"] for layer in figures["layers"]}
    steps: list[tuple] = []
    for layer in figures["layers"]:
        losses = {point["density"]: point["loss"] for point in layer["points"]}
        losses[1.0] = figures["loss"]
        densities = sorted(losses, reverse=True)
        removed = -np.diff(densities) * layer["parameters"]
        prices = np.diff([losses[density] for density in densities]) / removed
        prices = isotonic_regression(prices, sample_weight=removed)  # the slopes of the hull
        steps += zip(prices, repeat(layer["name"]), densities, densities[1:], strict=False)
    excess = (1 - target) * sum(sizes.values())  # weights still to be removed
    chosen = dict.fromkeys(sizes, 1.0)
    # A stable sort: steps of a layer with the same price stay in the order of falling density.
    for _, name, start, end in sorted(steps, key=lambda step: step[0]):
        if excess <= 0:
            break
        count = min((start - end) * sizes[name], excess)
        chosen[name] = start - count / sizes[name]
        excess -= count
    return chosen


def option(density: dict[str, float]) -> str:
    """The densities as the option --density takes them."""
    return ",".join(f"{name}={value:.4g}" for name, value in density.items())
