"""Which parameters are compressed, of what kind each is, and patterns over their names.

Compressed is, by parameter and not by layer, every floating-point parameter (of 16, 32 or 64 bits:
float8 is kept as it is) of two or more dimensions whose last name part contains `weight`: that
takes in linear layers, convolutions, stacked attention projections (`in_proj_weight`) and recurrent
weights (`weight_ih_l0`) alike.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import nn

from .errors import UserError
from .tensors import identity, is_computed

KINDS = ("linear", "conv", "attention", "rnn", "embedding")
Patterns = str | Sequence[str]
Value = TypeVar("Value")

# The last part of a layer's name that holds embeddings, where there is no module to ask.
EMBEDDING_NAME = re.compile(r"w[tp]e|shared|.*(^|_)emb(ed)?(s|_tokens|ding|dings)?(_table)?")


def compressible(
    source: nn.Module | Mapping[str, torch.Tensor],
    include: Patterns | None = None,
    exclude: Patterns = (),
) -> dict[str, str]:
    """{name: kind} of the parameters that are compressed, in the order of `source`.

    `source` is a module or a state dict. A tensor with several names (tied weights) appears once,
    under the first. `include` takes the parameters of two or more dimensions that match one of its
    patterns, whatever their names contain, and no others; `exclude` leaves out what it matches.
    A pattern is the name of a parameter or of its layer with the wildcards of a shell, or a kind:
    one of KINDS after an @.

    Raises UserError for a pattern without a match and for a lazy parameter without its shape.
    """
    include = _listed(include) if include is not None else None
    exclude = _listed(exclude)
    found = {}
    everything = {}
    for name, kind in _matrices(source):
        everything[name] = kind
        if include is not None:
            wanted = any(matches(name, kind, pattern) for pattern in include)
        else:
            wanted = is_weight(name)
        if wanted and not any(matches(name, kind, pattern) for pattern in exclude):
            found[name] = kind
    for pattern in (*(include or ()), *exclude):
        _check_used(pattern, everything)
    return found


def is_weight(name: str) -> bool:
    """Whether the last part of a parameter's name says that it is a weight.

    `weight_g` is not: the lengths that weight normalisation keeps apart from the directions.
    """
    last = name.rpartition(".")[2]
    return "weight" in last and last != "weight_g"


def layer_of(name: str) -> str:
    """The name of the layer that has the parameter `name`: "fc1" for "fc1.weight"."""
    return name.rpartition(".")[0]


def shortest_name(name: str) -> str:
    """What a table calls a weight: its layer's name if it is the layer's only one."""
    return name.removesuffix(".weight")


def bias_of(name: str) -> str:
    """The name of the bias that belongs to the weight `name`, if there is one.

    "fc1.bias" for "fc1.weight", "lstm.bias_ih_l0" for "lstm.weight_ih_l0".
    """
    layer, dot, last = name.rpartition(".")
    return layer + dot + last.replace("weight", "bias")


def matches(name: str, kind: str, pattern: str) -> bool:
    """Whether `pattern` is meant for the parameter `name` of the kind `kind`."""
    if pattern.startswith("@"):
        return pattern == f"@{kind}"
    return fnmatchcase(name, pattern) or fnmatchcase(layer_of(name), pattern)


def resolve(values: Value | Mapping[str, Value], kinds: Mapping[str, str]) -> dict[str, Value]:
    """{name: value} for the parameters {name: kind}.

    `values` is a single value for all, or {pattern: value}, of which the last pattern that matches
    a parameter decides. Raises UserError for a parameter without a match and a pattern without
    one; a kind may well be absent, as convolutions are from a perceptron.
    """
    if not isinstance(values, Mapping):
        return dict.fromkeys(kinds, values)
    found = {}
    for pattern in values:
        if not pattern.startswith("@"):
            _check_used(pattern, kinds)
        elif pattern[1:] not in KINDS:
            raise UserError(f"unknown kind {pattern!r}; known: @{', @'.join(KINDS)}")
    for name, kind in kinds.items():
        for pattern, value in values.items():
            if matches(name, kind, pattern):
                found[name] = value
        if name not in found:
            raise UserError(
                f"no pattern covers {shortest_name(name)!r}, which is {kind}; "
                "add one, such as '*=VALUE'"
            )
    return found


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel or torch.compile, if it is in one."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _matrices(
    source: nn.Module | Mapping[str, torch.Tensor],
) -> Iterator[tuple[str, str]]:
    """(name, kind) of every floating-point parameter of two or more dimensions."""
    seen = set()
    listed = _of_module(source) if isinstance(source, nn.Module) else _of_state(source)
    for name, found, owner, key in listed:
        if is_computed(found.dtype) and len(found.shape) >= 2 and key not in seen:
            seen.add(key)
            yield name, _kind(name, len(found.shape), owner)


def _of_module(model: nn.Module) -> Iterator[tuple]:
    """(name, what has its type and shape, the module that owns it, equal for tied ones)."""
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise UserError(f"{name} is lazy and has no shape yet; run the model once first")
            yield name, parameter, module, id(parameter)


def _of_state(state: Mapping[str, torch.Tensor]) -> Iterator[tuple]:
    """The same of a state dict, whose tensors have no owner known.

    A mapping with a method `info` (net.shards) is asked for that: it reads tensors anew each time,
    so that an address would say nothing.
    """
    info = getattr(state, "info", None)
    for name in state:
        if info:
            yield name, info(name), None, name
        else:
            yield name, state[name], None, identity(state[name])


def _kind(name: str, dimensions: int, owner: nn.Module | None) -> str:
    """By the class of the module that owns the parameter, else by its name and shape."""
    last = name.rpartition(".")[2]
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if isinstance(owner, nn.MultiheadAttention) or last.endswith("proj_weight"):
        return "attention"
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase) or re.match(r"weight_(ih|hh|hr)", last):
        return "rnn"
    if isinstance(owner, nn.modules.conv._ConvNd) or dimensions > 2:
        return "conv"
    # Where there is a module, its class has the last word.
    layer = layer_of(name).rpartition(".")[2]
    if owner is None and EMBEDDING_NAME.fullmatch(layer):
        return "embedding"
    return "linear"


def _listed(patterns: Patterns) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _check_used(pattern: str, kinds: Mapping[str, str]) -> None:
    if pattern.startswith("@") and pattern[1:] in KINDS:
        return
    if not any(matches(name, kind, pattern) for name, kind in kinds.items()):
        shown = ", ".join(map(shortest_name, kinds))
        raise UserError(f"no parameter matches {pattern!r}; there are: {shown}")
