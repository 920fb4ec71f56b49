"""Downloads that cannot hang a run."""

import io
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from typing import TextIO

from ..errors import UserError
from ..files import reason


@contextmanager
def downloading(urls: Sequence[str], problem: str, hint: str) -> Iterator[None]:
    """A block that downloads from one of `urls`. Raises UserError, "`problem` and ...; `hint`",
    where no host answers, and for whatever goes wrong.

    A probe bounds what a silent host can cost. Sockets give up: torch and torchvision set no
    timeout, and a host that stalls would hang the run.
    """
    if not reachable(urls):
        raise UserError(f"{problem} and no host that has it answers; {hint}")
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(8.0)
    try:
        # torchvision's bar is drawn into files as well
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(_WithoutBars(sys.stderr)):
            yield
    except MemoryError:
        raise
    except Exception as error:  # of the network, the hash or the disk
        raise UserError(f"{problem} and cannot be downloaded ({reason(error)}); {hint}") from None
    finally:
        socket.setdefaulttimeout(previous)


class _WithoutBars(io.TextIOBase):
    """A stream without what tqdm draws, which begins with a return, and the line end after it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.within_line = stream, False

    def write(self, text: str) -> int:
        if "\r" not in text and (self.within_line or text != "\n"):
            self.stream.write(text)
            self.within_line = not text.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


def reachable(urls: Sequence[str], seconds: float = 6.0) -> bool:
    """Whether one of `urls` answers in time.

    In threads, since no timeout of a socket covers the name look-up.
    """
    answered = threading.Event()

    def probe(url: str) -> None:
        try:
            urllib.request.urlopen(url, timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:  # a folder without an index: the host is there
            answered.set()
        except OSError:
            pass

    threads = [threading.Thread(target=probe, args=(url,), daemon=True) for url in urls]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:  # no thread to be had: the time of a name look-up is then the system's
        for url in urls:
            probe(url)
    while any(thread.is_alive() for thread in threads) and seconds > 0 and not answered.wait(0.1):
        seconds -= 0.1
    return answered.is_set()
