"""Heads and tails: which tensors are stored so, every size and width, and what is refused."""

import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from net.codec import BLOCK, heads
from net.codec.bits import BitReader, BitWriter, HuffmanError
from net.codec.heads import HEAD, LEAST, Heads, read_heads
from net.codec.planes import write_planes
from net.codec.tensors import SPLIT, SPLIT_BITS, patterns, read_tensor, reads_as, write_tensor
from tests import slow_decoder
from tests.test_huffman import bits

WIDE = "01 111111 111111"  # a form that no value has: heads and tails follow
ONE = "11100000"  # a small table of the symbol 0 alone
TWO = "11100001 0"  # of the symbols 0 and 1, a bit each


def normal(size: int, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(0, 0.02, size)
    return torch.from_numpy(values)


def round_trip(tensor: torch.Tensor) -> int:
    """The bytes that it takes."""
    data = write_tensor(tensor).finish()
    shape, dtype = tuple(tensor.shape), tensor.dtype
    reader = BitReader(data)
    found = read_tensor(reader, shape, dtype)
    reader.finish()
    assert np.array_equal(patterns(found), patterns(tensor))
    assert reads_as(BitReader(data), tensor)
    return len(data)


def is_split(tensor: torch.Tensor) -> bool:
    reader = BitReader(write_tensor(tensor).finish())
    return not reader.read(1) and reader.read(SPLIT_BITS) == SPLIT


# --- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "size", "split"),
    [
        (torch.float32, 0.85, True),
        (torch.bfloat16, 0.69, True),
        (torch.float16, 0.92, False),  # of so few
        (torch.float64, 0.88, False),  # 12 bits of sign and exponent, and 4 of what is next
    ],
)
def test_weights_of_every_float(dtype: torch.dtype, size: float, split: bool) -> None:
    tensor = normal(3 * BLOCK + 5).to(dtype)
    assert is_split(tensor) == split
    assert round_trip(tensor) < size * tensor.nbytes


def test_complex_weights() -> None:
    tensor = torch.complex(normal(LEAST), normal(LEAST, 1)).to(torch.complex64)
    assert is_split(tensor)
    assert round_trip(tensor) < 0.93 * tensor.nbytes


def test_non_zeros_of_a_sparse_tensor() -> None:
    tensor = normal(20 * BLOCK).float() * (
        torch.from_numpy(np.random.default_rng(0).random(20 * BLOCK)) < 0.2
    )
    round_trip(tensor.reshape(-1, 64))


@given(
    st.integers(HEAD + 1, 64),
    st.integers(LEAST, LEAST + 2 * BLOCK),
    st.integers(0, 63),
    st.integers(0, 99),
)
def test_every_width_size_and_place(width: int, size: int, before: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = np.dtype(f"u{2 if width <= 16 else 4 if width <= 32 else 8}")
    values = rng.integers(0, 1 << 64, size, np.uint64) >> np.uint64(64 - width)
    values >>= rng.integers(0, width, size).astype(np.uint64)
    values[:BLOCK] &= np.uint64((1 << 64) - (1 << (seed % width)))
    values = values.astype(kind)
    writer = BitWriter()
    writer.write((1 << before) - 1, before)
    writer.extend(Heads(values, width).write())
    writer.write(5, 3)
    reader = BitReader(writer.finish())
    assert reader.read(before) == (1 << before) - 1
    parts = [part.copy() for _, part in read_heads(reader, size, width, kind)]
    assert np.array_equal(np.concatenate(parts), values)
    assert reader.read(3) == 5


def test_a_second_decoder_finds_the_same() -> None:
    tensor = normal(LEAST + 3).float()
    tensor[: BLOCK + 1] = tensor[: BLOCK + 1].half().float()  # shorter tails
    tensor[-1] = -0.0
    data = write_tensor(tensor).finish()[:-16].tobytes()
    found = slow_decoder.tensor(data, "float32", [LEAST + 3])
    assert found == patterns(tensor).tolist()


def test_the_bits_of_the_example() -> None:
    """The head 2, one of 1, 2, 3 in the words 0, 10 and 11, and the tail 1."""
    table = "0 110 11100001 100 0"
    lanes = [4, *[0] * 6]
    data = bits("0", WIDE, "00", "0011", 0, table, "1", 0, 2, ONE, *lanes, "10 01").finish()
    found = read_tensor(BitReader(data), (1,), torch.uint8)
    assert found.item() == 72
    assert slow_decoder.tensor(data[:-16].tobytes(), "uint8", [1]) == [72]


# --- what is chosen -----------------------------------------------------------------------------


def test_low_bits_that_are_zero_in_a_block_are_left_out() -> None:
    tensor = normal(8 * BLOCK).float()
    rounded = tensor.clone()
    rounded[: 2 * BLOCK] = rounded[: 2 * BLOCK].half().float()
    assert is_split(rounded)
    assert round_trip(tensor) - round_trip(rounded) > 2 * BLOCK * 13 / 8 - 200


def test_blocks_of_another_scale_have_another_code(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = normal(64 * BLOCK).float()
    tensor[36 * BLOCK :] *= 1000
    size = round_trip(tensor)
    monkeypatch.setattr(heads, "TABLES", {0: 1})
    assert round_trip(tensor) - size > 64 * BLOCK * 0.5 / 8  # half a bit a value


def test_values_with_regular_bytes_are_stored_as_bytes() -> None:
    """Numbers of tokens: the low byte is the same in all, and only the next one varies."""
    rng = np.random.default_rng(0)
    values = 7 + 256 * rng.integers(0, 1 << 16, 4 * BLOCK) + (rng.integers(0, 2, 4 * BLOCK) << 30)
    tensor = torch.from_numpy(values)
    assert not is_split(tensor)
    assert round_trip(tensor) < 4 * BLOCK * (16 + 1) / 8 + 1000


def test_it_is_smaller_than_planes() -> None:
    values = patterns(normal(16 * BLOCK).float())
    assert Heads(values, 32).write().length < 0.995 * write_planes(values, 32).length


# --- what is refused ----------------------------------------------------------------------------

START = ("0", WIDE, "00")  # dense, whole
LANES = [1] * 7  # of 8 values: a bit each, of a tail


def stream(*parts: str | int) -> BitReader:
    return BitReader(bits(*START, *parts, "0" * 64).finish())


def symbol(value: int) -> tuple[str | int, ...]:
    """A table of this symbol alone, with which a block takes no bits."""
    return "1", 0, value, ONE


def test_the_smallest_stream() -> None:
    """One head, 0, for 8 values, and a bit of tail for each."""
    data = bits(*START, "0011", 0, "0", ONE, *symbol(1), *LANES, "01000001").finish()
    found = read_tensor(BitReader(data), (8,), torch.uint8)
    assert found.tolist() == [0, 16, 0, 0, 0, 0, 0, 16]
    assert slow_decoder.tensor(data[:-16].tobytes(), "uint8", [8]) == found.tolist()


@pytest.mark.parametrize("head", [1, 3, 4, 6, 7])
def test_tails_of_more_bits_than_are_looked_at_at_once(head: int) -> None:
    """Heads of a width that the encoder does not choose, 0 or 1 in a bit each, and all the rest."""
    tail = 64 - head
    values = np.random.default_rng(0).integers(0, 2 << tail, 16, np.uint64).tolist()
    text = ["".join(f"{value:0{tail + 1}b}" for value in values[lane::8]) for lane in range(8)]
    tables = f"{head:04b}", 0, "0", TWO, *symbol(tail)
    data = bits(*START, *tables, *map(len, text[1:]), *text).finish()
    found = read_tensor(BitReader(data), (16,), torch.uint64)
    assert patterns(found).tolist() == values
    assert slow_decoder.tensor(data[:-16].tobytes(), "uint64", [16]) == values


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("0000", 0, "0", ONE), "heads of a width"),
        (("1000", 0, "0", ONE), "heads of a width"),  # as wide as the values
        (("1101", 0, "0", ONE), "heads of a width"),
        (("0011", 1, "0", ONE, "0", ONE), "more codes than blocks"),
        (("0011", (1 << 63) - 1), "more codes than blocks"),
        (("0011", 0, *symbol(8)), "a head beyond its width"),
        (("0011", 0, "1", 8, 0), "a code of more words"),  # than there are values
        (("0011", 0, "0", ONE, *symbol(0)), "tails that no value has"),
        (("0011", 0, "0", ONE, *symbol(6)), "tails that no value has"),
        (("0011", 0, "0", ONE, *symbol(64 + 1)), "a block of a code that is not there"),
        (("0011", 0, "0", ONE, "0", TWO), "tails that no value has"),
        (("0011", 0, "0", ONE, *symbol(1), *[1 << 40] * 7), "a lane longer than the data"),
        (("0011", 0, "0", ONE, *symbol(1), 2, *[1] * 6), "a lane does not end where"),
        (("0011", 0, "0", ONE, *symbol(1), 0, *[1] * 6), "a lane does not end where"),
    ],
)
def test_malformed(parts: tuple, message: str) -> None:
    with pytest.raises(HuffmanError, match=message):
        read_tensor(stream(*parts), (8,), torch.uint8)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (("0", WIDE, WIDE), "as wide as their type, or wider"),  # in itself
        (("0", WIDE, "01 111111 000000"), "as wide as their type, or wider"),
        (("0", WIDE, "1"), "half precision for a type that has none"),
    ],
)
def test_malformed_forms(form: tuple, message: str) -> None:
    with pytest.raises(HuffmanError, match=message):
        read_tensor(BitReader(bits(*form, "0" * 64).finish()), (8,), torch.uint8)


def test_a_code_word_of_13_bits() -> None:
    """Lengths 1, 2, 3, ... 13, 13: each table entry says one more than the last."""
    table = "111 00001" + "100" * 12 + "0"
    with pytest.raises(HuffmanError, match="too long for a head"):
        read_tensor(stream("0101", 0, "0", table), (64,), torch.uint8)


def test_every_end_is_noticed() -> None:
    tensor = normal(LEAST).to(torch.bfloat16)
    data = write_tensor(tensor).finish()
    for size in [0, 1, 2, 3, 9, 50, 200, 400, len(data) // 2, len(data) - 17]:
        cut = np.append(data[:size], np.zeros(16, np.uint8))
        with pytest.raises(HuffmanError):
            read_tensor(BitReader(cut), (LEAST,), torch.bfloat16)


def test_a_promise_of_many_values_is_refused_before_there_is_memory_for_them() -> None:
    data = bits(*START, "0011", 0, "0", ONE, *symbol(1), *[1 << 20] * 7).finish()
    tracemalloc.start()
    try:
        with pytest.raises(HuffmanError, match="the data ends early"):
            read_tensor(BitReader(data), (1 << 23,), torch.uint8)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_decoding_takes_little_more_than_the_tensor() -> None:
    tensor = normal(64 * BLOCK).float()
    data = write_tensor(tensor).finish()
    read_tensor(BitReader(data), tuple(tensor.shape), torch.float32)
    tracemalloc.start()
    try:
        read_tensor(BitReader(data), tuple(tensor.shape), torch.float32)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * tensor.nbytes
    finally:
        tracemalloc.stop()


def test_no_stream_of_before_has_this_form() -> None:
    """A shift and a width that together are more than 64 were refused for every type."""
    (form,) = struct.unpack(">H", int(WIDE.replace(" ", ""), 2).to_bytes(2, "big"))
    assert form == SPLIT
    assert (SPLIT >> 6 & 63) + (SPLIT & 63) + 1 > 64
