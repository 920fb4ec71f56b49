"""Compiled code is cached where that can be, and works where it cannot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from net.codec.compiled import kernel

ROOT = Path(__file__).resolve().parents[2]


def add_one(values: np.ndarray) -> np.ndarray:
    return values + 1


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    real = numba.njit

    def njit(cache: bool = False, **options: object) -> object:
        def refuse(function: object) -> None:  # what numba says then
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")

        return refuse if cache else real(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert kernel(add_one)(np.array([0, 2])).tolist() == [1, 3]


@pytest.mark.exhaustive  # as test_a_cache_on_a_full_disk
def test_coding_without_a_writable_cache(tmp_path: Path) -> None:
    # as in a container of another user: neither beside the code nor at home
    shutil.copytree(ROOT / "net", tmp_path / "net", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import numba.core.caching as c\n"
        "for locator in c.CacheImpl._locator_classes: locator.from_function = lambda *_: None\n"
        "import numpy as np; from net import compensation; from net.codec import kernels\n"
        "print(kernels.count(np.array([0, 2, 2], np.uint8), 3).tolist())\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[1, 0, 2]"
    assert not list(tmp_path.rglob("*.nbi"))


CODE = (
    "import numpy as np, numba.core.caching as c\n"
    "from net.codec import compiled, kernels\n"
    "print(kernels.count(np.array([0, 2, 2], np.uint8), 3).tolist())\n"
)


def counted(cache: Path, code: str = CODE) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (result.stdout, result.stderr) == ("[1, 0, 2]\n", "")


def test_a_cache_on_a_full_disk(tmp_path: Path) -> None:
    counted(tmp_path, f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))\n{CODE}")
    assert not list(tmp_path.rglob("*.nb?"))


@pytest.mark.exhaustive
def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    counted(tmp_path)
    whole = {path: path.stat().st_size for path in tmp_path.rglob("*.nb?")}
    assert whole
    for path in whole:
        path.write_bytes(b"damaged")
    counted(tmp_path)
    assert {path: path.stat().st_size for path in tmp_path.rglob("*.nb?")} == whole


@pytest.mark.exhaustive  # as test_a_cache_on_a_full_disk
def test_a_cache_that_is_no_folder() -> None:
    counted(Path("/dev/full/cache"))


def test_without_a_compiler_there_is_a_line_and_no_verdict_on_the_file(tmp_path):
    code = "import net; net.huffman.encode([1, 2])"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert "UserError: numba compiles nothing" in done.stderr
