import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from net.codec.bits import PAD, BitWriter
from net.codec.codes import LANES_FROM, RUN, Code, code_lengths
from net.huffman import HuffmanError, decode, encode
from tests import slow_decoder


def entropy_bytes(symbols: np.ndarray) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float(np.sum(counts * np.log2(symbols.size / counts))) / 8


def quantized_normal(count: int, seed: int = 0) -> np.ndarray:
    """Numbers of 32 clusters as k-means leaves them, 4.25 bits each."""
    rng = np.random.default_rng(seed)
    return np.clip(np.round(rng.normal(16, 4.6, count)), 0, 31).astype(np.int64)


def sealed(writer: BitWriter) -> bytes:
    body = writer.finish()[:-PAD].tobytes()
    return body + zlib.crc32(body).to_bytes(4, "big")


# --- code words -----------------------------------------------------------------------------


def test_a_count_that_no_block_divides() -> None:
    # what version 1 could not read: at least 131,072 symbols, 1021 to 1023 beyond a segment
    symbols = np.random.default_rng(0).integers(0, 7, 132_093)
    assert np.array_equal(decode(encode(symbols)), symbols)


def test_code_words_are_canonical() -> None:
    # in the order of length, ties by symbol
    code = Code.from_counts(np.array([3, 5, 6, 9]), np.array([1, 10, 1, 2]))
    assert code.lengths.tolist() == [3, 1, 3, 2]
    words = [f"{w:0{n}b}" for w, n in zip(code.words().tolist(), code.lengths, strict=True)]
    assert words == ["110", "0", "111", "10"]


def test_a_stream_bit_by_bit() -> None:
    # how many; a small table: none for 0, 1 bit for 1, none for 2, 1 bit for 3; the words
    stream = "01100" + "0" + "110" + "11100001" + "110" + "0" + "100"
    assert f"{int.from_bytes(encode(np.array([3, 1, 1]))[:-4], 'big'):024b}" == stream


def test_of_equal_counts_the_larger_symbol_gets_the_shorter_word() -> None:
    assert code_lengths(np.array([1, 1, 1]), 15).tolist() == [2, 2, 1]


def test_one_symbol_has_no_code_word() -> None:
    code = Code.from_counts(np.array([7]), np.array([3]))
    assert code.lengths.tolist() == [0]
    assert len(encode(np.full(RUN, 7))) <= 10


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


@given(st.lists(st.integers(0, 2**63 - 1), max_size=60))
def test_round_trip_of_wide_symbols(symbols: list[int]) -> None:
    data = encode(np.array(symbols, np.int64))
    assert decode(data).tolist() == symbols
    # neighbours beyond 2**53 are one float64
    near = np.array([each | 1 << 61 for each in symbols] + symbols, np.uint64)
    assert decode(encode(near)).tolist() == near.tolist()
    assert slow_decoder.stream(data) == symbols


@pytest.mark.parametrize("count", [LANES_FROM - 1, LANES_FROM, LANES_FROM + 1, 200_000])
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
    assert decode(encode(np.arange(9)[::2])).tolist() == [0, 2, 4, 6, 8]
    for kind in (">i8", ">u2", "<i4"):  # of the other byte order
        assert decode(encode(np.array([1, 300, 7], kind))).tolist() == [1, 300, 7]
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
    "more words than symbols": (bits(3, "1", 3), "a code of more words than there are symbols"),
    "wide code of 2**60": (bits(1 << 60, "1", (1 << 60) - 1), "a code of more words than there"),
    "symbol of 2**63": (bits(3, "1", 1, 2**63 - 1), "a symbol beyond 2"),
    "wide code cut": (bits(30, "1", 20, 2**40, "0" * 32), TOO_LONG),
    "wide code, length 32": (
        bits(3, "1", 0, 5, "110" * 32, "11100000"),
        "a code length outside 0 to 31",
    ),
    "wide code not full": (bits(3, "1", 0, 5, "110 11100000"), NO_CODE),
    "length of 16 for 17 symbols": (
        bits(3, "0 11100001", "100" * 15, "0", "000"),
        "a code word longer than its code needs",
    ),
    "lane too long": (
        bits(1 << 17, TWO_SYMBOLS, 1 << 40, *[1] * 6, "0" * (1 << 17)),
        "a lane longer than the data",
    ),
    "lane of another size": (
        bits(1 << 17, TWO_SYMBOLS, 16383, *[16384] * 6, "0" * (1 << 17)),
        "a lane does not end where the next one begins",
    ),
    "lane cut": (
        bits(1 << 17, "0 11100001 100 0", *[16384] * 7, "0" * 7 * 16384, "1" * 16384),
        TOO_LONG,
    ),
    "last word cut": (bits(6, "0 11100001 100 0", "000001"), TOO_LONG),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_streams_with_a_good_checksum(case: str) -> None:
    writer, message = MALFORMED[case]
    with pytest.raises(HuffmanError, match=message):
        decode(sealed(writer))


@pytest.mark.parametrize("given", [None, 3, "abc", [1, 2], np.array(["2020-02-02"], "M8[D]")])
def test_what_is_no_stream(given):
    with pytest.raises(HuffmanError, match="pass bytes"):
        decode(given)


def test_what_is_no_array():
    with pytest.raises(HuffmanError, match="no array of integers"):
        encode([[1], [1, 2]])
