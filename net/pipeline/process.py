"""What a script does as a process of its own: how a signal ends it, and which descriptors it has.

Imports next to nothing: the scripts call `start` before they import anything that takes time.
"""

import atexit
import os
import signal
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from .. import unfinished

INTERRUPTED = "interrupted; every model on the disk is whole: the earlier one, or the new one"


def start() -> None:
    """End this process cleanly on SIGINT (exit code 130) and SIGTERM (as killed by it), from now.

    No exception is raised: imports, compilers and callbacks from C would lose it, or make another
    of it. What is written becomes valid in one step, so a process may end between any two.
    """
    for descriptor in range(3):  # one that is closed would be given to the next file, a model
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR if descriptor else os.O_RDONLY)
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for other in (signal.SIGINT, signal.SIGTERM):  # a second one cannot break the clean-up
            signal.signal(other, signal.SIG_IGN)
        if os.getpid() == owner:  # not a worker that was forked since
            unfinished.remove()
            if os.environ.get("RANK", "0") == "0":
                write_error(f"\n{INTERRUPTED}\n")
        if number == signal.SIGTERM:  # so that whoever waits sees what has ended it
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        os._exit(128 + number)

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # in the background of a shell
        signal.signal(signal.SIGINT, end)
    if signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
        signal.signal(signal.SIGTERM, end)
    # Called last of all: what is then left to do is of no use to anybody, and cannot be handled.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def write_error(text: str) -> None:
    """To the descriptor: sys.stderr may be in the midst of something."""
    with suppress(OSError):
        os.write(2, text.encode())
