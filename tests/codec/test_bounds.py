"""Time and memory are bounded by what is read and what it is read into, whatever the bits claim."""

import tracemalloc

import numpy as np
import pytest
import torch

from net import huffman
from net.codec import kernels
from net.codec.bits import BitReader, BitWriter, HuffmanError
from net.codec.codes import Code, read_table
from net.codec.tensors import MULTIPLIERS, _numbered, read_tensor, write_tensor
from tests.test_huffman import bits

ONE = "11100000"  # a small table of the symbol 0 alone


def runs(count: int) -> str:
    """``count`` symbols of a code of one."""
    return "0" * (count // 1024)


def peak(reader: BitReader, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, int]:
    """The tensor, and the most bytes that reading it has taken."""
    tracemalloc.start()
    try:
        return read_tensor(reader, shape, dtype), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
@pytest.mark.parametrize("raw", [False, True])
def test_runs_of_non_zeros_take_four_times_the_tensor_at_most(
    dtype: torch.dtype, raw: bool
) -> None:
    """All elements but one, in runs; of bytes, int64 positions alone would be eight times that."""
    n = 1 << 20
    positions = ["1", n - 1, "00", 0, "000", 0, "000", "0000 00", ONE, runs(n - 1)]
    values = (
        ["00 0", *["1 0", ONE, runs(n - 1)] * dtype.itemsize]
        if raw
        else [*("00 1", 0, "0" * 8 * dtype.itemsize, "0", ONE, runs(n - 1))]
    )
    data = bits(*positions, *values).finish()
    read_tensor(BitReader(data), (1 << 10, n >> 10), dtype)  # what is compiled takes memory, too
    tensor, most = peak(BitReader(data), (1 << 10, n >> 10), dtype)
    assert most < 4 * (tensor.nbytes + len(data)) + (1 << 19)


@pytest.mark.exhaustive
def test_lanes_of_a_sparse_tensor_come_in_order() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(1, 200, (3000, 300)) * (rng.random((3000, 300)) < 0.24)
    tensor = torch.from_numpy(values.astype(np.float32))
    data = write_tensor(tensor).finish()
    assert torch.equal(read_tensor(BitReader(data), (3000, 300), torch.float32), tensor)


def test_a_table_of_symbols_that_are_not_wanted_is_refused_before_it_is_read() -> None:
    reader = BitReader(bits("1", 999, 0, "0" * 1000).finish())
    with pytest.raises(HuffmanError, match="a byte beyond its width"):
        read_table(reader, 1 << 20, 255, "a byte beyond its width")


def test_a_codebook_is_no_larger_than_its_values() -> None:
    reader = BitReader(bits("0 00 1", 9).finish())
    with pytest.raises(HuffmanError, match="a codebook of too many values"):
        read_tensor(reader, (9,), torch.float32)


def colliding(multiplier: int, count: int) -> np.ndarray:
    """Values whose products with ``multiplier`` are 0, 1, 2, ...: one slot of the hash table."""
    return np.arange(count, dtype=np.uint64) * np.uint64(pow(multiplier, -1, 1 << 64))


def test_values_that_collide_are_numbered_by_another_hash() -> None:
    values = colliding(MULTIPLIERS[0], 20_000)
    distinct, slots = np.zeros(30_000, np.uint64), np.zeros(1 << 16, np.int32)
    numbers = np.zeros(20_000, np.uint16)
    known = distinct, 0, slots, 48
    assert kernels.number(values, *known, np.uint64(MULTIPLIERS[0]), numbers) == -2
    found, of = _numbered(np.repeat(values, 2))
    assert of is not None
    assert np.array_equal(found, values)
    assert np.array_equal(found[of], np.repeat(values, 2))


def test_values_that_collide_under_every_hash_are_stored_raw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("net.codec.tensors.MULTIPLIERS", MULTIPLIERS[:1])
    tensor = torch.from_numpy(np.tile(colliding(MULTIPLIERS[0], 20_000).view(np.int64), 2))
    data = write_tensor(tensor).finish()
    assert torch.equal(read_tensor(BitReader(data), (40_000,), torch.int64), tensor)


def skewed(size: int) -> Code:
    """Two symbols of 1 and 2 bits, and all others of 2 more than a code of fixed width has."""
    counts = np.ones(size, np.int64)
    counts[:2] = 4 * size, 2 * size
    return Code.from_counts(np.arange(size), counts)


@pytest.mark.parametrize("size", [3, 50, 1 << 18])
def test_long_words_are_found_without_a_table(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("net.codec.codes.LARGE_TABLE", 0)
    code, symbols = skewed(size), np.arange(size)
    writer = BitWriter()
    code.write(writer, symbols)
    data, names = writer.finish(), symbols.astype(np.uint64)
    monkeypatch.setattr("net.codec.kernels.unpack_words", None)
    assert np.array_equal(code.read(BitReader(data), size, names), symbols)
    with pytest.raises(HuffmanError, match=r"the data ends early|a lane longer"):
        code.read(BitReader(data[:-2]), size, names)


def test_a_code_of_many_long_words_takes_no_more_than_what_it_codes() -> None:
    symbols = np.append(np.arange(1 << 20), np.zeros(1 << 20, np.int64))
    data = huffman.encode(np.append(symbols, np.ones(1 << 19, np.int64)))
    huffman.decode(data)
    tracemalloc.start()
    try:
        found = huffman.decode(data)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 4 * (found.nbytes + len(data))
