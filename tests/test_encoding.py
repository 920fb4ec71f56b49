import errno
import itertools
import json
import math
import os
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from net import encoding
from net.codec import manifest
from net.codec.bits import PAD, BitReader, BitWriter, HuffmanError, read_set, write_set
from net.codec.positions import MAX_LINES, Positions, write_positions
from net.codec.tensors import DTYPES, patterns, read_tensor, reads_as, write_tensor
from net.encoding import EncodingError, directory_bytes, load, save
from net.tensors import identity, tie_of
from tests import fuzz, slow_decoder
from tests.test_huffman import bits


def round_trip(tensor: torch.Tensor) -> int:
    """Assert that the bits survive; return how many bytes they took."""
    data = write_tensor(tensor).finish()
    reader = BitReader(data)
    decoded = read_tensor(reader, tuple(tensor.shape), tensor.dtype)
    reader.finish()
    assert decoded.dtype == tensor.dtype
    assert decoded.shape == tensor.shape
    assert np.array_equal(patterns(decoded), patterns(tensor))
    return len(data) - PAD


def random_bits(
    shape: tuple[int, ...], dtype: torch.dtype, density: float, seed: int
) -> torch.Tensor:
    """Any bit patterns: NaN with any payload, infinities, denormals, -0.0."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 2 if dtype == torch.bool else 256, (*shape, dtype.itemsize), np.uint8)
    raw *= (rng.random(shape) < density)[..., None]
    return torch.from_numpy(raw.reshape(-1)).view(dtype).reshape(shape)


def pruned(
    shape: tuple[int, ...], density: float, clusters: int = 8, seed: int = 0
) -> torch.Tensor:
    """A pruned and weight-shared layer, denser in some rows and columns than in others."""
    rng = np.random.default_rng(seed)
    weight = rng.laplace(size=shape)
    for axis, extent in enumerate(shape):
        scale = np.exp(rng.normal(0, 1, extent))
        weight *= scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    kept = np.abs(weight) > np.quantile(np.abs(weight), 1 - density)
    codebook = np.sort(rng.normal(0, 0.1, clusters)).astype(np.float16).astype(np.float32)
    return torch.from_numpy(np.where(kept, rng.choice(codebook, shape), 0).astype(np.float32))


def lenet(density: float = 0.08) -> dict[str, torch.Tensor]:
    state = {}
    for i, shape in enumerate([(300, 784), (100, 300), (10, 100)], start=1):
        state[f"fc{i}.weight"] = pruned(shape, density, seed=i)
        state[f"fc{i}.bias"] = torch.linspace(-1, 1, shape[0])
    return state


# --- tensors ----------------------------------------------------------------------------------


@given(
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(0, 7), max_size=4).map(tuple),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.integers(0, 2**32),
)
def test_any_bits_of_any_type_and_shape(
    name: str, shape: tuple[int, ...], density: float, seed: int
) -> None:
    round_trip(random_bits(shape, DTYPES[name], density, seed))


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_type_shared_and_sparse(name: str) -> None:
    few = random_bits((4,), DTYPES[name], 1, 0)
    index = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (30, 40)))
    round_trip(few.view(torch.uint8).reshape(4, -1)[index].view(DTYPES[name]).reshape(index.shape))
    round_trip(random_bits((30, 40), DTYPES[name], 0.1, 0))


@pytest.mark.parametrize("distinct", [1, 2, 255, 256, 257, 65_536, 70_000])
def test_numbers_of_distinct_values(distinct: int) -> None:
    values = torch.arange(distinct, dtype=torch.float32) + 0.5
    round_trip(values)
    round_trip(values.repeat(3))


def test_no_form_is_longer_than_the_elements(tmp_path: Path) -> None:
    # all 65,536 patterns, twice: shared values would take more than raw ones
    state = {"a": torch.arange(-(1 << 15), 1 << 15).repeat(2).to(torch.int16)}
    save(state, tmp_path)
    assert fuzz.same(load(tmp_path)[0], state)
    assert directory_bytes(tmp_path) <= 2 * (1 << 17) + 64


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([-0.0, 0.0, math.inf, -math.inf, math.nan, 1e-45]),
        torch.randn(20, 30).t(),
        torch.randn(20, 30)[::2, ::3],
        torch.zeros(1).expand(50, 4),
        torch.ones(5)[::3][:1],
        torch.randn(4, dtype=torch.complex64).conj(),
        torch.randn(4, dtype=torch.complex64).conj().imag,
        torch.nn.Parameter(torch.randn(3)),
        torch.zeros(1, MAX_LINES + 5).index_fill_(1, torch.tensor([3, MAX_LINES + 4]), 1.0),
        (torch.arange(500_000) % 70_001 == 70_000).float(),
        torch.zeros(1, 1, 1, 1),
        torch.randn(1, 500) * (torch.rand(1, 500) < 0.1),
        torch.randn(500, 1) * (torch.rand(500, 1) < 0.1),
    ],
)
def test_special_tensors(tensor: torch.Tensor) -> None:
    round_trip(tensor)


@pytest.mark.parametrize(
    "shape", [(300, 100), (12, 8, 5, 5), (40, 3, 11), (3000,), (2, 3, 4, 5, 6)]
)
@pytest.mark.parametrize("density", [0.002, 0.05, 0.4, 0.95])
def test_pruned_layers(shape: tuple[int, ...], density: float) -> None:
    round_trip(pruned(shape, density))


@pytest.mark.parametrize(
    ("tensor", "size"),
    [
        (torch.zeros(1000, 1000), 1),
        (torch.zeros(0, 3), 1),
        (torch.ones(64), 6),
        (torch.tensor(0), 1),
        (torch.tensor(1000), 4),
        (torch.tensor(1.5), 5),
        (torch.randn(10, generator=torch.Generator().manual_seed(0)), 41),
        (torch.arange(10).float(), 22),  # exact in half precision
        (torch.arange(1000), 1260),  # 10 bits each
    ],
)
def test_small_tensors_are_small(tensor: torch.Tensor, size: int) -> None:
    assert round_trip(tensor) <= size


def test_dead_rows_and_columns_cost_next_to_nothing() -> None:
    live = pruned((30, 40), 0.1)
    padded = torch.zeros(300, 784)
    padded[100:130, 300:340] = live
    assert round_trip(padded) <= round_trip(live) + 16


def test_uneven_density_pays() -> None:
    # the entropy of the mask under one density for all elements, and 4 bits for 16 clusters
    layer = pruned((300, 784), 0.05, clusters=16)
    p, n = 0.05, layer.numel()
    uniform = -n * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) + 4 * p * n
    assert round_trip(layer) < 0.85 * uniform / 8


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_sets(universe_and_members: tuple[int, set[int]]) -> None:
    universe, members = universe_and_members
    writer = BitWriter()
    write_set(writer, np.array(sorted(members), np.int64), universe - 1)
    read = read_set(BitReader(writer.finish()), len(members), universe - 1)
    assert read.tolist() == sorted(members)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.data())
def test_positions(a: int, b: int, c: int, data: st.DataObject) -> None:
    flat = data.draw(st.sets(st.integers(0, a * b * c - 1), max_size=a * b * c - 1))
    positions = np.array(sorted(flat), np.int64)
    writer = BitWriter()
    order = write_positions(writer, positions, (a, b, c))
    read = Positions(BitReader(writer.finish()), (a, b, c))
    first = read.count // 3
    assert np.array_equal(
        np.append(read.take(first), read.take(read.count - first)), positions[order]
    )


# --- folders ----------------------------------------------------------------------------------


def test_names_meta_and_order_survive(tmp_path: Path) -> None:
    names = ["z", "a/b", "../../x", "", "ü\n\0", "X", "x", "." * 300, "a" * 10_000, "\ud800"]
    state = OrderedDict((name, torch.tensor(i)) for i, name in enumerate(names))
    meta = {"arch": "lenet-300-100", "nested": [1, {"é": None}], "rate": 0.1}
    written = save(state, tmp_path / "new" / "folder", meta)
    read, read_meta = load(tmp_path / "new" / "folder")
    assert list(read) == names
    assert fuzz.same(read, state)
    assert read_meta == meta
    assert written == directory_bytes(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_tied_tensors_have_one_file(tmp_path: Path) -> None:
    weight, other = pruned((40, 30), 0.3), torch.ones(3)
    state = {"words.weight": weight, "other": other, "head.weight": weight, "view": weight[:]}
    state["copy"] = weight.clone()
    written = save(state, tmp_path)
    assert written == encoding.directory_bytes(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 + 1
    decoded, _ = load(tmp_path)
    assert list(decoded) == list(state)
    assert fuzz.same(decoded, state)
    assert decoded["words.weight"] is decoded["head.weight"] is decoded["view"]
    assert decoded["words.weight"] is not decoded["copy"]
    infos = encoding.read(tmp_path)[2]
    assert [(i.name, i.tied) for i in infos] == [
        ("words.weight", ["head.weight", "view"]),
        ("other", []),
        ("copy", []),
    ]
    manifest = (tmp_path / encoding.MANIFEST).stat().st_size
    assert sum(i.encoded_bytes for i in infos) == written - manifest


def test_views_that_change_values_are_not_tied(tmp_path: Path) -> None:
    wave = torch.polar(torch.ones(9), torch.arange(9.0))
    state = {
        "wave": wave,
        "conjugate": wave.conj(),
        "negative": wave.conj().imag,
        "imag": wave.imag,
    }
    save(state, tmp_path)
    decoded, _ = load(tmp_path)
    assert all(torch.equal(decoded[name], tensor) for name, tensor in state.items())
    assert not torch.equal(decoded["wave"], decoded["conjugate"])


class Lazy(Mapping):
    """A checkpoint that makes a tensor when it is asked for, as one on a disk does."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.shapes, self.alive = shapes, []

    def __getitem__(self, name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(self.alive))
        tensor = torch.randn(self.shapes[name], generator=generator)
        self.alive.append(weakref.ref(tensor))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def test_tensors_of_a_lazy_mapping_are_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # of one size: the address of a tensor that is gone may be that of the next one
    lazy = Lazy(**{f"layer{i}.weight": (50, 40) for i in range(20)})
    most = 0
    real = encoding.write_tensor

    def watched(tensor: torch.Tensor) -> BitWriter:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in lazy.alive))
        return real(tensor)

    monkeypatch.setattr(encoding, "write_tensor", watched)
    save(lazy, tmp_path)
    assert most <= 2 * torch.get_num_threads() + 2
    monkeypatch.undo()
    assert len({tie_of(lazy, name) for name in lazy}) == len(lazy)  # whatever the addresses
    again = Lazy(**lazy.shapes)
    assert fuzz.same(load(tmp_path)[0], {name: again[name] for name in again})
    assert len(list(tmp_path.glob("*-layer*.huff"))) == 20


def test_a_folder_opened_as_a_mapping(tmp_path: Path) -> None:
    weight = pruned((40, 30), 0.3)
    state = {"a.weight": weight, "b": torch.arange(5), "tied": weight}
    save(state, tmp_path, {"arch": "x"})
    folder = encoding.open(tmp_path)
    assert list(folder) == list(state)
    assert (len(folder), folder.meta) == (3, {"arch": "x"})
    assert folder.shapes == {"a.weight": (40, 30), "b": (5,), "tied": (40, 30)}
    assert (folder.info("b").dtype, folder.info("b").bytes) == (torch.int64, 40)
    (tmp_path / folder.info("a.weight").file_name).unlink()
    assert folder["b"].tolist() == [0, 1, 2, 3, 4]  # no other file is read
    for name in ("a.weight", "tied"):
        with pytest.raises(EncodingError, match=r"00-a.weight.*: No such file"):
            folder[name]
    with pytest.raises(KeyError):
        folder["c"]
    with pytest.raises(EncodingError, match="encode a model first"):
        encoding.open(tmp_path / "none")


def test_an_opened_folder_can_be_saved_elsewhere(tmp_path: Path) -> None:
    state = {"a": pruned((40, 30), 0.3), "b": torch.arange(5)}
    written = save(state, tmp_path / "a")
    assert save(encoding.open(tmp_path / "a"), tmp_path / "b") == written
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_bytes_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    state = lenet() | {"steps": torch.tensor(7), "raw": torch.randn(70, 50)}
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        save(state, tmp_path / str(threads))
        assert fuzz.same(load(tmp_path / str(threads))[0], state)
    torch.set_num_threads(before)
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "5")


@pytest.mark.parametrize("fault", ["another bit", "unreadable"])
def test_what_does_not_decode_to_its_tensor_is_not_kept(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save({"a": torch.tensor([1.0])}, tmp_path)
    before = content(tmp_path)
    new = {"b": torch.tensor([2.0]), "c.weight": torch.tensor([3.5, -0.0])}
    real = encoding.write_tensor

    def faulty(tensor: torch.Tensor) -> BitWriter:
        if tensor.numel() < 2:
            return real(tensor)
        if fault == "another bit":
            return real(tensor + 0.0)  # 0.0 instead of -0.0
        return bits("1")

    monkeypatch.setattr(encoding, "write_tensor", faulty)
    with pytest.raises(
        EncodingError, match=r"cannot encode 'c.weight': .*; what was there before is unchanged"
    ) as error:
        save(new, tmp_path)
    assert "\n" not in str(error.value)
    assert "again" not in str(error.value)
    assert content(tmp_path) == before
    save(new, tmp_path, verify=False)
    assert content(tmp_path) != before


@pytest.mark.parametrize("density", [0.05, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int64])
def test_any_other_tensor_is_told_from_what_was_written(density: float, dtype: torch.dtype) -> None:
    tensor = pruned((70, 60), density).mul(100).round().add(0.0).to(dtype)
    data = write_tensor(tensor).finish()
    assert reads_as(BitReader(data), tensor)
    flat = tensor.reshape(-1)
    stored, zeros = flat.nonzero()[:, 0], (flat == 0).nonzero()[:, 0]
    for index in (*stored[:3], stored[-1], *zeros[:3], *zeros[-1:]):
        for value in (0, 9_999, -flat[index], flat[index] + 1):
            other = tensor.clone()
            other.view(-1)[index] = value
            same = np.array_equal(patterns(other), patterns(tensor))
            assert reads_as(BitReader(data), other) == same


def test_the_writer_says_what_the_reader_would(tmp_path: Path) -> None:
    state = lenet(0.05) | {"steps": torch.tensor(7), "wave": torch.ones(9, dtype=torch.complex64)}
    state["tied"] = state["steps"]
    encoded = encoding.write(state, tmp_path, {"arch": "x"})
    assert encoded.bytes == directory_bytes(tmp_path)
    decoded, meta, infos = encoding.read(tmp_path)
    assert fuzz.same(decoded, state)
    assert meta == {"arch": "x"}
    assert repr(encoded.tensors) == repr(infos)
    assert infos[-2].tied == ["tied"]
    assert encoding.write(state, tmp_path, verify=False).tensors[0].name == "fc1.weight"


def test_nothing_at_all(tmp_path: Path) -> None:
    save({}, tmp_path)
    assert load(tmp_path) == ({}, {})


def test_lenet_costs_at_most_120_bytes_beside_its_streams(tmp_path: Path) -> None:
    state = lenet()
    written = save(state, tmp_path, {"arch": "lenet-300-100", "dataset": "mnist"})
    streams = sum(write_tensor(tensor).length for tensor in state.values()) / 8
    assert written - streams <= 120


def test_same_input_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        save(lenet(), tmp_path / name, {"seed": 42})
    content = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab"]
    assert content[0] == content[1]


def test_describe_accounts_for_every_byte(tmp_path: Path) -> None:
    state = lenet(0.05) | {"steps": torch.tensor(7)}
    written = save(state, tmp_path)
    infos = {info.name: info for info in encoding.read(tmp_path)[2]}
    assert list(infos) == list(state)
    for info in infos.values():
        assert sum(info.sections.values()) == pytest.approx(
            info.encoded_bytes + info.sections["checksum"]
        )
    manifest = (tmp_path / "manifest.huff").stat().st_size
    assert sum(info.encoded_bytes for info in infos.values()) + manifest == written
    fc1 = infos["fc1.weight"]
    assert (fc1.kind, fc1.parameters, fc1.dense_bytes) == ("sparse shared", 235_200, 940_800)
    assert fc1.nonzero == int((state["fc1.weight"] != 0).sum())
    assert fc1.weight_bits_before == 3
    assert 2 < fc1.weight_bits <= 3.1
    assert fc1.value_stream.frequencies.sum() == fc1.nonzero
    assert sum(stream.frequencies.sum() for stream in fc1.gap_streams) == fc1.nonzero
    assert infos["fc1.bias"].kind == "raw"


def test_fixed_index_bits_count_padding_zeros() -> None:
    # gaps of 7 and 8 zeros: 3 bits need one padding zero for the second, 4 bits none
    assert encoding.fixed_index_bits(np.array([7]), 5) == 3
    assert encoding.fixed_index_bits(np.array([8]), 5) == 4


GOLDEN = {
    "00-fc1.weight-a82ab78a.huff": "5706a219b706e134060050",
    "01-fc1.bias-e58d6863.huff": "000006680000033001800198003fc03d00",
    "manifest.huff": "44434506583ab29a43b5222dd9109b2d263a66600341d218569960b32627"
    "352fb544d7d8c040d7d0c000680d00a82ab78ae58d6863",
}


def golden_state() -> dict[str, torch.Tensor]:
    weight = torch.zeros(4, 6)
    weight[0, 1], weight[1, 2], weight[3, 1], weight[3, 2] = 0.5, -0.25, 0.5, 0.5
    return {"fc1.weight": weight, "fc1.bias": torch.tensor([1.5, -2.0, 0.1, 0.0])}


def test_golden_folder(tmp_path: Path) -> None:
    for name, content in GOLDEN.items():
        (tmp_path / name).write_bytes(bytes.fromhex(content))
    state, meta = load(tmp_path)
    assert fuzz.same(state, golden_state())
    assert meta == {"arch": "lenet-300-100"}
    save(golden_state(), tmp_path / "again", meta)
    again = {path.name: path.read_bytes().hex() for path in (tmp_path / "again").iterdir()}
    if "ng" in zlib.ZLIB_RUNTIME_VERSION:  # compresses as well, with other bytes
        del again["manifest.huff"]
    assert again.items() <= GOLDEN.items()


def normalised(layers: int = 9, channels: int = 16) -> dict[str, torch.Tensor]:
    """A state dict of small vectors of some kinds, two names of one of them."""
    rng = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for i in range(layers):
        state[f"{i}.conv.weight"] = torch.randn(channels, 4, generator=rng)
        state[f"{i}.norm.weight"] = torch.randn(channels, generator=rng).bfloat16().float()
        state[f"{i}.norm.running_var"] = torch.ones(channels)
        state[f"{i}.norm.num_batches_tracked"] = torch.tensor(1000)
    return state | {"again": state["3.norm.weight"], "weight": torch.zeros(2)}


@pytest.mark.parametrize(
    "names",
    [
        ["a.b", "a", "c"],
        ["a", "a.b", "c"],
        ["a.b", "c.d", "a.e"],
        ["", ".", "..", "a.", ".a"],
        ["1.2", "1.3", "x"],
        ["a.b.c", "a.b.d", "b.a.c", "b.a.d"],
        ["a." * 3000 + "b", "a." * 3000 + "c", "a"],
        [f"{'a' * 30_000}.{i}" for i in range(100)],
    ],
)
def test_any_names_in_any_order_come_back(names: list[str], tmp_path: Path) -> None:
    state = {name: torch.arange(i + 70) for i, name in enumerate(names)}
    state["tied"] = state[names[1]]
    save(state, tmp_path)
    loaded = load(tmp_path)[0]
    assert list(loaded) == list(state)
    assert fuzz.same(loaded, state)


def test_layers_alike_cost_little_more_than_one(tmp_path: Path) -> None:
    """The names of 100 layers as a tree take a few bytes each."""
    layers = {f"blocks.{i}.mlp.fc{k}.weight": (8, 8) for i in range(100) for k in range(3)}
    entries = [
        manifest.Entry(i, *each)
        for i, each in enumerate((name, torch.float32, shape) for name, shape in layers.items())
    ]
    packed = manifest.pack(entries, None)
    assert len(packed) < 4 * len(layers) + 5 * 100
    assert [entry.name for entry in manifest.unpack(packed)[0]] == [*layers]


@pytest.mark.parametrize("name", ["folder", "model.dc"])
def test_small_vectors_of_a_kind_share_a_stream(name: str, tmp_path: Path) -> None:
    state, path = normalised(), tmp_path / name
    written = encoding.write(state, path, {"arch": "x"})
    vectors = [each for name, each in state.items() if each.dim() < 2 and name != "again"]
    alone = sum(4 - -write_tensor(each).length // 8 for each in vectors)
    matrices = {name: tensor for name, tensor in state.items() if tensor.dim() > 1}
    assert written.bytes < save(matrices, tmp_path / "matrices") + alone * 0.9
    assert [info.name for info in written.tensors] == [name for name in state if name != "again"]
    assert all(info.encoded_bytes < info.dense_bytes for info in written.tensors[1:4])

    decoded = encoding.open(path)
    files = {decoded.info(name).file_name for name in state}
    assert len(files) == 9 + 3  # of weights, variances and counters
    assert decoded["again"] is not decoded["3.norm.weight"]
    torch.save(decoded["weight"], tmp_path / "one.pt")
    assert (tmp_path / "one.pt").stat().st_size < 2000  # and not all that it shares a stream with
    loaded, _, infos = encoding.read(path)
    assert loaded["again"] is loaded["3.norm.weight"]
    assert [each.encoded_bytes for each in infos] == [
        each.encoded_bytes for each in written.tensors
    ]
    for name, tensor in state.items():
        assert torch.equal(decoded[name], tensor)
        assert torch.equal(loaded[name], tensor)
        described, info = decoded.describe(name)
        assert torch.equal(described, tensor)
        assert info.nonzero == tensor.count_nonzero()
        assert info.shared_values in (0, len(tensor.unique()))
    slow = slow_decoder.folder(path)[0] if path.is_dir() else slow_decoder.one_file(path)[0]
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {
        name: shape for name, (_, shape, _) in slow.items()
    }
    for name, (_, _, found) in slow.items():
        assert found == patterns(state[name]).tolist()


@pytest.mark.parametrize("name", ["folder", "model.dc"])
def test_bytes_of_bools_that_are_neither_0_nor_1_come_back(name: str, tmp_path: Path) -> None:
    octets = torch.tensor([0, 2, 255, 1] * 8, dtype=torch.uint8)
    state = {f"{i}.mask": octets.roll(i).view(torch.bool) for i in range(9)}
    state["odd.mask"] = octets.repeat(2).view(torch.bool)[::2]  # of a stride: torch copies 0 and 1
    save(state, tmp_path / name)
    opened = encoding.open(tmp_path / name)
    assert len({opened.info(each).file_name for each in state}) == 1
    assert fuzz.same(load(tmp_path / name)[0], state)
    assert fuzz.same(dict(opened), state)


def test_vectors_that_are_smaller_alone_have_streams_of_their_own(tmp_path: Path) -> None:
    """Three biases of few values each, which would be many together."""
    rng = np.random.default_rng(0)
    state = {
        f"{i}.bias": torch.from_numpy(rng.choice(rng.normal(size=4), 300)).float() for i in range(9)
    }
    save(state, tmp_path)
    assert len(list(tmp_path.glob("*.huff"))) == 9 + 1
    assert fuzz.same(load(tmp_path)[0], state)


def test_no_more_vectors_share_a_stream_than_may(tmp_path: Path) -> None:
    state = {f"{i}.bias": torch.full((4096,), 0.5) for i in range(40)}
    state["large.bias"] = torch.full((8193,), 0.5)
    save(state, tmp_path)
    assert len(list(tmp_path.glob("*.huff"))) == 1 + 8 + 1 + 1  # 32 of 40 in one
    assert fuzz.same(load(tmp_path)[0], state)


def test_a_decoder_written_from_the_document_agrees(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state = {
        "conv": pruned((12, 8, 5, 5), 0.2),
        "fc": pruned((60, 80), 0.1, clusters=32),
        "columns": pruned((200, 20), 0.02),
        "plain": torch.from_numpy(rng.normal(size=50)),
        "half": torch.arange(20).double() / 4,
        "brain": torch.from_numpy(rng.normal(size=30)).bfloat16().float(),
        "wave": torch.polar(torch.ones(9), torch.arange(9.0)),
        "long": torch.zeros(MAX_LINES + 9).index_fill_(0, torch.tensor([5, MAX_LINES + 8]), 2.0),
        "ids": torch.arange(600) * 1000,
        "many": torch.from_numpy(rng.integers(0, 3000, 9000)),
        "runs": torch.ones(3000),
        "jump": torch.from_numpy(rng.integers(0, 3, (1 << 17) + 5).astype(np.uint8)),
        "empty": torch.zeros(2, 0),
        "scalar": torch.tensor(True),
    }
    state["tied"] = state["fc"]
    save(state, tmp_path, {"a": 1})
    decoded, meta = slow_decoder.folder(tmp_path)
    assert meta == {"a": 1}
    assert list(decoded) == list(state)
    for name, (kind, shape, values) in decoded.items():
        assert (f"torch.{kind}", shape) == (str(state[name].dtype), list(state[name].shape))
        assert values == patterns(state[name]).tolist(), name


# --- writing: crashes, full disks, unsuitable input -------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_a_failure_at_any_step_keeps_the_earlier_encoding(
    function: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save({"a": torch.tensor([1, 2, 3]), "same": torch.tensor(5)}, tmp_path)
    (tmp_path / ".gitkeep").touch()
    before = content(tmp_path)
    new = {"a": torch.tensor([4.0]), "same": torch.tensor(5), "b": torch.tensor(1)}
    real = getattr(os, function)
    for step in range(3):  # two new tensors and the manifest
        calls = iter(range(9))

        def fail(*arguments: object, step: int = step, calls: object = calls) -> None:
            if next(calls) == step:
                raise error
            real(*arguments)

        monkeypatch.setattr(os, function, fail)
        with pytest.raises(EncodingError if isinstance(error, OSError) else KeyboardInterrupt):
            save(new, tmp_path)
        assert content(tmp_path) == before
    monkeypatch.undo()
    save(new, tmp_path)
    assert fuzz.same(load(tmp_path)[0], new)
    assert len(content(tmp_path)) == 5  # three tensors, the manifest, .gitkeep


def save_killed_at(step: int, state: dict[str, torch.Tensor], folder: Path) -> bool:
    """Save in a process that dies before its file operation number ``step``; False: it lived."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] != 0
    calls = iter(range(99))

    def deadly(real: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            if next(calls) == step:
                os._exit(9)
            return real(*arguments, **options)

        return call

    os.replace, os.fsync, Path.unlink = map(deadly, (os.replace, os.fsync, Path.unlink))
    save(state, folder)
    os._exit(0)


def test_a_killed_writer_leaves_the_earlier_or_the_new_encoding(tmp_path: Path) -> None:
    old = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(1)}
    new = {"a": torch.tensor([3.0, 4.0]), "c": torch.ones(9)}
    step, killed = 0, True
    while killed:
        save(old, tmp_path)
        killed = save_killed_at(step, new, tmp_path)
        state, _ = load(tmp_path)
        assert fuzz.same(state, old) or fuzz.same(state, new)
        step += 1
    assert step > 6  # three files written, two removed
    assert fuzz.same(state, new)
    assert len(content(tmp_path)) == 3


def test_what_a_killed_writer_left_whole_is_on_the_disk_before_a_manifest_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {"same": torch.tensor(1), "b": torch.ones(3)}
    new = {"same": torch.tensor(1), "b": torch.zeros(3), "c": torch.arange(5)}
    folder = tmp_path / "folder"
    save(new, tmp_path / "whole")
    save(old, folder)
    before = content(folder)
    left = content(tmp_path / "whole")
    del left[encoding.MANIFEST]
    for name, data in left.items():
        (folder / name).write_bytes(data)
    synced = []

    def watched(paths: list[Path]) -> None:
        assert content(folder)[encoding.MANIFEST] == before[encoding.MANIFEST]
        synced.extend(path.name for path in paths)

    monkeypatch.setattr(encoding, "sync_files", watched)
    save(new, folder)
    assert sorted(synced) == sorted(left.keys() - before.keys())
    assert len(synced) == 2  # and what was named before is on the disk already


def test_a_full_disk_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EncodingError, match=r"No space left on device; give .*; what was") as e:
        save({"a": torch.ones(3)}, tmp_path)
    assert "\n" not in str(e.value)
    assert not content(tmp_path)


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EncodingError, match=r"cannot write .*file"):
        save({}, tmp_path / "file")


def test_other_files_stay(tmp_path: Path) -> None:
    kept = [".gitkeep", "notes.txt", "model.huff", "00-a.huff", "00-a-00000000.huff"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    # of killed runs: a tensor's file has its checksum in its name
    (tmp_path / f"07-a-{zlib.crc32(b'x'):08x}.huff").write_bytes(b"x")
    (tmp_path / ".0123456789ab.huff.tmp").touch()
    save({"a": torch.ones(2)}, tmp_path)
    assert {*kept} < content(tmp_path).keys()
    assert len(content(tmp_path)) == len(kept) + 2


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": 3}, "cannot encode 'a': a int, not a tensor"),
        ({3: torch.ones(1)}, "cannot encode 3: "),
        ({"a": torch.eye(3).to_sparse()}, "cannot encode 'a': .*; make it a dense"),
        ({"a": torch.ones(2, device="meta")}, "cannot encode 'a': on the meta device"),
        (
            {"a": torch.ones([1] * 65)},
            "cannot encode 'a': a tensor has at most 64",
        ),
        (
            {"a": torch.ones(1).expand(2**32)},
            "cannot encode 'a': an expanded tensor of 17179869184",
        ),
        ({"a": torch.ones(9000).as_strided((8000, 900), (1, 1))}, "an expanded tensor of 28800000"),
    ],
)
def test_states_that_cannot_be_encoded(state: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match=message):
        save(state, tmp_path)
    assert not content(tmp_path)


class Gone(dict):
    def __getitem__(self, name: str) -> torch.Tensor:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/model-3.bin")


@pytest.mark.parametrize("name", ["folder", "model.dc"])
def test_a_state_that_cannot_be_read_is_no_fault_of_what_is_written(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(EncodingError, match=r"^cannot read 'a': No such file or directory"):
        save(Gone(a=None), tmp_path / name)


def test_meta_that_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match="cannot store the meta data as JSON"):
        save({}, tmp_path, {"a": torch.ones(1)})


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ([1], "a list, not a dict"),
        ([], "a list, not a dict"),
        ("text", "a str, not a dict"),
        (0, "a int, not a dict"),
        ({1: "a", "1": "b"}, "1 does not come back from JSON as it was"),
        ({None: None}, "None does not come back"),
        ({"a": {"b": (1, 2)}}, "'a' does not come back .*; make keys strings, and tuples lists"),
        ({"a": float("nan")}, "as JSON: Out of range float"),
        ({"\ud83d\ude00": 1}, "does not come back"),
        ({"a": 10**5000}, "Exceeds the limit"),
    ],
)
def test_meta_that_would_come_back_as_another_is_refused(
    meta: object, message: str, tmp_path: Path
) -> None:
    save({"a": torch.ones(3)}, tmp_path)
    before = content(tmp_path)
    with pytest.raises(EncodingError, match=f"cannot store the meta data.*{message}") as error:
        save({"a": torch.zeros(3)}, tmp_path, meta)
    assert "\n" not in str(error.value)
    assert content(tmp_path) == before


def test_names_that_would_come_back_as_others_are_refused(tmp_path: Path) -> None:
    save({"a": torch.ones(3)}, tmp_path)
    before = content(tmp_path)
    halves = {"\ud83d\ude00": torch.ones(1)}  # two code points, which JSON makes one of
    for state in (halves, {**halves, "\U0001f600": torch.zeros(1)}):
        with pytest.raises(EncodingError, match="cannot store the names"):
            save(state, tmp_path)
        assert content(tmp_path) == before


def freed(size: int) -> torch.Tensor:
    tensor = torch.ones(100)
    tensor.untyped_storage().resize_(size)
    return tensor


@pytest.mark.parametrize("size", [0, 396])
@pytest.mark.parametrize("verify", [True, False])
def test_a_tensor_whose_memory_was_freed(size: int, verify: bool, tmp_path: Path) -> None:
    for state in ({"x": freed(size)}, {"a": torch.ones(2), "x": freed(size), "y": freed(size)}):
        with pytest.raises(EncodingError, match="cannot encode 'x': its memory was freed, as FSDP"):
            save(state, tmp_path, verify=verify)
    assert not content(tmp_path)
    with pytest.raises(ValueError, match="its memory was freed"):
        patterns(freed(size))
    assert identity(freed(0)) != identity(other := freed(0))
    assert identity(other) == identity(other)
    save({"all": freed(400), "part": freed(396)[:99], "none": freed(0)[:0]}, tmp_path)
    assert load(tmp_path)[0]["part"].tolist() == [1.0] * 99


def test_a_parameter_of_a_lazy_module(tmp_path: Path) -> None:
    with pytest.raises(
        EncodingError, match="cannot encode 'weight': lazy, without a shape yet; run the model once"
    ):
        save(torch.nn.LazyLinear(3).state_dict(), tmp_path)


def test_a_pipe_in_place_of_the_manifest_is_refused_before_any_work(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / encoding.MANIFEST)
    with pytest.raises(EncodingError, match=r"manifest\.huff: a pipe or a device, not a file"):
        save({"a": torch.ones(3)}, tmp_path)
    assert os.listdir(tmp_path) == [encoding.MANIFEST]


# --- reading what nobody wrote --------------------------------------------------------------------


def test_no_encoding_there(tmp_path: Path) -> None:
    with pytest.raises(
        EncodingError, match=r"manifest.huff: No such file .*; encode a model first"
    ):
        load(tmp_path)


def test_missing_swapped_and_damaged_files(tmp_path: Path) -> None:
    save({"a": torch.ones(40), "b": torch.zeros(40)}, tmp_path)
    a, b = sorted(tmp_path.glob("0*.huff"))
    first, second = a.read_bytes(), b.read_bytes()
    for contents, message in [
        ((second, first), "00-a-.*: the checksum does not match"),
        ((first + b"\0", second), "00-a-.*: the checksum does not match"),
        ((first[:-1], second), "00-a-.*: the checksum does not match"),
        ((bytes(9999), second), "00-a-.*: longer than its tensor"),
        ((None, second), "00-a-.*: No such file"),
    ]:
        for path, data in zip((a, b), contents, strict=True):
            path.unlink(missing_ok=True)
            if data is not None:
                path.write_bytes(data)
        with pytest.raises(EncodingError, match=message):
            load(tmp_path)


def write_manifest(
    folder: Path, text: bytes, sums: bytes = b"", magic: bytes = manifest.MAGIC, level: int = 9
) -> None:
    packer = zlib.compressobj(level, zlib.DEFLATED, -15, zdict=manifest.DICTIONARY)
    body = packer.compress(text) + packer.flush() + sums
    data = magic + zlib.crc32(body).to_bytes(4, "big") + body
    (folder / encoding.MANIFEST).write_bytes(data)


BAD_LINE = "tensor 0: not a name, a known type and a shape within the limits"


@pytest.mark.parametrize(
    ("text", "sums", "message"),
    [
        (b"", 0, "Expecting value"),
        (b"\xff", 0, "utf-8"),
        (b"[" * 10_000, 0, "nested too deeply"),
        (b"[" * 100_000, 0, "more text than a file of this size may hold"),
        (b"[" + b"{}," * 20_000, 0, "more text than a file of this size may hold"),
        (b'{"tensors":[["a","bool",[%s]]]}' % (b"9" * 5000), 1, "limit"),
        (b'{"tensors":[["a","bool",[%s]]]}' % (b"9" * 4000), 1, BAD_LINE),
        (b'{"tensors":[["a","bool",[1,1', 0, "the data ends early|Expecting"),
        (b"[]", 0, "no list of tensors"),
        (b'{"tensors":3}', 0, "no list of tensors"),
        (b'{"tensors":[],"meta":3}', 0, "fields that this version does not have"),
        (b'{"tensors":[],"more":3}', 0, "fields that this version does not have"),
        (b'{"tensors":[]}', 1, "not one checksum for each tensor"),
        (b'{"tensors":[["a","bool",[]]]}', 0, "not one checksum for each tensor"),
        (b'{"tensors":[["a","bool",[]],["a","bool",[]]]}', 2, "two tensors of the same name"),
        (b'{"tensors":[["a","quint8",[]]]}', 1, BAD_LINE),
        (b'{"tensors":[["a","bool",[-1]]]}', 1, BAD_LINE),
        (b'{"tensors":[["a","bool",[1.0]]]}', 1, BAD_LINE),
        (b'{"tensors":[["a","bool",[true]]]}', 1, BAD_LINE),
        (b'{"tensors":[[1,"bool",[1]]]}', 1, BAD_LINE),
        (b'{"tensors":[["a","bool"]]}', 0, BAD_LINE),
        (b'{"tensors":[["a",0]]}', 0, BAD_LINE),
        (b'{"tensors":[["a",-1]]}', 0, BAD_LINE),
        (b'{"tensors":[["a",1],["b","bool",[]]]}', 1, BAD_LINE),
        (b'{"tensors":[["a","bool",[]],["b",true]]}', 1, BAD_LINE.replace("0", "1", 1)),
        (b'{"tensors":[["a","bool",[]],["a",0]]}', 1, "two tensors of the same name"),
        (b'{"tensors":[["a","bool",[]],["b",0],["c",1]]}', 1, "tensor 2: the same as one that"),
        (b'{"tensors":[["a","bool",[17179869185]]]}', 1, BAD_LINE),
        (b'{"tensors":[["a","bool",[0,1152921504606846976]]]}', 1, BAD_LINE),
        (b'{"tensors":[["a","bool",%s]]}' % json.dumps([1] * 65).encode(), 1, BAD_LINE),
        (b" " * ((1 << 21) + 1), 0, "more text than a file of this size may hold"),
        (b'{"tensors":{"a":["bool"]}}', 0, BAD_LINE),
        (
            b'{"tensors":{"%s":{%s}}}'
            % (b"a" * 100_000, b",".join(b'"%d":["bool",[]]' % i for i in range(50))),
            50,
            "longer names than a file of this size may hold",
        ),
        (b'{"tensors":{"a":{"b":[1,[1]]}}}', 1, BAD_LINE),
        (b'{"tensors":{"a":{"b":3}}}', 0, "'a.b': neither a tensor nor names below it"),
        (b'{"tensors":%s}' % (b'{"a":' * 9_000), 0, "nested too deeply"),
        (
            b'{"tensors":{"a.b":["bool",[]],"a":{"b":["bool",[]]}}}',
            2,
            "two tensors of the same name",
        ),
        (b'{"tensors":[["a","bool",[1],2]]}', 1, BAD_LINE),
        (b'{"tensors":[["a","bool",[1],true]]}', 1, BAD_LINE),
        (b'{"tensors":[["a","bool",[1],1,1]]}', 1, BAD_LINE),
        (b'{"tensors":[["a","bool",[1],1]]}', 1, "tensor 0: joined to no other"),
        (b'{"tensors":[["a","bool",[1],1],["b","bool",[1],1]]}', 2, "tensor 0: joined to no other"),
        (b'{"tensors":[["a.b","bool",[],1],["b","int8",[],1]]}', 2, "tensor 0: joined to no other"),
        (b'{"tensors":[["a.b","bool",[],1],["b","bool",[0],1]]}', 1, "0: joined to no other"),
        (b'{"tensors":[["a.b","bool",[],1],["b","bool",[],1]]}', 2, "not one checksum for each"),
        (
            b'{"tensors":[["a.b","bool",[131072],1],["b","bool",[],1]]}',
            1,
            "tensor 1: too many elements in one stream",
        ),
    ],
)
def test_malformed_manifests(text: bytes, sums: int, message: str, tmp_path: Path) -> None:
    write_manifest(tmp_path, text, bytes(4 * sums))
    with pytest.raises(EncodingError, match=rf"manifest.huff: .*({message}).*; encode") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_manifests_of_other_programs_and_versions(tmp_path: Path) -> None:
    for magic, message in [(b"PK\3\4", "not a manifest"), (b"DCE\1", "format version 01")]:
        write_manifest(tmp_path, b'{"tensors":[]}', magic=magic)
        with pytest.raises(EncodingError, match=message):
            load(tmp_path)
    path = tmp_path / encoding.MANIFEST
    path.write_bytes(manifest.MAGIC + bytes(4) + b"x")
    with pytest.raises(EncodingError, match="the checksum does not match"):
        load(tmp_path)
    body = b"\x07"  # a block type that DEFLATE does not have
    path.write_bytes(manifest.MAGIC + zlib.crc32(body).to_bytes(4, "big") + body)
    with pytest.raises(EncodingError, match="invalid block type"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
@pytest.mark.parametrize("which", ["manifest", "tensor"])
def test_a_pipe_a_device_and_a_file_without_end_are_refused_at_once(
    kind: str, which: str, tmp_path: Path
) -> None:
    save({"a": torch.ones(40)}, tmp_path)
    path = tmp_path / encoding.MANIFEST if which == "manifest" else next(tmp_path.glob("0*.huff"))
    data, message = path.read_bytes(), "not a regular file"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(data)
        os.truncate(path, 2 << 30)
        message = "larger than the|longer than its tensor"
    with pytest.raises(EncodingError, match=rf"{path.name}: ({message}).*; encode .*"):
        load(tmp_path)


def stored(document: object) -> bytes:
    """The text of a manifest, beside which anything that DEFLATE makes small is kept as it is."""
    return json.dumps(document, separators=(",", ":")).encode()


@pytest.mark.parametrize("level", [0, 9])
def test_a_long_name_with_many_ties_takes_no_longer_than_its_text(
    level: int, tmp_path: Path
) -> None:
    """`re.sub` over the whole name for each of the ties took minutes."""
    names = [["a" * 2_000_000, "bool", []], *([f"b{i}", 0] for i in range(2000))]
    write_manifest(tmp_path, stored({"tensors": names}), bytes(4), level=level)
    message = "aaa-00000000.huff: No such file" if level == 0 else "more text than a file"
    with pytest.raises(EncodingError, match=message):
        load(tmp_path)


def test_a_shape_of_a_million_extents_is_refused_before_they_are_multiplied(
    tmp_path: Path,
) -> None:
    text = stored({"tensors": [["a", "bool", [1 << 33] * 1_000_000]]})
    write_manifest(tmp_path, text, bytes(4), level=0)
    with pytest.raises(EncodingError, match=BAD_LINE):
        load(tmp_path)


def test_any_name_and_any_meta_that_can_be_written_can_be_read(tmp_path: Path) -> None:
    """Text that DEFLATE makes smaller than a reader believes is stored as it is."""
    state = {"a" * 2_000_000: torch.ones(3), "b": torch.zeros(2)}
    state["c"] = state["b"]
    meta = {"log": [0] * 100_000, "nothing": [{}] * 10_000}
    save(state, tmp_path, meta)
    found, read = load(tmp_path)
    assert (list(found), read) == (list(state), meta)
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("layers", [12, pytest.param(60, marks=pytest.mark.exhaustive)])
def test_a_manifest_of_a_mixture_of_experts(layers: int) -> None:
    """Megabytes of text (8 of 60 layers), in proportion to what is read."""
    pairs = itertools.product(range(layers), range(2000))
    names = [f"model.layers.{i}.mlp.experts.{j}.down_proj.weight" for i, j in pairs]
    entries = [
        manifest.Entry(i, name, torch.bfloat16, (2048, 768), i) for i, name in enumerate(names)
    ]
    packed = manifest.pack(entries, None)
    found, _ = manifest.unpack(packed)
    same = [(e.name, e.shape, e.checksum) for e in found] == [
        (e.name, e.shape, e.checksum) for e in entries
    ]
    size = len(packed)
    assert same
    assert size < 8 * len(names)


ONE_VALUE = "0 11100000"  # a code table of the symbol 0 alone
RAW = "00 0 0" + "0" * 24  # three bytes as they are, one at least
MALFORMED_TENSORS = {
    "half of integers": ((4,), torch.int32, ("0 1",), "half precision for a type that has none"),
    "half of half": ((4,), torch.float16, ("0 1",), "half precision for a type that has none"),
    "NaN": ((1,), torch.float32, ("0 1 0 0", "00000000 0 01111110"), "a NaN in half precision"),
    "NaN in a codebook": (
        (2,), torch.float32, ("0 1 1", 0, "1111111000000000"), "a NaN in half precision"
    ),
    "too wide": ((4,), torch.int32, ("0 01 000001 011111",), "values as wide as their type"),
    "codebook": ((4,), torch.int8, ("0 00 1", 256), "a codebook of too many values"),
    "codebook of 2**60": ((4,), torch.int64, ("0 00 1", 1 << 60), "a codebook of too many values"),
    "index": ((4,), torch.int64, ("0 00 1", 0, "0" * 64, "0 110 11100000"), "beyond the codebook"),
    "plane": (
        (4,), torch.uint8, ("0 01 000000 000000 0 1", "0 110 110 11100000"), "beyond its width"
    ),
    "all present": ((4,), torch.uint8, ("1", 4), "as many non-zeros as elements"),
    "2**60 present": ((4,), torch.uint8, ("1", 1 << 60), "as many non-zeros as elements"),
    "view": ((4,), torch.uint8, ("1", 1, "01"), "a matrix view that this shape does not have"),
    "dead lines": ((4,), torch.uint8, ("1", 1, "00", 5), "more dead lines than lines"),
    "nothing alive": ((4,), torch.uint8, ("1", 1, "00", 4, 0, "000"), "whose lines are all zero"),
    "class": (
        (4,), torch.uint8, ("1", 1, "00", 0, "001", "0 110 110 11100000"), "beyond the last one"
    ),
    "block": (
        (4,), torch.uint8, ("1", 2, "00", 0, "001", "0 11100001 0", "0011", 0, "000", 3),
        "more non-zeros than elements",
    ),
    "gap": (
        (4,), torch.uint8, ("1", 1, "00", 0, "000", 0, "000", "1010 00", "110" * 4, "11100000",
        RAW),
        "a non-zero outside the tensor",
    ),
    "gaps": (
        (4,), torch.uint8, ("1", 3, "00", 0, "000", 0, "000", "1010 00", "110" * 2, "11100000",
        RAW),
        "a non-zero outside the tensor",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED_TENSORS)
def test_malformed_tensors(case: str) -> None:
    shape, dtype, parts, message = MALFORMED_TENSORS[case]
    reader = BitReader(bits(*parts).finish())
    with pytest.raises(HuffmanError, match=message):
        read_tensor(reader, shape, dtype)


def test_a_promise_of_gigabytes_is_refused_before_they_are_allocated(tmp_path: Path) -> None:
    data = bits("0 00 1", 0, "0" * 64, ONE_VALUE).finish()[:-PAD].tobytes()  # of any length
    text = b'{"tensors":[["a","int64",[2147483648]]]}'
    write_manifest(tmp_path, text, zlib.crc32(data).to_bytes(4, "big"))
    (tmp_path / f"00-a-{zlib.crc32(data):08x}.huff").write_bytes(data)
    with pytest.raises(EncodingError, match=r"00-a-.*: the data ends early"):
        load(tmp_path)


@pytest.mark.parametrize("count", [90, pytest.param(600, marks=pytest.mark.exhaustive)])
def test_a_short_fuzz(count: int) -> None:
    assert fuzz.fuzz(count, seed=1)["mutations refused"] > 2 * count // 3


@pytest.mark.parametrize("path", [None, 3, b"x", "a\0b"])
@pytest.mark.parametrize(
    "use", [encoding.load, encoding.open, lambda path: encoding.save({"a": torch.ones(2)}, path)]
)
def test_what_is_no_path(path, use):
    with pytest.raises(EncodingError, match="is no path"):
        use(path)
