"""Files of this process that nothing names yet: removed if it ends before they are finished."""

import os
from contextlib import suppress

_paths: set[str] = set()


def add(path: str | os.PathLike) -> None:
    """Called before the file is made."""
    _paths.add(os.fspath(path))


def discard(path: str | os.PathLike) -> None:
    """Called before the file gets its name, or is named by another: from then on it stays."""
    _paths.discard(os.fspath(path))


def remove() -> None:
    """Called by what ends the process without unwinding it, as a handler of signals does."""
    while _paths:
        with suppress(OSError):
            os.unlink(_paths.pop())
