"""Several processes that reach each other by gloo: copies of the one that tests."""

import time

import torch
from torch import distributed, multiprocessing

LONGEST = 300  # seconds; more is a deadlock


def run(work, processes: int, folder, *args, longest: float = LONGEST) -> list:
    """What work(rank, *args) returns in each of the processes."""
    # A new process takes seconds to import torch, but one that may have used CUDA cannot fork.
    method = "spawn" if torch.cuda.is_available() else "fork"
    context = multiprocessing.start_processes(
        _one,
        (work, processes, str(folder), args),
        nprocs=processes,
        join=False,
        start_method=method,
    )
    try:
        deadline = time.monotonic() + longest
        while not context.join(timeout=5):  # which returns when the first has ended, too
            assert time.monotonic() < deadline, "the processes wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(f"{folder}/rank-{rank}", weights_only=False) for rank in range(processes)]


def _one(rank: int, work, processes: int, folder: str, args: tuple) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        *("gloo", f"file://{folder}/meeting-{processes}"), rank=rank, world_size=processes
    )
    found = work(rank, *args)
    torch.save(found, f"{folder}/rank-{rank}")
    distributed.destroy_process_group()
