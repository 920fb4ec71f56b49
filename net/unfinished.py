"""Files and folders of this process that nothing names yet: removed if it ends before they are
finished."""

import os

_paths: set[str] = set()


def add(path: str | os.PathLike) -> None:
    """Called before the file is made."""
    _paths.add(os.fspath(path))


def discard(*paths: str | os.PathLike) -> None:
    """Called before the file gets its name, or is named by another: from then on it stays.

    Several stay from one moment on."""
    names = {os.fspath(path) for path in paths}
    _paths.difference_update(names)


def remove() -> None:
    """Called by what ends the process without unwinding it, as a handler of signals does."""
    while _paths:
        path = _paths.pop()
        try:
            os.unlink(path)
        except OSError:
            if os.path.isdir(path) and not os.path.islink(path):
                import shutil  # a script that has just begun has not loaded it

                shutil.rmtree(path, ignore_errors=True)
