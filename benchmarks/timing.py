"""What several benchmarks measure by."""

import statistics
import time
from collections.abc import Callable

import torch


def medians(
    *works: Callable[[], object], repeat: int = 5, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median seconds of each, taking turns; what a GPU has been given counts until it is done."""
    seconds = [[] for _ in works]
    for work in works:  # warm up
        work()
    for _ in range(repeat):
        for work, taken in zip(works, seconds, strict=True):
            start = clock()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(clock() - start)
    return [statistics.median(taken) for taken in seconds]
