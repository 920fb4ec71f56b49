import shutil

import pytest
import torch

import huffman_decode
from net import checkpoint, encoding
from net.report import comparison


def test_decoded_equals_weight_shared_bit_for_bit(pipeline, tmp_path):
    arguments = ["--directory", str(pipeline.encodings), "--output", str(tmp_path / "m.ptmodel")]
    assert huffman_decode.main(arguments) == 0
    decoded = checkpoint.load(tmp_path / "m.ptmodel")
    shared = checkpoint.load(pipeline.saves / checkpoint.SHARED)
    assert (decoded.arch, decoded.dataset, decoded.stage) == (shared.arch, "digits", "decoded")
    assert comparison.identical(decoded, shared)
    assert (tmp_path / "m.ptmodel").read_bytes() == (
        pipeline.saves / checkpoint.DECODED
    ).read_bytes()


def test_an_empty_folder(tmp_path, capsys):
    (tmp_path / "e").mkdir()
    (tmp_path / "m.ptmodel").write_text("precious")
    code = huffman_decode.main(
        ["--directory", str(tmp_path / "e"), "--output", str(tmp_path / "m.ptmodel")]
    )
    assert code == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert (tmp_path / "m.ptmodel").read_text() == "precious"


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_folder_is_refused(pipeline, tmp_path, capsys, damage):
    for path in pipeline.encodings.iterdir():
        shutil.copytree(pipeline.encodings, tmp_path / path.name)
        victim = tmp_path / path.name / path.name
        data = bytearray(victim.read_bytes())
        if damage == "flip":
            data[len(data) // 2] ^= 1
            victim.write_bytes(data)
        elif damage == "cut":
            victim.write_bytes(data[:-1])
        else:
            victim.unlink()
        output = tmp_path / "m.ptmodel"
        code = huffman_decode.main(
            ["--directory", str(tmp_path / path.name), "--output", str(output)]
        )
        assert code == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert not output.exists()


def test_to_safetensors(pipeline, tmp_path, capsys):
    output = tmp_path / "m.safetensors"
    assert huffman_decode.main([*directory(pipeline.encodings), "--output", str(output)]) == 0
    expected = checkpoint.load(pipeline.saves / checkpoint.DECODED).state_dict
    found = checkpoint.load(output).state_dict
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def directory(folder):
    return ["--directory", str(folder)]


@pytest.mark.parametrize("key", ["arch", "dataset"])
@pytest.mark.parametrize("value", [3, ["lenet-5"], {"a": 1}, True])
def test_meta_of_somebody_else_is_one_line(tmp_path, capsys, key, value):
    encoding.save({"a": torch.ones(3)}, tmp_path / "e", {key: value})
    arguments = ["--directory", str(tmp_path / "e"), "--output", str(tmp_path / "m.ptmodel")]
    assert huffman_decode.main(arguments) == 1
    assert f"manifest.huff: {key!r} is no name" in capsys.readouterr().err
    assert not (tmp_path / "m.ptmodel").exists()
