"""How much a model's answers feel its weights: the Fisher information, by sample inputs.

Noise of variance s**2 in each weight of a tensor moves the answers by F s**2 / 2, where F is the
trace of the Fisher information: their divergence, if they are logits; of other outputs, half the
square of their relative error (Gauss-Newton; Martens 2020). F is the mean square of the gradient of
<direction, answer>, over random directions whose covariance is the second derivative of that
measure by the answer. Directions are independent and have no mean, so that the square of the
gradient of a sum over answers is the sum of theirs, on average: one backward pass does for all.
"""

import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .outputs import rows_of
from .parameters import copied
from .samples import Call, Samples, on_device

INPUTS = 128  # that are looked at, about
CHUNK = 16  # of them in memory at a time, with what their gradients need
DIRECTIONS = 4  # for each


def traces(
    model: nn.Module, samples: Samples, names: Collection[str]
) -> tuple[dict[str, float], str]:
    """({name: trace of the Fisher information per answer} of the parameters `names`, "").

    Of several outputs the one that net.outputs compares counts, and for parameters that are no part
    of it, the first that they are part of. Left out are parameters that no gradient reached; where
    the model cannot be differentiated all are, and a reason is returned beside the empty dict.
    Runs a copy in evaluation mode on the model's device. Deterministic.
    """
    model = copied(model).eval().requires_grad_(False)
    parameters = {name: each for name, each in model.named_parameters() if name in names}
    for parameter in parameters.values():
        parameter.requires_grad_()
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    total, count = dict.fromkeys(parameters, 0.0), 0
    batches = samples.batches[:: max(1, len(samples.batches) // INPUTS)]
    reason = ""
    # The recurrent kernels of cuDNN cannot be differentiated in evaluation mode.
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        for calls in batches:
            for call in calls:  # which one the model takes
                try:
                    for part in _parts(call, max(1, INPUTS // len(batches))):
                        found, rows = _squares(
                            model, on_device(part, device), parameters, generator
                        )
                        count += rows
                        for name, square in found.items():
                            total[name] += square
                    break
                except Exception as error:  # whatever a model raises, or there is no memory
                    lines = str(error).strip().splitlines()
                    reason = reason or f"{type(error).__name__}: {lines[0] if lines else ''}"
            else:
                return {}, reason
    return {name: each / count for name, each in total.items() if 0 < each < math.inf}, ""


def _parts(call: Call, most: int) -> Iterator[Call]:
    """`call` with CHUNK of its inputs at a time, `most` in all, of a batch along the first
    dimension of all tensors; as it is, where these are not of one length."""
    sizes = {len(each) for each in tree_leaves(tuple(call)) if _is_batch(each)}
    if len(sizes) != 1 or (size := sizes.pop()) <= 1:
        yield call
        return
    chosen = torch.arange(0, size, max(1, size // most))[:most]
    for part in chosen.split(CHUNK):

        def taken(tensor: torch.Tensor, part: torch.Tensor = part) -> torch.Tensor:
            return tensor[part.to(tensor.device)] if _is_batch(tensor) else tensor

        yield Call(*tree_map_only(torch.Tensor, taken, tuple(call)))


def _is_batch(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _squares(
    model: nn.Module, call: Call, parameters: dict[str, nn.Parameter], generator: torch.Generator
) -> tuple[dict[str, float], int]:
    """({name: square of the gradient, summed over the answers}, number of answers)."""
    args, kwargs = call
    output, mask = model(*args, **kwargs), kwargs.get("attention_mask")
    judged = rows_of(output, mask)
    others = [each for each in tree_leaves(output) if _is_batch(each) and each.requires_grad]
    found: dict[str, float] = {}
    left = dict(parameters)
    for rows, logits in [judged, *(rows_of(each, mask) for each in others)]:
        if not left or not rows.requires_grad:
            continue
        squares = dict.fromkeys(left, 0.0)
        reached = set()
        for _ in range(DIRECTIONS):
            direction = _direction(rows.detach(), logits, generator)
            gradients = torch.autograd.grad(
                rows, list(left.values()), direction, retain_graph=True, allow_unused=True
            )
            for name, gradient in zip(left, gradients, strict=True):
                if gradient is not None:
                    live = gradient.to_dense() * (left[name] != 0)  # zeros stay as they are
                    norm = float(torch.linalg.vector_norm(live, dtype=torch.float32))
                    squares[name] += norm**2 / DIRECTIONS
                    reached.add(name)
        found |= {name: squares[name] for name in reached}
        left = {name: each for name, each in left.items() if name not in reached}
    if not found:
        raise ValueError("no gradient reaches the weights")
    return found, len(judged[0])


def _direction(rows: torch.Tensor, logits: bool, generator: torch.Generator) -> torch.Tensor:
    """Random, [rows, width]: of covariance diag(p) - p p^T in a row of logits with probabilities p;
    of other outputs 1 over their mean square norm."""
    noise = torch.randn(rows.shape, generator=generator).to(rows.device)
    if logits and rows.shape[1] > 1:
        share = rows.softmax(1)
        noise *= share.sqrt()
        return noise - share * noise.sum(1, keepdim=True)
    norm = rows.square().sum(1).mean().sqrt()
    return noise / norm if norm > 0 else torch.zeros_like(noise)
