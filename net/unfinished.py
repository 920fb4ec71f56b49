"""Files and folders of this process that nothing names yet: removed if it ends before they are
finished."""

import _thread  # threading takes longer to load than all that a script does first
import os

_paths: set[str] = set()
# Held while a file or folder is made or renamed. Whoever ends the process keeps it: another thread,
# which runs on until then, would leave what nobody removes any more.
changing = _thread.RLock()
WAIT = 5.0  # seconds for a thread that holds it, on a disk that may not answer


def add(path: str | os.PathLike) -> None:
    """Called before the file is made, in the same block of `changing`."""
    _paths.add(os.fspath(path))


def discard(*paths: str | os.PathLike) -> None:
    """Called before the file gets its name, or is named by another: from then on it stays.

    Several stay from one moment on."""
    names = {os.fspath(path) for path in paths}
    _paths.difference_update(names)


def remove() -> None:
    """Called by what ends the process without unwinding it, as a handler of signals does.

    From then on no other thread makes or renames a file under `changing`."""
    changing.acquire(timeout=WAIT)
    while _paths:
        path = _paths.pop()
        try:
            os.unlink(path)
        except OSError:
            if os.path.isdir(path) and not os.path.islink(path):
                import shutil  # a script that has just begun has not loaded it

                shutil.rmtree(path, ignore_errors=True)


def _forget() -> None:
    """In a forked process: the thread that holds the lock is its parent's."""
    global changing
    changing = _thread.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
