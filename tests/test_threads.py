import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from net import threads
from net.threads import in_order


@pytest.fixture(params=[0, 1, 4])
def most(request, monkeypatch):
    """How many threads the system gives; PyTorch asks for three."""
    begun, start = [], threading.Thread.start

    def limited(thread):
        if len(begun) == request.param:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    return request.param


def test_results_in_order_each_once(most):
    seen = []

    def work(i):
        time.sleep(0.002 * (i % 3))
        seen.append(i)
        return i * i

    assert list(in_order(work, ((i,) for i in range(20)))) == [i * i for i in range(20)]
    assert sorted(seen) == list(range(20))


def test_no_job_and_no_thread_is_left(most):
    before = threading.active_count()
    assert list(in_order(print, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda i: 1 // i, [(1,), (0,), (1,), (1,)]))
    assert threading.active_count() == before


def test_jobs_wait_for_memory(most):
    held, peak = [], []

    def jobs():
        for i in range(9):
            held.append(i)
            peak.append(len(held))
            yield (i,)

    for i in in_order(lambda i: i, jobs(), lambda job: threads.IN_FLIGHT):
        held.remove(i)
    assert max(peak) <= 2  # one is worked on, the next is asked for


@pytest.mark.exhaustive
def test_an_interrupt_at_any_moment_leaves_no_thread_waiting():
    """What it interrupts must not stay locked: the thread that is joined would wait for ever."""
    code = """
import random, signal, torch
from net.threads import in_order
torch.set_num_threads(2)
def work(i):
    return sum(range(i % 50))
interrupted = 0
for _ in range(400):
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-4, 2e-3))
        for _ in in_order(work, ((i,) for i in range(100_000))):
            pass
    except KeyboardInterrupt:
        interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
print(interrupted)
"""
    command = [sys.executable, "-c", code]
    run = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60
    )
    # All of them, but for one that came while an object was deleted, where Python drops it.
    assert int(run.stdout) >= 380, run.stderr
