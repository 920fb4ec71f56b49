import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

import compare_stages
import huffman_decode
import huffman_encode
import weight_share
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


def test_one_file_in_place_of_the_folder(pipeline, tmp_path, capsys):
    directory = ["--directory", str(tmp_path / "m.dc")]
    output, figures = tmp_path / "m.ptmodel", tmp_path / "figures.json"
    shared = str(pipeline.saves / checkpoint.SHARED)
    assert huffman_encode.main([shared, *directory]) == 0
    size = (tmp_path / "m.dc").stat().st_size
    assert f"{size:,}" in capsys.readouterr().out.splitlines()[-1]
    assert size < encoding.directory_bytes(pipeline.encodings) + 60
    assert huffman_decode.main([*directory, "--output", str(output)]) == 0
    assert output.read_bytes() == (pipeline.saves / checkpoint.DECODED).read_bytes()
    arguments = ["--path", str(pipeline.saves), *directory, "--json", str(figures)]
    assert compare_stages.main(arguments) == 0
    assert json.loads(figures.read_text())["encoded_bytes"] == size
    (tmp_path / "m.dc").write_bytes(b"DCF")
    assert huffman_decode.main([*directory, "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


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


@pytest.mark.parametrize("made", ["torch", "safetensors"])
@pytest.mark.parametrize("suffix", [".ptmodel", ".safetensors"])
def test_what_others_have_beside_their_tensors_comes_back(tmp_path, made, suffix, capsys):
    """Through all stages: metadata, plain fields where they were, and the order of the names."""
    torch.manual_seed(0)
    state = {name: torch.randn(9, 8) for name in ("z.weight", "a.weight", "m.weight")}
    if made == "torch":
        source, key = tmp_path / "m.pth", ["--key", "ema.params"]
        names = {0: "cat", 1: "dog"}
        other = {"z.weight": torch.zeros(1, 1)}
        beside = {"ema": {"params": state, "decay": 0.99}, "raw": {"params": other}}
        torch.save({**beside, "names": names, "opt": {"param_groups": []}}, source)
        extra = {"ema": {"decay": 0.99}, "names": names, "opt": {"param_groups": []}}
    else:
        source, key = tmp_path / "m.bin", []
        save_file(state, source, {"who": "me", "modelspec.title": "x"})
        extra = {"__metadata__": {"who": "me", "modelspec.title": "x"}}
    shared, folder, out = tmp_path / "s.ptmodel", tmp_path / "e", tmp_path / f"d{suffix}"
    share = [str(source), *key, "--epochs", "0", "--bits", "auto", "--output", str(shared)]
    assert weight_share.main([*share, "--device", "cpu"]) == 0
    assert ("beside the tensors and not kept: raw" in capsys.readouterr().err) == (made == "torch")
    assert huffman_encode.main([str(shared), "--directory", str(folder)]) == 0
    assert huffman_decode.main(["--directory", str(folder), "--output", str(out)]) == 0
    found = checkpoint.load(out)
    order = list(checkpoint.load(source, *key[1:]).state_dict)
    assert made != "torch" or order == list(state)
    assert list(checkpoint.load(shared).state_dict) == order
    if suffix == ".ptmodel":
        assert found.extra == extra
        assert list(found.state_dict) == order
    else:
        metadata = found.extra["__metadata__"]
        if made == "torch":
            assert json.loads(metadata["ema"]) == {"decay": 0.99}
            assert metadata["format"] == "pt"
        else:
            assert metadata == extra["__metadata__"]
        assert list(found.state_dict) == order


def test_several_state_dicts_and_no_key_is_one_line(tmp_path, capsys):
    one = {"a.weight": torch.ones(2, 2)}
    torch.save({"params": one, "params_ema": one}, tmp_path / "m.pth")
    assert huffman_encode.main([str(tmp_path / "m.pth"), "--directory", str(tmp_path / "e")]) == 1
    err = capsys.readouterr().err
    assert "holds several models: params, params_ema; choose one by its key, such as params" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("key", ["arch", "dataset"])
@pytest.mark.parametrize("value", [3, ["lenet-5"], {"a": 1}, True])
def test_meta_of_somebody_else_is_one_line(tmp_path, capsys, key, value):
    encoding.save({"a": torch.ones(3)}, tmp_path / "e", {key: value})
    arguments = ["--directory", str(tmp_path / "e"), "--output", str(tmp_path / "m.ptmodel")]
    assert huffman_decode.main(arguments) == 1
    assert f"manifest.huff: {key!r} is no name" in capsys.readouterr().err
    assert not (tmp_path / "m.ptmodel").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (3, "'extra' has no names"),
        ([{}], "'extra' has no names"),
        ({"$tuple": [1]}, "'extra' has no names"),
        (deep := {"a": [[[[[[[[]]]]]]]]}, None),
        ({"a": [deep] * 8, "b": {"$float": "nan"}}, None),
    ],
)
def test_fields_of_somebody_else_are_one_line(tmp_path, capsys, extra, message):
    for _ in range(6 if message is None else 0):
        extra = {"a": [[[[extra]]]]}
    encoding.save({"a": torch.ones(3)}, tmp_path / "e", {"extra": extra})
    arguments = ["--directory", str(tmp_path / "e"), "--output", str(tmp_path / "m.ptmodel")]
    assert huffman_decode.main(arguments) == 1
    message = message or "not made of numbers, texts, lists and dicts"
    assert f"manifest.huff: {message}" in capsys.readouterr().err
    assert not (tmp_path / "m.ptmodel").exists()


def test_the_encoded_model_is_not_written_over(tmp_path, capsys):
    state = {"a.weight": torch.randn(9, 9)}
    encoding.save(state, tmp_path / "enc")
    encoding.save(state, tmp_path / "m.dc")
    for source, file in (("enc", "enc/manifest.huff"), ("m.dc", "m.dc")):
        before = (tmp_path / file).read_bytes()
        argv = ["--directory", str(tmp_path / source), "--output", str(tmp_path / file)]
        assert huffman_decode.main(argv) == 1
        assert "is a file of the model" in capsys.readouterr().err
        assert (tmp_path / file).read_bytes() == before
