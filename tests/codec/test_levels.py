"""Levels of a matrix: the adaptive coder, the trellis, grids that the values alone tell."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from net.codec.bits import PAD, BitReader, BitWriter, HuffmanError
from net.codec.forms import patterns
from net.codec.levels import MANTISSAS, Grid, Scan
from net.codec.positions import matrix_views, write_integers
from net.codec.tensors import read_tensor, reads_as, write_tensor
from net.rounding import share_tensor
from tests import slow_decoder

SHAPES = [(64, 1), (1, 200), (130, 5), (129, 3, 3), (40, 3, 3, 3), (5, 4, 3, 2, 2), (300, 11)]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def weights(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * scale


def written(tensor: torch.Tensor) -> bytes:
    return write_tensor(tensor).finish()[:-PAD].tobytes()


def read(data: bytes, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    reader = BitReader(np.frombuffer(data + bytes(PAD), np.uint8).copy())
    found = read_tensor(reader, shape, dtype)
    reader.finish()
    return found


def is_levels(data: bytes, dtype: torch.dtype) -> bool:
    bits = f"{int.from_bytes(data[:2], 'big'):016b}"
    return bits.startswith(f"001000000{8 * dtype.itemsize - 1:06b}")


def on_trellis(shape=(200, 30), dtype=torch.float32) -> torch.Tensor:
    return share_tensor(weights(shape).to(dtype), 0.4, trellis=True)


# --- the coder ----------------------------------------------------------------------------------


@settings(max_examples=settings.default.max_examples // 2)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from([0.01, 0.3, 3.0, 60.0, 3000.0]),
    st.booleans(),
    st.integers(0, 3),
    st.integers(0, 2**32),
)
def test_levels_come_back(shape, scale, heavy, view, seed):
    rng = np.random.default_rng(seed)
    drawn = rng.standard_t(1, shape) if heavy else rng.normal(size=shape)
    levels = np.clip(np.rint(drawn * scale), -(1 << 17), 1 << 17).astype(np.int32).ravel()
    scan = Scan(shape, view if view in matrix_views(shape) else 0)
    out = np.empty(levels.size * 32 + 64, np.uint8)
    size = scan.write(levels, out)
    if size > 0:  # nothing but zeros at the end is nothing at all
        assert np.array_equal(scan.read(out[:size].copy()), levels)


def test_levels_without_room():
    levels = np.arange(640, dtype=np.int32)
    for room in (0, 1, 7, 8, 9, 100):
        assert Scan((64, 10), 0).write(levels, np.empty(room, np.uint8)) == -1


def test_known_bytes():
    levels = np.array([0, 1, -1, 0, 2, -3, 0, 0], np.int32)
    out = np.empty(64, np.uint8)
    size = Scan((4, 2), 0).write(levels, out)
    assert out[:size].tobytes().hex() == "b5ee40"


# --- tensors ------------------------------------------------------------------------------------


@settings(max_examples=settings.default.max_examples // 16)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from(list(MANTISSAS)),
    st.sampled_from([0.02, 0.3, 1.0, 2.5]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_rounded_tensors_come_back_and_a_second_decoder_agrees(shape, dtype, step, trellis, seed):
    tensor = share_tensor(weights(shape, seed).to(dtype), step, trellis=trellis)
    data = written(tensor)
    assert torch.equal(read(data, shape, dtype), tensor)
    reader = BitReader(np.frombuffer(data + bytes(PAD), np.uint8).copy())
    assert reads_as(reader, tensor)
    found = slow_decoder.tensor(data, name_of(dtype), list(shape))
    assert found == patterns(tensor).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.uint8])
def test_codebooks_that_are_on_no_grid(dtype):
    rows = torch.arange(200) % 7
    book = torch.tensor([-90, -31, -4, 0, 6, 43, 100]) if dtype.is_signed else torch.arange(7) ** 2
    # Each row has the values of its own size.
    drawn = (weights((200, 60)) * rows[:, None] / 2).round().clamp(-3, 3).long() + 3
    tensor = book[drawn].to(dtype)
    data = written(tensor)
    assert is_levels(data, dtype)
    assert torch.equal(read(data, tensor.shape, dtype), tensor)
    assert slow_decoder.tensor(data, name_of(dtype), [200, 60]) == patterns(tensor).tolist()


def test_what_follows_the_trellis_is_recognised():
    tensor = on_trellis()
    data = written(tensor)
    assert is_levels(data, torch.float32)
    steps = tensor.unique().diff()
    others = written((tensor / steps.min()).round() * steps.min() + 2 * steps.min())
    assert len(data) < 0.85 * len(others)  # moved by two steps, they leave it
    across = tensor.T.contiguous()
    assert len(written(across)) < 1.02 * len(data)


POWERS = torch.arange(200) % 5 % 3  # powers of two


@pytest.mark.parametrize("dtype", list(MANTISSAS))
def test_the_trellis_over_rows_of_different_steps(dtype):
    tensor = weights((200, 60)).to(dtype)
    shared = share_tensor(tensor, 0.4, trellis=True, finer=POWERS)
    data = written(shared)
    assert torch.equal(read(data, (200, 60), dtype), shared)
    assert slow_decoder.tensor(data, name_of(dtype), [200, 60]) == patterns(shared).tolist()
    for power in range(3):
        rows = power == POWERS
        error = (shared - tensor)[rows].double().square().mean().sqrt() * 2**power
        assert 0.1 < error < 0.14  # 0.4 / sqrt(12)
    alone = written(share_tensor(tensor, 0.4, trellis=True))
    # A bit for each power of each weight is what finer rows cost, and little else.
    assert len(data) - len(alone) < 1.2 * int(POWERS.sum()) * 60 / 8


def test_shifts_are_found_where_rows_are_nearly_all_zeros():
    tensor = weights((3000, 40))
    tensor[::2] /= 8
    finer = (torch.arange(3000) < 700).long() * 2
    shared = share_tensor(tensor, 1.0, trellis=True, finer=finer)
    data = written(shared)
    assert bits_of(data)[HEAD + 1 + 12 :].startswith("111111")
    assert torch.equal(read(data, (3000, 40), torch.float32), shared)


def test_rows_that_do_not_tell_their_steps_have_no_trellis():
    tensor = weights((64, 1)) / 4  # where a row of one weight is even, nothing says how
    finer = torch.arange(64) % 4
    shared = share_tensor(tensor, 0.4, trellis=True, finer=finer)
    assert torch.equal(shared, share_tensor(tensor, 0.4, finer=finer))


def test_smaller_where_rows_differ_and_never_larger():
    scales = torch.logspace(-1, 1, 64)[:, None]
    tensor = (weights((64, 100)) * scales).round() + 0.0  # no -0.0
    entropy = sum(-n * np.log2(n / 6400) for n in tensor.unique(return_counts=True)[1].tolist())
    assert len(written(tensor)) < 0.85 * entropy / 8
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 16, (64, 100))).float()
    assert not is_levels(written(noise), torch.float32)  # nothing to gain by 2 %


@pytest.mark.parametrize("dtype", list(MANTISSAS))
@pytest.mark.parametrize("half", [False, True])
def test_grids(dtype, half):
    levels = np.array([-300, -7, -2, -1, 0, 1, 2, 3, 40])
    values = torch.from_numpy(levels * 0.0123)
    values = (values.half() if half else values).to(dtype)
    grid, found = Grid.of(patterns(values), dtype)
    assert found.tolist() == levels.tolist()
    assert np.array_equal(grid.values(levels, dtype), patterns(values))


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 1.3, 2.0, 5.5],
        [0.0, -0.0, 1.0],
        [0.0, -0.0],
        [0.0, 1.0, float("inf")],
        [0.0, 1.0, float("nan")],
        [5.0],
        [0.0, 1e-320, 3e-320],
        [1.0, 1e9],
    ],
)
def test_no_grids(values):
    assert Grid.of(patterns(torch.tensor(values, dtype=torch.float64)), torch.float64) is None


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("dtype", list(MANTISSAS))
def test_the_greatest_value_that_there_is_gives_no_warning(dtype):
    tensor = torch.tensor([torch.finfo(dtype).max, 1.0, 2.0] * 40, dtype=dtype).view(-1, 4)
    assert torch.equal(read(written(tensor), (30, 4), dtype), tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_grids_of_many_values_of_two_bytes(dtype):
    _, found = Grid.of(patterns((torch.arange(-100, 101) * 0.0123).to(dtype)), dtype)
    assert found.tolist() == list(range(-100, 101))
    levels = torch.arange(1, 101) * 0.0123
    nearly = torch.cat([levels, levels[:1] * 1.4]).to(dtype)
    assert Grid.of(patterns(nearly), dtype) is None
    endless = torch.cat([levels, torch.tensor([float("inf"), float("nan")])]).to(dtype)
    assert Grid.of(patterns(endless), dtype) is None
    nothing = torch.arange(0x7F81, 0x7FFF, dtype=torch.int16).view(torch.bfloat16)
    assert Grid.of(patterns(nothing), torch.bfloat16) is None


# --- streams that no encoder writes -------------------------------------------------------------


def bits_of(data: bytes) -> str:
    return f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}"


def bytes_of(bits: str) -> bytes:
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def refused(bits: str, message: str, shape=(200, 30), dtype=torch.float32) -> None:
    data = bytes_of(bits)
    with pytest.raises(HuffmanError, match=message):
        read(data, shape, dtype)
    with pytest.raises((AssertionError, IndexError, OverflowError)):
        slow_decoder.tensor(data, name_of(dtype), list(shape))


HEAD = 15  # bits: dense, form


def test_malformed_grids():
    bits = bits_of(written(on_trellis()))
    at = HEAD + 2  # grid, half
    steps = {"no exponent": "0" * 11, "infinite": "1" * 11}
    for exponent in steps.values():
        refused(bits[:at] + exponent + bits[at + 11 :], "a step that no encoder writes")
    refused(bits[: at + 11] + "111110" + bits[at + 17 :], "a step that no encoder writes")


def test_malformed_shifts():
    shared = share_tensor(weights((200, 30)), 0.4, trellis=True, finer=POWERS)
    bits = bits_of(written(shared))
    at = HEAD + 1 + 12
    assert bits[at : at + 6] == "111111"
    writer = BitWriter()
    write_integers(writer, 2 - POWERS.numpy())
    end = at + 6 + writer.length
    wrong = BitWriter()
    write_integers(wrong, np.full(200, 14))
    too_far = f"{int.from_bytes(wrong.finish().tobytes(), 'big'):b}".zfill(8 * len(wrong.finish()))
    refused(bits[: at + 6] + too_far[: wrong.length] + bits[end:], "a shift beyond the largest")
    trellis = end + 6 + int(bits[end : end + 6], 2)
    assert bits[trellis] == "1"
    without = bits[:trellis] + "0" + bits[trellis + 1 :]
    refused(without, "shifts of rows without the trellis")


def test_levels_beyond_the_type():
    tensor = share_tensor(weights((200, 30)).half(), 0.5, trellis=True)
    bits = bits_of(written(tensor))
    at = HEAD + 2
    exponent = f"{1023 + 15:011b}"  # steps of 2**15, of which float16 has one
    refused(bits[:at] + exponent + bits[at + 11 :], "infinite", dtype=torch.float16)


def test_levels_below_what_is_normal():
    """A process that flushes denormals would decode other weights."""
    bits = bits_of(written(on_trellis()))
    at = HEAD + 2
    refused(bits[:at] + f"{890:011b}" + bits[at + 11 :], "subnormal")
    levels = torch.arange(-300, 301) * 2.0**-130
    assert Grid.of(patterns(levels), torch.float32) is None
    assert Grid.of(patterns(levels.double()), torch.float64) is not None


def test_a_grid_of_integers():
    data = bits_of(written(on_trellis()))
    with pytest.raises(HuffmanError, match="a grid of a type that has none"):
        read(bytes_of(data), (200, 30), torch.int32)


def test_half_of_a_type_that_is_no_wider():
    data = bits_of(written(on_trellis(dtype=torch.bfloat16)))
    bits = data[: HEAD + 1] + "1" + data[HEAD + 2 :]
    with pytest.raises(HuffmanError, match="a step that no encoder writes"):
        read(bytes_of(bits), (200, 30), torch.bfloat16)


def test_shapes_that_have_no_levels():
    data = written(on_trellis())
    for shape in ((6000,), (), (3, 0)):
        with pytest.raises(HuffmanError, match="levels of a shape that has none"):
            read(data, shape, torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data + b"\0", "the levels do not end with the data"),
        (lambda data: data + bytes(40) + b"\1", "the levels do not end with the data"),
        (lambda data: data[:40], "the levels do not end with the data|no levels"),
        (lambda data: data[:8], "no levels|the data ends early"),
        (lambda data: data[:3], "the data ends early"),
    ],
)
def test_ends(change, message):
    with pytest.raises(HuffmanError, match=message):
        read(change(written(on_trellis())), (200, 30), torch.float32)


def test_no_memory_for_what_cannot_be_there():
    data = written(on_trellis())
    with pytest.raises(HuffmanError, match="the data ends early"):
        read(data[:200], (1 << 15, 1 << 15), torch.float32)


def test_long_numbers_are_refused():
    levels = np.full(640, (1 << 17) + 1, np.int32)
    assert Scan((64, 10), 0).write(levels, np.empty(100_000, np.uint8)) == -1
    with pytest.raises(HuffmanError, match="no levels"):  # longer than any Exp-Golomb code
        Scan((64, 10), 0).read(np.array([0] * 2000 + [1], np.uint8))
