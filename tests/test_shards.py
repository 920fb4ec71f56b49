import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from net import checkpoint, shards
from net.errors import UserError
from net.formats import INDEX, CheckpointError
from net.shards import DTYPES, Shards
from net.tensors import Info, info_of


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3),
    }


def equal(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(tensor, b[name]) and tensor.dtype == b[name].dtype for name, tensor in a.items()
    )


@pytest.fixture
def folder(state, tmp_path):
    """Two shards and an index, as save_pretrained writes them."""
    parts = [dict(list(state.items())[:2]), dict(list(state.items())[2:])]
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for part, name in zip(parts, names, strict=True):
        save_file(part, tmp_path / name)
    files = {key: name for part, name in zip(parts, names, strict=True) for key in part}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return tmp_path


def test_a_file(state, tmp_path):
    save_file(state, tmp_path / "m.safetensors")
    found = Shards(tmp_path / "m.safetensors")
    assert equal(dict(found), state)
    assert found.info("b") == (torch.bfloat16, (7,))
    assert len(found) == 4


def test_a_folder_of_shards(state, folder):
    assert equal(dict(Shards(folder)), state)


def test_a_folder_with_a_single_file(state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    assert equal(dict(Shards(tmp_path)), state)


def test_only_the_file_of_the_tensor_is_read(folder):
    found = Shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert found["b"].shape == (7,)
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors is missing"):
        found["scalar"]


def test_what_is_written_tensor_by_tensor_the_library_reads(state, tmp_path):
    infos = {name: info_of(state, name) for name in state}
    size = shards.write(tmp_path / "m.safetensors", infos, (state[name] for name in state))
    assert (tmp_path / "m.safetensors").stat().st_size == size
    assert equal(load_file(tmp_path / "m.safetensors"), state)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"é": 'a "text"\n\x7f'}])
def test_what_is_written_is_what_the_library_writes(state, tmp_path, metadata):
    state["ünï/\u2028x"] = torch.arange(3, dtype=torch.int8)
    save_file(state, tmp_path / "a.safetensors", metadata)
    order = list(Shards(tmp_path / "a.safetensors"))
    infos = {name: info_of(state, name) for name in order}
    tensors = (state[name] for name in order)
    shards.write(tmp_path / "b.safetensors", infos, tensors, metadata or {})
    same = [(tmp_path / f"{name}.safetensors").read_bytes() for name in "ab"]
    assert same[0] == same[1]


# Types that older versions of safetensors do not read, which take such a file for a damaged one.
UNKNOWN = ("F8_E4M3FNUZ", "F8_E5M2FNUZ") if safetensors.__version__ < "0.8" else ()


@pytest.mark.parametrize("name", [name for name in DTYPES if name not in UNKNOWN])
def test_every_type(name, tmp_path):
    dtype = DTYPES[name]
    tensor = torch.arange(64, dtype=torch.uint8).view(dtype).clone()
    if dtype == torch.bool:
        tensor = torch.tensor([True, False])
    shards.write(tmp_path / "m.safetensors", {"x": Info(dtype, tuple(tensor.shape))}, [tensor])
    found = Shards(tmp_path / "m.safetensors")
    assert found.info("x") == (dtype, tuple(tensor.shape))
    assert torch.equal(found["x"].view(torch.uint8), tensor.view(torch.uint8))


def test_a_tensor_whose_memory_was_freed(tmp_path):
    tensor = torch.ones(100)
    tensor.untyped_storage().resize_(0)
    with pytest.raises(CheckpointError, match=r"cannot write .*: .x.: its memory was freed"):
        shards.write(tmp_path / "m.safetensors", {"x": Info(torch.float32, (100,))}, [tensor])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("a", {"x": 1}),
        ("a", {1: "x"}),
        ("a", {"x": "\ud800"}),
        ("\ud800", {}),
        (1, {}),
        ("__metadata__", {}),
    ],
)
def test_names_and_metadata_that_the_format_does_not_have(tmp_path, name, about):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match=r"cannot write .*(is no text|no tensor called)"):
        shards.write(path, {name: Info(torch.float32, (2,))}, [torch.ones(2)], about)
    assert path.read_bytes() == b"old"


def test_lazy_views_and_single_elements(tmp_path):
    complex_ones = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex64)
    state = {
        "conj": complex_ones.conj(),
        "negative": complex_ones.conj().imag,
        "strided": torch.arange(10.0)[::5][:1],
    }
    infos = {name: info_of(state, name) for name in state}
    shards.write(tmp_path / "m.safetensors", infos, state.values())
    found = shards.Shards(tmp_path / "m.safetensors")
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_failed_writing_leaves_the_old_file(state, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_text("precious")

    def tensors():
        yield state["b"]
        raise MemoryError

    infos = {name: info_of(state, name) for name in ("b", "scalar")}
    with pytest.raises(MemoryError):
        shards.write(path, infos, tensors())
    with pytest.raises(CheckpointError, match="b is not of the announced type"):
        shards.write(path, infos, [state["scalar"], state["b"]])
    with pytest.raises(CheckpointError, match=r"has no torch\.complex128, which x is"):
        shards.write(path, {"x": Info(torch.complex128, ())}, [])
    assert path.read_text() == "precious"
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / INDEX).write_text("{"), "model.safetensors.index.json is damaged"),
        (lambda f: (f / INDEX).write_text("[]"), "no weight_map"),
        (lambda f: (f / INDEX).write_text("[" * 10_000), "is damaged: nested too deeply"),
        (lambda f: (f / INDEX).write_bytes(b'{"\xff": 1}'), "is damaged: .*utf-8"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {}}'), "no weight_map"),
        (lambda f: (f / INDEX).write_text('{"weight_map": "a"}'), "no weight_map"),
        *(
            (
                lambda f, file=file: (f / INDEX).write_text(
                    json.dumps({"weight_map": {"a": file}})
                ),
                "the file of 'a' in its weight_map is missing",
            )
            for file in (
                3,
                None,
                [],
                {},
                "",
                ".",
                "..",
                "/",
                "a/b",
                "../a",
                "/a",
                "a\n",
                "a\0",
                "\ud800",
            )
        ),
        (
            lambda f: (f / INDEX).write_text(json.dumps({"weight_map": {"a": "a" * 300}})),
            "File name too long",
        ),
        (lambda f: os.truncate(f / INDEX, 2 << 30), "larger than the"),
        (lambda f: (f / "model-00001-of-00002.safetensors").unlink(), "is missing; fetch it"),
        (lambda f: (f / "model-00001-of-00002.safetensors").write_bytes(b"x" * 40), "cut off"),
        (
            lambda f: save_file({"b": torch.zeros(1)}, f / "model-00001-of-00002.safetensors"),
            r"00001-of-00002.safetensors lacks a\.weight, which model\.safetensors\.index\.json",
        ),
    ],
)
def test_a_damaged_folder(folder, spoil, message):
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        Shards(folder)


def test_an_index_names_no_file_outside_its_folder(folder):
    outside = folder.parent / "outside.safetensors"
    save_file({"b": torch.zeros(1)}, outside)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"b": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match="is missing"):
        Shards(folder)


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model at .*none\.safetensors"):
        Shards(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors\.index\.json or model\.safe"):
        Shards(tmp_path)
    save_file({}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        Shards(tmp_path / "m.safetensors")


def test_a_type_that_the_format_has_gained_since(tmp_path):
    header = b'{"scales": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}'
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    with pytest.raises(CheckpointError, match=r"m\.safetensors: scales is of type F6_E2M3"):
        Shards(path).info("scales")


# headers


def file_of(header, elements=b"", path=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + elements)
    return path


def tensor(begin, end, kind="F32", shape=None):
    return {"dtype": kind, "shape": shape or [(end - begin) // 4], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "damaged or cut off"),
        (b"{" * 9999, "damaged or cut off"),
        ([1], "invalid type: sequence"),
        ({"a": 3}, "invalid type: integer `3`"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "missing field `data_offsets`"),
        ({"a": tensor(0, 8, shape=[3])}, "invalid shape, data type, or offset for tensor"),
        ({"a": tensor(0, 8, shape=[-1, -2])}, "invalid value: integer `-1`"),
        ({"a": tensor(0, 8, shape=[2.0])}, "invalid type: floating point `2.0`"),
        ({"a": tensor(0, 8, shape=[True, 2])}, "invalid type: boolean `true`"),
        ({"a": tensor(0, 4)}, "file not fully covered"),
        ({"a": tensor(0, 16)}, "file not fully covered"),
        ({"a": tensor(4, 8)}, "invalid offset for tensor `a`"),
        ({"a": tensor(0, 8, "F6_E2M3", [8]), "b": tensor(8, 0, "F6_E2M3", [8])}, "damaged"),
        ({"a": tensor(0, 8), "b": tensor(4, 8)}, "invalid offset for tensor `b`"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
            b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
            "invalid offset for tensor `a`",
        ),
        (
            {"__metadata__": {"a": 3}, "a": tensor(0, 8)},
            "invalid type: integer `3`, expected a string",
        ),
        ({"a": tensor(0, 8, shape=[1 << 40] * 1_000_000)}, "overflow computing buffer size"),
        ({"a": tensor(0, 8, shape=[1] * 64 + [2])}, "a has a shape that PyTorch does not have"),
        (
            {"a": tensor(0, 8), "b": tensor(8, 8, shape=[0, 1 << 40, 1 << 40])},
            "b has a shape that PyT",
        ),
        (
            {"a": tensor(0, 16, "F6_E2M3"), "b": tensor(16, 8, "F6_E2M3")},
            "invalid value: integer `-2`",
        ),
    ],
)
def test_a_header_that_is_wrong(tmp_path, header, message):
    path = file_of(header, bytes(8), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=rf"m\.safetensors is .*{message}"):
        Shards(path)


@pytest.mark.parametrize("kept", [0, 4, 8, 9, 50, -1])
def test_a_file_that_is_cut_off(state, tmp_path, kept):
    save_file(state, tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(data[:kept])
    with pytest.raises(CheckpointError, match=r"m\.safetensors is .*(cut off|empty)"):
        Shards(tmp_path / "m.safetensors")


def test_a_file_that_is_replaced_meanwhile(state, tmp_path):
    save_file(state, tmp_path / "m.safetensors")
    found = Shards(tmp_path / "m.safetensors")
    save_file({name: tensor * 0 for name, tensor in state.items()}, tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="has been changed meanwhile; start again"):
        found["b"]


def test_each_header_is_read_once(folder, monkeypatch):
    reads = []
    real = shards._read_header
    monkeypatch.setattr(shards, "_read_header", lambda path: reads.append(path) or real(path))
    found = Shards(folder)
    for name in found:
        found.info(name), found[name]
    assert len(reads) == 2


def test_many_threads_read_one_file(tmp_path):
    state = {str(i): torch.full((50,), float(i)) for i in range(64)}
    save_file(state, tmp_path / "m.safetensors")
    found = Shards(tmp_path / "m.safetensors")
    with ThreadPoolExecutor(8) as pool:
        assert equal(dict(zip(state, pool.map(found.__getitem__, state), strict=True)), state)


def test_metadata(state, folder, tmp_path):
    assert Shards(folder).metadata == {}
    save_file(state, tmp_path / "m.safetensors", {"format": "pt", "who": "me"})
    assert Shards(tmp_path / "m.safetensors").metadata == {"format": "pt", "who": "me"}
    infos = {name: info_of(state, name) for name in state}
    for given, expected in (({"a": "b"}, {"a": "b"}), (None, {"format": "pt"})):
        shards.write(tmp_path / "n.safetensors", infos, state.values(), given)
        assert Shards(tmp_path / "n.safetensors").metadata == expected


# folders


def test_shards_of_torch_save(state, tmp_path):
    parts = [dict(list(state.items())[:2]), dict(list(state.items())[2:])]
    files = {}
    for i, part in enumerate(parts, 1):
        name = f"pytorch_model-{i:05}-of-00002.bin"
        torch.save(part, tmp_path / name)
        files |= dict.fromkeys(part, name)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    for path in (tmp_path, index):
        assert equal(checkpoint.load(path).state_dict, state)
    index.write_text(json.dumps({"weight_map": {**files, "other": name}}))
    with pytest.raises(UserError, match=r"00002-of-00002\.bin lacks other, which pytorch_model\."):
        checkpoint.load(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)  # which is not waited for
    with pytest.raises(UserError, match=r"no model at .*00002-of-00002\.bin"):
        checkpoint.load(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match=r"00002-of-00002\.bin is a pointer of Git LFS"):
        checkpoint.load(tmp_path)


def test_a_shard_of_torch_save_that_is_cut_off_while_it_is_in_use(state, tmp_path, monkeypatch):
    for name in ("1.bin", "2.bin"):
        torch.save({f"{name}.w": torch.ones(100_000)}, tmp_path / name)
    files = {f"{name}.w": name for name in ("1.bin", "2.bin")}
    (tmp_path / "m.bin.index.json").write_text(json.dumps({"weight_map": files}))
    monkeypatch.setattr(checkpoint, "MAPPED_FROM", 0)
    mapped = checkpoint.load(tmp_path).state_dict
    assert torch.equal(mapped["2.bin.w"], torch.ones(100_000))
    os.truncate(tmp_path / "2.bin", 100)
    with pytest.raises(CheckpointError, match=r"2\.bin was cut off while it was in use"):
        mapped["2.bin.w"]


def test_a_header_of_many_tensors_is_parsed_once(tmp_path, monkeypatch):
    """Nothing that is done for a tensor is done for the others, too."""
    state = {f"experts.{i}.weight": torch.ones(1, 1) for i in range(2000)}
    save_file(state, tmp_path / "m.safetensors")
    parsed = []
    real = json.loads
    monkeypatch.setattr(shards.json, "loads", lambda *a, **k: parsed.append(1) or real(*a, **k))
    found = Shards(tmp_path / "m.safetensors")
    assert sum(float(tensor) for tensor in found.values()) == 2000
    assert len(parsed) == 1
