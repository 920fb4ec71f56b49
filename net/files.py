"""Writing files so that a crash leaves the old file or the new one, never a part of either."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from . import unfinished
from .errors import UserError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces `path` when the block ends without an exception.

    The bytes go to a hidden sibling (same file system, so that the rename is atomic), which is
    removed when the block fails.  Raises UserError where `path` cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
        )
    except OSError as error:
        raise unwritable(path, error) from None
    unfinished.add(temporary)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~current_umask())  # mkstemp's 0600 would surprise the user
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from None
        raise
    finally:
        unfinished.discard(temporary)


@contextmanager
def utf8_path(path: str | Path) -> Iterator[str]:
    """A name of the file `path` for code in C++ or Rust, which takes no other than UTF-8.

    A link that lives as long as the block, where the name has bytes of another encoding.
    """
    name = os.fspath(path)
    if name.encode(errors="ignore").decode() == name:
        yield name
        return
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, "link")
        os.symlink(os.path.abspath(name), link)
        yield link


def check_writable(folder: str | Path) -> None:
    """Create `folder` if need be and make sure that files can be written there.

    Called before the work starts: an hour of training must not end in "permission denied".
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from None


def unwritable(path: str | Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}; give another path")


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
