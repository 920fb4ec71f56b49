"""What a script does as a process of its own: how a signal ends it, and what it finds there.

The scripts call `start` before they import anything that takes time. So this imports only what
the interpreter has loaded already: signal, contextlib and typing take longer than all of `start`.
"""

import _signal  # type: ignore[import-not-found]
import atexit
import os

from .. import unfinished

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

INTERRUPTED = "interrupted; every model on the disk is whole: the earlier one, or the new one"
# Ctrl-C, kill, and a terminal that is closed, which Windows does not tell.
ENDING = [getattr(_signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(_signal, n)]
# How many threads libraries start when they are loaded, and which end the process if they cannot.
NUMBERS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def start() -> None:
    """End this process cleanly on SIGINT (exit code 130), SIGTERM and SIGHUP (as killed by it).

    No exception is raised: imports, compilers and callbacks from C would lose it, or make another
    of it. What is written becomes valid in one step, so a process may end between any two.
    """
    for descriptor in range(3):  # one that is closed would be given to the next file, a model
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR if descriptor else os.O_RDONLY)
    owner = os.getpid()

    def end(number: int, frame: "FrameType | None") -> "NoReturn":
        for other in ENDING:  # a second one cannot break the clean-up
            _signal.signal(other, _signal.SIG_IGN)
        if os.getpid() == owner:  # not a worker that was forked since
            unfinished.remove()
            if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one speaks
                try:  # noqa: SIM105 (contextlib is not loaded)
                    os.write(2, f"\n{INTERRUPTED}\n".encode())  # sys.stderr may be in use
                except OSError:
                    pass
        if number != _signal.SIGINT:  # so that whoever waits sees what has ended it
            _signal.signal(number, _signal.SIG_DFL)
            os.kill(os.getpid(), number)
        os._exit(128 + number)

    for number in ENDING:
        if _signal.getsignal(number) != _signal.SIG_IGN:  # as in the background of a shell
            _signal.signal(number, end)
    # Called last of all: what is then left to do is of no use to anybody, and cannot be handled.
    atexit.register(_signal.signal, _signal.SIGINT, _signal.SIG_IGN)


def limit_threads() -> None:
    """Have libraries that are loaded from now on compute in one thread, where no more are to be
    had: OpenBLAS and OpenMP end the process otherwise."""
    import threading

    wait = threading.Event()
    threads = []
    try:
        for _ in range(3 * (os.cpu_count() or 1)):  # of PyTorch, of NumPy, and our own
            thread = threading.Thread(target=wait.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        os.environ.update(dict.fromkeys(NUMBERS, "1"))
    finally:
        wait.set()
        for thread in threads:
            thread.join()
