"""Which parameters are compressed, of what kind each is, and patterns over their names.

Compressed is, by parameter and not by layer, every floating-point parameter of two or more
dimensions whose last name part contains `weight`: that takes in linear layers, convolutions,
stacked attention projections (`in_proj_weight`) and recurrent weights (`weight_ih_l0`) alike, what
a parametrization makes a weight of, and the fused experts of transformers, whose names say `proj`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from .errors import UserError, some_names
from .modules import plain_name
from .tensors import check_shaped, info_of, is_computed, tie_of

KINDS = ("linear", "conv", "attention", "rnn", "embedding")
Patterns = str | Sequence[str]
Value = TypeVar("Value")

# What is kept beside a weight, under a name that contains the word: masks and scores of pruning,
# scales and zero points of quantization, noise of a layer that draws some.
BESIDE = re.compile(
    r"(?:.*_)?(?:masks?|scores?|thresholds?|importance|scales?(?:_inv|_\d+)?|zeros?|zero_?points?|packed|shape|format|absmax|"
    r"quant\w*|qdata|eps|epsilon|idx|indices|ids|counts?)"
)
# The matrices of all experts in one tensor: [experts, rows, columns], of DBRX [rows, columns].
EXPERTS = {
    3: re.compile(r"(?:.*\.)?experts\.(?:gate_up|gate|up|down)_proj"),
    2: re.compile(r"(?:.*\.)?experts\.mlp\.(?:w1|v1|w2)"),
}
# What an optimizer keeps of each parameter, where a checkpoint has it under such a name.
MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}
WIDEST_KERNEL = 64  # elements, of one dimension and without a module that says so
PARAMETRIZED = re.compile(r"(.*?)parametrizations\.(\w+)\.original(\d*)")

# The last part of a layer's name that holds embeddings, where there is no module to ask.
EMBEDDING_NAME = re.compile(r"w[tp]e|shared|.*(^|_)emb(ed)?(s|_tokens|ding|dings)?(_table)?")
# In that of one which holds a normalisation.
NORM_NAME = re.compile(
    r"(?<!de)norm(?!al(?!i[sz]ation))|(?:^|_)(?:ln|bn|gn|grn|rms)(?:_|\d|$)", re.IGNORECASE
)


def compressible(
    source: nn.Module | Mapping[str, torch.Tensor],
    include: Patterns | None = None,
    exclude: Patterns = (),
) -> dict[str, str]:
    """{name: kind} of the parameters that are compressed, in the order of `source`.

    `source` is a module or a state dict. A tensor with several names (tied weights) appears once,
    under the first. `include` takes the parameters of two or more dimensions that match one of its
    patterns, whatever their names contain, and no others; `exclude` leaves out what it matches, and
    may name other tensors, too.
    A pattern is the name of a parameter or of its layer with the wildcards of a shell, or a kind:
    one of KINDS after an @.

    Raises UserError for a pattern without a match and for a lazy parameter without its shape.
    """
    everything = matrices(source)
    chosen = everything if include is not None else weights_of(everything)
    for pattern in listed(include or ()):
        check_used(pattern, everything)
    for pattern in listed(exclude):
        check_used(pattern, [name for name, *_ in tensors_of(source)])
    return {
        name: each.kind
        for name, each in chosen.items()
        if is_chosen(name, each.kind, include, exclude)
    }


class Matrix(NamedTuple):
    """A tensor of two or more dimensions that can be compressed."""

    kind: str  # of KINDS
    shape: tuple[int, ...]


def matrices(source: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, Matrix]:
    """Every dense floating-point parameter of two or more dimensions, of tied ones the first.

    Raises UserError for a lazy parameter without its shape.
    """
    found, seen = {}, set()
    for name, each, owner, key in tensors_of(source):
        if is_computed(each) and len(each.shape) >= 2 and key not in seen:
            seen.add(key)
            shape = tuple(each.shape)
            found[name] = Matrix(_kind(name, shape, owner), shape)
    return found


def weights_of(found: Mapping[str, Matrix]) -> dict[str, Matrix]:
    """Those of `matrices` that are weights, by their names."""
    return {name: each for name, each in found.items() if is_weight(name, each.shape)}


def is_chosen(name: str, kind: str, include: Patterns | None, exclude: Patterns) -> bool:
    """Whether `include` has a pattern for the tensor, or is None, and `exclude` has none."""
    wanted = include is None or any(matches(name, kind, each) for each in listed(include))
    return wanted and not any(matches(name, kind, each) for each in listed(exclude))


def is_weight(name: str, shape: Sequence[int]) -> bool:
    """Whether the name of a parameter of two or more dimensions says that it is a weight.

    The lengths that weight normalisation keeps apart from the directions are none: `weight_g`, or
    the first part of a parametrization, [outputs, 1, ...].
    """
    if any(len(shape) == rank and each.fullmatch(name) for rank, each in EXPERTS.items()):
        return True
    parametrized = PARAMETRIZED.fullmatch(name)
    if parametrized and parametrized[3] == "0" and is_vector(shape):
        return False
    last = _unparametrized(name).rpartition(".")[2]
    if not MOMENTS.isdisjoint(name.split(".")):
        return False
    return "weight" in last and last != "weight_g" and not BESIDE.fullmatch(last)


def is_vector(shape: Sequence[int]) -> bool:
    """Whether no more than one dimension counts: [n], [1, n], [n, 1, 1]."""
    return sum(size != 1 for size in shape) <= 1


def _unparametrized(name: str) -> str:
    """The name that a tensor has in its layer without a parametrization: "fc.weight" for
    "fc.parametrizations.weight.original1"."""
    found = PARAMETRIZED.fullmatch(name)
    return found[1] + found[2] if found else name


def layer_of(name: str) -> str:
    """The name of the layer that has the parameter `name`: "fc1" for "fc1.weight"."""
    return _unparametrized(name).rpartition(".")[0]


def shortest_name(name: str) -> str:
    """What a table calls a weight: its layer's name if it is the layer's only one."""
    return name.removesuffix(".weight")


def bias_of(name: str) -> str:
    """The name of the bias that belongs to the weight `name`, if there is one.

    "fc1.bias" for "fc1.weight", "lstm.bias_ih_l0" for "lstm.weight_ih_l0", "fc1.bias" for what
    torch.nn.utils makes a weight of (`weight_v`, `weight_orig`).
    """
    layer, dot, last = _unparametrized(name).rpartition(".")
    if last in ("weight_v", "weight_orig"):
        last = "weight"
    return layer + dot + last.replace("weight", "bias")


def matches(name: str, kind: str, pattern: str) -> bool:
    """Whether `pattern` is meant for the parameter `name` of the kind `kind`."""
    if pattern.startswith("@"):
        return pattern == f"@{kind}"
    return any(fnmatchcase(each, pattern) for each in (name, _unparametrized(name), layer_of(name)))


def resolve(values: Value | Mapping[str, Value], kinds: Mapping[str, str]) -> dict[str, Value]:
    """{name: value} for the parameters {name: kind}.

    `values` is a single value for all, or {pattern: value}, of which the last pattern that matches
    a parameter decides. Raises UserError for a parameter without a match and a pattern without
    one; a kind may well be absent, as convolutions are from a perceptron. ValueError for a key that
    is no pattern.
    """
    if not isinstance(values, Mapping):
        return dict.fromkeys(kinds, values)
    found = {}
    for pattern in listed(tuple(values)):
        if not pattern.startswith("@"):
            check_used(pattern, kinds)
        elif pattern[1:] not in KINDS:
            raise UserError(f"unknown kind {pattern!r}; known: @{', @'.join(KINDS)}")
    for name, kind in kinds.items():
        for pattern, value in values.items():
            if matches(name, kind, pattern):
                found[name] = value
        if name not in found:
            raise UserError(
                f"no pattern covers {shortest_name(name)!r}, which is {kind}; add one, such as '*'"
            )
    return found


def normed_axes(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...]:
    """The axes of a tensor over which weight normalisation (torch.nn.utils) divides it by its norm,
    where all zeros would be no number; empty for any other. `tensors`: those of the model."""
    layer, dot, last = name.rpartition(".")
    lengths = layer + dot + {"weight_v": "weight_g", "original1": "original0"}.get(last, "")
    if last not in ("weight_v", "original1") or lengths not in tensors:
        return ()
    of_each, shape = info_of(tensors, lengths).shape, info_of(tensors, name).shape
    if len(of_each) != len(shape):  # one length for all
        return tuple(range(len(shape)))
    return tuple(axis for axis, size in enumerate(of_each) if size == 1)


def tensors_of(source: nn.Module | Mapping[str, torch.Tensor]) -> Iterator[tuple]:
    """(name, what has its type and shape, the module that owns it, equal for tied ones) of the
    parameters of a module, or of all that a state dict holds, whose owners are not known.

    A mapping with a method `info` (net.shards) is asked for that, and not for the tensors.
    """
    if isinstance(source, nn.Module):
        for prefix, module in source.named_modules():
            for name, parameter in module.named_parameters(prefix, recurse=False):
                check_shaped(name, parameter)
                yield plain_name(name), parameter, module, id(parameter)
    else:
        of = getattr(source, "info", source.__getitem__)
        yield from ((name, of(name), None, tie_of(source, name)) for name in source)


def _kind(name: str, shape: tuple[int, ...], owner: nn.Module | None) -> str:
    """By the class of the module that owns the parameter, else by its name and shape."""
    last = name.rpartition(".")[2]
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if isinstance(owner, nn.MultiheadAttention) or last.endswith("proj_weight"):
        return "attention"
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase) or re.match(r"weight_(ih|hh|hr)", last):
        return "rnn"
    if isinstance(owner, nn.modules.conv._ConvNd):
        return "conv"
    if len(shape) > 2 and "weight" in name and not _is_stack(shape):
        return "conv"
    # Where there is a module, its class has the last word.
    layer = layer_of(name).rpartition(".")[2]
    if owner is None and EMBEDDING_NAME.fullmatch(layer):
        return "embedding"
    return "linear"


def _is_stack(shape: tuple[int, ...]) -> bool:
    """Whether a weight of three dimensions is one matrix beside others, as those of experts are,
    [experts, outputs, inputs], and no kernel [outputs, inputs, width]: wide, and of fewer outputs
    than that."""
    return len(shape) == 3 and shape[2] >= WIDEST_KERNEL and shape[0] < shape[2]


def listed(patterns: Patterns) -> tuple[str, ...]:
    """Raises ValueError for what is neither a pattern nor an iterable of patterns."""
    many = [patterns] if isinstance(patterns, str) else patterns
    again = isinstance(many, Iterable) and not isinstance(many, Iterator)  # used up by one look
    if not again or not all(isinstance(each, str) for each in many):
        raise ValueError(f"give a pattern or a list of patterns, not {patterns!r}")
    return tuple(many)


def check_used(pattern: str, of: Iterable[str]) -> None:
    """Raises UserError for a pattern, but for a kind, that matches none of these names."""
    if pattern.startswith("@") and pattern[1:] in KINDS:
        return
    names = list(of)
    if not any(matches(name, "", pattern) for name in names):
        shown = some_names(map(shortest_name, names), most=30) or "none"
        raise UserError(f"no parameter matches {pattern!r}; there are: {shown}")
