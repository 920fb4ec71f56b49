"""Files and folders of models, through one file and back."""

import json
import os
import re
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import net
from net import checkpoint, container, encoding, files, layouts, shards
from net.checkpoint import Checkpoint
from net.encoding import EncodingError
from net.errors import UserError
from net.tensors import info_of
from tests import fuzz
from tests.test_shards import UNKNOWN


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "b.weight": torch.randn(5, 3, generator=generator),
        "a.bias": torch.randn(5, generator=generator).bfloat16(),
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "ünï/x": torch.arange(3, dtype=torch.int8),
    }


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def through(source: Path, target: Path, key: str | None = None) -> encoding.Encoding:
    """Save `source` as it is read, and restore it as `target`."""
    state, layout, attached = layouts.read(source, key)
    dc = target.parent / "through.dc"
    size = encoding.save(state, dc, files=attached, layout=layout)
    assert size == dc.stat().st_size
    found = encoding.open(dc)
    assert fuzz.same(dict(found), dict(state))
    paths = layouts.restore(found, target)
    assert sorted(paths) == (
        sorted(path for path in target.rglob("*") if path.is_file())
        if target.is_dir()
        else [target]
    )
    return found


def put(folder: Path, **content: Any) -> Path:
    """Files of the names that begin with their keys: tensors as safetensors, text as it is."""
    for name, what in content.items():
        name = name.replace("__", "/").replace("_SAFE", ".safetensors").replace("_JSON", ".json")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, str):
            path.write_text(what)
        else:
            save_file(what, path, {"format": "pt"})
    return folder


# Safetensors


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"z": "1", "a": "é"}])
def test_a_safetensors_file_comes_back_byte_for_byte(metadata: dict | None, tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "m.safetensors", metadata)
    found = through(tmp_path / "m.safetensors", tmp_path / "n.safetensors")
    assert (tmp_path / "n.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    assert "header" not in found.layout["weights"][0]  # which costs bytes


def test_metadata_keep_their_order(tmp_path: Path) -> None:
    about = {str(number): "x" for number in range(20)}
    save_file(tensors(), tmp_path / "m.safetensors", about)
    header = (tmp_path / "m.safetensors").read_bytes()[8:]
    _, layout, _ = layouts.read(tmp_path / "m.safetensors")
    line = layout["weights"][0]
    order = sorted(about, key=lambda name: header.find(f'"{name}":"x"'.encode()))
    assert list(line["metadata"]) == order
    assert "header" not in line


def test_a_header_of_another_program(tmp_path: Path) -> None:
    """Names in another order than elements, spaces, escapes, no padding to 8 bytes."""
    fields = {
        "second": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        "f\u00fcrst": {"shape": [], "dtype": "I32", "data_offsets": [0, 4]},
        "none": {"dtype": "F64", "shape": [0, 3], "data_offsets": [4, 4]},
    }
    texts = [
        json.dumps({**fields, "__metadata__": {"who": "me"}}).encode() + b"   ",
        json.dumps(fields, indent=3, ensure_ascii=False).encode(),
        json.dumps({"__metadata__": {}, **fields}, separators=(",", ":")).encode(),
        json.dumps({"__metadata__": None, **fields}).encode(),
    ]
    for i, text in enumerate(texts):
        path = tmp_path / f"{i}.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(12)))
        through(path, tmp_path / "back.safetensors")
        assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=9).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(
            st.sampled_from([shards.DTYPES[name] for name in shards.DTYPES if name not in UNKNOWN]),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        min_size=1,
        max_size=5,
    ),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.just("x"), max_size=2),
)
def test_any_safetensors_file_comes_back(
    tmp_path_factory: pytest.TempPathFactory, infos: dict, metadata: dict
) -> None:
    folder = tmp_path_factory.mktemp("any")
    state = {name: fuzz_bits(dtype, tuple(shape)) for name, (dtype, shape) in infos.items()}
    shards.write(
        folder / "a.safetensors",
        {name: info_of(state, name) for name in state},
        state.values(),
        metadata,
    )
    through(folder / "a.safetensors", folder / "b.safetensors")
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()


def fuzz_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    raw = (torch.arange(size, dtype=torch.int64) % (2 if dtype == torch.bool else 251)).to(
        torch.uint8
    )
    return raw.view(dtype).reshape(shape)


def test_what_is_lossy_keeps_the_order_and_the_header(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "m.safetensors", {"format": "pt"})
    state, layout, _ = layouts.read(tmp_path / "m.safetensors")
    encoding.save({name: state[name] * 0 for name in state}, tmp_path / "m.dc", layout=layout)
    layouts.restore(encoding.open(tmp_path / "m.dc"), tmp_path / "n.safetensors")
    old, new = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "mn")
    size = 8 + int.from_bytes(old[:8], "little")
    assert (len(new), new[:size]) == (len(old), old[:size])


def test_tensors_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "m.safetensors")
    state, _, _ = layouts.read(tmp_path / "m.safetensors")
    assert state.info("b.weight") == (torch.float32, (5, 3))
    os.truncate(tmp_path / "m.safetensors", 9)
    with pytest.raises(UserError, match="has been changed meanwhile"):
        state["b.weight"]


# Files of torch.save


def loaded(path: Path) -> Any:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("metadata", [None, [1, 2], {"a": torch.ones(1)}])
def test_versions_of_modules_that_are_none(tmp_path: Path, metadata: Any) -> None:
    state = OrderedDict(a=torch.ones(2))
    state._metadata = metadata
    torch.save(state, tmp_path / "m.pth")
    found = through(tmp_path / "m.pth", tmp_path / "n.pth")
    assert fuzz.same(loaded(tmp_path / "n.pth"), state)
    assert ("notes" in layouts.read(tmp_path / "m.pth")[1]) == (metadata is not None)
    assert "versions" not in found.layout["weights"][0]


def test_nested_keys_and_what_is_beside_come_back(tmp_path: Path) -> None:
    weight = torch.randn(3, 2)
    state = OrderedDict(b=torch.ones(2), a=weight, tied=weight, scalar=torch.tensor(1.5))
    state._metadata = OrderedDict({"": {"version": 1}, "bn": {"version": 2}})
    content = {
        "epoch": 3,
        "net": {"lr": [0.1, (1, 2)], "state": state, 5: float("inf")},
        "best": {"acc": 0.5},
    }
    torch.save(content, tmp_path / "m.pth")
    found = through(tmp_path / "m.pth", tmp_path / "n.pth")
    back = loaded(tmp_path / "n.pth")
    assert "notes" not in found.layout
    assert list(back) == list(content)
    assert list(back["net"]) == list(content["net"])
    assert (back["epoch"], back["best"]) == (3, {"acc": 0.5})
    assert (back["net"]["lr"], back["net"][5]) == ([0.1, (1, 2)], float("inf"))
    assert fuzz.same(back["net"]["state"], state)
    assert back["net"]["state"]._metadata == state._metadata
    assert back["net"]["state"]["a"].data_ptr() == back["net"]["state"]["tied"].data_ptr()
    assert checkpoint.load(tmp_path / "n.pth").extra == checkpoint.load(tmp_path / "m.pth").extra


def test_a_module_takes_its_state_dict_back(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    torch.save(model.state_dict(), tmp_path / "m.pt")
    through(tmp_path / "m.pt", tmp_path / "back.pt")
    back = loaded(tmp_path / "back.pt")
    assert type(back) is OrderedDict
    assert back._metadata == model.state_dict()._metadata
    model.load_state_dict(back)


def test_a_state_dict_with_other_values_in_it(tmp_path: Path) -> None:
    content = {"w": torch.ones(2), "note": "x", "opt": {"lr": 1, "t": torch.ones(1)}}
    torch.save(content, tmp_path / "m.bin")
    found = through(tmp_path / "m.bin", tmp_path / "n.bin", key=".")
    back = loaded(tmp_path / "n.bin")
    assert (back["note"], back["w"].tolist()) == ("x", [1, 1])
    assert any("not kept: opt" in note for note in found.layout["notes"])


def test_a_key_chooses_one(tmp_path: Path) -> None:
    content = {"a": {"w": torch.ones(2)}, "b": {"w": torch.zeros(2)}, 0: {"w": torch.ones(3)}}
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(UserError, match="holds several models"):
        layouts.read(tmp_path / "m.pth")
    through(tmp_path / "m.pth", tmp_path / "n.pth", key="b")
    assert fuzz.same(loaded(tmp_path / "n.pth")["b"], content["b"])
    through(tmp_path / "m.pth", tmp_path / "n.pth", key="0")
    assert fuzz.same(loaded(tmp_path / "n.pth")[0], content[0])
    with pytest.raises(UserError, match="has no state dict 'c'"):
        layouts.read(tmp_path / "m.pth", "c")
    save_file({"w": torch.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="needs no key"):
        layouts.read(tmp_path / "m.safetensors", "a")


def test_a_ptmodel_comes_back_byte_for_byte(tmp_path: Path) -> None:
    model = Checkpoint(tensors(), "lenet-5", "retrained", "mnist", {"lr": 0.1}, {"e": 1.0})
    checkpoint.save(tmp_path / "m.ptmodel", model)
    through(tmp_path / "m.ptmodel", tmp_path / "n.ptmodel")
    assert (tmp_path / "m.ptmodel").read_bytes() == (tmp_path / "n.ptmodel").read_bytes()
    with pytest.raises(UserError, match="needs no key"):
        layouts.read(tmp_path / "m.ptmodel", "a")


# Folders


def test_a_folder_of_shards_comes_back_byte_for_byte(tmp_path: Path) -> None:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    folder = put(tmp_path / "m", config_JSON="{}")
    first, second = tensors(1), {"later": torch.ones(3), "lm_head": torch.zeros(2)}
    for name, state in zip(names, (first, second), strict=True):
        save_file(state, folder / name, {"format": "pt"})
    weight_map = dict.fromkeys(first, names[0]) | dict.fromkeys(second, names[1])
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    found = through(folder, tmp_path / "n")
    assert tree(tmp_path / "n") == tree(folder)
    assert set(found) == {*first, *second}
    assert found.files == {"config.json": 2, index.name: index.stat().st_size}
    through(index, tmp_path / "of_index")
    assert tree(tmp_path / "of_index") == {
        n: d for n, d in tree(folder).items() if "config" not in n
    }
    index.write_text(json.dumps({"weight_map": weight_map | {"more": names[0]}}))
    with pytest.raises(UserError, match=r"00001-of-00002\.safetensors lacks more"):
        layouts.read(folder)
    index.write_text(json.dumps({"weight_map": weight_map | {"more": "model-3.safetensors"}}))
    with pytest.raises(UserError, match=r"model-3\.safetensors is missing"):
        layouts.read(folder)


def test_shards_of_torch_save_come_back(tmp_path: Path) -> None:
    folder = put(tmp_path / "m", config_JSON="{}")
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    parts = [tensors(1), {"later": torch.ones(3)}]
    for name, state in zip(names, parts, strict=True):
        torch.save(state, folder / name)
    weight_map = dict.fromkeys(parts[0], names[0]) | dict.fromkeys(parts[1], names[1])
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    through(folder, tmp_path / "n")
    assert tree(tmp_path / "n").keys() == tree(folder).keys()
    assert fuzz.same(
        dict(checkpoint.load(tmp_path / "n").state_dict),
        dict(checkpoint.load(folder).state_dict),
    )


def test_other_forms_of_the_weights_are_left_out_with_a_word(tmp_path: Path) -> None:
    """As a folder of sentence-transformers', of which each part has its own weights."""
    folder = put(
        tmp_path / "m",
        model_SAFE={"w": torch.ones(2, 2)},
        config_JSON="{}",
        modules_JSON="[]",
        tokenizer_JSON="x" * 5000,
        **{
            "1_Pooling__config_JSON": "{}",
            "2_Dense__model_SAFE": {"w": torch.zeros(3)},
            "2_Dense__pytorch_model.bin": "duplicate",
            "pytorch_model.bin": "duplicate",
            "model.fp16.safetensors": "duplicate",
            "consolidated.safetensors": "duplicate",
            "tf_model.h5": "duplicate",
            "onnx__model.onnx": "duplicate",
            "openvino__openvino_model.bin": "duplicate",
            "optimizer.pt": "trainer's",
            "vocab.bin": "no tensors",
            ".git__config": "hidden",
            "checkpoint-500__model.safetensors": "a trainer's",
            "original__consolidated.00.pth": "duplicate",
            ".gitattributes": "kept",
            "odd\\name.txt": "unsafe",
        },
    )
    os.symlink("nowhere", folder / "broken")
    found = through(folder, tmp_path / "n")
    kept = {
        *("model.safetensors", "2_Dense/model.safetensors", "config.json", "modules.json"),
        *("tokenizer.json", "1_Pooling/config.json", "vocab.bin", ".gitattributes"),
    }
    before, after = tree(folder), tree(tmp_path / "n")
    assert after == {name: data for name, data in before.items() if name in kept}
    assert list(found) == ["w", "2_Dense/w"]
    notes = " ".join(found.layout["notes"])
    left = set(before) - kept - {".git/config", "checkpoint-500/model.safetensors"}
    left |= {".git", "broken", "checkpoint-500"}
    missing = [name for name in left if name not in notes]
    assert (len(missing), "and 2 more" in notes) == (2, True)  # six of a kind are named
    assert str(tmp_path) not in notes


@pytest.mark.parametrize("name", ["model.onnx.data", "model.onnx_data", "model.onnx_data_1"])
def test_the_tensors_of_an_onnx_model_are_left_out(name: str, tmp_path: Path) -> None:
    put(tmp_path, model_SAFE={"w": torch.ones(1)}, **{f"onnx__{name}": "duplicate"})
    _, layout, attached = layouts.read(tmp_path)
    assert not attached
    assert layout["notes"] == [f"left out, {layouts.DUPLICATE}: onnx/{name}"]


def test_an_index_of_something_else_is_a_file_like_another(tmp_path: Path) -> None:
    beside = {"search.index.json": '{"weight_map": 3}'}
    put(tmp_path / "m", model_SAFE={"w": torch.ones(1)}, **beside)
    through(tmp_path / "m", tmp_path / "n")
    assert tree(tmp_path / "n") == tree(tmp_path / "m")


@pytest.mark.parametrize("name", ["adapter_model", "diffusion_pytorch_model.fp16"])
def test_a_folder_of_one_part(name: str, tmp_path: Path) -> None:
    put(tmp_path / "m", adapter_config_JSON="{}")
    save_file(tensors(), tmp_path / "m" / f"{name}.safetensors")
    through(tmp_path / "m", tmp_path / "n")
    assert tree(tmp_path / "n") == tree(tmp_path / "m")


def test_a_pipeline_of_several_models(tmp_path: Path) -> None:
    name = "diffusion_pytorch_model"
    folder = put(
        tmp_path / "m",
        model_index_JSON="{}",
        **{
            f"unet__{name}_SAFE": {"conv.weight": torch.ones(4)},
            f"unet__{name}.fp16.safetensors": "duplicate",
            f"vae__{name}_SAFE": {"conv.weight": torch.zeros(4)},
            "vae__config_JSON": "{}",
        },
    )
    found = through(folder, tmp_path / "n")
    assert list(found) == ["unet/conv.weight", "vae/conv.weight"]
    after = tree(tmp_path / "n")
    assert after == {n: data for n, data in tree(folder).items() if "fp16" not in n}
    # all in one folder: names as they are
    for path in (folder / "vae").iterdir():
        path.unlink()
    assert list(layouts.read(folder)[0]) == ["conv.weight"]


def test_folders_that_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "none", config_JSON="{}")
    with pytest.raises(UserError, match="holds no weights; its largest file"):
        layouts.read(tmp_path / "none")
    with pytest.raises(UserError, match="no model at"):
        layouts.read(tmp_path / "missing.pth")
    put(tmp_path / "two", **{f"{n}_SAFE": {"w": torch.ones(1)} for n in ("best", "last")})
    with pytest.raises(
        UserError, match=r"holds several weights, as last\.safetensors, which has w"
    ):
        layouts.read(tmp_path / "two")
    with pytest.raises(UserError, match="a key is for one"):
        layouts.read(tmp_path / "two", "w")
    put(tmp_path / "bad", **{"a.bin": "x", "b.bin": "y"})
    with pytest.raises(UserError, match=r"b\.bin is a text"):
        layouts.read(tmp_path / "bad")
    put(tmp_path / "cut", model_SAFE={"w": torch.ones(1)}, **{"x.bin": "no weights"})
    os.truncate(tmp_path / "cut" / "model.safetensors", 30)
    with pytest.raises(UserError, match="damaged or cut off"):
        layouts.read(tmp_path / "cut")


# Restoring


def test_without_a_layout(tmp_path: Path) -> None:
    weight = torch.randn(3, 3)
    state = {"a": weight, "tied": weight}
    for path in ("m.dc", "folder"):
        encoding.save(state, tmp_path / path)
        found = encoding.open(tmp_path / path)
        layouts.restore(found, tmp_path / "m.safetensors")
        assert fuzz.same(dict(checkpoint.load(tmp_path / "m.safetensors").state_dict), state)
        layouts.restore(found, tmp_path / "m:1.pth")  # a name that no archive would have
        back = loaded(tmp_path / "m:1.pth")
        assert fuzz.same(back, state)
        assert back["a"].data_ptr() == back["tied"].data_ptr()
    encoding.save(state, tmp_path / "m.dc", files={"a/config.json": b"{}"})
    layouts.restore(encoding.open(tmp_path / "m.dc"), tmp_path / "new" / "model")
    assert tree(tmp_path / "new" / "model").keys() == {"model.safetensors", "a/config.json"}


def test_a_folder_of_a_type_that_safetensors_has_not(tmp_path: Path) -> None:
    state = {"a": torch.ones(3), "c": torch.ones(2, dtype=torch.complex128)}
    encoding.save(state, tmp_path / "m.dc", files={"config.json": b"{}"})
    layouts.restore(encoding.open(tmp_path / "m.dc"), tmp_path / "m")
    assert tree(tmp_path / "m").keys() == {"model.pth", "config.json"}
    assert fuzz.same(loaded(tmp_path / "m" / "model.pth"), state)


def test_as_another_kind_of_file(tmp_path: Path) -> None:
    torch.save({"net": tensors()}, tmp_path / "m.pth")
    through(tmp_path / "m.pth", tmp_path / "n.safetensors")
    assert fuzz.same(dict(shards.Shards(tmp_path / "n.safetensors")), tensors())
    through(tmp_path / "n.safetensors", tmp_path / "o.pth")
    assert fuzz.same(loaded(tmp_path / "o.pth"), tensors())


def test_shards_without_an_index_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "m", **{"model-00001-of-00002_SAFE": {"v": torch.ones(1)}})
    with pytest.raises(UserError, match="one of 2 files, of which 1 is there"):
        layouts.read(tmp_path / "m")
    put(tmp_path / "m", **{"model-00002-of-00002_SAFE": {"w": torch.ones(1)}})
    assert list(layouts.read(tmp_path / "m")[0]) == ["v", "w"]


def test_encoded_models_in_the_folder_are_not_encoded_again(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    put(folder, model_SAFE={"w": torch.ones(1)}, config_JSON="{}")
    (folder / "other.dc").write_text("something else")
    encoding.save({"w": torch.ones(1)}, folder / "m.dc")
    _, layout, attached = layouts.read(folder)
    assert sorted(attached) == ["config.json", "other.dc"]
    assert layout["notes"] == ["left out, encoded models: m.dc"]


def test_an_empty_folder_stays_the_one_that_it_is(tmp_path: Path) -> None:
    put(tmp_path / "m", model_SAFE={"w": torch.ones(1)}, config_JSON="{}", a__b_JSON="{}")
    target = tmp_path / "n"
    target.mkdir(mode=0o700)
    before = target.stat()
    through(tmp_path / "m", target)
    assert tree(target) == tree(tmp_path / "m")
    assert (target.stat().st_ino, target.stat().st_mode) == (before.st_ino, before.st_mode)


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    put(tmp_path / "m", model_SAFE={"w": torch.ones(1)}, config_JSON="{}")
    put(tmp_path / "n", mine_JSON="precious")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncodingError, match="n is there already, and not empty"):
        through(tmp_path / "m", tmp_path / "n")
    with pytest.raises(EncodingError, match=r"mine\.json is there already"):
        through(tmp_path / "m", tmp_path / "n" / "mine.json")
    through(tmp_path / "m", tmp_path / "empty")
    assert tree(tmp_path / "empty") == tree(tmp_path / "m")
    assert (tmp_path / "n" / "mine.json").read_text() == "precious"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_restore_that_fails_leaves_nothing(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "m", model_SAFE={"w": torch.ones(1)}, config_JSON="{}", more_JSON="{}")
    state, layout, attached = layouts.read(tmp_path / "m")
    encoding.save(state, tmp_path / "m.dc", files=attached, layout=layout)
    real = os.replace
    for step in range(4):
        calls = iter(range(9))

        def fail(*arguments: object, step: int = step, calls: Any = calls) -> None:
            if next(calls) == step:
                raise error
            real(*arguments)

        monkeypatch.setattr(os, "replace", fail)
        monkeypatch.setattr(os, "rename", fail)
        with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
            layouts.restore(encoding.open(tmp_path / "m.dc"), tmp_path / "n")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.dc"]
    (tmp_path / "n").mkdir()
    for step in range(6):  # of an empty folder every part is renamed
        calls = iter(range(9))
        monkeypatch.setattr(os, "replace", partial(fail, step=step, calls=calls))
        monkeypatch.setattr(os, "rename", partial(fail, step=step, calls=calls))
        with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
            layouts.restore(encoding.open(tmp_path / "m.dc"), tmp_path / "n")
        assert not list((tmp_path / "n").iterdir())


def test_an_unfinished_folder_is_removed_at_the_end_of_the_process(tmp_path: Path) -> None:
    if pid := os.fork():
        assert os.waitpid(pid, 0)[1] == 0
    else:
        with files.atomic_folder(tmp_path / "x") as folder:
            (folder / "a").write_text("half")
            files.unfinished.remove()
            os._exit(0)
    assert not list(tmp_path.iterdir())


SAFE = {"path": "m.safetensors", "tensors": 2}
TORCH = {"path": "m.pth", "tensors": 2, "at": [], "content": {}}


@pytest.mark.parametrize(
    "layout",
    [
        {"weights": 3},
        {"weights": []},
        {"weights": [3]},
        {"folder": True},
        {"weights": [SAFE | {"tensors": 1}]},
        {"weights": [SAFE | {"tensors": 3}]},
        {"weights": [SAFE | {"tensors": -1}]},
        {"weights": [SAFE | {"tensors": True}, SAFE | {"path": "b", "tensors": 1}]},
        {"weights": [SAFE | {"tensors": "2"}]},
        {"weights": [SAFE | {"tensors": 1}] * 2, "folder": True},
        {"weights": [SAFE | {"tensors": 1}, {"path": "b", "tensors": 1}]},
        {"weights": [SAFE | {"prefix": "x"}]},
        {"weights": [SAFE | {"prefix": 3}]},
        {"weights": [SAFE | {"path": 3}]},
        {"weights": [SAFE | {"path": []}]},
        {"weights": [SAFE | {"path": "../m.safetensors"}], "folder": True},
        {"weights": [SAFE | {"path": "/tmp/m.safetensors"}], "folder": True},
        {"weights": [SAFE | {"metadata": 3}]},
        {"weights": [SAFE | {"metadata": {"a": 3}}]},
        {"weights": [SAFE | {"header": 3}]},
        {"weights": [SAFE | {"header": "\u20ac"}]},
        {"weights": [SAFE | {"header": "["}]},
        {"weights": [SAFE | {"header": "[1]"}]},
        {"weights": [SAFE | {"header": '{"a": 1}'}]},
        {"weights": [TORCH | {"content": 3}]},
        {"weights": [TORCH | {"at": ["x"]}]},
        {"weights": [TORCH | {"at": 3}]},
        {"weights": [TORCH | {"versions": 3}]},
        {"weights": [TORCH | {"content": {"x": 3}, "at": ["x"]}]},
    ],
)
def test_layouts_that_nobody_wrote(layout: dict, tmp_path: Path) -> None:
    encoding.save({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "m.dc", layout=layout)
    line = (
        layout["weights"][0]
        if isinstance(layout.get("weights"), list) and layout["weights"]
        else {}
    )
    name = "x.pth" if isinstance(line, dict) and "content" in line else "x.safetensors"
    with pytest.raises(EncodingError, match=r"m\.dc: .*; encode the model again") as error:
        layouts.restore(encoding.open(tmp_path / "m.dc"), tmp_path / name)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.dc"]


def test_a_header_that_says_something_else_is_not_used(tmp_path: Path) -> None:
    for header in (
        '{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}',
        '{"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    ):
        layout = {"weights": [SAFE | {"tensors": 1, "header": header}]}
        encoding.save({"a": torch.ones(2)}, tmp_path / "m.dc", layout=layout)
        layouts.restore(encoding.open(tmp_path / "m.dc"), tmp_path / "m.safetensors")
        assert shards.Shards(tmp_path / "m.safetensors")["a"].tolist() == [1, 1]


def test_a_large_file_beside_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_FILE_BYTES", 100)
    put(tmp_path / "m", model_SAFE={"w": torch.ones(1)}, data_JSON="x" * 101)
    _, layout, attached = layouts.read(tmp_path / "m")
    assert not attached
    assert re.search(r"left out, too large: data\.json", layout["notes"][0])


def test_folders_that_are_links_are_followed(tmp_path: Path) -> None:
    model, store = tmp_path / "model", tmp_path / "store" / "vae"
    for folder in (model / "unet", store):
        folder.mkdir(parents=True)
        save_file(tensors(), folder / "model.safetensors")
    (store / "config.json").write_text("{}")
    (model / "vae").symlink_to(store)
    (model / "unet" / "back").symlink_to(model)
    state, layout, attached = layouts.read(model)
    assert {name.partition("/")[0] for name in state} == {"unet", "vae"}
    assert list(attached) == ["vae/config.json"]
    assert layout["notes"] == ["left out, a link to a folder that it is in: unet/back"]
    through(model, tmp_path / "again")
    assert "vae/model.safetensors" in tree(tmp_path / "again")


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "model", model_SAFE=tensors(), vae__model_SAFE=tensors())
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("vae"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"model/vae cannot be read: Permission denied"):
        layouts.read(tmp_path / "model")


def test_a_damaged_shard_is_no_other_file(tmp_path: Path) -> None:
    for number in (1, 2):
        torch.save(tensors(number), tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    path = tmp_path / "pytorch_model-00002-of-00002.bin"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"pytorch_model-00002-of-00002\.bin"):
        layouts.read(tmp_path)


@pytest.mark.parametrize("name", ["run_12:00:00.pth", "a\\b.safetensors", "tab\t.pt", "x.a:b"])
def test_a_file_of_any_name_comes_back(name: str, tmp_path: Path) -> None:
    source, target = tmp_path / name, tmp_path / f"again{Path(name).suffix}"
    if name.endswith(shards.SUFFIX):
        save_file(tensors(), source)
    else:
        torch.save(tensors(), source)
    through(source, target)
    before, after = (dict(checkpoint.load(path).state_dict) for path in (source, target))
    assert fuzz.same(after, before)


def test_keys_that_are_written_alike(tmp_path):
    state = {"w.weight": torch.randn(8, 8)}
    torch.save({1: 5, "1": state}, tmp_path / "a.pth")
    net.compress(tmp_path / "a.pth", tmp_path / "a.dc", lossless=True)
    loaded = encoding.load(tmp_path / "a.dc")[0]
    assert torch.equal(*(each for model in (loaded, state) for each in model.values()))
