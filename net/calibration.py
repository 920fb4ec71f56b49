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
import inspect
import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from .activations import EMBEDDING, Inputs, Use, Watch
from .codec.adaptive import STRIP
from .compensation import compensate, settled_prices
from .extras import ProgressBar
from .parameters import copied
from .rounding import fineness, grid, scales, share_tensor, tells_its_steps, walkable
from .threads import in_order

VECTORS = 20_000  # inputs of a layer that are looked at; no fewer than PER_INPUT per column of H
PER_INPUT = 4
MAX_INPUTS = 8192  # of one output; H of more takes too much memory and time
STAGES = 8  # runs of the inputs through the network, each for a share of its layers, which
# then do not see each other's errors: time for a ResNet-20 grows from 9 s with 5 to 23 s with 20
RECOVERED = 0.5  # the part of earlier layers' errors that a layer makes up for
FINEST_ROW = 2  # the largest power of two by which a row of an embedding is finer than the tensor
DAMPING = 0.01  # of the mean of H's diagonal
COLUMNS = 512  # of a product that are computed at a time
BLOCK = 128  # columns of a matrix that are rounded before the others hear of it
PATIENCE = 3.0  # seconds before there is a progress bar
SAMPLE = 1 << 18  # weights on which the code words are estimated

UNREACHED = "no input reached it"
TOO_MANY = "too many inputs"

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
EXPECTED = (
    "a tensor, a dict of keyword arguments, or an iterable of tensors, of tuples of arguments, of "
    "dicts, or of (inputs, labels)"
)


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


class Call(NamedTuple):
    """What a model is called with."""

    args: tuple
    kwargs: dict


class Samples:
    """Sample inputs of a model: of each batch the calls that it may mean, likely ones first.

    `given` is a tensor or a dict of keyword arguments, which is one batch, or an iterable of
    batches: tensors, tuples of arguments, dicts, or a loader's (inputs, labels). Of a tuple the
    model gets as many as its `forward` takes, of those of a DataLoader, whose last part is the
    labels as a rule, only what it requires. Of a dict it gets the keys that `forward` has a name
    for. If the model fails with that, the other reading is tried.

    Raises ValueError for anything else, and where there is no batch.
    """

    def __init__(self, model: nn.Module, given: Any) -> None:
        if isinstance(given, torch.Tensor | Mapping):
            given = [given]
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            raise ValueError(f"calibration takes {EXPECTED}, not {given!r}")
        labelled = isinstance(given, torch.utils.data.DataLoader)
        try:
            arguments = list(inspect.signature(model.forward).parameters.values())
        except (TypeError, ValueError):  # of a compiled one
            arguments = _ANY
        self.batches = [_calls(batch, arguments, labelled) for batch in given]
        if not self.batches:
            raise ValueError(f"calibration is empty; give {EXPECTED}")
        # What net.sensitivity says of that model's weights of these names: the same at any noise.
        self.traces: dict[tuple[str, ...], tuple[dict[str, float], str]] = {}

    @classmethod
    def of(cls, model: nn.Module, given: "Samples | Any") -> "Samples":
        return given if isinstance(given, Samples) else cls(model, given)


_ANY = list(inspect.signature(lambda first, *args, **kwargs: None).parameters.values())


def _calls(batch: Any, arguments: list[inspect.Parameter], labelled: bool) -> list[Call]:
    """What `batch` may mean to a model with these arguments of its `forward`, likely ones first."""
    itself = Call((batch,), {})
    kinds = {argument.kind for argument in arguments}
    if isinstance(batch, Mapping):
        names = {each.name for each in arguments if each.kind is not each.POSITIONAL_ONLY}
        any_name = inspect.Parameter.VAR_KEYWORD in kinds
        known = {name: each for name, each in batch.items() if any_name or name in names}
        return [Call((), known), itself] if known else [itself]
    if not isinstance(batch, tuple | list) or not batch:
        return [itself]
    positional = [each for each in arguments if each.kind in POSITIONAL]
    required = max(1, sum(each.default is each.empty for each in positional))
    takes_any = inspect.Parameter.VAR_POSITIONAL in kinds
    whole = Call(tuple(batch if takes_any else batch[: len(positional)]), {})
    least = Call(tuple(batch[:required]), {})
    found = [least, whole] if labelled else [whole, least]
    inner = batch[0]
    if isinstance(inner, Mapping):  # a dict of inputs, and labels
        found = [*_calls(inner, arguments, labelled), *found]
    elif isinstance(inner, tuple | list):
        found += _calls(inner, arguments, False)
    return [*found, itself]


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
    samples = inputs if isinstance(inputs, Samples) else Samples(model, inputs)
    exact = copied(model).eval().requires_grad_(False)
    work = copy.deepcopy(exact)
    parameters = {name: each for name, each in work.named_parameters() if name in kinds}
    with _separate_products(work):
        batches, uses = [], []
        met: dict[str, torch.Tensor] = {}  # how often, of each row of an embedding
        for calls in samples.batches:
            call, found, rows = _first_that_runs(work, parameters, calls)
            batches.append(call)
            uses.append(found)
            for name, count in rows.items():
                met[name] = met.get(name, 0) + count
        order = list(dict.fromkeys(use.name for found in uses for use in found))
        reasons = {name: _reason(name, parameters[name], uses) for name in kinds}
        for name, reason in reasons.items():
            if reason:  # no inputs needed, so that every layer can be calibrated behind them
                finer = None
                if {use.kind for found in uses for use in found if use.name == name} == {EMBEDDING}:
                    finer, reasons[name] = _finer(met[name]), ""
                weight = parameters[name]
                how = kinds[name], name in walks, finer
                weight.copy_(share_tensor(weight, steps[name], *how))
        order = [name for name in order if name not in met and not reasons[name]]
        parts = np.array_split(np.arange(len(order)), min(len(order), STAGES) or 1)
        stages = {int(part[0]): [order[i] for i in part] for part in parts if len(part)}
        moments: dict[Use, Moments] = {}
        for place, name in enumerate(ProgressBar(order, "calibrating", delay=PATIENCE)):
            if place in stages:
                moments = _moments(exact, work, stages[place], batches, uses)
            own = {use: found for use, found in moments.items() if use.name == name}
            wanted = steps[name], kinds[name], name in walks
            reasons[name] = _share(parameters[name], own, *wanted)
    shared = {name: parameters[name].detach() for name in kinds}
    return shared, {name: reason for name, reason in reasons.items() if reason}


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


def _run(model: nn.Module, call: Call) -> None:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    args, kwargs = on_device(call, device)
    with suppress(_Enough):
        model(*args, **kwargs)


def on_device(call: Call, device: torch.device) -> Call:
    """A copy of `call`, which a model may change in place, with its tensors on the device."""
    return Call(
        *tree_map_only(torch.Tensor, lambda tensor: tensor.to(device, copy=True), tuple(call))
    )


def _first_that_runs(
    model: nn.Module, parameters: Mapping[str, torch.Tensor], calls: list[Call]
) -> tuple[Call, list[Use], dict[str, torch.Tensor]]:
    """(call, and of it what `_uses` gives) of the first call that the model does not refuse."""
    reason = ""
    for call in calls:
        try:
            return call, *_uses(model, parameters, call)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model raises for what it does not take
            lines = str(error).strip().splitlines()
            reason = reason or f"{type(error).__name__}: {lines[0] if lines else ''}"
    raise ValueError(
        f"the model cannot be run with what calibration gave, {_described(calls[-1])} ({reason}); "
        f"give {EXPECTED}"
    )


def _described(value: Any) -> str:
    if isinstance(value, Call):
        return ", ".join(map(_described, (*value.args, *value.kwargs.values())))
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_described(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_described, value[:5]))})"
    return type(value).__name__


def _uses(
    model: nn.Module, parameters: Mapping[str, torch.Tensor], call: Call
) -> tuple[list[Use], dict[str, torch.Tensor]]:
    """(the products of a run with the parameters, in their order, {name of an embedding: how often
    each of its rows is met, int64 [rows]})."""
    found: list[Use] = []
    met: dict[str, torch.Tensor] = {}

    def note(use: Use, inputs: Inputs) -> None:
        found.append(use)
        if use.kind == EMBEDDING:
            count = inputs.x.flatten().bincount(minlength=len(parameters[use.name])).cpu()
            met[use.name] = met.get(use.name, 0) + count

    with Watch(parameters, note):
        _run(model, call)
    return found, met


def _finer(met: torch.Tensor) -> torch.Tensor:
    """The power of two by which the step of each row of an embedding is finer than its tensor's.

    What a row's errors cost is proportional to how often it is met, so that step**2 is inversely.
    None is coarser than the tensor's: what few inputs did not have, others will.
    """
    often = (met + 1) / (met + 1).double().mean()
    return (often.log2() / 2).round().clamp(0, FINEST_ROW).long()


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
    exact: nn.Module,
    work: nn.Module,
    names: Collection[str],
    batches: list[Call],
    uses: list[list[Use]],
) -> dict[Use, Moments]:
    """Of the products with the parameters `names` of `work`, and of `exact` beside it."""
    total = Counter(use for found in uses for use in found)
    parameters = {name: each for name, each in work.named_parameters() if name in names}
    sums: dict[Use, tuple[torch.Tensor, torch.Tensor]] = {}
    drawn: Counter[Use] = Counter()
    for number, (batch, found) in enumerate(zip(batches, uses, strict=True)):
        wanted = [use for use in found if use.name in names]
        before = _inputs(exact, names, batch, wanted, total, number)
        after = _inputs(work, names, batch, wanted, total, number)
        if [x.shape for x in before] != [x.shape for x in after]:  # data decides what is run
            before = after
        for use, x0, x in zip(wanted, before, after, strict=False):
            hessian, drift = _squared(x), (x0 - x).mT
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
        moments[use] = Moments(*(each / max(drawn[use], 1) for each in (hessian, drift)))
    return moments


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
    model: nn.Module,
    names: Collection[str],
    batch: Call,
    wanted: list[Use],
    total: Counter[Use],
    seed: int,
) -> list[torch.Tensor]:
    """Vectors [groups, n, inputs] drawn of each product in `wanted`, the same for the same seed."""
    if not wanted:
        return []
    parameters = {name: each for name, each in model.named_parameters() if name in names}
    generator = torch.Generator().manual_seed(seed)
    drawn: list[torch.Tensor] = []

    def note(use: Use, inputs: Inputs) -> None:
        columns = use.matrices(parameters[use.name]).shape[2]
        limit = max(1, max(VECTORS, PER_INPUT * columns) // max(total[use], 1))
        drawn.append(inputs.draw(limit, generator).float())
        if len(drawn) == len(wanted):
            raise _Enough

    with Watch(parameters, note):
        _run(model, batch)
    return drawn


def _share(
    parameter: torch.Tensor, moments: Mapping[Use, Moments], step: float, kind: str, trellis: bool
) -> str:
    """Share the values of `parameter` in place; the reason if without its `moments`, or empty."""
    usable = {use: found for use, found in moments.items() if found.usable()}
    rows = np.zeros(len(parameter), int)
    for use in usable:
        rows[use.first : use.first + use.rows] += 1
    if not usable or rows.max() > 1 or any(use.kind == "columns" for use in usable):
        usable = _merged(parameter, usable)
    source, asked = parameter.clone(), step
    # The trellis walks down all rows, or all columns, of a tensor, and of parts only whole strips.
    trellis &= walkable(source.shape)
    trellis &= all(use.kind == "columns" or use.first % STRIP == 0 for use in usable)
    if not usable or (rows == 0).any():
        parameter.copy_(share_tensor(source, step, kind, trellis))
    if not usable:
        return "its inputs are zero or not finite" if moments else UNREACHED
    scale = scales(fineness(source, kind))
    sizes = source.abs().flatten(1).amax(1).double().cpu().numpy()
    step, levels = grid(step, float((sizes * scale).max()), source.dtype, trellis)
    for use, found in usable.items():
        act_order, upper, target = _prepared(use.matrices(source), found)
        own = np.ones(1)  # rows of recurrent weights alone differ, which have one group
        if scale.max() > 1:
            own = scale[use.first : use.first + use.rows]
        labels = _rounded(target * own[:, None], upper, step, levels, 1 + trellis)
        if trellis and not tells_its_steps(labels[0], len(levels) // 2, own):
            parameter.copy_(source)
            return _share(parameter, moments, asked, kind, False)
        values = torch.empty(labels.shape, dtype=torch.float64)
        values[:, :, act_order] = torch.from_numpy(levels[labels] / own[:, None])
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


def _prepared(weights: torch.Tensor, found: Moments) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """(act order int64 [inputs], upper Cholesky factors of H's inverses in it, what the weights
    [groups, outputs, inputs] are to come to, in it as well), the last two float64.

    Inputs of the most power come first (the act order of GPTQ): what is rounded last has the least
    left to make up for its errors.
    """
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
    lower = torch.linalg.cholesky(hessian[:, reverse][:, :, reverse])
    unit = torch.eye(lower.shape[1], dtype=lower.dtype, device=lower.device)
    upper = torch.linalg.solve_triangular(lower, unit, upper=False).flip(1, 2)
    drift = found.drift.double()[:, :, reverse]
    shift = RECOVERED * torch.cholesky_solve(drift.mT, lower).mT.flip(2)
    weights = weights.double()[:, :, order]
    target = torch.where(weights == 0, 0, weights + shift)  # pruned
    return order.cpu(), upper.contiguous().cpu().numpy(), target.cpu().numpy()


def _rounded(
    target: np.ndarray, upper: np.ndarray, step: float, levels: np.ndarray, quantizers: int
) -> np.ndarray:
    """Labels int64 [groups, rows, columns] of `target`, the places of their values in `levels`."""
    groups, rows, columns = target.shape
    matrix = target.reshape(-1, columns)
    group = np.repeat(np.arange(groups), rows)

    def rounded(rows: slice) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        return lambda part, price: _compensated(part, upper, group[rows], step, levels, price)

    sample = slice(None, None, max(1, min(matrix.size // SAMPLE, len(matrix))))
    price = settled_prices(matrix[sample], upper, step, levels, rounded(sample), quantizers)
    return rounded(slice(None))(matrix, price).reshape(target.shape)


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
