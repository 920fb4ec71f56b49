"""Rounding for a network that is trained already, without training and without data.

Every weight becomes a multiple of its tensor's step. That alone is what a uniform quantizer
followed by an entropy coder does; three things make it smaller at the same noise: rounding errors
cancel in what inputs have in common (net.compensation), a value is taken with the length of its
code word in mind, so that zeros abound where they pay, and steps are larger in larger tensors,
where a bit less saves most. Recurrent weights have steps by row. net.calibration goes further
with sample inputs.

The vectors beside the weights (biases, normalisation and its running statistics) are rounded to a
few binary digits. They are few and yet not free: in float32, the BatchNorm layers of a ResNet-20
take 15 % of its compressed file.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from .errors import naming
from .parameters import layer_of
from .shards import info_of
from .threads import in_order

NOISE = 0.2
MAX_LEVEL = 1 << 13  # multiples of the step on either side of zero
TYPICAL = 1.3  # the root mean square is taken for typical up to so many medians of its rows
FINEST = 6  # the largest power of two by which a row's step is finer than its tensor's
SIZE_POWER = 1.5  # of the number of weights, that step**2 is proportional to (docs/results.md)
COARSEST = 0.8  # deviations, of a step that sensitivity alone makes coarser (docs/results.md)
HALVINGS = 60  # of a range of logarithms: to the last digit
SAMPLE = 1 << 20  # weights on which the code words are estimated
CHUNK = 1 << 22  # weights in float64 at a time and thread
# Of the trellis: its step over that of weights which are rounded one by one, with the same squared
# error on Gaussian weights (.57 to .60 for noises of .2 to .8); and the fewest rows to walk down.
TRELLIS_STEP, TRELLIS_ROWS = 0.58, 16
FOLDED = ("weight", "bias", "running_mean", "running_var")  # of a batch normalisation


class Spread(NamedTuple):
    """What the choice of steps has to know of a tensor."""

    parameters: int  # that are not zero
    deviation: float  # root of the mean square of these, in a typical row


def spread(tensor: torch.Tensor) -> Spread:
    """A few rows of large weights do not count: what is noise to them would drown all others.

    Raises ValueError for NaN or infinity.
    """
    counts, powers = _rows(tensor)
    count, power = int(counts.sum()), float(powers.sum())
    if not math.isfinite(power) and not bool(tensor.isfinite().all()):
        raise ValueError("not all values are finite")
    if not count:
        return Spread(0, 0.0)
    live = counts > 0
    median = float((powers[live] / counts[live]).sqrt().median())
    return Spread(count, min(math.sqrt(power / count), TYPICAL * median))


def _rows(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row, how many weights are not zero, and the sum of their squares: float64 [rows]."""
    rows = tensor.detach().flatten(1) if tensor.dim() > 1 else tensor.detach().reshape(1, -1)
    counts, powers = (torch.zeros(len(rows), dtype=torch.float64) for _ in range(2))
    height = max(1, CHUNK // max(1, rows.shape[1]))
    for first in range(0, len(rows), height):
        for part in rows[first : first + height].split(CHUNK, dim=1):
            counts[first : first + height] += part.count_nonzero(1).cpu()
            powers[first : first + height] += part.double().square().sum(1).cpu()
    return counts, powers


def steps(
    spreads: Mapping[str, Spread],
    noise: float = NOISE,
    traces: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The step of each tensor: `noise` deviations on average, more for larger tensors.

    Noise of variance step**2 / 12 in every layer, relative to its outputs, adds up to the noise
    of the network's; the bits fall by the number of weights times log2(step). The least sum of
    both has step**2 proportional to deviation**2 times the number of weights, and it is more than
    that (SIZE_POWER): large layers are later, where less comes after them, and small ones narrow.

    Where the sum is known, as trace * step**2 / 12 with the `traces` of net.sensitivity, the least
    has step**2 proportional to the number of weights over the trace, with the same mean of the
    step's logarithm over all weights. That holds for errors that are small beside the weights, and
    for steps that cost a bit when they are halved: no step grows beyond COARSEST deviations.
    """
    live = {name: each for name, each in spreads.items() if each.parameters and each.deviation}
    if not noise > 0 or not math.isfinite(noise):
        raise ValueError(f"noise must be a positive number, not {noise!r}")
    total = sum(each.parameters for each in live.values())
    mean = sum(each.parameters * math.log(each.parameters) for each in live.values())
    mean /= max(total, 1)

    def step(each: Spread) -> float:
        larger = math.log(each.parameters) - mean
        return noise * each.deviation * math.exp(SIZE_POWER / 2 * larger)

    found = {name: step(each) for name, each in live.items()}
    known = {name: trace for name, trace in (traces or {}).items() if name in live}
    return dict.fromkeys(spreads, 1.0) | found | _by_traces(found, known, live)


def _by_traces(
    steps: Mapping[str, float], traces: Mapping[str, float], spreads: Mapping[str, Spread]
) -> dict[str, float]:
    """Of the tensors with traces, steps by these in place of `steps`."""
    sizes = np.array([spreads[name].parameters for name in traces], float)
    given = np.log([steps[name] for name in traces])
    wanted = (np.log(sizes) - np.log(list(traces.values()))) / 2
    coarsest = np.log([COARSEST * spreads[name].deviation for name in traces])
    most = np.maximum(given, coarsest)
    # By how much all that are not at their bound are to move, for the mean that `steps` have.
    low, high = np.min(given - wanted, initial=0.0), np.max(most - wanted, initial=0.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if (sizes * np.minimum(wanted + middle, most)).sum() < (sizes * given).sum():
            low = middle
        else:
            high = middle
    return dict(zip(traces, np.exp(np.minimum(wanted + high, most)).tolist(), strict=True))


def steps_of(
    tensors: Mapping[str, torch.Tensor],
    names: Iterable[str],
    noise: float = NOISE,
    traces: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """`steps` for the tensors of these names, read one at a time. An error names the tensor."""
    return steps(spreads_of(tensors, names), noise, traces)


def spreads_of(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, Spread]:
    spreads = {}
    for name in names:
        with naming(f"cannot share {name}"):
            spreads[name] = spread(tensors[name])
    return spreads


def share_tensor(
    tensor: torch.Tensor,
    step: float,
    kind: str = "",
    trellis: bool = False,
    finer: torch.Tensor | None = None,
) -> torch.Tensor:
    """`tensor` with its values shared: multiples of `step`, of the same shape and type.

    With `trellis`, for values that nothing will train, they are multiples of TRELLIS_STEP of it
    that a trellis admits (net.compensation): at the same error an eighth of a bit less for each
    weight. Not where there are few rows, nor in recurrent weights.

    The first dimension is that of the outputs, the second of the inputs, others are a
    convolution's kernel; of a stack of matrices (`kind` "linear", as of parameters.compressible)
    the last is that of the inputs; one of a single dimension has no outputs to cancel errors in.
    `finer` [rows] has the powers of two by which the steps of rows are finer, where these are not
    all alike (`row_parts`). Zeros stay zeros. Takes any real floating-point type. Raises
    ValueError for a bad step, NaN or infinity.
    """
    if not step > 0 or not math.isfinite(step):
        raise ValueError(f"the step must be a positive number, not {step!r}")
    source = tensor.detach()
    if source.numel() == 0:
        return source.clone()
    if not bool(source.isfinite().all()):
        raise ValueError("not all values are finite")
    source = source.cpu()
    if kind == "linear" and source.dim() > 2:
        # Where the last dimension is that of the outputs, errors just do not cancel.
        matrix = share_tensor(source.flatten(0, -2), step, trellis=trellis)
        return matrix.reshape(source.shape).to(tensor.device)
    parts = row_parts(source, step, kind, finer)
    if len(parts) == 1:  # without a copy: it may be a large one
        walks = trellis and walkable(source.shape, kind)
        return _shared(source, parts[0][1], walks).to(tensor.device)
    result = torch.empty_like(source)
    for rows, size in parts:
        result[rows] = _shared(source[rows], size)
    return result.to(tensor.device)


def walkable(shape: Sequence[int], kind: str) -> bool:
    """Whether the trellis has a matrix of one step and enough rows to walk down."""
    return kind != "rnn" and len(shape) > 1 and shape[0] >= TRELLIS_ROWS


def row_parts(
    tensor: torch.Tensor, step: float, kind: str, finer: torch.Tensor | None = None
) -> list[tuple[slice | np.ndarray, float]]:
    """Rows (all, or bool [rows]) and their step: `step` over two to the power of `finer` [rows], of
    recurrent weights if there is none given, and else `step`.

    In these half of it in a row of the tensor's own deviation, since errors come round again with
    every element of a sequence; less as the row's weights are smaller: a gate that is nearly linear
    has far smaller ones than those that saturate, and as much to say. A published speaker encoder,
    an LSTM of three layers, so keeps a cosine of 0.94 to its own answers in 860 kB; with one step
    for each tensor, 0.5.
    """
    if finer is None:
        if kind != "rnn":
            return [(slice(None), step)]
        counts, powers = _rows(tensor)
        sizes = (powers / counts.clamp_min(1)).sqrt()
        whole = math.sqrt(float(powers.sum()) / max(float(counts.sum()), 1))
        finer = torch.log2(2 * whole / sizes).round().clamp(0, FINEST)
        finer[sizes == 0] = 0
    return [((finer == power).numpy(), step / 2**power) for power in finer.unique().tolist()]


def _shared(source: torch.Tensor, step: float, trellis: bool = False) -> torch.Tensor:
    """As `share_tensor`, with one step."""
    from .codec.adaptive import STRIP
    from .compensation import feed_errors, prior, settled_prices

    shape = source.shape
    rows, blocks = shape[:2] if source.dim() > 1 else (1, source.numel())
    source = source.reshape(rows, blocks, -1)
    size = source.numel() // rows  # of a row
    step, levels = grid(step, float(source.abs().max()), source.dtype, trellis)
    values = torch.from_numpy(levels).to(source.dtype)
    factors, feedback = prior(blocks, tuple(shape[2:]))

    def rounded(weights: np.ndarray, price: np.ndarray) -> np.ndarray:
        labels = np.empty(weights.shape, np.int16)
        feed_errors(weights, factors, feedback, step, levels, price, labels)
        return labels

    sample = source[:: max(1, source.numel() // SAMPLE)][: max(1, SAMPLE // size)]
    price = settled_prices(sample.double().numpy(), factors, step, levels, rounded, 1 + trellis)
    result = torch.empty_like(source)

    def work(rows: slice) -> None:
        labels = rounded(source[rows].double().numpy(), price)
        result[rows] = values[torch.from_numpy(labels).int()]

    height = max(1, CHUNK // size // STRIP) * STRIP
    for _ in in_order(work, ((slice(i, i + height),) for i in range(0, rows, height))):
        pass
    return result.reshape(shape)


def grid(
    step: float, largest: float, dtype: torch.dtype, trellis: bool = False
) -> tuple[float, np.ndarray]:
    """A step, and its multiples float64[2 m + 1] up to `largest`, as they will be stored.

    The step is `step`, TRELLIS_STEP of it for the trellis, or what MAX_LEVEL allows. The multiples
    are rounded to float16, which halves the codebook, unless that would turn one into 0 or infinity
    or move it by a tenth of a step; and to `dtype`.
    """
    step = max(step, largest / MAX_LEVEL) * (TRELLIS_STEP if trellis else 1)
    m = math.ceil(largest / step) + 1
    exact = torch.arange(-m, m + 1, dtype=torch.float64) * step
    half = exact.half().double()
    if bool(half.isfinite().all()) and float((half - exact).abs().max()) < step / 10:
        exact = half
    bound = torch.finfo(dtype)
    return step, exact.to(dtype).double().clamp(bound.min, bound.max).numpy()


# Vectors


def round_vector(
    tensor: torch.Tensor, noise: float = NOISE, scale: torch.Tensor | None = None
) -> torch.Tensor:
    """`tensor` [n], each value to a power-of-two fraction of itself or of `scale` [n], if larger.

    The fraction is 1/128 at noise 0.2, and falls with it: half as fine, a bit less for each element
    would cost a ResNet-20 3 % more bytes at the same divergence.
    """
    size = tensor.detach().double().abs()
    return _round_beside(tensor, size if scale is None else size.maximum(scale.abs()), noise)


def _round_beside(tensor: torch.Tensor, size: torch.Tensor, noise: float) -> torch.Tensor:
    """The same for a fraction of `size` [n] alone; unchanged where that is 0."""
    bits = min(max(round(7 - math.log2(noise / NOISE)), 4), 20)
    exact = tensor.detach().double()
    exponent = torch.frexp(size).exponent - 1 - bits  # of the greatest power of two within size
    unit = torch.ldexp(torch.ones_like(exact), exponent)
    rounded = torch.where(size > 0, (exact / unit).round() * unit, exact)
    return torch.where(exact.isfinite(), rounded, exact).to(tensor.dtype)


def scale_of(name: str, state: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """What an error in the vector `name` is small beside, [n]: the deviation that a running mean is
    divided by, the factor that the bias of a normalisation is added to; None where neither is
    known."""
    layer, last = layer_of(name), name.rpartition(".")[2]
    if last == "running_mean" and f"{layer}.running_var" in state:
        return state[f"{layer}.running_var"].sqrt()
    factor_name = f"{layer}.{'weight' if last == 'bias' else 'gamma'}"
    if last not in ("bias", "beta") or factor_name not in state:
        return None
    alike = info_of(state, factor_name).shape == info_of(state, name).shape
    return state[factor_name] if alike else None


@torch.no_grad()
def fold_statistics(norm: nn.modules.batchnorm._BatchNorm, noise: float) -> None:
    """Give a batch normalisation, which has all of FOLDED, the mean 0 and the variance 1, which
    cost next to nothing, and a weight and a bias, rounded, with which it does the same in
    evaluation. In training it does not: batches bring their own mean and variance.
    """
    own = norm.state_dict()
    weight, bias, mean, variance = (own[name].double() for name in FOLDED)
    divisor = math.sqrt(1 + norm.eps)  # that is left
    own["running_mean"].zero_()
    own["running_var"].fill_(1.0)
    own["weight"].copy_(round_vector(weight * divisor / (variance + norm.eps).sqrt(), noise))
    # Of the weight as it is rounded: its error must not show in inputs whose mean is far from zero.
    # Nor must that of the bias, which is as large as that mean then.
    shift = bias - own["weight"].double() / divisor * mean
    own["bias"].copy_(_round_beside(shift, torch.maximum(weight.abs(), bias.abs()), noise))
