"""Work in threads, its results in order; in the calling thread where no other is to be had.

Results come by a SimpleQueue: a signal that interrupts whoever waits for a Future, or for another
lock that is written in Python, may leave it locked, and what waits for the thread waits for ever.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import torch

# For as long as something is switched that all threads share: torch's backends, nn.Module.
SWITCHED = threading.RLock()
IN_FLIGHT = 1 << 28  # bytes that are worked on at the same time; a larger job is alone


def in_order(
    work: Callable[..., Any],
    jobs: Iterable[tuple],
    size: Callable[[tuple], int] = lambda job: 0,
    in_flight: int = IN_FLIGHT,
) -> Iterator[Any]:
    """Yield `work(*job)` of every job in the order of the jobs, in PyTorch's number of threads.

    A job is asked for when there is a thread for it. If more than `in_flight` of `size(job)`, in
    bytes, would be worked on with it, it waits for those before it. An exception of `work` is
    raised in its place; jobs that have not begun by then are dropped.
    """
    most = max(1, torch.get_num_threads())
    threads: list[threading.Thread] = []
    waiting: deque[tuple[SimpleQueue, int]] = deque()
    queue: SimpleQueue = SimpleQueue()
    try:
        for job in jobs:
            held = size(job)
            while waiting and (
                len(waiting) >= most or sum(other for _, other in waiting) + held > in_flight
            ):
                yield _result(waiting.popleft()[0])
            if len(threads) < most and not _started(threads, queue):
                most = len(threads)  # the system gives no more
            if not threads:
                yield work(*job)
                continue
            answer: SimpleQueue = SimpleQueue()
            queue.put((answer, work, job))
            waiting.append((answer, held))
        while waiting:
            yield _result(waiting.popleft()[0])
    finally:
        with suppress(Empty):
            while True:
                queue.get_nowait()
        for _ in threads:
            queue.put(None)
        for thread in threads:
            if thread.is_alive():  # a signal may have kept it from starting
                thread.join()


def _result(answer: SimpleQueue) -> Any:
    """What the work has returned, which is waited for; its exception is raised."""
    found, error = answer.get()
    if error is not None:
        raise error
    return found


def _started(threads: list[threading.Thread], queue: SimpleQueue) -> bool:
    """Add a thread that serves `queue`, if there is one to be had."""
    thread = threading.Thread(target=_serve, args=(queue,), daemon=True)
    # Before it starts: one that a signal kept from the list would take the end of another's work.
    threads.append(thread)
    try:
        thread.start()
    except (RuntimeError, MemoryError):
        threads.remove(thread)
        return False
    return True


def _serve(queue: SimpleQueue) -> None:
    """Work on (answer, work, job) until there comes None."""
    while item := queue.get():
        answer, work, job = item
        try:
            answer.put((work(*job), None))
        except BaseException as error:
            answer.put((None, error))
        del item, answer, work, job  # tensors, which would be held until the next job comes
