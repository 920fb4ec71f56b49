"""Several processes that train one model, as `torchrun --nproc-per-node N` starts them.

Every process holds the model and draws its share of each batch; DistributedDataParallel averages
the gradients, so that weights, masks and centroids are the same on all of them.  One process, the
writer, writes the files and speaks to the user.  Without torchrun all of this is nothing.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from ..errors import UserError, first_line


def start(device: torch.device) -> None:
    """Join the other processes, if torchrun has started any; silence all but the writer.

    `device` is what this process computes on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        return
    backend = "gloo"  # alone where nobody uses a GPU: a barrier would wait on one that is there
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        what = first_line(error)
        raise UserError(f"cannot join the processes of torchrun: {what}") from None
    if not is_writer():  # no terminal there: no progress bars either
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)


def shard() -> tuple[int, int]:
    """(the number of this process, how many there are)."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def is_writer() -> bool:
    return shard()[0] == 0


def wait_for_all() -> None:
    if distributed.is_initialized():
        distributed.barrier()


@contextmanager
def writer_first() -> Iterator[None]:
    """The writer runs the block before the others do: it may download what they then find."""
    if not is_writer():
        wait_for_all()
    yield
    if is_writer():
        wait_for_all()


def by_writer(write: Callable[[], object]) -> None:
    """The writer calls `write`; the others return when it has."""
    if is_writer():
        write()
    wait_for_all()


def leave() -> bool:
    """Part from the other processes; whether this one goes on alone."""
    goes_on = is_writer()
    wait_for_all()
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return goes_on


def parallel(
    model: torch.nn.Module, leaves_some_out: Callable[[], bool] = lambda: False
) -> torch.nn.Module:
    """`model` with gradients averaged over all processes in `backward`, where some parameters may
    have none."""
    if not distributed.is_initialized():
        return model
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else None
    # Buffers are statistics, which `agree` settles in the end.
    with warnings.catch_warnings():  # of a new name that older versions of PyTorch do not know
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.parallel.DistributedDataParallel(
            model,
            device_ids=devices,
            broadcast_buffers=False,
            find_unused_parameters=leaves_some_out(),
        )


def from_writer(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` as the writer has it."""
    if distributed.is_initialized():
        distributed.broadcast(tensor, 0)
    return tensor


def total(*numbers: float) -> list[float]:
    """The sums of `numbers` over all processes."""
    sums = torch.tensor(numbers, dtype=torch.float64)
    if distributed.is_initialized():
        distributed.all_reduce(sums)
    return sums.tolist()


@torch.no_grad()
def agree(model: torch.nn.Module) -> None:
    """Give every process the writer's model, buffers included.

    Gradients are equal everywhere, but not what each process has measured on its own images, such
    as the statistics of a BatchNorm.
    """
    if distributed.is_initialized():
        for tensor in (*model.parameters(), *model.buffers()):
            whole = tensor.detach().contiguous()
            tensor.copy_(from_writer(whole))
