"""Round trips around every structural boundary: counts, symbol types, numbers of symbols."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from net import encoding
from net.codec.codes import LANES, LANES_FROM, PART, RUN
from net.codec.tensors import MANY
from net.huffman import decode, encode
from tests import fuzz

POWERS = sorted({2**b + d for b in range(2, 20) for d in (-2, -1, 0, 1, 2)})
BLOCKS = sorted(
    {
        block * times + d
        for block in (LANES, RUN, PART, MANY, LANES_FROM, LANES * PART)
        for times in (1, 2, 3, 127, 128, 129)
        for d in (-3, -2, -1, 0, 1, 2, 3)
        if block * times <= 600_000
    }
)


@pytest.fixture(scope="module")
def numbers() -> np.ndarray:
    return np.random.default_rng(0).geometric(0.3, 1 << 20) - 1


@pytest.mark.parametrize("counts", [range(700), POWERS, BLOCKS], ids=["few", "powers", "blocks"])
def test_every_count_of_symbols(counts: list[int], numbers: np.ndarray) -> None:
    for count in counts:
        assert np.array_equal(decode(encode(numbers[:count])), numbers[:count]), count


@settings(max_examples=settings.default.max_examples // 2)
@given(
    st.integers(0, 600_000),
    st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "bool"]),
    st.sampled_from([1, 2, 3, 5, 31, 255, 256, 257, 1023, 1024, 1025, 40_000, 65_536, 70_000]),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_any_count_type_and_alphabet(
    count: int, kind: str, distinct: int, seed: int, far: bool
) -> None:
    rng = np.random.default_rng(seed)
    dtype = np.dtype(kind)
    most = 1 if dtype.kind == "b" else min(int(np.iinfo(dtype).max), 2**63 - 1)
    step = max(most // distinct, 1) if far else 1
    symbols = np.minimum(rng.integers(0, distinct, count), most // step).astype(np.int64) * step
    assert np.array_equal(decode(encode(symbols.astype(dtype))), symbols)


@settings(max_examples=settings.default.max_examples // 8)
@given(
    st.integers(0, 200_000),  # streams have lanes from 2**17 on
    st.sampled_from([0.0, 1e-4, 0.02, 0.3, 0.9, 1.0]),
    st.sampled_from([1, 2, 32, 257, 70_000]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.float64]),
    st.integers(0, 2**32),
)
def test_any_tensor_through_a_folder(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    density: float,
    distinct: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(1, distinct + 1, count) * (rng.random(count) < density)
    flat = torch.from_numpy(values).to(dtype)
    state = {"flat": flat, "rows": flat[: count // 7 * 7].reshape(-1, 7)}
    folder = tmp_path_factory.mktemp("folder")
    encoding.save(state, folder)
    assert fuzz.same(encoding.load(folder)[0], state)


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("density", [0.03, 0.5])
def test_every_boundary_through_a_folder(
    tmp_path: Path, density: float, every: int, numbers: np.ndarray
) -> None:
    rng = np.random.default_rng(1)
    values = torch.from_numpy(np.where(rng.random(1 << 20) < density, numbers + 1, 0)).float()
    counts = [*range(70), *POWERS[:: 3 * every], *BLOCKS[:: 5 * every]]
    state = {str(count): values[:count].clone() for count in counts}
    encoding.save(state, tmp_path)
    assert fuzz.same(encoding.load(tmp_path)[0], state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_every_boundary_of_raw_values(tmp_path: Path, dtype: torch.dtype) -> None:
    normal = torch.randn(LANES * PART + 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    ends = [block + d for block in (PART, MANY, LANES_FROM, LANES * PART) for d in (-1, 0, 1, 3)]
    state = {str(end): normal[:end].clone() for end in ends}
    encoding.save(state, tmp_path)
    assert fuzz.same(encoding.load(tmp_path)[0], state)


def test_what_is_decoded_in_parts_is_counted_whole(tmp_path: Path, numbers: np.ndarray) -> None:
    values = torch.from_numpy(np.minimum(numbers, 4)).float()
    info = encoding.write({"weight": values}, tmp_path).tensors[0]
    assert len(values) > LANES * PART
    assert info.kind == "dense shared"
    assert info.value_stream.frequencies.tolist() == np.bincount(np.minimum(numbers, 4)).tolist()
