"""Shared values for a network that is trained already, with sample inputs (no labels, no training).

As in net.rounding, but the errors of a layer's weights are compensated for by what its inputs
really have in common, H = X X^T (Frantar et al. 2023, GPTQ; net.compensation has the formulas).
Layers are shared in the order in which data reaches them, each with the inputs X that the network
shared so far gives it. Half of what X then lacks of the inputs X0 before sharing is made up for,
too: W X0 is best approached from W + W (X0 - X) X^T H^-1 (Li et al. 2025, GPTAQ). At the same
divergence that saves 2 % of the bytes of a ResNet-20 and 10 % of a network of depthwise
convolutions. All of it would be too much, since part of the difference is chance.
"""

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from .activations import EMBEDDING, Inputs, Use, Watch
from .blocks import OUTSIDE, Passage, block_of, repeated
from .codec.adaptive import STRIP
from .compensation import compensate, settled_prices
from .extras import ProgressBar
from .modules import in_evaluation, parameters_by_name
from .parameters import normed_axes
from .rounding import (
    fineness,
    grid,
    largest,
    scales,
    share_alone,
    share_tensor,
    tells_its_steps,
    trellis_pays,
)
from .samples import Call, Samples, first_that_runs
from .threads import SWITCHED, in_order

VECTORS = 20_000  # inputs of a layer that are looked at; no fewer than PER_INPUT per column of H
PER_INPUT = 4
MAX_INPUTS = 8192  # of one output; H of more takes too much memory and time
STAGES = 8  # runs of the inputs through the network, each for a share of its layers, which
# then do not see each other's errors: time for a ResNet-20 grows from 9 s with 5 to 23 s with 20.
# Of repeated blocks (net.blocks) each has runs of its own: of 12, .3 % fewer bytes and 13 % less
# divergence than with 8 runs for all.
RECOVERED = 0.5  # the part of earlier layers' errors that a layer makes up for
FINEST_ROW = 2  # the largest power of two by which a row of an embedding is finer than the tensor
DAMPING = 0.01  # of the mean of H's diagonal
COLUMNS = 512  # of a product that are computed at a time
BLOCK = 128  # columns of a matrix that are rounded before the others hear of it
CHUNK = 1 << 21  # weights that are rounded at a time, in float64
PATIENCE = 3.0  # seconds before there is a progress bar
# Of the distance between unrelated inputs: what inputs move by on average where some are not the
# same in both runs, and one by itself. (Errors as large as the inputs: a third.)
UNRELATED, MOST_RELATED = 0.25, 0.5
SAME = 0.05  # of an input's square, beside its deviation: inputs may be all alike
FEW_ROWS = 8
SAMPLE = 1 << 18  # weights on which the code words are estimated

UNREACHED = "no input reached it"
APART = "it is used between blocks more than once"
TOO_MANY = "too many inputs"


class Moments(NamedTuple):
    """Of the inputs x of a product with W, means over x, float32."""

    hessian: torch.Tensor  # x x^T [groups, inputs, inputs]: of an output's squared error, half
    drift: torch.Tensor  # W (x0 - x) x^T [groups, outputs, inputs]; before sharing, x was x0

    def usable(self) -> bool:
        """Whether all is finite and anything is not zero."""
        power = self.hessian.diagonal(dim1=1, dim2=2).sum(1)
        return bool(
            self.hessian.isfinite().all() and self.drift.isfinite().all() and (power > 0).any()
        )


class _Enough(Exception):
    """The rest of the network's run would tell nothing."""


def calibrate(
    model: nn.Module,
    inputs: Samples | Any,
    kinds: Mapping[str, str],
    steps: Mapping[str, float],
    walks: Collection[str] = (),
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """({name: tensor with shared values} for every name in `kinds`, {name: reason}).

    `inputs` are what `model` is called with, as Samples takes it. `kinds` as from
    parameters.compressible, `steps` as from rounding.steps; the values of those in `walks` follow a
    trellis where they can. The reasons are those of the
    tensors that were shared without data. Runs a copy in evaluation mode on the model's device; the
    model stays as it was. Deterministic.

    Raises ValueError for a bad step, NaN or infinity among the weights, and for inputs that the
    model cannot be run with.
    """
    exact = in_evaluation(model).requires_grad_(False)
    pair, samples = (Passage(exact), Passage(copy.deepcopy(exact))), Samples.of(model, inputs)
    shared: dict[str, torch.Tensor] = {}
    reasons = calibrate_passages(*pair, samples, kinds, steps, walks, shared)
    return {name: shared[name] for name in kinds}, reasons


def calibrate_passages(
    exact: Passage,
    work: Passage,
    samples: Samples,
    kinds: Mapping[str, str],
    steps: Mapping[str, float],
    walks: Collection[str],
    shared: MutableMapping[str, torch.Tensor],
) -> dict[str, str]:
    """The same for two passages of one model, the second of which is changed: {name: reason}. The
    tensors go into `shared`, those of a block before the next one is loaded."""
    with _separate_products(work.model):
        batches, found = _look(work, samples, kinds)
        order = [name for stages in found.stages.values() for names in stages for name in names]
        progress = iter(ProgressBar(order, "calibrating", delay=PATIENCE))

        def share_at(place: int) -> None:  # keeps nothing of the block in memory
            parameters = work.parameters(kinds)
            every = parameters_by_name(work.model)
            for name, parameter in parameters.items():
                if name not in shared and (found.reasons[name] or name in found.finer):
                    # no inputs needed, so that every layer can be calibrated behind them
                    how = kinds[name], name in walks, normed_axes(every, name)
                    finer = found.finer.get(name)
                    parameter.copy_(share_alone(parameter, steps[name], *how, finer))
                    shared[name] = parameter.detach()
            for names in found.stages[place]:
                moments = _moments(exact, work, names, batches, found.uses)
                for name in names:
                    next(progress)
                    own = {use: each for use, each in moments.items() if use.name == name}
                    wanted = steps[name], kinds[name], name in walks
                    found.reasons[name] = _share(parameters[name], own, *wanted)
                    shared[name] = parameters[name].detach()

        for place, _ in zip(work, exact, strict=True):
            share_at(place)
            if place < len(work.blocks):
                for passage in (exact, work):
                    for number, batch in enumerate(batches):
                        passage(number, batch, keep=True)
        next(progress, None)
    return {name: reason for name, reason in found.reasons.items() if reason}


class _Found(NamedTuple):
    """What a run of all inputs tells."""

    uses: list[list[Use]]  # of each batch, in their order
    reasons: dict[str, str]  # for sharing without data, by the names of all; or empty
    finer: dict[str, torch.Tensor]  # as of `_finer`, of those that are nothing but embeddings
    stages: dict[int, list[list[str]]]  # by the places of a passage: who is shared together


def _look(work: Passage, samples: Samples, kinds: Mapping[str, str]) -> tuple[list[Call], _Found]:
    """(the call of each batch that the model takes, what a run tells)."""
    calls = [list(readings) for readings in samples.batches]
    uses: list[list[Use]] = [[] for _ in calls]
    met: dict[str, torch.Tensor] = {}  # how often, of each row of an embedding
    places: dict[str, list[int]] = {}
    for place in work:
        for number, readings in enumerate(calls):
            call, (found, rows) = first_that_runs(partial(_uses, work, kinds, number), readings)
            calls[number] = [call]
            uses[number] += found
            for use in found:
                places.setdefault(use.name, []).append(place)
            for name, count in rows.items():
                met[name] = met.get(name, 0) + count
    every = dict.fromkeys(use for found in uses for use in found)  # in their order
    parameters = parameters_by_name(work.model)
    reasons, finer = {}, {}
    for name in kinds:
        own = [use for use in every if use.name == name]
        reasons[name] = _reason(own, parameters[name])
        if {use.kind for use in own} == {EMBEDDING}:
            finer[name], reasons[name] = _finer(met[name]), ""
        elif len(set(places.get(name, ()))) > 1 and not reasons[name]:
            reasons[name] = APART
    stages: dict[int, list[list[str]]] = {i: [] for i in range(len(work.blocks) + 1)}
    order = [name for name in places if name not in met and not reasons[name]]
    blocks = work.blocks or repeated(work.model)  # in memory, too, so that both come to the same
    for block, group in groupby(order, lambda name: block_of(name, blocks)):
        most = STAGES if block == OUTSIDE else -(-STAGES // len(blocks))
        names = list(group)
        for part in np.array_split(names, min(len(names), most)):  # of about one size
            stages[places[names[0]][0]].append(part.tolist())
    return [call for [call] in calls], _Found(uses, reasons, finer, stages)


@contextmanager
def _separate_products(model: nn.Module) -> Iterator[None]:
    """Keep fused kernels, in which products cannot be told apart, from being used."""
    with ExitStack() as stack:
        stack.enter_context(SWITCHED)
        fastpath = torch.backends.mha.get_fastpath_enabled()
        stack.enter_context(torch.no_grad())
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # about the precision of GPUs that are not there
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


def _uses(
    work: Passage, kinds: Collection[str], number: int, call: Call
) -> tuple[list[Use], dict[str, torch.Tensor]]:
    """(the products with parameters of a run to the end of its place, in their order, {name of an
    embedding: how often each of its rows is met, int64 [rows]})."""
    found: list[Use] = []
    met: dict[str, torch.Tensor] = {}
    parameters = work.parameters(kinds)

    def note(use: Use, inputs: Inputs) -> None:
        if not work.is_new:
            return
        found.append(use)
        if use.kind == EMBEDDING:
            count = inputs.x.flatten().bincount(minlength=len(parameters[use.name])).cpu()
            met[use.name] = met.get(use.name, 0) + count

    with Watch(parameters, note):
        work(number, call, keep=True)
    return found, met


def _finer(met: torch.Tensor) -> torch.Tensor:
    """The power of two by which the step of each row of an embedding is finer than its tensor's.

    What a row's errors cost is proportional to how often it is met, so that step**2 is inversely.
    None is coarser than the tensor's: what few inputs did not have, others will.
    """
    often = (met + 1) / (met + 1).double().mean()
    return (often.log2() / 2).round().clamp(0, FINEST_ROW).long()


def _reason(uses: Collection[Use], parameter: torch.Tensor) -> str:
    """Why a parameter of these uses cannot be calibrated; empty if it can."""
    for use in uses:
        if not use.supported:
            return use.kind
        if math.prod(use.matrices(parameter).shape[2:]) > MAX_INPUTS:
            return TOO_MANY
    return "" if uses else UNREACHED


def _moments(
    exact: Passage,
    work: Passage,
    names: Collection[str],
    batches: list[Call],
    uses: list[list[Use]],
) -> dict[Use, Moments]:
    """Of the products with the parameters `names` of `work`, and of `exact` beside it."""
    total = Counter(use for found in uses for use in found)
    parameters = work.parameters(names)
    sums: dict[Use, tuple[torch.Tensor, torch.Tensor]] = {}
    drawn: Counter[Use] = Counter()
    for number, (batch, found) in enumerate(zip(batches, uses, strict=True)):
        count = sum(use.name in names for use in found)
        before = _inputs(exact, names, number, batch, count, total)
        after = _inputs(work, names, number, batch, count, total)
        if [(use, x.shape) for use, x in before] != [(use, x.shape) for use, x in after]:
            before = after  # data decides what is run
        for (_, x0), (use, x) in zip(before, after, strict=True):
            hessian, drift = _squared(x), _gone(x0, x).mT
            if _is_wide(use, parameters[use.name]):
                drift = use.matrices(parameters[use.name]).float() @ drift
            drift = drift @ x
            if use in sums:
                hessian, drift = sums[use][0].add_(hessian), sums[use][1].add_(drift)
            sums[use] = hessian, drift
            drawn[use] += x.shape[1]
    moments = {}
    for use, (hessian, drift) in sums.items():
        if not _is_wide(use, parameters[use.name]):
            drift = use.matrices(parameters[use.name]).float() @ drift
        moments[use] = Moments(*(each.div_(max(drawn[use], 1)) for each in (hessian, drift)))
    return moments


def _gone(x0: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """x0 - x [groups, n, inputs], 0 in rows that are no two views of one input.

    Where data decides what goes where (experts, top-k, sorting), other inputs may come to a place
    once weights have changed. Two unrelated rows lie as far apart as their deviations from the mean
    say; errors are smaller. In few rows that cannot be told.
    """
    gone = x0 - x
    if x.shape[1] < FEW_ROWS:
        return gone
    far, apart = gone.square().sum(2), torch.zeros_like(gone[..., 0])
    for each in (x0, x):
        apart += (each - each.mean(1, keepdim=True)).square().sum(2) + SAME * each.square().sum(2)
    if bool(far.sum() <= UNRELATED * apart.sum()):  # errors alone, as nearly always
        return gone
    return gone.where((far <= MOST_RELATED * apart)[..., None], 0.0)


def _is_wide(use: Use, parameter: torch.Tensor) -> bool:
    """Whether the product of the weights with vectors takes less than that of the vectors."""
    _, outputs, inputs = use.matrices(parameter).shape
    return 2 * outputs < inputs


def _squared(x: torch.Tensor) -> torch.Tensor:
    """x^T x [groups, inputs, inputs] of x [groups, n, inputs], hardly more than half of which is
    computed."""
    groups, _, inputs = x.shape
    result = x.new_empty(groups, inputs, inputs)
    for first in range(0, inputs, COLUMNS):
        strip = slice(first, first + COLUMNS)
        part = x[:, :, strip].mT @ x[:, :, first:]
        result[:, strip, first:], result[:, first:, strip] = part, part.mT
    return result


def _inputs(
    passage: Passage,
    names: Collection[str],
    number: int,
    batch: Call,
    count: int,
    total: Counter[Use],
) -> list[tuple[Use, torch.Tensor]]:
    """Vectors [groups, n, inputs] drawn of each of `count` products, the same for each `number`."""
    if not count:
        return []
    parameters = passage.parameters(names)
    generator = torch.Generator().manual_seed(number)
    drawn: list[tuple[Use, torch.Tensor]] = []

    def note(use: Use, inputs: Inputs) -> None:
        if not use.supported:  # met now for the first time
            return
        columns = use.matrices(parameters[use.name]).shape[2]
        limit = max(1, max(VECTORS, PER_INPUT * columns) // max(total[use], 1))
        drawn.append((use, inputs.draw(limit, generator).float()))
        if len(drawn) == count:
            raise _Enough

    with suppress(_Enough), Watch(parameters, note):
        passage(number, batch)
    return drawn


def _share(
    parameter: torch.Tensor, moments: Mapping[Use, Moments], step: float, kind: str, trellis: bool
) -> str:
    """Share the values of `parameter` in place; the reason if without its `moments`, or empty."""
    usable = {use: found for use, found in moments.items() if found.usable()}
    rows = np.zeros(len(parameter), int)
    by_columns = any(use.kind == "columns" for use in usable)
    if by_columns:  # whose outputs are no rows, of which those of recurrent weights differ
        kind, rows = "linear", rows + 1
    else:
        for use in usable:
            rows[use.first : use.first + use.rows] += 1
    if not usable or rows.max() > 1 or by_columns:
        usable = _merged(parameter, usable)
    scale, source, asked = scales(fineness(parameter, kind)), parameter, step
    # The trellis walks down all rows, or all columns, of a tensor, and of parts only whole strips.
    trellis &= all(use.kind == "columns" or use.first % STRIP == 0 for use in usable)
    if (rows == 0).any() or scale.max() > 1:  # it is still needed when it has been written to
        source = parameter.clone()
    if not usable or (rows == 0).any():
        parameter.copy_(share_tensor(source, step, kind, trellis))
    if not usable:
        return "its inputs are zero or not finite" if moments else UNREACHED
    trellis = trellis and trellis_pays(source, step, scale)
    sizes = largest(source.flatten(1)).double().cpu().numpy()
    step, levels = grid(step, float((sizes * scale).max()), source.dtype, trellis)
    for use, found in usable.items():
        own = np.ones(1)  # rows of recurrent weights alone differ, which have one group
        if scale.max() > 1:
            own = scale[use.first : use.first + use.rows]
        problem = _Problem(use.matrices(source), found, own)
        values = torch.empty(problem.weights.shape, dtype=source.dtype, device="cpu")
        for part, labels in _rounded(problem, step, levels, 1 + trellis):
            if trellis and not tells_its_steps(labels, len(levels) // 2, own):
                parameter.copy_(source)
                return _share(parameter, moments, asked, kind, False)
            chosen = levels[labels]
            chosen /= own[:, None]
            into = values.flatten(0, 1)[part]
            into[:, problem.order] = torch.from_numpy(chosen).to(into)
        use.restore(values.to(parameter), parameter)
    return ""


def _merged(parameter: torch.Tensor, moments: Mapping[Use, Moments]) -> dict[Use, Moments]:
    """One use of all rows, where uses overlap."""
    kinds = {(use.kind, use.groups) for use in moments}
    if len(kinds) != 1:
        return {}
    (kind, groups) = kinds.pop()
    rows = parameter.shape[1] if kind == "columns" else parameter.shape[0]
    whole = Use(next(iter(moments)).name, kind, 0, rows, groups)
    hessian = torch.stack([each.hessian for each in moments.values()]).sum(0)
    drift = hessian.new_zeros(whole.matrices(parameter).shape)
    for use, each in moments.items():  # of a part only where there is one group
        drift[:, use.first : use.first + each.drift.shape[1]] += each.drift
    return {whole: Moments(hessian, drift)}


class _Problem:
    """Weights [groups, outputs, inputs] that are to be rounded, with the moments of their inputs.

    Inputs of the most power come first (`order` int64 [inputs], the act order of GPTQ): what is
    rounded last has the least left to make up for its errors. `upper` float64 [groups, inputs,
    inputs] has the upper Cholesky factors of H's inverses in that order. The weights of an output
    are multiplied by `own` [outputs, or 1].
    """

    def __init__(self, weights: torch.Tensor, found: Moments, own: np.ndarray) -> None:
        self.weights, self.drift, self.own = weights, found.drift, own
        hessian = found.hessian.double()
        power = hessian.diagonal(dim1=1, dim2=2).mean(1)
        power = torch.where(power > 0, power, power.max())
        hessian.diagonal(dim1=1, dim2=2).add_(DAMPING * power[:, None])
        # One order for all groups, since a trellis walks down the columns of all.
        relative = hessian.diagonal(dim1=1, dim2=2) / power[:, None]
        order = relative.mean(0).argsort(descending=True, stable=True)
        # H = L L^T in the reverse of the order, in which it is H^-1 = U^T U with U as L^-1, turned
        # upside down and from left to right: one factorization does for both.
        reverse = order.flip(0)
        hessian = hessian[:, reverse][:, :, reverse]
        self._lower, self._reverse = torch.linalg.cholesky(hessian), reverse
        del hessian  # each of these may be what takes most of the memory
        unit = torch.eye(self._lower.shape[1], dtype=torch.double, device=self._lower.device)
        upper = torch.linalg.solve_triangular(self._lower, unit, upper=False)
        del unit
        self.order, self.upper = order.cpu(), upper.flip(1, 2).cpu().numpy()

    def target(self, outputs: slice) -> np.ndarray:
        """What the weights of these outputs are to come to, float64 [groups, outputs, inputs]."""
        drift = self.drift[:, outputs].double()[:, :, self._reverse]
        found = torch.cholesky_solve(drift.mT, self._lower).mT.flip(2).mul_(RECOVERED)
        del drift  # in float64 each of these is twice the weights
        weights = self.weights[:, outputs].double()[:, :, self._reverse.flip(0)]
        found.add_(weights).masked_fill_(weights == 0, 0)  # pruned
        target = found.cpu().numpy()
        target *= self.own[:, None]
        return target


def _rounded(
    problem: _Problem, step: float, levels: np.ndarray, quantizers: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Of one part after the other of all outputs of all groups: (which these are, labels int64
    [outputs, inputs], the places of their values in `levels`)."""
    groups, outputs, columns = problem.weights.shape
    upper = problem.upper

    def rounded(group: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        return lambda part, price: _compensated(part, upper, group, step, levels, price)

    height = max(1, CHUNK // columns // STRIP) * STRIP
    # Groups are many and small; outputs whose steps differ are to be seen together.
    is_whole = groups > 1 or len(problem.own) > 1 or height >= outputs
    whole = problem.target(slice(None)).reshape(-1, columns) if is_whole else None
    sample = slice(None, None, max(1, min(groups * outputs * columns // SAMPLE, groups * outputs)))
    group = np.repeat(np.arange(groups), outputs)
    some = problem.target(sample)[0] if whole is None else whole[sample]
    price = settled_prices(some, upper, step, levels, rounded(group[sample]), quantizers)
    parts = [slice(i, i + height) for i in range(0, outputs, height)]
    for part in [slice(None)] if is_whole else parts:
        matrix = problem.target(part)[0] if whole is None else whole
        yield part, rounded(group[part])(matrix, price)


def _compensated(
    weights: np.ndarray,
    upper: np.ndarray,
    group: np.ndarray,
    step: float,
    levels: np.ndarray,
    price: np.ndarray,
) -> np.ndarray:
    """As compensation.compensate, strip by strip, a block of columns at a time."""
    labels = np.where(weights == 0, -1, 0)
    columns = weights.shape[1]

    def work(first: int) -> None:
        rows = slice(first, first + STRIP)
        left, own = weights[rows].copy(), group[rows]
        for start in range(0, columns, BLOCK):
            part = slice(start, min(start + BLOCK, columns))
            factors = np.ascontiguousarray(upper[own[0] : own[-1] + 1, part, part])
            w = np.ascontiguousarray(left[:, part])
            chosen = np.ascontiguousarray(labels[rows, part])
            compensate(w, factors, own - own[0], step, levels, price, chosen)
            labels[rows, part] = chosen
            if part.stop < columns:
                for each in np.unique(own):
                    its = own == each
                    errors = (w[its] - levels[chosen[its]]) / np.diagonal(factors[each - own[0]])
                    left[its, part.stop :] -= errors @ upper[each, part, part.stop :]

    for _ in in_order(work, ((first,) for first in range(0, len(weights), STRIP))):
        pass
    return labels
