import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from net import shards
from net.shards import DTYPES, INDEX, Info, Shards, ShardsError


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
    with pytest.raises(ShardsError, match=r"00002-of-00002\.safetensors is missing"):
        found["scalar"]


def test_what_is_written_tensor_by_tensor_the_library_reads(state, tmp_path):
    infos = {name: shards.info_of(state, name) for name in state}
    size = shards.write(tmp_path / "m.safetensors", infos, (state[name] for name in state))
    assert (tmp_path / "m.safetensors").stat().st_size == size
    assert equal(load_file(tmp_path / "m.safetensors"), state)


@pytest.mark.parametrize("name", DTYPES)
def test_every_type(name, tmp_path):
    dtype = DTYPES[name]
    tensor = torch.arange(64, dtype=torch.uint8).view(dtype).clone()
    if dtype == torch.bool:
        tensor = torch.tensor([True, False])
    shards.write(tmp_path / "m.safetensors", {"x": Info(dtype, tuple(tensor.shape))}, [tensor])
    found = Shards(tmp_path / "m.safetensors")
    assert found.info("x") == (dtype, tuple(tensor.shape))
    assert torch.equal(found["x"].view(torch.uint8), tensor.view(torch.uint8))


def test_a_failed_writing_leaves_the_old_file(state, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_text("precious")

    def tensors():
        yield state["b"]
        raise MemoryError

    infos = {name: shards.info_of(state, name) for name in ("b", "scalar")}
    with pytest.raises(MemoryError):
        shards.write(path, infos, tensors())
    with pytest.raises(ShardsError, match="b is not of the announced type"):
        shards.write(path, infos, [state["scalar"], state["b"]])
    with pytest.raises(ShardsError, match=r"has no torch\.complex128, which x is"):
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
    with pytest.raises(ShardsError, match=message):
        Shards(folder)


def test_an_index_names_no_file_outside_its_folder(folder):
    outside = folder.parent / "outside.safetensors"
    save_file({"b": torch.zeros(1)}, outside)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"b": "../outside.safetensors"}}))
    with pytest.raises(ShardsError, match="is missing"):
        Shards(folder)


def test_nothing_there(tmp_path):
    with pytest.raises(ShardsError, match=r"no model at .*none\.safetensors"):
        Shards(tmp_path / "none.safetensors")
    with pytest.raises(ShardsError, match=r"no model\.safetensors\.index\.json or model\.safe"):
        Shards(tmp_path)
    save_file({}, tmp_path / "m.safetensors")
    with pytest.raises(ShardsError, match="holds no tensors"):
        Shards(tmp_path / "m.safetensors")


def test_a_type_that_the_format_has_gained_since(tmp_path):
    header = b'{"scales": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}'
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ShardsError, match=r"m\.safetensors: scales is of type F8_E8M0"):
        Shards(path).info("scales")
