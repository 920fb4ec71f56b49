import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from net.codec.bits import BitReader, BitWriter
from net.codec.integers import read_integers, write_integers
from net.codec.prefix import JUMP_FROM, SEGMENT, Code, code_lengths
from net.huffman import HuffmanError, decode, encode, read_table, write_table
from tests import slow_decoder


def entropy_bytes(symbols: np.ndarray) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float(np.sum(counts * np.log2(symbols.size / counts))) / 8


def quantized_normal(count: int, seed: int = 0) -> np.ndarray:
    """Numbers of 32 clusters as k-means leaves them, 4.25 bits each."""
    rng = np.random.default_rng(seed)
    return np.clip(np.round(rng.normal(16, 4.6, count)), 0, 31).astype(np.int64)


def sealed(writer: BitWriter) -> bytes:
    body = writer.finish()
    return body + zlib.crc32(body).to_bytes(4, "big")


# --- code words -----------------------------------------------------------------------------


def test_code_words_are_canonical() -> None:
    # in the order of length, ties by symbol
    code = Code.from_counts(np.array([3, 5, 6, 9]), np.array([1, 10, 1, 2]))
    assert code.lengths.tolist() == [3, 1, 3, 2]
    words = [f"{w:0{n}b}" for w, n in zip(code.words.tolist(), code.lengths, strict=True)]
    assert words == ["110", "0", "111", "10"]


def test_of_equal_counts_the_larger_symbol_gets_the_shorter_word() -> None:
    assert code_lengths(np.array([1, 1, 1]), 15).tolist() == [2, 2, 1]


def test_one_symbol_has_no_code_word() -> None:
    code = Code.from_counts(np.array([7]), np.array([3]))
    assert code.lengths.tolist() == [0]
    assert len(encode(np.full(SEGMENT, 7))) <= 10


def test_lengths_are_limited_and_optimal() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    unlimited = code_lengths(np.array(fibonacci), 40)
    assert unlimited.max() == 39
    limited = code_lengths(np.array(fibonacci), 15)
    assert limited.max() == 15
    assert np.sum(2.0 ** -limited.astype(float)) == 1


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=12))
def test_lengths_equal_those_of_huffman(counts: list[int]) -> None:
    total, heap = 0, sorted(counts)
    while len(heap) > 1:
        merged = heap.pop(0) + heap.pop(0)
        total += merged
        heap = sorted([*heap, merged])
    assert int(np.sum(code_lengths(np.array(counts), 15) * np.array(counts))) == total


# --- streams ---------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.uint32, np.int64]),
        st.integers(0, 300),
        elements=st.integers(0, 120),
    )
)
def test_round_trip(symbols: np.ndarray) -> None:
    decoded = decode(encode(symbols))
    assert decoded.dtype == np.int64
    assert np.array_equal(decoded, symbols)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), max_size=60))
def test_round_trip_of_wide_symbols(symbols: list[int]) -> None:
    data = encode(np.array(symbols, np.int64))
    assert decode(data).tolist() == symbols
    assert slow_decoder.stream(data) == symbols


@pytest.mark.parametrize("count", [JUMP_FROM - 1, JUMP_FROM, JUMP_FROM + 1, 200_000])
def test_round_trip_around_the_jump_table(count: int) -> None:
    symbols = quantized_normal(count)
    assert np.array_equal(decode(encode(symbols)), symbols)


@pytest.mark.parametrize("alphabet", [2, 255, 256, 257, 2**16, 2**16 + 1, 150_000])
def test_alphabets(alphabet: int) -> None:
    symbols = np.random.default_rng(0).permutation(np.arange(alphabet).repeat(2))
    data = encode(symbols)
    assert np.array_equal(decode(data), symbols)
    assert len(data) <= 1.04 * entropy_bytes(symbols) + 60


@pytest.mark.parametrize(("symbols", "size"), [([], 5), ([0], 6), ([5] * 1000, 12), ([0, 1], 8)])
def test_small_streams_are_small(symbols: list[int], size: int) -> None:
    data = encode(np.array(symbols, np.int64))
    assert len(data) <= size
    assert decode(data).tolist() == symbols


@pytest.mark.parametrize(("count", "bar"), [(24_000, 1.015), (1_000_000, 1.012)])
def test_size_is_near_the_entropy(count: int, bar: float) -> None:
    symbols = quantized_normal(count)
    assert len(encode(symbols)) <= bar * entropy_bytes(symbols)


def test_any_shape_and_bool() -> None:
    assert decode(encode(np.array([[1, 0], [0, 3]]))).tolist() == [1, 0, 0, 3]
    assert decode(encode(np.array([True, False]))).tolist() == [1, 0]
    assert decode(encode(np.array([2**63 - 1], np.uint64))).tolist() == [2**63 - 1]


def test_golden_bytes() -> None:
    symbols = np.array([1, 0, 2, 1, 1, 3, 1, 0, 5, 1])
    assert encode(symbols).hex() == GOLDEN
    assert slow_decoder.stream(bytes.fromhex(GOLDEN)) == symbols.tolist()


GOLDEN = "235e1e36253270dcdeba20"


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        (np.array([0.5]), "cannot encode float64 symbols; pass integers"),
        (np.array([1, -1]), "cannot encode symbols outside"),
        (np.array([2**63], np.uint64), "cannot encode symbols outside"),
        (np.array(["a"]), "cannot encode <U1 symbols"),
    ],
)
def test_unsuitable_symbols(symbols: np.ndarray, message: str) -> None:
    with pytest.raises(HuffmanError, match=message):
        encode(symbols)


# --- malformed streams ---------------------------------------------------------------------------


def test_every_damaged_byte_and_every_cut_is_refused() -> None:
    data = encode(np.array([1, 0, 2, 1, 1, 3, 1, 0, 5, 1]))
    for i in range(len(data)):
        damaged = bytes(b ^ (0x10 if i == j else 0) for j, b in enumerate(data))
        for bad in (damaged, data[:i], data + data[: i + 1]):
            with pytest.raises(HuffmanError, match="the checksum does not match"):
                decode(bad)


def bits(*parts: int | str) -> BitWriter:
    """Numbers in delta code, and bits as text."""
    writer = BitWriter()
    for part in parts:
        if isinstance(part, int):
            writer.write_number(part)
        for bit in part if isinstance(part, str) else "":
            if bit != " ":
                writer.write(int(bit), 1)
    return writer


ONE_SYMBOL = "0 11100000"  # a small table: symbol 0 with length 0
TWO_SYMBOLS = "0 11100001 0"  # symbols 0 and 1 with length 1
TOO_LONG = "the data ends early"
NO_CODE = "the code lengths do not make a complete prefix code"

MALFORMED = {
    "nothing": (bits(), TOO_LONG),
    "2**60 times one symbol": (bits(1 << 60, ONE_SYMBOL), TOO_LONG),
    "2**60 times two symbols": (bits(1 << 60, TWO_SYMBOLS), TOO_LONG),
    "payload cut": (bits(100, TWO_SYMBOLS, "0" * 20), TOO_LONG),
    "run with a set bit": (bits(1024, ONE_SYMBOL, "1"), "a run with bits that are not zero"),
    "trailing byte": (bits(2, TWO_SYMBOLS, "0" * 20), "3 unexpected bytes at the end"),
    "padding": (bits(1, TWO_SYMBOLS, "0 1"), "the padding bits at the end are not zero"),
    "number of 128 bits": (bits("0000000 1"), "a number of more than 64 bits"),
    "number of 65 bits": (bits("000000 1 000001", "0" * 64), "a number of more than 64 bits"),
    "number of 2**63": (bits("000000 1 000000", "0" * 62 + "1"), "a number beyond 2"),
    "code too full": (bits(3, "0 11100001 100 101"), NO_CODE),
    "code never full": (bits(3, "0", "110" * 1024), NO_CODE),
    "length 32": (bits(3, "0 11111111 100"), "a code length outside 0 to 31"),
    "length in a long form": (bits(3, "0 11100101"), "a code length in a longer form"),
    "wide code of nothing": (bits(3, "1", 0), "a code of no symbols"),
    "wide code of 2**60": (bits(3, "1", 1 << 60, "0000 00 11100001 0"), TOO_LONG),
    "split of 11": (bits(3, "1", 2, "1011 00"), "token parameters that no encoder uses"),
    "kept beyond split": (bits(3, "1", 2, "0000 01"), "token parameters that no encoder uses"),
    "token of 2**63": (
        bits(3, "1", 1, "0000 00", "110" * 64, "11100000"),
        "a token beyond 2",
    ),
    "symbol of 2**63": (
        bits(3, "1", 2, "0000 00", "110" * 63, "11100000", "1" * 124),
        "a symbol beyond 2",
    ),
    "wide code, length 32": (
        bits(3, "1", 1, "0000 00 11100000", "110" * 32, "11100000"),
        "a code length outside 0 to 31",
    ),
    "wide code not full": (
        bits(3, "1", 1, "0000 00 11100000 110 11100000"),
        NO_CODE,
    ),
    "segment too long": (
        bits(1 << 17, TWO_SYMBOLS, 1 << 40, "000000", "0" * (1 << 17)),
        "a segment longer than the data",
    ),
    "segment of another size": (
        bits(1 << 17, TWO_SYMBOLS, 1023, "000000", "0" * (1 << 17)),
        "a segment does not end where the next one begins",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_streams_with_a_good_checksum(case: str) -> None:
    writer, message = MALFORMED[case]
    with pytest.raises(HuffmanError, match=message):
        decode(sealed(writer))


# --- parts ---------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 2**64 - 1)), max_size=200))
def test_bit_strings(pairs: list[tuple[int, int]]) -> None:
    widths = np.array([w for w, _ in pairs], np.int64)
    values = np.array([v & ((1 << w) - 1) for w, v in pairs], np.uint64)
    writer = BitWriter()
    writer.write(5, 3)
    writer.write_array(values, widths)
    reader = BitReader(writer.finish())
    assert reader.read(3) == 5
    assert np.array_equal(reader.read_array(widths), values)
    reader.finish()


@pytest.mark.parametrize("value", [0, 1, 2, 6, 7, 8, 2**31, 2**53, 2**63 - 1])
def test_numbers(value: int) -> None:
    writer = BitWriter()
    writer.write_number(value)
    assert BitReader(writer.finish()).read_number() == value


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 63).flatmap(lambda b: st.integers(0, 2**b - 1)), max_size=80))
def test_integers(values: list[int]) -> None:
    writer = BitWriter()
    write_integers(writer, np.array(values, np.int64))
    assert read_integers(BitReader(writer.finish()), len(values)).tolist() == values


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 2000), min_size=1, max_size=300), st.integers(0, 2**32))
def test_tables(symbols: set[int], seed: int) -> None:
    counts = np.random.default_rng(seed).geometric(0.01, len(symbols))
    code = Code.from_counts(np.array(sorted(symbols)), counts)
    writer = BitWriter()
    write_table(writer, code)
    read = read_table(BitReader(writer.finish()))
    assert np.array_equal(read.symbols, code.symbols)
    assert np.array_equal(read.lengths, code.lengths)
