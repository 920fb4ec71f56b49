"""Which layers bear pruning: error against density for each layer alone (Han et al. 2015, fig. 6).

Everything is measured on the held-out training images; the test set is left for the final figure.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from ..parameters import compressible, shortest_name
from ..prune import top_masks
from ..training import weights
from ..training.loop import evaluate
from ..training.splits import Split
from .options import TrainingOptions
from .runs import Run

Point = tuple[float, float]  # density, loss

DENSITIES = (1.0, 0.7, 0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005)


def scan_initial(run: Run, options: TrainingOptions, target: float) -> dict:
    """The scan of the run's dense model, trained first unless it is there with these options, and
    the densities that suit `target`, the fraction of all weights to keep."""
    model = weights.restored(run.initial(options), run.runtime.device)
    figures = scan(model, run.dataset.validation, run.runtime.test_batch_size)
    chosen = choose(figures, target)
    return {
        "dataset": run.dataset.name,
        "arch": run.arch,
        **figures,
        "target": target,
        "chosen": chosen,
        "density_option": option(chosen),
    }


@torch.no_grad()
def scan(
    model: nn.Module,
    split: Split,
    batch_size: int = 1000,
    densities: Sequence[float] = DENSITIES,
) -> dict:
    """Loss and error on `split` with one layer pruned by magnitude to each density, not retrained.

    Returns {"loss", "error_percent": of the model as it is, "layers": [{"name", "parameters",
    "points": [{"density", "sensitivity", "loss", "error_percent"}]}]}.  "sensitivity" is the
    threshold in standard deviations of the layer, as `--sensitivity` takes it.  The model is left
    as it was.
    """
    loss, error = evaluate(model, split, batch_size)
    figures: dict = {"loss": loss, "error_percent": error, "layers": []}
    kinds = compressible(model)
    for name, weight in model.named_parameters():
        if name not in kinds:
            continue
        original = weight.clone()
        deviation = float(original.std(correction=0))
        points = []
        for density in densities:
            mask = top_masks({name: original.abs()}, {name: density})[name]
            weight.masked_fill_(~mask, 0.0)
            loss, error = evaluate(model, split, batch_size)
            weight.copy_(original)
            # An entirely pruned layer keeps nothing.
            threshold = float(original[mask].abs().min()) if mask.any() else 0.0
            points.append(
                {
                    "density": density,
                    "sensitivity": threshold / deviation if deviation else 0.0,
                    "loss": loss,
                    "error_percent": error,
                }
            )
        figures["layers"].append(
            {"name": shortest_name(name), "parameters": weight.numel(), "points": points}
        )
    return figures


def choose(figures: dict, target: float) -> dict[str, float]:
    """{layer: density} with the least sum of loss increases at `target` of all weights kept.

    The increases are those of the scan, taken as additive over the layers, and between densities
    as linear.  On the lower convex hull of each curve the loss per weight removed grows, so that
    taking the cheapest step of any layer until enough weights are gone is optimal for the hulls.
    A target below what the scan has reached gives its lowest densities.
    """
    sizes = {layer["name"]: layer["parameters"] for layer in figures["layers"]}
    excess = (1 - target) * sum(sizes.values())  # weights still to be removed
    density = dict.fromkeys(sizes, 1.0)
    steps = [step for layer in figures["layers"] for step in hull_steps(layer, figures["loss"])]
    # A stable sort: steps of a layer with the same price stay in the order of falling density.
    for _, name, start, end in sorted(steps, key=lambda step: step[0]):
        if excess <= 0:
            break
        removed = min((start - end) * sizes[name], excess)
        density[name] = start - removed / sizes[name]
        excess -= removed
    return density


def hull_steps(layer: dict, loss: float) -> list[tuple[float, str, float, float]]:
    """(loss per weight removed, layer, density before, density after), of the curve's lower hull.

    By falling density, that is by rising price.
    """
    points = {point["density"]: point["loss"] for point in layer["points"]} | {1.0: loss}
    curve = [(density, points[density]) for density in sorted(points, reverse=True)]

    def price(a: Point, b: Point) -> float:
        return (b[1] - a[1]) / ((a[0] - b[0]) * layer["parameters"])

    hull: list[Point] = []
    for point in curve:
        while len(hull) > 1 and price(hull[-2], hull[-1]) >= price(hull[-1], point):
            hull.pop()
        hull.append(point)
    return [(price(a, b), layer["name"], a[0], b[0]) for a, b in pairwise(hull)]


def option(density: dict[str, float]) -> str:
    """The densities as the option --density takes them."""
    return ",".join(f"{name}={value:.4g}" for name, value in density.items())
