"""Writing files so that a crash leaves the old file or the new one, never a part of either; and
reading those that anyone may have written."""

import errno
import io
import os
import secrets
import shutil
import stat
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast
from weakref import WeakValueDictionary

from . import unfinished
from .errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

MANY = 100  # files: waiting for the disk after each takes longer than once for everything
WAIT = 1.0  # seconds for which a folder that somebody else is writing in is waited for


@contextmanager
def atomic_write(path: str | Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces `path` when the block ends without an exception.

    The bytes go to a hidden sibling (same file system, so that the rename is atomic), are synced,
    read back and compared before the rename; the sibling is removed when anything fails.  Links
    are followed.  A file that is replaced keeps its permissions, a new one has those of the umask.
    Without `sync` the caller sees to that, by `sync_files`, before anything depends on the file.
    Raises UserError where `path` cannot be written, or is a folder, a pipe or a device.
    """
    path = Path(path)
    temporary = None
    try:
        target, mode = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # A short name: the target's own may be as long as a name can be.
        temporary = target.with_name(f".{secrets.token_hex(6)}{target.suffix[:12]}.tmp")
        with unfinished.changing:
            unfinished.add(temporary)
            opened = temporary.open("xb")
        with opened as file:
            written = _Written(file)
            yield cast(BinaryIO, written)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if checksum(temporary) != (written.size, written.crc):
            raise OSError(errno.EIO, "what is read back is not what was written")
        if mode is not None:
            with suppress(OSError):  # a file system without permissions, a file of somebody else
                os.chmod(temporary, mode)
        with unfinished.changing:
            os.replace(temporary, target)
    except BaseException as error:
        if temporary:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from None
        raise
    finally:
        if temporary:
            unfinished.discard(temporary)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a hidden folder beside `path` that gets its name when the block ends without an
    exception, and is removed with all that is in it when anything fails.

    There must be nothing at `path`, or an empty folder. That stays the folder that it is, since
    somebody may be in it, and it may have permissions of its own or be another disk: what is
    yielded is in it, and what is there in the end moves up. Raises UserError where it cannot be
    made.
    """
    target = Path(os.path.realpath(path))
    there = os.path.isdir(target)
    temporary = (target if there else target.parent) / f".{secrets.token_hex(6)}.tmp"
    moved: list[Path] = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.changing:
            unfinished.add(temporary)
            temporary.mkdir()
        yield temporary
        for folder, _, _ in os.walk(temporary):
            sync_folder(folder)
        for part in sorted(temporary.iterdir()) if there else ():
            place = target / part.name
            if os.path.lexists(place):  # since
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            moved.append(place)
            with unfinished.changing:
                unfinished.add(place)
                os.rename(part, place)
        if there:
            temporary.rmdir()
        else:
            with unfinished.changing:
                os.rename(temporary, target)
        sync_folder(target if there else target.parent)
    except BaseException as error:
        for left in (*moved, temporary):
            _remove(left)
        if isinstance(error, OSError):
            raise unwritable(path, error) from None
        raise
    finally:
        unfinished.discard(temporary, *moved)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


class _Written(io.RawIOBase):
    """Passes bytes on to a file, and keeps their number and their CRC-32."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.crc = file, 0, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        count = self.file.write(data)
        self.crc = zlib.crc32(data, self.crc)
        self.size += count
        return count


def _target(path: Path) -> tuple[Path, int | None]:
    """Where the bytes of `path` belong, all links followed, and the permissions of what is there.

    Raises OSError for what is not to be replaced by a file."""
    target = Path(os.path.realpath(path))
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return target, None
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a pipe or a device, not a file")
    if not os.access(path, os.W_OK):  # a rename would not ask
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return target, stat.S_IMODE(status.st_mode)


def checksum(path: Path) -> tuple[int, int]:
    """The size of a file and the CRC-32 of what is read from it, a part at a time."""
    size = crc = 0
    with path.open("rb", buffering=0) as file:
        while part := file.read(1 << 20):
            size, crc = size + len(part), zlib.crc32(part, crc)
    return size, crc


def sync_files(paths: Sequence[Path]) -> None:
    """Have these files on the disk before what follows: one after the other, or, where they are
    many and the system waits for it (Linux does), all that it holds at once."""
    if len(paths) > MANY and sys.platform == "linux":
        os.sync()
        return
    mode = "r+b" if os.name == "nt" else "rb"  # Windows syncs what is open for writing
    for path in paths:
        with path.open(mode) as file:
            os.fsync(file.fileno())


def sync_folder(folder: str | Path) -> None:
    """Have what was renamed in `folder` on the disk before what follows, where that can be had."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


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


def as_path(path: str | Path, error_type: type[UserError]) -> Path:
    """Raises `error_type` for what is no name of a file."""
    try:
        found = Path(path)
    except TypeError:
        raise error_type(f"a {type(path).__name__} is no path") from None
    if "\0" in str(found):
        raise error_type(f"{str(found)!r} is no path")
    return found


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two paths are of one file that is there."""
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


@contextmanager
def same_directory() -> Iterator[None]:
    """The working directory is what it was, whatever code of the user's in the block has made of
    it: relative paths mean the same files before and after."""
    try:
        before = os.getcwd()
    except OSError:  # removed: relative paths mean nothing
        before = os.curdir
    try:
        yield
    finally:
        os.chdir(before)


def check_output(path: str | Path) -> None:
    """As `check_writable`, for a file that is to be written, or replaced."""
    try:
        target, _ = _target(Path(path))
    except OSError as error:
        raise unwritable(path, error) from None
    check_writable(target.parent)


def unwritable(path: str | Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}; give another path")


# --- reading --------------------------------------------------------------------------------------


@contextmanager
def open_regular(path: str | Path) -> Iterator[tuple[io.BufferedReader, int]]:
    """A regular file, or a link to one, to read from, and its size in bytes.

    A pipe or a device is refused, not waited for. Raises OSError.
    """
    if "\0" in os.fspath(path):
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
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


# --- one writer in a folder ---------------------------------------------------------------------


class FolderInUse(UserError):
    """Somebody else is writing in the folder."""


class _Lock:
    """A lock on a folder, as long as its descriptor is open: the end of the process ends it."""

    def __init__(self, handle: int) -> None:
        self.handle, self.thread = handle, threading.get_ident()

    def close(self) -> None:
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)

    __del__ = close  # where a signal keeps the block below from closing it


# {(device, inode): lock} of this process
_held: WeakValueDictionary[tuple[int, int], _Lock] = WeakValueDictionary()


@contextmanager
def locked(folder: str | Path) -> Iterator[bool]:
    """Create `folder` if need be, and let nobody else into such a block on it, thread or process.

    The thread that is in one may enter another. The lock is on the folder itself, and leaves no
    file. Yields whether there is one: not every file system, nor Windows, has them. Raises
    FolderInUse where another still writes after a moment, UserError where there is no folder.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise unwritable(folder, error) from None
    key = (status.st_dev, status.st_ino)
    outer = _held.get(key)
    if outer and outer.thread == threading.get_ident():
        yield True
        return
    lock = _lock(folder)
    if lock:
        _held[key] = lock
    try:
        yield lock is not None
    finally:
        if lock:
            _held.pop(key, None)
            lock.close()


def _lock(folder: Path) -> _Lock | None:
    if fcntl is None:
        return None
    try:
        lock = _Lock(os.open(folder, os.O_RDONLY))
    except OSError:
        return None
    until = time.monotonic() + WAIT
    while True:
        try:
            fcntl.flock(lock.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > until:
                raise FolderInUse(
                    f"{folder}: another process is writing here; wait until it has finished, or "
                    "give another folder"
                ) from None
            time.sleep(0.02)
        except OSError:  # of a file system that has none
            return None


def _forget() -> None:
    """In a forked process: the locks are those of its parent, which must not outlive that."""
    for lock in list(_held.values()):
        lock.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
