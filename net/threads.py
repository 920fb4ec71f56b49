"""Work in threads, its results in order; in the calling thread where no other is to be had."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import torch

IN_FLIGHT = 1 << 28  # what may be worked on at the same time; a larger job is alone


def in_order(
    work: Callable[..., Any],
    jobs: Iterable[tuple],
    size: Callable[[tuple], int] = lambda job: 0,
) -> Iterator[Any]:
    """Yield `work(*job)` of every job in the order of the jobs, in PyTorch's number of threads.

    A job is asked for when there is a thread for it. If more than IN_FLIGHT of `size(job)`, in
    bytes, would be worked on with it, it waits for those before it. An exception of `work` is
    raised in its place; jobs that have not begun by then are dropped.
    """
    most = max(1, torch.get_num_threads())
    threads: list[threading.Thread] = []
    waiting: deque[tuple[Future, int]] = deque()
    queue: SimpleQueue = SimpleQueue()
    try:
        for job in jobs:
            held = size(job)
            while waiting and (
                len(waiting) >= most or sum(other for _, other in waiting) + held > IN_FLIGHT
            ):
                yield waiting.popleft()[0].result()
            if len(threads) < most and not started(threads, queue):
                most = len(threads)  # the system gives no more
            if not threads:
                yield work(*job)
                continue
            future: Future = Future()
            queue.put((future, work, job))
            waiting.append((future, held))
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        for future, _ in waiting:
            future.cancel()
        for _ in threads:
            queue.put(None)
        for thread in threads:
            thread.join()


def started(threads: list[threading.Thread], queue: SimpleQueue) -> bool:
    """Add a thread that serves `queue`, if there is one to be had."""
    thread = threading.Thread(target=serve, args=(queue,), daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError):
        return False
    threads.append(thread)
    return True


def serve(queue: SimpleQueue) -> None:
    """Work on (future, work, job) until there comes None."""
    while item := queue.get():
        future, work, job = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(*job))
            except BaseException as error:
                future.set_exception(error)
        del item, future, work, job  # tensors, which would be held until the next job comes
