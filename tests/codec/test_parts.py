"""Bit strings, integers, sets and tables: round trips, literal bits, malformed ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from net.codec import kernels
from net.codec.bits import PAD, BitReader, BitWriter, HuffmanError, read_set, write_set
from net.codec.codes import Code, read_table, write_small_table, write_table
from net.codec.positions import Integers, write_integers
from net.codec.tensors import read_values, write_values
from tests.test_huffman import bits


def written(writer: BitWriter) -> str:
    """The bits as text."""
    length = writer.length
    data = writer.finish()[:-PAD].tobytes()
    return f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}"[:length]


# --- bit strings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"), [(0, "1"), (1, "0100"), (2, "0101"), (3, "01100"), (7, "00100000")]
)
def test_numbers_bit_by_bit(value: int, text: str) -> None:
    assert written(bits(value)) == text


@pytest.mark.parametrize("value", [0, 1, 2, 6, 7, 8, 2**31, 2**53, 2**63 - 1])
def test_numbers(value: int) -> None:
    assert BitReader(bits(value).finish()).read_number() == value


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 2**64 - 1)), max_size=200),
    st.integers(0, 63),
)
def test_fields(pairs: list[tuple[int, int]], before: int) -> None:
    writer = BitWriter()
    writer.write(0, before)
    values = np.array([value for _, value in pairs], np.uint64)
    writer.write_fields(values, np.array([width for width, _ in pairs], np.uint8))
    text = "0" * before + "".join(f"{v % 2**w:0{w}b}" for w, v in pairs if w)
    assert written(writer) == text


@given(st.binary(max_size=70), st.integers(0, 63), st.integers(1, 8), st.sampled_from("BHIQ"))
def test_bytes(data: bytes, before: int, width: int, kind: str) -> None:
    values = np.frombuffer(data, np.uint8) & ((1 << width) - 1)
    writer = BitWriter()
    writer.write((1 << before) - 1, before)
    words = np.arange(1 << width, dtype=np.uint64) << np.uint64(6) | np.uint64(width)
    writer.append(width * len(values), kernels.pack_words, values, words)
    writer.write(5, 3)
    reader = BitReader(writer.finish())
    assert reader.read(before) == (1 << before) - 1
    shift = 8 * (np.dtype(kind).itemsize - 1)
    below = (1 << shift) - 1
    out = np.full(len(values), below, kind)
    kernels.merge_bits(reader.data, reader.skip(width * len(values)), width, shift, out)
    assert out.tolist() == [value << shift | below for value in values.tolist()]
    assert reader.read(3) == 5


def test_nothing_is_skipped_beyond_the_end() -> None:
    with pytest.raises(HuffmanError, match="the data ends early"):
        BitReader(bits("0" * 24).finish()).skip(25)


# --- integers -----------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 63).flatmap(lambda b: st.integers(0, 2**b - 1)), min_size=1),
    st.integers(1, 100),
)
def test_integers(values: list[int], step: int) -> None:
    writer = BitWriter()
    write_integers(writer, np.array(values, np.int64))
    writer.write(5, 3)
    reader, found = BitReader(writer.finish()), []
    integers = Integers(reader, len(values))
    while integers.left:
        part = np.empty(min(step, integers.left), np.int64)
        integers.take(part)
        found += part.tolist()
    assert found == values
    assert reader.read(3) == 5


def test_integers_bit_by_bit() -> None:
    writer = BitWriter()
    write_integers(writer, np.array([5, 5, 5, 4]))
    # split 1, kept 1: 4 and 5 are token 4 (none for 0 to 3, no bits for 4) and a raw bit
    assert written(writer) == "0001" + "01" + 4 * "110" + "11100000" + "1110"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("1011 00", "0 11100001 0"), "token parameters that no encoder uses"),
        (("0000 01", "0 11100001 0"), "token parameters that no encoder uses"),
        (("0000 00", "110" * 64, "11100000"), "a token beyond 2"),
        (("0000 00", "110" * 20, "11100000", "0" * 50), "the data ends early"),
    ],
)
def test_malformed_integers(parts: tuple, message: str) -> None:
    with pytest.raises(HuffmanError, match=message):
        Integers(BitReader(bits(*parts).finish()), 3)


# --- sets ---------------------------------------------------------------------------------------


@given(st.integers(0, 400).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n)))))
def test_sets(largest_and_members: tuple[int, set[int]]) -> None:
    largest, members = largest_and_members
    writer = BitWriter()
    write_set(writer, np.array(sorted(members), np.int64), largest)
    read = read_set(BitReader(writer.finish()), len(members), largest)
    assert read.tolist() == sorted(members)


@given(st.sets(st.integers(0, 64).flatmap(lambda b: st.integers(0, 2**b - 1)), max_size=50))
def test_sets_of_wide_numbers(members: set[int]) -> None:
    writer = BitWriter()
    write_set(writer, np.array(sorted(members), np.uint64), 2**64 - 1)
    read = read_set(BitReader(writer.finish()), len(members), 2**64 - 1)
    assert read.tolist() == sorted(members)


def test_a_set_bit_by_bit() -> None:
    writer = BitWriter()
    write_set(writer, np.array([2, 3]), 3)
    assert written(writer) == "1111"  # the 3 of 1 to 3, the 2 of 0 to 2
    write_set(writer, np.arange(1000), 999)
    assert writer.length == 0


def test_a_set_that_is_cut() -> None:
    with pytest.raises(HuffmanError, match="the data ends early"):
        read_set(BitReader(bits("1" * 8).finish()), 3, 1 << 40)


# --- tables -------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 2000), min_size=1, max_size=300), st.integers(0, 2**32))
def test_tables(symbols: set[int], seed: int) -> None:
    counts = np.random.default_rng(seed).geometric(0.01, len(symbols))
    code = Code.from_counts(np.array(sorted(symbols)), counts)
    writer = BitWriter()
    write_table(writer, code)
    writer.write_fields(np.zeros(9, np.uint64), np.full(9, 64, np.uint8))
    read = read_table(BitReader(writer.finish()), int(counts.sum()))
    assert np.array_equal(read.symbols, code.symbols)
    assert np.array_equal(read.lengths, code.lengths)


def test_a_small_table_bit_by_bit() -> None:
    writer = BitWriter()
    write_small_table(writer, Code(np.array([0, 2]), np.array([1, 1], np.uint8)))
    assert written(writer) == "111000011100"


def test_rounded_floats_are_stored_in_as_few_bits_as_they_have():
    """12 bits each, with Huffman-coded bytes; by way of float16 it would be 15."""
    fractions = np.random.default_rng(0).integers(0, 64, 32) / 64
    values = np.float32((1 + fractions) / 2.0 ** (np.arange(32) % 3))
    writer = BitWriter()
    write_values(writer, values.view(np.uint32), floating=True)
    assert writer.length <= 12 * 32
    parts = read_values(BitReader(writer.finish()), 32, np.dtype(np.uint32), floating=True)
    found = np.concatenate([part.copy() for _, part in parts])
    assert np.array_equal(found, values.view(np.uint32))
