"""Shared values for a network that is trained already, with sample inputs (no labels, no training).

As in post_training.py, but the errors of a layer's weights are compensated for by what its inputs
really have in common, H = X X^T (Frantar et al. 2023, GPTQ; compensation.py has the formulas).
Layers are shared in the order in which data reaches them, each with the inputs that the network
shared so far gives it, so that errors of earlier layers are seen by later ones.
"""

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from .compensation import compensate, prices
from .post_training import BIT, MAX_LEVEL, NOISE, grid, mean_step, share_tensor, spread_of
from .post_training import steps as steps_of
from .products import Inputs, Use, Watch

VECTORS = 20_000  # inputs of a layer that are looked at; no fewer than PER_INPUT per column of H
PER_INPUT = 4
MAX_INPUTS = 8192  # of one output; H of more takes too much memory and time
STAGES = 8  # runs of the inputs through the network, each for a share of its layers, which
# then do not see each other's errors: time for a ResNet-20 grows from 9 s with 5 to 23 s with 20
DAMPING = 0.01  # of the mean of H's diagonal
BLOCK = 128  # columns of a matrix that are rounded before the others hear of it
ROWS = 64  # a thread's share
SAMPLE = 1 << 18  # weights on which the code words are estimated
PASSES = 3

UNREACHED = "no input reached it"
TOO_MANY = "too many inputs"


class _Enough(Exception):
    """The rest of the network's run would tell nothing."""


def share(
    model: nn.Module,
    kinds: Mapping[str, str],
    noise: float = NOISE,
    inputs: Iterable | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """({name: tensor with shared values}, {name: why it was shared without data}) of the parameters
    {name: kind} of `model`, which stays as it is; with sample `inputs` by `calibrate`."""
    parameters = dict(model.named_parameters())
    found = steps_of({name: spread_of(name, parameters[name]) for name in kinds}, noise)
    if inputs is not None:
        # Compensated errors tell more of a layer than its size: one step for all measures better.
        return calibrate(model, inputs, kinds, dict.fromkeys(kinds, mean_step(found, parameters)))
    return {name: share_tensor(parameters[name], found[name]) for name in kinds}, {}


def calibrate(
    model: nn.Module,
    inputs: Iterable[Any],
    kinds: Mapping[str, str],
    steps: Mapping[str, float],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """({name: tensor with shared values} for every name in `kinds`, {name: reason}).

    `inputs` are what `model` is called with: a tensor, a tuple or list of arguments or a dict of
    keyword arguments, each a batch. `kinds` as from parameters.compressible, `steps` as from
    post_training.steps. The reasons are those of the tensors that were shared without data. Runs
    a copy in evaluation mode on the model's device; the model stays as it was. Deterministic.

    Raises ValueError for a bad step, NaN or infinity among the weights.
    """
    batches = list(inputs)
    work = copy.deepcopy(model).eval().requires_grad_(False)
    parameters = {name: each for name, each in work.named_parameters() if name in kinds}
    with _separate_products(work):
        uses = _uses(work, parameters, batches)
        order = list(dict.fromkeys(use.name for found in uses for use in found))
        reasons = {name: _reason(name, parameters[name], uses) for name in kinds}
        for name, reason in reasons.items():
            if reason:  # no data needed, so that every layer can be calibrated behind them
                parameters[name].copy_(share_tensor(parameters[name], steps[name]))
        order = [name for name in order if not reasons[name]]
        for part in np.array_split(np.arange(len(order)), min(len(order), STAGES) or 1):
            names = [order[i] for i in part]
            moments = _moments(work, {name: parameters[name] for name in names}, batches, uses)
            for name in names:
                own = {use: h for use, h in moments.items() if use.name == name}
                reasons[name] = _share(parameters[name], own, steps[name])
    shared = {name: parameters[name].detach() for name in kinds}
    return shared, {name: reason for name, reason in reasons.items() if reason}


def search(
    share: Callable[[float], Mapping[str, torch.Tensor]],
    measure: Callable[[Mapping[str, torch.Tensor]], float],
    budget: float,
    noise: float,
    trials: int = 6,
) -> tuple[float, Mapping[str, torch.Tensor]]:
    """(noise, share(noise)) for the largest noise tried with measure(share(noise)) <= `budget`.

    From `noise` on by the square root of what is left of the budget (a divergence grows with the
    square of small errors), and by bisection of the logarithm once it lies between two trials. If
    no trial keeps the budget, the smallest one. `measure` on inputs held out, not on a test set.
    """
    if not budget > 0 or not noise > 0:
        raise ValueError(f"budget and noise must be positive, not {budget!r} and {noise!r}")
    within, beyond = 0.0, math.inf
    best = smallest = None
    for _ in range(trials):
        shared = share(noise)
        found = measure(shared)
        if found <= budget:
            within, best = noise, (noise, shared)
        else:  # NaN too
            if noise < beyond:
                smallest = noise, shared
            beyond = min(beyond, noise)
        if within and beyond < math.inf:
            if beyond / within < 1.05:
                break
            noise = math.sqrt(within * beyond)
        else:
            ratio = math.sqrt(budget / found) if found > 0 else 4.0
            noise *= min(max(ratio, 1.1), 4.0) if found <= budget else max(min(ratio, 0.9), 0.25)
    result = best or smallest
    if result is None:
        raise ValueError(f"trials must be at least 1, not {trials!r}")
    return result


@contextmanager
def _separate_products(model: nn.Module) -> Iterator[None]:
    """Keep fused kernels, in which products cannot be told apart, from being used."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # about the precision of GPUs that are not there
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


def _run(model: nn.Module, batch: Any) -> None:
    try:
        if isinstance(batch, Mapping):
            model(**batch)
        elif isinstance(batch, tuple | list):
            model(*batch)
        else:
            model(batch)
    except _Enough:
        pass


def _uses(
    model: nn.Module, parameters: Mapping[str, torch.Tensor], batches: list[Any]
) -> list[list[Use]]:
    """The products of each batch's run with the parameters, in their order."""
    uses: list[list[Use]] = []
    for batch in batches:
        found: list[Use] = []
        with Watch(parameters, lambda use, _, found=found: found.append(use)):
            _run(model, batch)
        uses.append(found)
    return uses


def _reason(name: str, parameter: torch.Tensor, uses: list[list[Use]]) -> str:
    """Why a parameter cannot be calibrated; empty if it can."""
    own = {use for found in uses for use in found if use.name == name}
    for use in own:
        if not use.supported:
            return use.kind
        if math.prod(use.matrices(parameter).shape[2:]) > MAX_INPUTS:
            return TOO_MANY
    return "" if own else UNREACHED


def _moments(
    model: nn.Module,
    parameters: Mapping[str, torch.Tensor],
    batches: list[Any],
    uses: list[list[Use]],
) -> dict[Use, torch.Tensor]:
    """Mean of x x^T, float32 [groups, inputs, inputs], over inputs of each product."""
    generator = torch.Generator().manual_seed(0)
    total = Counter(use for found in uses for use in found)
    sums: dict[Use, torch.Tensor] = {}
    drawn: Counter[Use] = Counter()
    left = 0

    def note(use: Use, inputs: Inputs) -> None:
        nonlocal left
        columns = use.matrices(parameters[use.name]).shape[2]
        limit = max(1, max(VECTORS, PER_INPUT * columns) // max(total[use], 1))
        x = inputs.draw(limit, generator).float()
        h = x.mT @ x
        sums[use] = sums[use].add_(h) if use in sums else h
        drawn[use] += x.shape[1]
        left -= 1
        if left == 0:
            raise _Enough

    for batch, found in zip(batches, uses, strict=True):
        left = sum(use.name in parameters for use in found)
        if left:
            with Watch(parameters, note):
                _run(model, batch)
    return {use: h / max(drawn[use], 1) for use, h in sums.items()}


def _share(parameter: torch.Tensor, moments: Mapping[Use, torch.Tensor], step: float) -> str:
    """Share the values of `parameter` in place; the reason if without its `moments`, or empty."""
    usable = {
        use: h
        for use, h in moments.items()
        if bool(h.isfinite().all()) and bool((h.diagonal(dim1=1, dim2=2).sum(1) > 0).any())
    }
    rows = np.zeros(len(parameter), int)
    for use in usable:
        rows[use.first : use.first + use.rows] += 1
    if not usable or rows.max() > 1 or any(use.kind == "columns" for use in usable):
        usable = _merged(parameter, usable)
    source = parameter.clone()
    if not usable or (rows == 0).any():
        parameter.copy_(share_tensor(source, step))
    if not usable:
        return "its inputs are zero or not finite" if moments else UNREACHED
    largest = float(source.abs().max())
    step = max(step, largest / MAX_LEVEL)
    levels = grid(step, largest, source.dtype)
    for use, h in usable.items():
        weights = use.matrices(source).double().cpu().numpy()
        shared = torch.from_numpy(levels[_rounded(weights, h, step, levels)])
        use.restore(shared.to(parameter), parameter)
    return ""


def _merged(
    parameter: torch.Tensor, moments: Mapping[Use, torch.Tensor]
) -> dict[Use, torch.Tensor]:
    """One use of all rows, where uses overlap."""
    kinds = {(use.kind, use.groups) for use in moments}
    if len(kinds) != 1:
        return {}
    (kind, groups) = kinds.pop()
    rows = parameter.shape[1] if kind == "columns" else parameter.shape[0]
    return {Use(next(iter(moments)).name, kind, 0, rows, groups): sum(moments.values())}


def factors(h: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(order int64 [g, n], upper Cholesky factors of the inverses of H in it, float64 [g, n, n]).

    Of H float [g, n, n], damped. Inputs of the most power come first: what is rounded last has
    the least left to make up for its errors.
    """
    h = h.double().cpu()
    power = h.diagonal(dim1=1, dim2=2).mean(1)
    power = torch.where(power > 0, power, power.max())
    h = h + (DAMPING * power)[:, None, None] * torch.eye(h.shape[1], dtype=h.dtype)
    order = h.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    h = h.gather(1, order[:, :, None].expand_as(h)).gather(2, order[:, None, :].expand_as(h))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return order.numpy(), torch.linalg.cholesky(inverse, upper=True).contiguous().numpy()


def _rounded(weights: np.ndarray, h: torch.Tensor, step: float, levels: np.ndarray) -> np.ndarray:
    """Labels int64 [groups, rows, columns] of `weights`, the places of their values in `levels`."""
    order, upper = factors(h)
    weights = np.take_along_axis(weights, order[:, None, :], axis=2)
    rows = weights.shape[1]
    sensitivity = np.diagonal(upper, axis1=1, axis2=2) ** -2.0
    bit = BIT * step**2 * float(sensitivity.mean())
    stride = max(1, weights.size // SAMPLE)
    sample = weights[:, ::stride] if rows >= stride else weights
    labels = np.rint(sample / step).astype(np.int64) + levels.size // 2
    for last in range(PASSES):
        price = prices(np.bincount(labels.ravel(), minlength=levels.size), bit)
        labels = _compensated(weights if last == PASSES - 1 else sample, upper, step, levels, price)
    result = np.empty_like(labels)
    np.put_along_axis(result, np.broadcast_to(order[:, None, :], labels.shape), labels, axis=2)
    return result


def _compensated(
    weights: np.ndarray, upper: np.ndarray, step: float, levels: np.ndarray, price: np.ndarray
) -> np.ndarray:
    """As compensation.compensate, for all groups, a block of columns at a time."""
    labels = np.where(weights == 0, -1, 0).astype(np.int64)
    columns = weights.shape[2]

    def work(group: int, first: int) -> None:
        rows = slice(first, first + ROWS)
        left = weights[group, rows].copy()
        for start in range(0, columns, BLOCK):
            part = slice(start, min(start + BLOCK, columns))
            factor = np.ascontiguousarray(upper[group, part, part])
            w = np.ascontiguousarray(left[:, part])
            chosen = np.ascontiguousarray(labels[group, rows, part])
            compensate(w, factor, step, levels, price, chosen)
            labels[group, rows, part] = chosen
            if part.stop < columns:
                errors = (w - levels[chosen]) / np.diagonal(factor)
                left[:, part.stop :] -= errors @ upper[group, part, part.stop :]

    places = [(g, r) for g in range(len(weights)) for r in range(0, weights.shape[1], ROWS)]
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        list(pool.map(work, *zip(*places, strict=True)))
    return labels
