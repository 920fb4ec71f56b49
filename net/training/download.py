"""Downloads that cannot hang a run."""

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


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


@contextmanager
def bounded_waiting(seconds: float = 8.0) -> Iterator[None]:
    """Sockets that give up: torch and torchvision set no timeout, and a host that stalls would
    hang the run."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)


def reason_of(error: Exception) -> str:
    """The first line of what an exception says, or its type."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
