"""The compiled loops: imported late, and the examples of their docstrings."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


@pytest.mark.exhaustive  # as of the installed copy, in tests/test_package.py
def test_numba_is_not_imported_before_something_is_coded() -> None:
    code = "import sys, net; net.encoding.save, net.huffman.encode; print('numba' in sys.modules)"
    assert python(code) == "False"


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


def test_words_of_the_example() -> None:
    from net.codec import kernels

    words = kernels.canonical_words(np.array([3, 1, 3, 2], np.uint8), 3)
    assert words.tolist() == [0b110, 0b0, 0b111, 0b10]
    assert kernels.canonical_words(np.zeros(1, np.uint8), 0).tolist() == [0]


def test_a_table_with_every_kind_of_entry() -> None:
    from net.codec import kernels

    symbols, lengths = np.array([0, 2, 3, 4]), np.array([4, 1, 2, 4], np.uint8)
    fields, widths = np.empty(5, np.uint64), np.empty(5, np.uint8)
    kernels.table_entries(symbols, lengths, 4, fields, widths)
    entries = [f"{field:0{width}b}" for field, width in zip(fields, widths, strict=True)]
    assert entries == ["0", "110", "11100001", "100", "11100100"]
    kernels.table_entries(np.array([0]), np.array([3], np.uint8), 4, fields[:1], widths[:1])
    assert (fields[0], widths[0]) == (0b101, 3)


@pytest.mark.parametrize("size", [1, 8, 4096, 3 * 4096 + 13])
def test_heads_of_the_lanes_and_their_bits(size: int) -> None:
    from net.codec import LANES, kernels

    values = np.random.default_rng(0).integers(0, 256, size).astype(np.uint16)
    blocks, heads = -(-size // 4096), values >> 3
    counts, totals = np.zeros((blocks, LANES, 32), np.uint16), np.zeros((blocks, 32), np.int64)
    kernels.survey(values, np.uint64(3), 1, counts, totals)
    lengths = np.arange(64, dtype=np.uint16).reshape(2, 32) % 13
    which, sizes = np.arange(blocks) % 2, np.ones(LANES, np.int64)
    kernels.lane_sizes(counts, which, lengths, sizes)
    for b in range(blocks):
        part = heads[4096 * b : 4096 * (b + 1)]
        assert totals[b].tolist() == np.bincount(part, minlength=32).tolist()
        for lane in range(LANES):
            own = np.bincount(part[lane::LANES], minlength=32)
            assert counts[b, lane].tolist() == own.tolist()
            sizes[lane] -= own @ lengths[which[b]]
    assert sizes.tolist() == [1] * LANES


def test_gaps_of_the_example() -> None:
    from net.codec import kernels

    starts, columns = np.array([0, 2, 3]), np.array([1, 3, 0], np.int32)
    one, line, widths = np.ones(4, np.int64), np.arange(4), np.array([0, 4])
    lines = 1, one[:2], line[:2], one, line, widths
    sizes, gaps, order = kernels.block_gaps(starts, columns, *lines)
    assert (gaps.tolist(), order.tolist(), sizes.tolist()) == ([1, 1, 0], [0, 1, 2], [3])
    begins, rows, order = kernels.transpose(starts, columns, np.array([1, 1, 0, 1]))
    assert (begins.tolist(), rows.tolist()) == ([0, 1, 2, 2, 3], [1, 0, 0])
    assert order.tolist() == [2, 0, 1]
    out, last = np.zeros(3, np.int64), np.array([0, -1])
    lines = np.array([0, 2], np.int32), np.arange(4, dtype=np.int32)
    assert kernels.places(gaps[:2], last, *lines, 4, 1, out)
    assert kernels.places(gaps[2:], last, *lines, 4, 1, out[2:])
    assert out.tolist() == [1, 3, 8]
    assert not kernels.places(np.array([8]), np.array([0, -1]), *lines, 4, 1, out)


def test_numbers_of_the_example() -> None:
    from net.codec import kernels

    values, distinct = np.array([7, 7, 5, 7], np.uint64), np.zeros(2, np.uint64)
    numbers, one = np.zeros(4, np.uint16), np.uint64(1)
    assert kernels.number(values, distinct, 0, np.zeros(4, np.int32), 62, one, numbers) == 2
    assert (numbers.tolist(), distinct.tolist()) == ([0, 0, 1, 0], [7, 5])
    more = np.array([7, 9], np.uint64)
    assert kernels.number(more, distinct, 2, np.zeros(4, np.int32), 62, one, numbers) == -1


def test_what_only_prunes_needs_no_numba() -> None:
    code = "import sys, net.pipeline.runs, net.compression; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n"
