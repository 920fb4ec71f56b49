import math

import pytest

from net.limits import free_memory

MEMINFO = "MemTotal: 8000 kB\nMemAvailable:    4000 kB\n"
STAT = "anon 5\ninactive_file 300\ntotal_inactive_file 700\n"


def system(root, cgroup, files):
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup, **files}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group(folder, limit, used, names=("memory.max", "memory.current")):
    texts = (f"{limit}\n", f"{used}\n", STAT)
    folder = f"sys/fs/cgroup/{folder}"
    return {f"{folder}/{n}": text for n, text in zip((*names, "memory.stat"), texts, strict=True)}


def test_what_this_system_says():
    assert 1 << 20 < free_memory() < math.inf


def test_where_nothing_is_told(tmp_path):
    assert free_memory(tmp_path) == math.inf


FIRST = "memory.limit_in_bytes", "memory.usage_in_bytes"


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", group("", 9000, 2000), 7300),
        ("0::/a/b\n", group("a/b", 9000, 2000) | group("a", 5000, 4000), 1300),  # the parent's
        ("0::/a\n", group("a", "max", 2000), 4000 * 1024),
        ("0::/of/the/host\n", group(".", 9000, 2000), 7300),
        ("0::/\n", group("", 1 << 40, 2000), 4000 * 1024),  # more than there is
        ("0::/\n", group("", 1000, 2000), 0),
        ("4:cpu,memory:/a\n0::/\n", group("memory/a", 9000, 2000, FIRST), 7700),
        ("4:cpu:/a\n", group("memory/a", 9000, 2000, FIRST), 4000 * 1024),
    ],
)
def test_the_limit_of_a_container(tmp_path, cgroup, files, expected):
    assert free_memory(system(tmp_path, cgroup, files)) == expected


def test_a_group_whose_name_is_no_text(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_bytes(b"0::/u\xff\n")
    assert free_memory(tmp_path) == math.inf
