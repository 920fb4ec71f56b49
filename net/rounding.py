"""Rounding for a network that is trained already, without training and without data.

Every weight becomes a multiple of its tensor's step. That alone is what a uniform quantizer
followed by an entropy coder does; three things make it smaller at the same noise: rounding errors
cancel in what inputs have in common (net.compensation), a value is taken with the length of its
code word in mind, so that zeros abound where they pay, and steps are larger in larger tensors,
where a bit less saves most, or in a transformer by what its matrices are for (net.roles).
Recurrent weights have steps by row, and so has a vocabulary. net.calibration goes further with
sample inputs.

The vectors beside the weights (biases, normalisation and its running statistics) are rounded to a
few binary digits. They are few and yet not free: in float32, the BatchNorm layers of a ResNet-20
take 15 % of its compressed file.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from .errors import naming
from .parameters import layer_of
from .sharded import full, put
from .tensors import COMPUTED, info_of, is_computed
from .threads import in_order

NOISE = 0.2
MAX_LEVEL = 1 << 13  # multiples of the step on either side of zero
TYPICAL = 1.3  # the root mean square is taken for typical up to so many medians of its rows
FINEST = 6  # the largest power of two by which a row's step is finer than its tensor's
# From so many rows on an embedding is that of a vocabulary, whose tokens are numbered by how often
# they were met: the first quarter of it is finer, the 16th more so, and the 64th (docs/results.md).
# First is what has the least place times size**FREQUENT_SIZE.
VOCABULARY, FREQUENT, FREQUENT_SIZE = 4096, (4, 16, 64), 4
SIZE_POWER = 1.5  # of the number of weights, that step**2 is proportional to (docs/results.md)
COARSEST = 0.8  # deviations, of a step that sensitivity alone makes coarser (docs/results.md)
HALVINGS = 60  # of a range of logarithms: to the last digit
SAMPLE = 1 << 20  # weights on which the code words are estimated
CHUNK = 1 << 22  # weights in float64 at a time and thread
# Of the trellis: its step over that of weights which are rounded one by one, with the same squared
# error on Gaussian weights (.57 to .60 for noises of .2 to .8); and the fewest rows to walk down.
TRELLIS_STEP, TRELLIS_ROWS = 0.58, 16
# From so many zeros on it is tried whether the trellis pays (docs/results.md), on so many weights.
MANY_PRUNED, PROBE = 2 / 3, 1 << 18
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
    counts, powers = (torch.zeros(len(rows), dtype=torch.float64, device="cpu") for _ in range(2))
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
    felt: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The step of each tensor: `noise` deviations on average, more for larger tensors.

    Noise of variance step**2 / 12 in every layer, relative to its outputs, adds up to the noise
    of the network's; the bits fall by the number of weights times log2(step). The least sum of
    both has step**2 proportional to deviation**2 times the number of weights, and it is more than
    that (SIZE_POWER): large layers are later, where less comes after them, and small ones narrow.

    Where the sum is known, as trace * step**2 / 12 with the `traces` of net.sensitivity, the least
    has step**2 proportional to the number of weights over the trace, with the same mean of the
    step's logarithm over all weights. That holds for errors that are small beside the weights, and
    for steps that cost a bit when they are halved: no step grows beyond COARSEST deviations. Where
    only names tell what a relative error does (`felt`, of net.roles), that takes the trace's place.
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
    rest = {name: live[name] for name in felt or {} if name in live and name not in known}
    told = {name: (felt or {})[name] / each.deviation**2 for name, each in rest.items()}
    for own in (told, known):
        found |= _by_traces(found, own, live)
    return dict.fromkeys(spreads, 1.0) | found


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


def spreads_of(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, Spread]:
    """`spread` of each tensor of these names, read one at a time. An error names the tensor."""
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
    that a trellis admits (net.compensation), where these pay: at the same error an eighth of a bit
    less for each weight, as long as few have been pruned (`trellis_pays`).

    The first dimension is that of the outputs, the second of the inputs, others are a
    convolution's kernel; of a stack of matrices (`kind` "linear", as of parameters.compressible)
    the last is that of the inputs; one of a single dimension has no outputs to cancel errors in.
    `finer` int64 [rows] has the powers of two by which the steps of rows are finer, `fineness` if
    there is none. Zeros stay zeros. Takes any real floating-point type. Raises ValueError for a
    bad step, NaN or infinity.
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
    finer = fineness(source, kind) if finer is None else finer
    scale = scales(finer)
    walks = trellis and trellis_pays(source, step, scale)
    return _shared(source, step, walks, scale).to(tensor.device)


def share_alone(
    tensor: torch.Tensor,
    step: float,
    kind: str,
    trellis: bool,
    axes: tuple[int, ...],
    finer: torch.Tensor | None = None,
) -> torch.Tensor:
    """`share_tensor` for a tensor of which weight normalisation divides what lies along `axes` by
    its norm (net.parameters.normed_axes; () for any other): small rows count as much as large ones
    there, and none is lost."""
    finer = row_fineness(tensor) if axes and 0 not in axes else finer
    # A value that is changed by itself would leave the trellis.
    after = share_tensor(tensor, step, kind, trellis and not axes, finer)
    return directed(tensor, after, axes)


def directed(before: torch.Tensor, after: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """`after`, in which no direction of `before` along `axes` is all zeros, whose norm is divided
    by: the largest weight of such a one gets the smallest of the values, which is as good as any.
    """
    if not axes or not before.numel():
        return after
    weight = before.detach()
    largest = weight.abs() == weight.abs().amax(axes, keepdim=True)
    lone = largest & ~after.any(axes, keepdim=True)
    others = after if after.any() else weight
    smallest = others[others != 0].abs().min() if others.any() else 0.0
    return torch.where(lone, smallest * weight.sign(), after)


def trellis_pays(source: torch.Tensor, step: float, scale: np.ndarray) -> bool:
    """Whether `source`, whose rows are multiplied by `scale` [rows], is to follow the trellis.

    Not with few rows to walk down. Where many weights have been pruned, those that are left have a
    gap around zero, which may suit single steps better, and their places take most of the bytes.
    So a part of the tensor is shared and coded either way, and that is better which has the less of
    error + bits * step**2 ln 2 / 6, the slope of one against the other where steps are small.
    """
    from .codec.adaptive import STRIP
    from .codec.tensors import write_tensor

    if len(source.shape) < 2 or source.shape[0] < TRELLIS_ROWS:
        return False
    if int(source.count_nonzero()) > source.numel() * (1 - MANY_PRUNED):
        return True
    kernel = math.prod(source.shape[2:])
    inputs = min(max(1, PROBE // (STRIP * kernel)), source.shape[1])
    height = max(1, PROBE // (inputs * kernel) // STRIP) * STRIP
    part, own = source[:height, :inputs].detach().cpu(), scale[:height]
    costs = []
    for walks in (False, True):
        shared = _shared(part, step, walks, own)
        change = (shared.double() - part.double()).flatten(1) * torch.from_numpy(own)[:, None]
        bits = write_tensor(shared).length
        costs.append(float(change.square().sum()) + math.log(2) / 6 * step**2 * bits)
    return costs[1] < costs[0]


def fineness(tensor: torch.Tensor, kind: str) -> torch.Tensor:
    """The powers of two by which the steps of rows are finer than their tensor's, int64 [rows].

    Recurrent weights have half of it in a row of the tensor's own deviation, since errors come
    round again with every element of a sequence; less as the row's weights are smaller: a gate that
    is nearly linear has far smaller ones than those that saturate, and as much to say. A published
    speaker encoder, an LSTM of three layers, so keeps a cosine of 0.94 to its own answers in
    860 kB; with one step for each tensor, 0.5. In the embedding of a vocabulary the rows of
    frequent tokens have finer ones: an error costs as often as it is met, and is larger beside a
    row of small weights.
    """
    rows = len(tensor) if tensor.dim() > 1 else 1
    vocabulary = kind == "embedding" and rows >= VOCABULARY
    if kind != "rnn" and not vocabulary:
        return torch.zeros(rows, dtype=torch.int64, device="cpu")
    if not vocabulary:
        return row_fineness(tensor, 2)
    counts, powers = _rows(tensor)
    place = _frequency_order((powers / counts.clamp_min(1)).sqrt()) / rows
    return torch.stack([place < 1 / part for part in FREQUENT]).sum(0)


def row_fineness(tensor: torch.Tensor, factor: float = 1) -> torch.Tensor:
    """The same by how much smaller the weights of a row are than those of the whole tensor, and
    `factor` times as fine as that."""
    counts, powers = _rows(tensor)
    sizes = (powers / counts.clamp_min(1)).sqrt()
    whole = math.sqrt(float(powers.sum()) / max(float(counts.sum()), 1))
    finer = torch.log2(factor * whole / sizes).round().clamp(0, FINEST)
    finer[sizes == 0] = 0
    return finer.long()


def _frequency_order(sizes: torch.Tensor) -> torch.Tensor:
    """The place of each row of a vocabulary's embedding, int64 [rows], by how often its token may
    be met, from the `sizes` of the rows [rows].

    Frequent tokens come first, and as a rule they have small weights as well, which tells them from
    rare characters and from unused ones; where the first quarter has no smaller weights than the
    others, the order of the rows is all that counts. Rows of zeros are the last.
    """
    rows = len(sizes)
    place, quarter = torch.arange(rows, device="cpu"), rows // 4
    if float(sizes[:quarter].mean()) >= float(sizes[quarter:].mean()):
        return place
    rarity = torch.where(sizes > 0, (place + 1) * sizes**FREQUENT_SIZE, math.inf)
    order = torch.empty_like(place)
    order[rarity.argsort(stable=True)] = place
    return order


def scales(finer: torch.Tensor) -> np.ndarray:
    """What rows are multiplied by, float64 [rows], so that they have the tensor's step."""
    return np.ldexp(1.0, finer.numpy())


@torch.inference_mode(False)  # in which nothing can be written in other threads
def _shared(source: torch.Tensor, step: float, trellis: bool, scale: np.ndarray) -> torch.Tensor:
    """As `share_tensor`, of rows that are multiplied by `scale` [rows], and divided by it again."""
    from .codec.adaptive import STRIP
    from .compensation import feed_errors, prior, settled_prices

    shape = source.shape
    rows, blocks = shape[:2] if source.dim() > 1 else (1, source.numel())
    source = source.reshape(rows, blocks, -1)
    size = source.numel() // rows  # of a row
    most = float((largest(source.flatten(1)).double().numpy() * scale).max())
    size_of_step, levels = grid(step, most, source.dtype, trellis)
    values, scale = torch.from_numpy(levels).to(source.dtype), scale[:, None, None]
    factors, feedback = prior(blocks, tuple(shape[2:]))

    def rounded(weights: np.ndarray, price: np.ndarray) -> np.ndarray:
        labels = np.empty(weights.shape, np.int16)
        feed_errors(weights, factors, feedback, size_of_step, levels, price, labels)
        return labels

    some = slice(None, None, max(1, source.numel() // SAMPLE))
    sample = (source[some].double().numpy() * scale[some])[: max(1, SAMPLE // size)]
    price = settled_prices(sample, factors, size_of_step, levels, rounded, 1 + trellis)
    result, told = torch.empty_like(source), True
    divisor = torch.from_numpy(scale).to(source.dtype)

    def work(rows: slice) -> bool:
        labels = rounded(source[rows].double().numpy() * scale[rows], price)
        result[rows] = values[torch.from_numpy(labels).int()] / divisor[rows]
        return not trellis or tells_its_steps(labels, levels.size // 2, scale[rows])

    height = max(1, CHUNK // size // STRIP) * STRIP
    for each in in_order(work, ((slice(i, i + height),) for i in range(0, rows, height))):
        told &= each
    if not told:
        return _shared(source.reshape(shape), step, False, scale.ravel())
    return result.reshape(shape)


def largest(rows: torch.Tensor) -> torch.Tensor:
    """The largest absolute value of each row, [rows], without a copy of them."""
    low, high = rows.aminmax(dim=1)
    return torch.maximum(-low, high)


def tells_its_steps(labels: np.ndarray, middle: int, scale: np.ndarray) -> bool:
    """Whether labels [rows, ...], whose zero is `middle`, tell how the steps of rows differ
    (`scale` [rows]), which the encoder has to find to see that they follow the trellis.

    Where nearly all of them are zeros, they may not.
    """
    from .codec.levels import row_shifts

    coarser = np.rint(scale.max() / scale).astype(np.int32).reshape(-1, 1)
    if coarser.max() == 1:
        return True
    levels = (labels.reshape(len(labels), -1) - middle).astype(np.int32) * coarser
    return row_shifts(levels) is not None


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
    exact = torch.arange(-m, m + 1, dtype=torch.float64, device="cpu") * step
    half = exact.half().double()
    fine = bool(half.isfinite().all()) and float((half - exact).abs().max()) < step / 10
    if dtype.itemsize > 2 and fine:  # rounding twice would leave the grid
        exact = half
    bound = torch.finfo(dtype)
    return step, exact.to(dtype).double().clamp(bound.min, bound.max).numpy()


def cast(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`values`, as `share_tensor` gives them, in another type: the same multiples of the step,
    rounded once. Rounded twice they would lie on no grid, and cost a bit more for each weight."""
    from .codec.forms import elements, patterns
    from .codec.levels import Grid

    if values.dtype == dtype or not is_computed(values) or dtype not in COMPUTED:
        return values.to(dtype)
    distinct, places = np.unique(patterns(values.detach().cpu()), return_inverse=True)
    if (found := Grid.of(distinct, values.dtype)) is None:
        return values.to(dtype)
    grid, levels = found
    again = grid._replace(half=False).values(levels, dtype)[places.ravel()]
    return elements(again, dtype).reshape(values.shape).to(values.device)


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
    nearest = (exact / unit).round() * unit + 0.0  # no zeros of two signs
    # Nor beside the least that there is, where there is no such unit.
    rounded = torch.where((size > 0) & (unit > 0), nearest, exact)
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
    # Copies, of float64 ones as well: they are still needed when the layer has others.
    weight, bias, mean, variance = (full(own[name]).to(torch.double, copy=True) for name in FOLDED)
    divisor = math.sqrt(1 + norm.eps)  # that is left
    own["running_mean"].zero_()
    own["running_var"].fill_(1.0)
    factor = round_vector(weight * divisor / (variance + norm.eps).sqrt(), noise)
    factor = factor.to(own["weight"].dtype)
    # Of the weight as it is rounded: its error must not show in inputs whose mean is far from zero.
    # Nor must that of the bias, which is as large as that mean then.
    shift = bias - factor.double() / divisor * mean
    put(own["weight"], factor)
    put(own["bias"], _round_beside(shift, torch.maximum(weight.abs(), bias.abs()), noise))
