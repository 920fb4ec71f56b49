"""Tensors of which each process has a part: DTensors, as fully_shard (FSDP2) and tensor parallelism
of torch.distributed leave a model's parameters.

What computes entry by entry takes a DTensor as it is. What needs more is here: the part of this
process (`local`), the whole (`full`), a tensor laid as another one lies (`laid`), and sums over
all parts. All but `local`, `part` and `replicated` may be collectives: every process has to call
them, in the same order, and every process gets the same answer, so that what depends on it (a
branch, an error) is the same everywhere. For a tensor that is no DTensor each is what its name says
of one process.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import distributed, nn

from .tensors import TensorError, TensorMap, check_dense

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: object) -> "TypeGuard[DTensor]":
    """Whether it is a DTensor; replicated ones are such, too."""
    module = sys.modules.get("torch.distributed.tensor")  # without it there is none
    return module is not None and isinstance(tensor, module.DTensor)


def check(name: str, tensor: torch.Tensor) -> None:
    """Raise TensorError unless the tensor, or this process's part of it, is an ordinary one
    (net.tensors), and its placements are replicas and at most one shard."""
    if is_sharded(tensor):
        kinds = [type(each).__name__ for each in tensor.placements]
        if set(kinds) - {"Shard", "Replicate"} or kinds.count("Shard") > 1:
            raise TensorError(
                f"{name!r}: a DTensor with the placements {tensor.placements}, of which only "
                "replicas and one shard are supported, as of fully_shard or of tensor parallelism "
                "alone"
            )
    check_dense(name, local(tensor))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part, in the same memory; it may be empty."""
    return cast("DTensor", tensor.detach()).to_local() if is_sharded(tensor) else tensor


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, on every process."""
    return cast("DTensor", tensor.detach()).full_tensor() if is_sharded(tensor) else tensor


def lies_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both have one shape, and are divided in the same way if they are."""
    if one.shape != other.shape or not (is_sharded(one) and is_sharded(other)):
        return one.shape == other.shape and is_sharded(one) == is_sharded(other)
    return (one.device_mesh, one.placements) == (other.device_mesh, other.placements)


def laid(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`tensor`, whole or not, on the device of `like` and divided as it is."""
    if not is_sharded(like):
        return full(tensor).to(like.device)
    here: Any = tensor.detach()
    if not is_sharded(tensor) or tensor.device_mesh != like.device_mesh:
        here = replicated(full(here), like)
    if not lies_alike(here, like):
        here = here.redistribute(placements=like.placements)
    return here.to(like.device)


def replicated(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`values`, the same on every process, as a DTensor beside `like`: optimizers and the norm of
    gradients take no ordinary tensors together with DTensors."""
    if not is_sharded(like):
        return values
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * like.device_mesh.ndim
    return DTensor.from_local(values, like.device_mesh, everywhere, run_check=False)


def part(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`values`, this process's part of a tensor that lies as `like`, as such a tensor."""
    if not is_sharded(like):
        return values
    from torch.distributed.tensor import DTensor

    mesh, shape, stride = like.device_mesh, like.shape, like.stride()
    return DTensor.from_local(
        values, mesh, like.placements, run_check=False, shape=shape, stride=stride
    )


@torch.no_grad()
def put(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Write `values`, a whole tensor, into `tensor`."""
    local(tensor).copy_(local(laid(values, tensor)))


def total(tensor: torch.Tensor, axes: Sequence[int] = ()) -> torch.Tensor:
    """The sum over `axes`, or all, which stay with one element each; of booleans their number."""
    found = tensor.sum(tuple(axes) or tuple(range(tensor.dim())), keepdim=True)
    if not is_sharded(found):
        return found
    from torch.distributed.tensor import Replicate

    # Left to itself, a sum that is not complete would be added to, or multiplied, as it is.
    complete = [Replicate() if each.is_partial() else each for each in found.placements]
    return found.redistribute(placements=complete)


def summed(parts: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each of `parts`, what a process has computed of its part of a tensor of `of`, summed over all
    of these; one collective for all of a type whose tensors lie on the same processes."""
    found = list(parts)
    together: dict[tuple, list[int]] = defaultdict(list)
    for i, tensor in enumerate(of):
        if groups := _groups(tensor):
            together[groups, found[i].dtype].append(i)
    for (groups, _), which in together.items():
        flat = torch.cat([found[i].flatten() for i in which])
        for group in groups:
            distributed.all_reduce(flat, group=group)
        for i, one in zip(which, flat.split([found[i].numel() for i in which]), strict=True):
            found[i] = one.view_as(found[i])
    return found


def union(values: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """The distinct values [n], ascending, of all processes that have a part of the tensor `of`."""
    for group in _groups(of):
        every: list[Any] = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(every, values.cpu(), group=group)
        values = torch.cat(every).to(values.device)
    return values.unique()


def _groups(tensor: torch.Tensor) -> tuple:
    """The process groups over which a tensor is divided."""
    if not is_sharded(tensor):
        return ()
    placements = enumerate(tensor.placements)
    return tuple(tensor.device_mesh.get_group(i) for i, each in placements if each.is_shard())


def kth_greatest(tensors: Sequence[torch.Tensor], k: int) -> torch.Tensor:
    """The k-th greatest of all entries; of DTensors, compared as float32, and 0 if that is less.

    Numbers that are not negative are in the order of their bits: the first byte of the k-th follows
    from how many there are of each, the next from the same among those that begin so. Exact, in
    four collectives, and no tensor is ever in one place.
    """
    if not any(map(is_sharded, tensors)):
        device = tensors[0].device  # a model may be on several
        every = torch.cat([each.detach().flatten().to(device) for each in tensors])
        return every.topk(k).values[-1]
    # Zeros have two signs, and one of them would come first.
    positive = [torch.where(each > 0, each, 0.0).float() for each in map(local, tensors)]
    bits = [each.flatten().view(torch.int32) for each in positive]
    found = 0
    for shift in (24, 16, 8, 0):
        counts = [torch.bincount(each >> shift & 255, minlength=256) for each in bits]
        whole = torch.stack([each.cpu() for each in summed(counts, tensors)]).sum(0)
        byte = 255 - int((whole.flip(0).cumsum(0) < k).sum())
        k -= int(whole[byte + 1 :].sum())
        bits = [each[each >> shift & 255 == byte] for each in bits]
        found = found << 8 | byte
    return torch.tensor(found, dtype=torch.int32).view(torch.float32).to(positive[0].device)


def reshard(model: nn.Module) -> None:
    """Free what a forward pass without a backward has left gathered: until then a module of
    fully_shard has other parameters than those that an optimizer trains."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    divided: Any = getattr(fsdp, "FSDPModule", ())
    for module in model.modules():
        if isinstance(module, divided):
            module.reshard()


class Gathered(TensorMap):
    """A state dict of whole tensors: DTensors are gathered one at a time, as each is asked for."""

    def __init__(self, source: Mapping[str, torch.Tensor]) -> None:
        self.source = self._named = source

    def info(self, name: str) -> torch.Tensor:
        """What has the type and shape of a tensor."""
        return self.source[name]

    def __getitem__(self, name: str) -> torch.Tensor:
        return full(self.source[name])
