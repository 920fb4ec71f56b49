"""What the plots show of the weights themselves: histograms, shared values, the first mask."""

import torch

from ..checkpoint import Checkpoint
from ..parameters import shortest_name
from ..training import architectures, weights

BINS = 80
MAX_SHARED_VALUES = 4096
MAX_FILTERS = 64


def distributions(found: dict[str, Checkpoint], names: list[str]) -> list[dict]:
    """Per layer: counts over BINS equal bins of [low, high], and the shared values with theirs.

    `found` is {stage: Checkpoint} of the stages that are there, `names` the weights' names.
    "initial" counts every weight, "retrained" the survivors; each is None without its stage, as
    are "shared_values" and "shared_counts" where no stage has shared values.
    """
    initial, retrained = found.get("initial"), found.get("retrained")
    shared = found.get("decoded") or found.get("weight_shared")
    return [
        {"name": shortest_name(name), **distribution(name, initial, retrained, shared)}
        for name in names
    ]


def distribution(
    name: str,
    initial: Checkpoint | None,
    retrained: Checkpoint | None,
    shared: Checkpoint | None,
) -> dict:
    before, after, last = (
        stage.state_dict[name].flatten().float() if stage and name in stage.state_dict else None
        for stage in (initial, retrained, shared)
    )
    before = None if before is None else before[before.isfinite()]
    after = None if after is None else survivors(after)
    present = [values for values in (before, after) if values is not None and len(values)]
    low = min((float(values.min()) for values in present), default=-1.0)
    high = max((float(values.max()) for values in present), default=1.0)
    if low == high:  # a constant weight
        low, high = low - 1, high + 1
    values, counts = shared_values(last) if last is not None else (None, None)
    return {
        "low": low,
        "high": high,
        "initial": histogram(before, low, high),
        "retrained": histogram(after, low, high),
        "shared_values": values,
        "shared_counts": counts,
    }


def survivors(values: torch.Tensor) -> torch.Tensor:
    return values[(values != 0) & values.isfinite()]


def histogram(values: torch.Tensor | None, low: float, high: float) -> list[int] | None:
    if values is None:
        return None
    return torch.histc(values, BINS, low, high).long().tolist()


def shared_values(weight: torch.Tensor) -> tuple[list, list] | tuple[None, None]:
    """The distinct non-zero values and how often each occurs; None where there are too many."""
    values, counts = survivors(weight).unique(return_counts=True)
    if len(values) > MAX_SHARED_VALUES:
        return None, None
    return values.tolist(), counts.tolist()


def first_layer_mask(source: Checkpoint) -> dict | None:
    """How many weights are left at each place that the first layer looks at.

    Of a linear layer that sees an image: per pixel [height, width] over all units and channels.
    Of a 2-d convolution: per filter and place in its kernel [filters, height, width] over the
    input channels, the first MAX_FILTERS filters.  None for anything else.
    "counts" is flat, in row order; "most" is what a dense layer would have at each place.
    """
    names = list(weights.kinds_of(source))
    if not names:
        return None
    weight = source.state_dict[names[0]] != 0
    shape = image_shape(source.arch)
    if weight.dim() == 2 and shape is not None and weight.shape[1] == shape.numel():
        channels, height, width = shape
        counts = weight.sum(0).view(channels, height, width).sum(0)
        kind, most = "pixels", len(weight) * channels
    elif weight.dim() == 4:
        counts, kind, most = weight[:MAX_FILTERS].sum(1), "filters", weight.shape[1]
    else:
        return None
    return {
        "layer": shortest_name(names[0]),
        "kind": kind,
        "shape": list(counts.shape),
        "counts": counts.flatten().tolist(),
        "most": most,
    }


def image_shape(arch: str | None) -> torch.Size | None:
    """(channels, height, width) of the architecture's input, if it names one."""
    if arch is None:
        return None
    shape = getattr(architectures.skeleton(arch), "input_shape", None)
    return torch.Size(shape) if shape is not None and len(shape) == 3 else None
