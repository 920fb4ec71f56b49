"""Which tensors have values of their own that can be read: one gate for all that take a tensor."""

import math
from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from .errors import UserError

# In which torch computes: other floating-point types (float8, float4) are only stored.
COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Bytes of elements that one byte of memory may be seen as, and bytes that are no matter.
MOST_EXPANDED, SMALL_EXPANDED = 4, 1 << 24
PACKED = 16  # of a list that is no weight, the first elements that are looked at


class TensorError(UserError, ValueError):
    """A tensor without plain values in memory; the message names it, and what to do."""


class Info(NamedTuple):
    """What is known of a tensor without its values, as the header of a file has it."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorMap(Mapping[str, torch.Tensor]):
    """A state dict of which a tensor is read when it is asked for; its names are known, and looked
    for, without that."""

    _named: Collection[str]  # the names, in their order, and quick to find one in

    def __contains__(self, name: object) -> bool:
        return name in self._named

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)


def is_computed(tensor: Any) -> bool:
    """Whether the values of a tensor, or of what has its dtype, can be clustered and rounded: dense
    ones of a type with an arithmetic. All others are kept exactly."""
    layout = getattr(tensor, "layout", torch.strided)
    return getattr(tensor, "dtype", None) in COMPUTED and layout is torch.strided


def check_shaped(name: str, tensor: Any) -> None:
    """Raise UserError for a parameter or buffer of a lazy module that has not run yet."""
    if nn.parameter.is_lazy(tensor):
        raise UserError(f"{name} is lazy and has no shape yet; run the model once first")


def check_dense(
    name: object, tensor: object, problem: str = "", error: type[UserError] = TensorError
) -> None:
    """Raise `error`, "`problem` 'name': ...", unless `tensor` is an ordinary one: strided, on a
    device, with a shape and all of its memory, not expanded to far more than that, and not of a
    class that gives its elements another meaning."""
    if what := fault(tensor):
        raise error(f"{problem}{name!r}: {what}")


def check_packed(name: object, value: object, problem: str = "") -> None:
    """The same for the tensors in a list or a tuple, as torch.ao packs quantized weights: what has
    them there is no state dict without them."""
    for each in value[:PACKED] if isinstance(value, list | tuple) else ():
        if isinstance(each, torch.Tensor):
            check_dense(name, each, problem)


def memory(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of the elements in their order, uint8[tensor.nbytes]; a view where they lie so."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg()
    if flat.dtype == torch.bool:  # of whose bytes a copy makes 0 and 1
        flat = flat.view(torch.uint8)
    flat = flat.reshape(-1)
    if flat.stride(0) != 1:  # an expanded tensor, or one element of a strided one
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy()


def identity(tensor: torch.Tensor) -> tuple:
    """Equal for two tensors that are the same memory, as tied weights are, seen in the same way."""
    if fault(tensor) or tensor.numel() == 0:  # no memory that it could share
        return (id(tensor),)
    # A lazy conjugate or negative has the memory of what it was made of.
    seen_as = tensor.is_conj(), tensor.is_neg()
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), seen_as


def version_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Another one after every change of a tensor that autograd knows of, and for another tensor; of
    a DTensor it is the same on every process, which that of its part is not where that is empty."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def tie_of(state: Mapping[str, torch.Tensor], name: str) -> Hashable:
    """Equal for the names of one tensor in a state dict, as those of tied weights are.

    An address says nothing of a mapping that reads its tensors anew each time, as those with a
    method `info` do: a method `tie` tells there, or else no two names are tied.
    """
    if tie := getattr(state, "tie", None):
        return tie(name)
    if hasattr(state, "info"):
        return name
    tensor = state[name]
    return identity(tensor) if is_computed(tensor) and state[name] is tensor else name


def info_of(state: Mapping[str, torch.Tensor], name: str) -> Info:
    """Type and shape of state[name], without reading it where the mapping has a method `info`."""
    of = getattr(state, "info", None)
    found = of(name) if of else state[name]
    return Info(found.dtype, tuple(found.shape))


def overlaps(tensor: torch.Tensor) -> bool:
    """Whether several elements are one in memory, as of an expanded tensor."""
    extents = zip(tensor.shape, tensor.stride(), strict=True)
    return any(extent > 1 and not stride for extent, stride in extents)


def fault(tensor: object) -> str | None:
    """Why a tensor has no plain values, and what to do; None if it has."""
    if not isinstance(tensor, torch.Tensor):
        return f"a {type(tensor).__name__}, not a tensor"
    if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
        return "lazy, without a shape yet; run the model once first"
    if tensor.is_nested:
        return "a nested tensor; make it a dense, unquantized tensor first"
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.").removeprefix("_")
        return f"of the layout {layout}; make it a dense, unquantized tensor first"
    if tensor.is_quantized:
        return "quantized by torch; make it a dense, unquantized tensor first"
    if tensor.is_meta:
        return "on the meta device, without values; load the weights first"
    if type(tensor).__name__ == "DTensor":
        return (
            "a DTensor, of which every process has a part; gather it first, as "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict does"
        )
    if type(tensor) not in (torch.Tensor, nn.Parameter):
        return f"a {type(tensor).__name__}, not a plain tensor; make it a dense tensor first"
    memory = tensor.untyped_storage().nbytes()
    if _bytes_needed(tensor) > memory:
        return "its memory was freed, as FSDP does; gather it first"
    # As torch.ones(1).expand(2**32), which a file of a kilobyte can hold.
    if tensor.nbytes > max(SMALL_EXPANDED, MOST_EXPANDED * memory):
        return f"an expanded tensor of {tensor.nbytes} bytes; save what it is expanded from"
    return None


def _bytes_needed(tensor: torch.Tensor) -> int:
    """Of the storage, up to the last element."""
    if tensor.numel() == 0:
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((extent - 1) * stride for extent, stride in steps)
    return int(last + 1) * tensor.dtype.itemsize
