"""The compiled loops: imported late, cached where that can be, and working where it cannot."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, cwd: Path = ROOT) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


def test_numba_is_not_imported_before_something_is_coded() -> None:
    code = "import sys, net; net.encoding.save, net.huffman.encode; print('numba' in sys.modules)"
    assert python(code) == "False"


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    from net.codec import kernels

    real = numba.njit

    def njit(cache: bool = False, **options: object) -> object:
        def refuse(function: object) -> None:  # what numba says then
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")

        return refuse if cache else real(**options)

    monkeypatch.setattr(numba, "njit", njit)
    counts = kernels.kernel(kernels.count.py_func)(np.array([0, 2, 2], np.uint8), 3)
    assert counts.tolist() == [1, 0, 2]


def test_a_code_of_the_example() -> None:
    from net.codec import kernels

    table = np.array([0b0 << 6 | 1, 0b10 << 6 | 2, 0b11 << 6 | 2], np.uint64)
    out = np.zeros(20, np.uint8)
    symbols = np.array([0, 2, 1], np.uint8)
    assert kernels.pack_words(symbols, table, out, 0) == 5
    assert f"{out[0]:08b}" == "01110000"


def test_lengths_of_the_example() -> None:
    from net.codec import kernels

    lengths = kernels.package_merge(np.array([1, 1, 2, 5]), 3)
    assert lengths.tolist() == [3, 3, 2, 1]


def test_gaps_of_the_example() -> None:
    from net.codec import kernels

    starts, columns = np.array([0, 2, 3]), np.array([1, 3, 0], np.int32)
    one, line, widths = np.ones(4, np.int64), np.arange(4), np.array([0, 4])
    lines = one[:2], line[:2], one, line, widths
    sizes, gaps, order = kernels.block_gaps(starts, columns, *lines)
    assert (gaps.tolist(), order.tolist(), sizes.tolist()) == ([1, 1, 0], [0, 1, 2], [3])
    begins, rows, order = kernels.transpose(starts, columns, np.array([1, 1, 0, 1]))
    assert (begins.tolist(), rows.tolist()) == ([0, 1, 2, 2, 3], [1, 0, 0])
    assert order.tolist() == [2, 0, 1]
    out = np.zeros(3, np.int64)
    assert kernels.places(gaps, np.array([0, 2]), np.arange(4), 4, 1, out)
    assert out.tolist() == [1, 3, 8]
    assert not kernels.places(np.array([8]), np.array([0, 2]), np.arange(4), 4, 1, out)


def test_numbers_of_the_example() -> None:
    from net.codec import kernels

    values, distinct = np.array([7, 7, 5, 7], np.uint64), np.zeros(2, np.uint64)
    numbers = np.zeros(4, np.uint16)
    assert kernels.number(values, distinct, 0, np.zeros(4, np.int32), 62, numbers) == 2
    assert (numbers.tolist(), distinct.tolist()) == ([0, 0, 1, 0], [7, 5])
    more = np.array([7, 9], np.uint64)
    assert kernels.number(more, distinct, 2, np.zeros(4, np.int32), 62, numbers) == -1


def test_coding_without_a_writable_cache(tmp_path: Path) -> None:
    # as in a container of another user: neither beside the code nor at home
    shutil.copytree(ROOT / "net", tmp_path / "net", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import numba.core.caching as c\n"
        "for locator in c.CacheImpl._locator_classes: locator.from_function = lambda *_: None\n"
        "import numpy as np; from net import compensation; from net.codec import kernels\n"
        "print(kernels.count(np.array([0, 2, 2], np.uint8), 3).tolist())\n"
    )
    assert python(code, cwd=tmp_path) == "[1, 0, 2]"
    assert not list(tmp_path.rglob("*.nbi"))
