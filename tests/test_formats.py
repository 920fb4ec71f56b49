import gzip
import io
import json
import pickle
import resource
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from net import checkpoint, formats
from net.checkpoint import CheckpointError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def archive(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name in names:
            opened.writestr(name, b"{}")
    return file.getvalue()


def npz():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as opened:
        opened.addfile(tarfile.TarInfo("a"), None)
    return file.getvalue()


KINDS = {
    "a pointer of Git LFS": LFS,
    "an HTML page": b"\n<!DOCTYPE html><html>",
    "an XML text": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a GGUF file": b"GGUF\3\0\0\0" + bytes(99),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(99),
    "a TFLite model": b"\x1c\0\0\0TFL3" + bytes(99),
    "an ONNX model": b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\x9a" + bytes(99),
    "a Core ML model": b"\x08\x04\x12\xa1\1\nR\n\7input_2" + bytes(99),
    "a TensorFlow SavedModel": b"\x08\x01\x12\xf8" + bytes(99),
    "a NumPy array": b"\x93NUMPY\1\0" + bytes(99),
    "a NumPy archive": npz(),
    "a Keras archive": archive("metadata.json", "config.json", "model.weights.h5"),
    "a TorchScript archive": archive("m/data.pkl", "m/constants.pkl", "m/code/x.py"),
    "a program of torch.export": archive("m/archive_format", "m/models/model.json"),
    "a zip archive": archive("readme.txt"),
    "a gzip archive": gzip.compress(b"x" * 99),
    "a tar archive": tar(),
    "a pickle that torch.save did not write": pickle.dumps({"a": np.zeros(3)}),
    "a JSON text": json.dumps({"a": "b" * 9999}).encode(),
    "a text": b"Entry not found",
    "empty": b"",
    "zeros only": bytes(99),
}


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors", "m"])
@pytest.mark.parametrize("what", KINDS)
def test_what_it_is_instead(tmp_path, what, name):
    (tmp_path / name).write_bytes(KINDS[what])
    assert formats.instead(tmp_path / name).startswith(what)
    with pytest.raises(CheckpointError, match=rf"{name} is (no safetensors file, but )?{what}"):
        checkpoint.load(tmp_path / name)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_is_cut_off_is_not_something_else(tmp_path, zipped):
    path = tmp_path / "m.pt"
    torch.save({"a": torch.zeros(999)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:900])
    assert formats.instead(path) is None
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        checkpoint.load(path)


def test_a_pickle_of_something_else_is_not_read(tmp_path):
    """Of a text of 2 GB, as this one says that it is, the first bytes are enough."""
    with (tmp_path / "m.pt").open("wb") as file:
        file.write(b"\x80\x02X\xff\xff\xff\x7f")
        file.truncate(3 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="a pickle that torch"):
        checkpoint.load(tmp_path / "m.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_torch_save_is_its_own(tmp_path, protocol):
    options = {"_use_new_zipfile_serialization": False, "pickle_protocol": protocol}
    torch.save({"a": torch.ones(3)}, tmp_path / "m.pt", **options)
    assert formats.instead(tmp_path / "m.pt") is None


def test_neither_there_nor_known(tmp_path):
    assert formats.instead(tmp_path / "none") is None
    assert formats.instead(tmp_path) is None
    (tmp_path / "m").write_bytes(bytes(range(255, 0, -1)))
    assert formats.instead(tmp_path / "m") is None


def test_the_content_decides_and_not_the_name(tmp_path):
    state = {"a": torch.arange(3.0)}
    save_file(state, tmp_path / "safe.bin")
    torch.save(state, tmp_path / "zip.safetensors")
    torch.save(state, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    for name in ("safe.bin", "zip.safetensors", "old.safetensors"):
        assert torch.equal(checkpoint.load(tmp_path / name).state_dict["a"], state["a"])


# which file of a folder

SHARDS = "-00001-of-00002.bin"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["adapter_model.safetensors", "README.md", "config.json"], "adapter_model.safetensors"),
        (["diffusion_pytorch_model.fp16.safetensors"], "diffusion_pytorch_model.fp16.safetensors"),
        (["pytorch_model.bin", "training_args.bin", "optimizer.pt"], "pytorch_model.bin"),
        (["model_best.pth.tar", "log.txt"], "model_best.pth.tar"),
        (["consolidated.00.pth", "params.json"], "consolidated.00.pth"),
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["model.safetensors", "adapter_model.safetensors"], "model.safetensors"),
        (
            [f"diffusion_pytorch_model{SHARDS}", "diffusion_pytorch_model.bin.index.json"],
            "diffusion_pytorch_model.bin.index.json",
        ),
        (
            ["model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors"],
            "model.safetensors.index.fp16.json",
        ),
        (["model.safetensors", "pytorch_model.bin.index.json"], "model.safetensors"),
    ],
)
def test_the_weights_of_a_folder(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert formats.weights_file(tmp_path).name == expected


def test_a_folder_of_several_weights(tmp_path):
    for name in ("a.fp16.safetensors", "a.safetensors", "a.bin"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"several weights: a\.fp16\.safetensors, a\.safetensors;"
    ):
        formats.weights_file(tmp_path)


def test_weights_in_folders_below(tmp_path):
    for name in ("vae", "unet"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="give the path of one of its folders: unet, vae"):
        formats.weights_file(tmp_path)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(99))
    with pytest.raises(
        CheckpointError, match=r"no weights; its largest file, m\.gguf, is a GGUF file"
    ):
        formats.weights_file(tmp_path)
