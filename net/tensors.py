"""Which tensors have values of their own that can be read: one gate for all that take a tensor."""

import torch
from torch import nn

from .errors import UserError

# In which torch computes: other floating-point types (float8, float4) are only stored.
COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class TensorError(UserError, ValueError):
    """A tensor without plain values in memory; the message names it, and what to do."""


def is_computed(dtype: torch.dtype) -> bool:
    """Whether values of this type can be clustered and rounded; all others are kept exactly."""
    return dtype in COMPUTED


def check_dense(name: object, tensor: object) -> None:
    """Raise TensorError unless `tensor` is an ordinary one: strided, on a device, with a shape and
    all of its memory, and not of a class that gives its elements another meaning."""
    fault = _fault(tensor)
    if fault:
        raise TensorError(f"{name!r}: {fault}")


def _fault(tensor: object) -> str | None:
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
    if type(tensor) not in (torch.Tensor, nn.Parameter):
        return f"a {type(tensor).__name__}, not a plain tensor; make it a dense tensor first"
    if _bytes_needed(tensor) > tensor.untyped_storage().nbytes():
        return "its memory has been freed; take the state dict before that"
    return None


def _bytes_needed(tensor: torch.Tensor) -> int:
    """Of the storage, up to the last element."""
    if tensor.numel() == 0:
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((extent - 1) * stride for extent, stride in steps)
    return int(last + 1) * tensor.dtype.itemsize
