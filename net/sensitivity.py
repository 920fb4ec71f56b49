"""How much a model's answers feel its weights: the Fisher information, by sample inputs.

Noise of variance s**2 in each weight of a tensor moves the answers by F s**2 / 2, where F is the
trace of the Fisher information: their divergence, if they are logits; of other outputs, half the
square of their relative error (Gauss-Newton; Martens 2020). F is the mean square of the gradient of
<direction, answer>, over random directions whose covariance is the second derivative of that
measure by the answer. Directions are independent and have no mean, so that the square of the
gradient of a sum over answers is the sum of theirs, on average: one backward pass does for all.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .backward import gradients
from .blocks import Passage
from .errors import first_line
from .modules import in_evaluation, plain_name
from .outputs import rows_of
from .samples import Call, Samples
from .threads import SWITCHED

INPUTS = 128  # that are looked at, about
CHUNK = 16  # of them in memory at a time, with what their gradients need
DIRECTIONS = 4  # for each
ELEMENTS = 1 << 22  # of a gradient that are squared at a time


def known_traces(
    model: Callable[[], nn.Module | Passage], samples: Samples, names: Iterable[str]
) -> tuple[dict[str, float], str]:
    """`traces`, of the same samples and names measured once: they are the same at any noise."""
    key = tuple(names)
    if key not in samples.traces:
        samples.traces[key] = traces(model(), samples, key)
    return samples.traces[key]


def traces(
    model: nn.Module | Passage, samples: Samples, names: Collection[str]
) -> tuple[dict[str, float], str]:
    """({name: trace of the Fisher information per answer} of the parameters `names`, "").

    Of several outputs the one that net.outputs judges first counts, and for parameters that are no
    part of it, the first that they are part of. Left out are parameters that no gradient reached;
    where the model cannot be differentiated all are, and a reason is returned beside the empty
    dict. Runs a copy in evaluation mode on the model's device, or block by block the passage
    itself. Deterministic.
    """
    passage = model if isinstance(model, Passage) else Passage(in_evaluation(model))
    passage.model.eval()
    for name, parameter in passage.model.named_parameters():  # tied ones by their first names
        parameter.requires_grad_(plain_name(name) in names)
    generator = torch.Generator().manual_seed(0)
    total, count = dict.fromkeys(names, 0.0), 0
    batches = samples.batches[:: max(1, len(samples.batches) // INPUTS)]
    reason = ""
    # The recurrent kernels of cuDNN cannot be differentiated in evaluation mode.
    with SWITCHED, torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        for calls in batches:
            for call in calls:  # which one the model takes
                try:
                    for part in _parts(call, max(1, INPUTS // len(batches))):
                        found, rows = _squares(passage, part, names, generator)
                        count += rows
                        for name, square in found.items():
                            total[name] += square
                    break
                except Exception as error:  # whatever a model raises, or there is no memory
                    reason = reason or first_line(error)
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
    chosen = torch.arange(0, size, max(1, size // most), device="cpu")[:most]
    for part in chosen.split(CHUNK):

        def taken(tensor: torch.Tensor, part: torch.Tensor = part) -> torch.Tensor:
            return tensor[part.to(tensor.device)] if _is_batch(tensor) else tensor

        yield Call(*tree_map_only(torch.Tensor, taken, tuple(call)))


def _is_batch(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _squares(
    passage: Passage, call: Call, names: Collection[str], generator: torch.Generator
) -> tuple[dict[str, float], int]:
    """({name: square of the gradient, summed over the answers}, number of answers)."""
    found: dict[str, float] = {}
    judge, left = _Judge(call.kwargs.get("attention_mask"), generator), set(names)
    while left and judge.next():
        squares: dict[str, float] = {}
        for name, weight, gradient in gradients(passage, call, left, judge):
            square = _square(gradient.to_dense(), weight)
            squares[name] = squares.get(name, 0.0) + square / DIRECTIONS
        found |= squares
        left -= squares.keys()
    if not found:
        raise ValueError("no gradient reaches the weights")
    return found, judge.answers


def _square(gradient: torch.Tensor, weight: torch.Tensor) -> float:
    """Of the gradient by the weights that are not zero: the others stay as they are."""
    pairs = zip(
        *(each.detach().flatten().split(ELEMENTS) for each in (gradient, weight)), strict=True
    )
    lives = (part * (own != 0) for part, own in pairs)
    kind = torch.promote_types(gradient.dtype, torch.float32)
    return sum(float(torch.linalg.vector_norm(x, dtype=kind)) ** 2 for x in lives)


class _Judge:
    """Of the outputs of a model first the one that is judged, then the others, in random
    directions."""

    def __init__(self, mask: torch.Tensor | None, generator: torch.Generator) -> None:
        self.mask, self.generator = mask, generator
        self.place, self.count, self.answers = -1, 1, 0

    def next(self) -> bool:
        """Whether there is another output."""
        self.place += 1
        return self.place < self.count

    def __call__(self, output: Any) -> tuple[torch.Tensor, Iterator[torch.Tensor]] | None:
        if self.place == 0:
            judged = output
            self.count += sum(_is_batch(x) and x.requires_grad for x in tree_leaves(output))
        else:
            others = [x for x in tree_leaves(output) if _is_batch(x) and x.requires_grad]
            judged = others[self.place - 1]
        rows, logits = rows_of(judged, self.mask)
        if self.place == 0:
            self.answers = len(rows)
        if not rows.requires_grad:
            return None
        directions = (_direction(rows.detach(), logits, self.generator) for _ in range(DIRECTIONS))
        return rows, directions


def _direction(rows: torch.Tensor, logits: bool, generator: torch.Generator) -> torch.Tensor:
    """Random, [rows, width]: of covariance diag(p) - p p^T in a row of logits with probabilities p;
    of other outputs 1 over their mean square norm."""
    noise = torch.randn(rows.shape, generator=generator, dtype=rows.dtype, device="cpu")
    noise = noise.to(rows.device)
    if logits and rows.shape[1] > 1:
        share = rows.softmax(1)
        noise *= share.sqrt()
        return noise - share * noise.sum(1, keepdim=True)
    norm = rows.square().sum(1).mean().sqrt()
    return noise / norm if norm > 0 else torch.zeros_like(noise)
