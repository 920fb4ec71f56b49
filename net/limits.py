"""How much memory a process could still have, and giving it back."""

import ctypes
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Names(NamedTuple):
    """What a version of Linux's control groups calls its files, and a line of memory.stat."""

    limit: str
    used: str
    reclaimable: str  # of what is used: copies of files that nobody has looked at of late


SECOND = _Names("memory.max", "memory.current", "inactive_file")
FIRST = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_memory(root: Path = Path("/")) -> float:
    """Bytes, by the system and by the limits of the containers around the process; infinite where
    neither is told, as Linux does. `root` is where proc and sys are."""
    found = re.search(r"MemAvailable: *(\d+) kB", _text(root / "proc/meminfo"))
    available = 1024 * int(found[1]) if found else math.inf
    return min([available, *(_left(folder, names) for folder, names in _groups(root))])


def _groups(root: Path) -> Iterator[tuple[Path, _Names]]:
    """The control groups of the process, and those that these are in: the limits of all hold.

    In a container the path may be that of the host, which is not to be seen; its own is the first.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own, base = PurePosixPath(path.lstrip("/")), root / "sys/fs/cgroup"
        if not controllers:
            yield from ((base / each, SECOND) for each in (own, *own.parents))
        elif "memory" in controllers.split(","):
            yield from ((base / "memory" / each, FIRST) for each in (own, *own.parents))


def _left(group: Path, names: _Names) -> float:
    limit, used = (_text(group / name).strip() for name in (names.limit, names.used))
    if not limit.isdigit() or not used.isdigit():  # "max", or no such group
        return math.inf
    found = re.search(rf"^{names.reclaimable} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
    return max(0, int(limit) - int(used) + (int(found[1]) if found else 0))


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def release_freed() -> None:
    """Give back to the system what has been freed: glibc's allocator keeps what is smaller than
    32 MB, in pieces, which after a few matrices of other sizes are hundreds of megabytes."""
    with suppress(OSError, AttributeError, TypeError):  # another system's
        ctypes.CDLL(None).malloc_trim(0)
