"""Sample inputs of a model: what it is called with, as those who have them may give them."""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from .errors import first_line

Found = TypeVar("Found")

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
EXPECTED = (
    "a tensor, a dict of keyword arguments, or an iterable of tensors, of tuples of arguments, of "
    "dicts, or of (inputs, labels)"
)


class Call(NamedTuple):
    """What a model is called with."""

    args: tuple
    kwargs: dict


class Labelled(list):
    """Some batches of a DataLoader, whose last part is the labels as a rule."""


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
        labelled = isinstance(given, torch.utils.data.DataLoader | Labelled)
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
    if isinstance(batch, PackedSequence):  # which is a tuple, too
        return [itself]
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


def on_device(call: Call, device: torch.device) -> Call:
    """A copy of `call`, which a model may change in place, with its tensors on the device."""

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, copy=True)
        if isinstance(value, PackedSequence):
            packed: Any = copy.deepcopy(value)
            return packed.to(device)
        if isinstance(value, Mapping) or is_dataclass(value):  # that torch does not look into
            value = copy.deepcopy(value)
            return value.to(device) if callable(getattr(value, "to", None)) else value
        return value

    whole = lambda value: isinstance(value, PackedSequence)  # noqa: E731
    return Call(*tree_map(copied, tuple(call), is_leaf=whole))


def first_that_runs(run: Callable[[Call], Found], calls: list[Call]) -> tuple[Call, Found]:
    """(call, what `run` gives) of the first that the model does not refuse; ValueError, of one
    line, where there is none."""
    reason = ""
    for call in calls:
        try:
            return call, run(call)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model raises for what it does not take
            reason = reason or first_line(error)
    raise ValueError(
        f"the model cannot be run with these inputs, {_described(calls[-1])} ({reason}); "
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
