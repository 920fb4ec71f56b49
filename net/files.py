"""Writing files so that a crash leaves the old file or the new one, never a part of either; and
reading those that anyone may have written."""

import errno
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

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


@contextmanager
def open_regular(path: str | Path) -> Iterator[tuple[BufferedReader, int]]:
    """A regular file, or a link to one, to read from, and its size in bytes.

    A pipe or a device is refused, not waited for. Raises OSError.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        with os.fdopen(handle, "rb", closefd=False) as file:
            yield file, status.st_size
    finally:
        os.close(handle)


def read_file(path: str | Path, limit: int, magic: bytes = b"") -> bytes:
    """What is in a regular file of at most `limit` bytes; of one that does not begin with `magic`
    only the bytes in its place, which are enough to say so.

    Raises OSError, also for what is no regular file, or larger.
    """
    with open_regular(path) as (file, size):
        start = file.read(len(magic))
        if start != magic:
            return start
        if size > limit:
            raise OSError(errno.EFBIG, f"larger than the {limit} bytes that such a file may have")
        # as many as there are: room is made for as many as are asked for
        return start + file.read(max(size - len(magic), 0))


@contextmanager
def one_line(
    path: str | Path,
    error_type: type[UserError],
    advice: str,
    *also: type[Exception],
) -> Iterator[None]:
    """Turn whatever reading the file `path`, which anyone may have written, leads to into an
    `error_type` of one line: "PATH: what is wrong; ADVICE". `also`: further exceptions."""
    expected: tuple[type[Exception], ...] = (*FOREIGN, *also)
    try:
        yield
    except expected as error:
        raise error_type(f"{path}: {reason(error)}; {advice}") from error


FOREIGN = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(RecursionError, MemoryError, OSError, zlib.error),
)


def reason(error: Exception) -> str:
    """What an exception says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "not enough memory for what it holds"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, KeyError):
        return f"no {error}"
    return " ".join(str(error).split()) or type(error).__name__


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
