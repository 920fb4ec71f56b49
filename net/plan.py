"""What becomes of every tensor of a model when its weights are shared: one plan, made beforehand.

The same for a module and for a bare state dict, and carried out by net.sharing. Shared are weights
(net.parameters); rounded beside them, their biases and what is recognised as the weight, bias and
running statistics of a normalisation. Everything else stays exact. net.treatments says what each of
these is. A module is asked what each tensor is; in a bare state dict it is known by its name, by
the tensors beside it, or by values that no training gives. Where that leaves a doubt, a tensor
stays exact.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from .constants import is_table
from .modules import plain_name, unwrapped
from .parameters import (
    NORM_NAME,
    bias_of,
    check_used,
    is_chosen,
    is_vector,
    layer_of,
    listed,
    matrices,
    resolve,
    tensors_of,
    weights_of,
)
from .sharded import check, full
from .tensors import COMPUTED, check_shaped, is_computed
from .treatments import TREATMENTS, Asked, Exact, SharingConfig, Treatment

ONE = "one element"
QUANTIZED = "quantized already"
NOT_CHOSEN = "left out by include or exclude"
BY_VALUE = "by its values a table of constants"

# Normalisation, by the classes of a module, or by names: the other one that is beside it.
STATISTICS = ("running_mean", "running_var")
AFFINE = {"weight": "bias", "bias": "weight", "gamma": "beta", "beta": "gamma"}
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
NORM_CLASS = re.compile(r"Norm(?!al)|LN$|BN$")
# A factor and a summand that bring outputs back to their units.
NO_NORM = re.compile(r"scale|shift|affine|mean|std|energ|loss|criterion", re.IGNORECASE)

# Parts of names that only quantized layers have (GPTQ, AWQ, bitsandbytes, compressed-tensors,
# float8 of several makers, torch.ao).
QUANTIZED_BY = re.compile(
    r"q(?:weight|zeros)|SCB|absmax|quant_map|quant_state|weight_format|g_idx|_packed_params"
    r"|.*zero_?points?|(?:weight|input|output|act)_quantizer|.*_fake_quant"
    r"|(?:weights?|input|output|act(?:ivation)?)_(?:scaling_factors?|amax|offset|zp|step_size|clip_val)"
    r"|(?:.*(?:weight|proj)|input|output|activation|act|[qkv]|kv)_(?:packed|scales?|qdata)(?:_.*)?"
)
# Layers of constants, of which no values can be told from learned ones.
TABLE = re.compile(
    r"(?:^|_)(?:i?stft|i?dft|i?dct|i?dwt|fbanks?|filter_?banks?|mel_?(?:basis|fb|filters?|banks?)"
    r"|pqmf|cqt|gammatone)(?:_|$)"
)
COMPLEX = re.compile(r"conv_?(?:real|imag)|(?:real|imag)_?conv")  # of one signal


class _Tensor(NamedTuple):
    """A tensor of a state dict, and what a module says of it."""

    info: Any  # has its dtype and shape
    read: Callable[[], torch.Tensor]
    first: str  # of its names, if it is tied
    owner: nn.Module | None = None  # None in a bare state dict
    buffer: bool = False
    trained: bool = False  # by whoever trains the module

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.info.shape)


def plan(
    source: nn.Module | Mapping[str, torch.Tensor],
    config: SharingConfig,
    names: Iterable[str] | None = None,
) -> dict[str, Treatment]:
    """{name: what becomes of it}, one for every tensor in the state dict of `source`, in its order.

    With `names` of these alone, first ones where tensors are tied: of the others no more are read
    than the weights that have their biases among these. `bits` must not depend on patterns then.

    Raises UserError for a pattern that matches nothing, for a weight for which a {pattern: number}
    has none, and for one without values.
    """
    return _Planner(source, config).plan(names)


def constants(model: nn.Module) -> dict[str, str]:
    """{name: why} of the parameters that are none, whatever their names say: tables of constants,
    a number for each input or output, what is quantized already."""
    planner = _Planner(model, SharingConfig())
    named = weights_of(planner.matrices)
    return {name: why for name in named if (why := planner.why_no_weight(name))}


class _Planner:
    """What `plan` knows of the source while it decides."""

    def __init__(
        self, source: nn.Module | Mapping[str, torch.Tensor], config: SharingConfig
    ) -> None:
        self.config = config
        source = unwrapped(source) if isinstance(source, nn.Module) else source
        self.tensors = _of_module(source) if isinstance(source, nn.Module) else _of_state(source)
        found = matrices(source)
        self.matrices = {name: found[name] for name in found if name in self.tensors}
        self.quantized = _quantized_layers(self.tensors)
        for pattern in listed(config.include or ()):
            vectors = (n for n, each in self.tensors.items() if len(each.shape) == 1)
            check_used(pattern, [*self.matrices, *filter(self._normalises, vectors)])
        for pattern in listed(config.exclude):
            check_used(pattern, self.tensors)

    def plan(self, names: Iterable[str] | None = None) -> dict[str, Treatment]:
        wanted = self.tensors.keys() if names is None else self.tensors.keys() & set(names)
        found = self._weights(wanted)
        found |= self._biases(found)
        for name, each in self.tensors.items():
            if name in wanted and name not in found and each.first == name:
                why = self._why_exact(name)
                asked = Asked("norm", self.config, each.read)
                found[name] = Exact(reason=why) if why else _given(asked)
        return {
            name: found[name] if each.first == name else replace(found[each.first], tied=each.first)
            for name, each in self.tensors.items()
            if name in wanted
        }

    # Weights

    def _weights(self, wanted: Set[str]) -> dict[str, Treatment]:
        """Of all matrices that the names or `include` make weights, some of which stay exact, if
        they are `wanted`, or the biases beside them."""
        config, weights = self.config, {}
        found: dict[str, Treatment] = {}
        named = weights_of(self.matrices) if config.include is None else self.matrices
        for name, (kind, _) in named.items():
            if wanted.isdisjoint((name, bias_of(name))):
                continue
            if not is_chosen(name, kind, config.include, config.exclude):
                found[name] = Exact(kind, reason=NOT_CHOSEN)
            elif config.include is None and (why := self.why_no_weight(name)):
                found[name] = Exact(kind, reason=why)
            else:
                weights[name] = kind
        self.bits: dict[str, Any] = resolve(config.bits, weights)
        for name, kind in weights.items():
            tensor, bits = self.tensors[name], self.bits[name]
            asked = Asked("weight", config, tensor.read, kind, bits, trained=tensor.trained)
            found[name] = _given(asked)
        return found

    def why_no_weight(self, name: str) -> str:
        """Why a matrix whose name says that it is a weight is none; empty if it is one."""
        tensor = self.tensors[name]
        if layer_of(name) in self.quantized:
            return QUANTIZED
        if is_vector(tensor.shape) and not self._has_bias(name):
            return "one row or column without a bias: a number for each input or output"
        if not tensor.trained and _named_as_table(name, tensor.shape):
            return "by its name a table of constants"
        if not getattr(tensor.info, "is_meta", False) and is_table(tensor.read()):
            return BY_VALUE
        return ""

    # What is beside them

    def _biases(self, treated: Mapping[str, Treatment]) -> dict[str, Treatment]:
        """Of the biases of the weights that are shared."""
        kinds = {name: each.kind for name, each in treated.items() if each.how != Exact.how}
        bits: dict[str, Any] = resolve(self.config.bias_bits, kinds)
        found: dict[str, Treatment] = {}
        for name, tensor in self.tensors.items():
            bias = bias_of(name)
            if tensor.first not in kinds or bias == name or not self._has_bias(name):
                continue
            vector, own = self.tensors[bias], bits[tensor.first]
            first = vector.first  # where it is tied, too
            if not is_chosen(bias, "", None, self.config.exclude):  # beside its weight
                found[first] = Exact(reason=NOT_CHOSEN)
            elif math.prod(vector.shape) == 1:
                found[first] = Exact(reason=ONE)
            else:
                weight_bits = self.bits[tensor.first]
                asked = Asked("bias", self.config, vector.read, "", own, weight_bits)
                found[first] = _given(asked)
        return found

    def _has_bias(self, name: str) -> bool:
        """Whether there is a vector beside the weight `name` that can be its bias."""
        bias = self.tensors.get(bias_of(name))
        if bias is None or len(bias.shape) != 1 or not is_computed(bias.info) or bias.buffer:
            return False
        (size,), shape = bias.shape, self.tensors[name].shape
        # Of a transposed convolution, [inputs, outputs / groups, ...], or of [inputs, outputs].
        groups, rest = divmod(size, shape[1]) if shape[1] else (0, 1)
        return size == shape[0] or (rest == 0 and groups > 0 and shape[0] % groups == 0)

    def _why_exact(self, name: str) -> str:
        """Why what is neither weight nor bias stays exact; empty for normalisation."""
        tensor = self.tensors[name]
        if not tensor.info.dtype.is_floating_point:
            return "no floating-point numbers"
        if not is_computed(tensor.info):
            return "of a type or layout without arithmetic"
        if math.prod(tensor.shape) <= 1:
            return ONE
        if layer_of(name) in self.quantized:
            return QUANTIZED
        if len(tensor.shape) == 1 and self._normalises(name):
            chosen = is_chosen(name, "", self.config.include, self.config.exclude)
            return "" if chosen else NOT_CHOSEN
        if tensor.buffer:
            return "a buffer"
        if len(tensor.shape) > 1:
            return "not a weight by its name"
        return "neither the bias of a shared weight nor normalisation"

    def _normalises(self, name: str) -> bool:
        """Whether a vector is the weight, bias or a running statistic of a normalisation."""
        layer, _, last = name.rpartition(".")
        owner = self.tensors[name].owner
        if last in STATISTICS:
            if isinstance(owner, nn.modules.batchnorm._NormBase):
                return True
            together = all(self._beside(name, each) for each in STATISTICS)
            affine = self._beside(name, "weight") and self._beside(name, "bias")
            counted = f"{layer}.num_batches_tracked".removeprefix(".") in self.tensors
            return together and (affine or counted)
        if last not in AFFINE:
            return False
        if owner is not None:
            return isinstance(owner, NORMS) or bool(NORM_CLASS.search(type(owner).__name__))
        beside = self._beside(name, AFFINE[last])
        if last in ("weight", "bias") and beside:
            if all(self._beside(name, each) for each in STATISTICS):
                return True
            if layer.rpartition(".")[2].isdigit():  # of a Sequential
                return not NO_NORM.search(_last_word(layer))
        return bool(NORM_NAME.search(_last_word(layer))) and (last == "weight" or beside)

    def _beside(self, name: str, last: str) -> bool:
        """Whether the layer of the vector `name` has another, of the same length, called `last`."""
        other = self.tensors.get(f"{layer_of(name)}.{last}".removeprefix("."))
        return other is not None and other.shape == self.tensors[name].shape


def _given(asked: Asked) -> Treatment:
    """What the first treatment that wants the tensor makes of it."""
    return next(found for each in TREATMENTS if (found := each.given(asked)))


def _of_module(model: nn.Module) -> dict[str, _Tensor]:
    owners = {plain_name(n): each for n, each in model.named_modules(remove_duplicate=False)}
    first: dict[int, str] = {}
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        check_shaped(name, tensor)
        if isinstance(tensor, torch.Tensor):  # no extra state
            found[name] = _Tensor(
                tensor,
                partial(_values, name, tensor),
                first.setdefault(id(tensor), name),
                owners.get(name.rpartition(".")[0], model),
                buffer=not isinstance(tensor, nn.Parameter),
                trained=tensor.requires_grad,
            )
    return found


def _values(name: str, tensor: torch.Tensor) -> torch.Tensor:
    check(name, tensor)
    return full(tensor.detach())


def _of_state(state: Mapping[str, torch.Tensor]) -> dict[str, _Tensor]:
    first: dict[object, str] = {}
    found = {}
    for name, each, _, key in tensors_of(state):
        if hasattr(each, "dtype"):
            read = partial(state.__getitem__, name)
            found[name] = _Tensor(each, read, first.setdefault(key, name))
    return found


def _quantized_layers(tensors: Mapping[str, _Tensor]) -> set[str]:
    """The layers that hold what only quantized ones do: a weight of a type without an arithmetic,
    or a companion of such a name."""
    found = set()
    for name, tensor in tensors.items():
        dtype = tensor.info.dtype
        if not (dtype in COMPUTED or dtype.is_complex) and name.rpartition(".")[2] == "weight":
            found.add(name.rpartition(".")[0])
        parts = name.split(".")
        for i, part in enumerate(parts):
            if QUANTIZED_BY.fullmatch(part):
                found.add(".".join(parts[:i]).removesuffix(".weight"))
                break
    return found


def _named_as_table(name: str, shape: tuple[int, ...]) -> bool:
    layer, _, last = layer_of(name).rpartition(".")
    if COMPLEX.fullmatch(last):
        return len(shape) == 3 and shape[1] == 1
    return bool(TABLE.search(last) or TABLE.fullmatch(layer.rpartition(".")[2]))


def _last_word(layer: str) -> str:
    """The last part of a layer's name that is no number."""
    parts = [part for part in layer.split(".") if not part.isdigit()]
    return parts[-1] if parts else ""
