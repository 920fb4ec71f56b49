import argparse
import os
import pickle
import resource
import threading
import zipfile
from dataclasses import replace
from functools import partial

import pytest
import torch

from net import checkpoint, files
from net.checkpoint import Checkpoint, CheckpointError
from net.training.architectures import build


@pytest.fixture
def model():
    state = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([-0.0, float("nan")])}
    return Checkpoint(state, "lenet-5", "retrained", "digits", {"seed": 1}, {"error": 2.5})


def test_round_trip(tmp_path, model):
    size = checkpoint.save(tmp_path / "m.ptmodel", model)
    assert size == (tmp_path / "m.ptmodel").stat().st_size
    loaded = checkpoint.load(tmp_path / "m.ptmodel")
    assert (loaded.arch, loaded.stage, loaded.dataset) == ("lenet-5", "retrained", "digits")
    assert (loaded.options, loaded.metrics) == ({"seed": 1}, {"error": 2.5})
    for name, tensor in model.state_dict.items():
        assert torch.equal(loaded.state_dict[name].view(torch.int32), tensor.view(torch.int32))


def test_equal_content_gives_equal_bytes_under_any_name(tmp_path, model):
    checkpoint.save(tmp_path / "one.ptmodel", model)
    checkpoint.save(tmp_path / "two.ptmodel", model)
    assert (tmp_path / "one.ptmodel").read_bytes() == (tmp_path / "two.ptmodel").read_bytes()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_of_somebody_else(tmp_path, wrap, zipped):
    state = build("lenet-300-100").state_dict()
    torch.save(wrap(state), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    loaded = checkpoint.load(tmp_path / "m.pt")
    assert loaded.arch is None
    assert loaded.stage is None
    assert list(loaded.state_dict) == list(state)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, zipped):
    trace = tmp_path / "executed"
    torch.save(
        {"state_dict": Malicious(trace)},
        tmp_path / "bad.ptmodel",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(CheckpointError, match=r"bad\.ptmodel is refused.*could run code"):
        checkpoint.load(tmp_path / "bad.ptmodel")
    (tmp_path / "raw.ptmodel").write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(CheckpointError, match=r"raw\.ptmodel is "):
        checkpoint.load(tmp_path / "raw.ptmodel")
    assert not trace.exists()


@pytest.fixture
def with_arguments(tmp_path):
    content = {"args": argparse.Namespace(lr=1), "model": {"w": torch.ones(2)}}
    torch.save(content, tmp_path / "m.pt")
    return tmp_path / "m.pt"


def test_classes_that_the_user_allows_stay_allowed(with_arguments):
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint.load(with_arguments)
        assert torch.load(with_arguments, weights_only=True)["args"].lr == 1
    with pytest.raises(pickle.UnpicklingError):
        torch.load(with_arguments, weights_only=True)


def test_a_load_that_ends_in_another_thread_meanwhile(with_arguments, monkeypatch):
    real, others = torch.load, []

    def load(*args, **options):
        if not others:
            others.append(threading.Thread(target=checkpoint.load, args=(with_arguments,)))
            others[0].start()
            others[0].join(0.2)  # which may have to wait for this one
        return real(*args, **options)

    monkeypatch.setattr(torch, "load", load)
    assert list(checkpoint.load(with_arguments).state_dict) == ["w"]
    others[0].join()


def test_a_whole_module_is_refused(tmp_path):
    torch.save(build("lenet-300-100"), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match="save its state_dict"):
        checkpoint.load(tmp_path / "module.pt")


def test_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model at .*x\.pt; give the path"):
        checkpoint.load(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"no model at .*; give the path") as raised:
        checkpoint.load(tmp_path / checkpoint.RETRAINED)
    assert raised.value.missing == checkpoint.RETRAINED
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file(tmp_path, model, keep):
    path = tmp_path / "m.ptmodel"
    checkpoint.save(path, model)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(CheckpointError, match=r"m\.ptmodel"):
        checkpoint.load(path)


def test_not_a_checkpoint(tmp_path):
    (tmp_path / "text").write_text("hello, world\n" * 100)
    with pytest.raises(CheckpointError, match="text is"):
        checkpoint.load(tmp_path / "text")


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, torch.zeros(3), {"state_dict": {}}])
def test_a_file_without_a_model(tmp_path, content):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="holds no model"):
        checkpoint.load(tmp_path / "m.pt")


def test_one_of_several_models_is_taken_by_its_name_only(tmp_path):
    one, other = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    torch.save({"ema": one, "model": other}, tmp_path / "m.pt")
    assert checkpoint.load(tmp_path / "m.pt").state_dict["w"].tolist() == [1, 1]
    torch.save({"generator": one, "critic": other, "step": 3}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"several models: generator, critic; .*key"):
        checkpoint.load(tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_archive(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 3), torch.zeros(1, 2)), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="is a TorchScript archive"):
        checkpoint.load(tmp_path / "m.pt")


def test_a_checkpoint_without_a_field(tmp_path, model):
    checkpoint.save_dict(
        tmp_path / "m.ptmodel", {"format": checkpoint.FORMAT, "state_dict": model.state_dict}
    )
    with pytest.raises(CheckpointError, match="fields are missing"):
        checkpoint.load(tmp_path / "m.ptmodel")


@pytest.mark.parametrize("limit", range(0, 9000, 1500))
def test_a_full_disk_is_one_line(tmp_path, limit):
    path = tmp_path / "m.ptmodel"
    path.write_bytes(b"old")
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            checkpoint.save(path, Checkpoint({"w": torch.ones(2000), "v": torch.ones(9)}))
        except CheckpointError as error:
            os._exit(7 if str(error).endswith("File too large; give another path") else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.ptmodel"]


@pytest.mark.parametrize("call", [1, 3, 9])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError()])
def test_what_stops_torch_while_it_writes_stays_what_it_is(tmp_path, monkeypatch, call, failure):
    real, calls = files._Written.write, iter(range(1, 999))

    def write(self, data):
        if next(calls) == call:
            raise failure
        return real(self, data)

    monkeypatch.setattr(files._Written, "write", write)
    with pytest.raises(type(failure)):
        checkpoint.save(tmp_path / "m.ptmodel", Checkpoint({"w": torch.ones(2000)}))
    assert os.listdir(tmp_path) == []


def test_an_error_of_torch_itself(tmp_path):
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        checkpoint.save_dict(tmp_path / "m.ptmodel", {"a": lambda: None})
    assert os.listdir(tmp_path) == []


def test_where_no_thread_is_to_be_had(tmp_path, monkeypatch, model):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    checkpoint.save(tmp_path / "m.ptmodel", model)
    assert list(checkpoint.load(tmp_path / "m.ptmodel").state_dict) == list(model.state_dict)


def test_a_tensor_whose_memory_was_freed(tmp_path):
    tensor = torch.ones(100)
    tensor.untyped_storage().resize_(0)
    with pytest.raises(CheckpointError, match=r"cannot write .*: .x.: its memory was freed"):
        checkpoint.save(tmp_path / "m.ptmodel", Checkpoint({"x": tensor}))
    with pytest.raises(CheckpointError, match="cannot copy 'x': its memory was freed"):
        checkpoint.copied({"x": tensor})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(1).expand(2**32), torch.ones(9000).as_strided((8000, 900), (1, 1))],
)
@pytest.mark.parametrize("nest", [lambda s: s, lambda s: {"model": s, "epoch": 3}])
def test_a_small_file_of_an_enormous_tensor_is_refused(tmp_path, tensor, nest):
    """torch.save keeps the memory of a tensor and its strides: 1 KB for 16 GB of ones."""
    torch.save(nest({"a.weight": tensor, "b": torch.ones(3)}), tmp_path / "m.pt")
    assert (tmp_path / "m.pt").stat().st_size < 50_000
    with pytest.raises(
        CheckpointError,
        match=r"m\.pt holds what cannot be read, 'a\.weight': an expanded tensor of \d+",
    ):
        checkpoint.load(tmp_path / "m.pt")


def test_a_tensor_without_values_is_refused(tmp_path):
    torch.save({"a": torch.empty(3, device="meta")}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt holds .*'a': on the meta device"):
        checkpoint.load(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "fields",
    [
        {"state_dict": {}},
        {"state_dict": {1: torch.ones(2)}},
        {"state_dict": torch.nn.Linear(2, 2)},
        {"arch": 3},
        {"stage": ["a"]},
        {"options": [1]},
        {"metrics": None},
        {"options": {"a": len}},
        {"options": {"a": lambda: 0}},
        {"options": {"a": slice(1)}},
        {"extra": {"a": {1}}},
        {"extra": {"a": torch.ones(2)}},
        {"extra": [1]},
    ],
    ids=str,
)
def test_what_could_not_be_read_again_replaces_nothing(tmp_path, model, fields):
    path = tmp_path / "m.ptmodel"
    checkpoint.save(path, model)
    with pytest.raises(CheckpointError, match=r"cannot write .*m\.ptmodel: (it could|a Linear)"):
        checkpoint.save(path, replace(model, **fields))
    assert checkpoint.load(path).state_dict.keys() == model.state_dict.keys()


def test_fields_that_are_nested_too_deeply_or_seen_as_two_types(tmp_path, model):
    deep = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(CheckpointError, match="could not be read again"):
        checkpoint.save(tmp_path / "m.ptmodel", replace(model, options={"a": deep}))
    one = torch.ones(4)
    with pytest.raises(CheckpointError, match=r"cannot write .*: Cannot save multiple tensors"):
        checkpoint.save(tmp_path / "m.ptmodel", Checkpoint({"a": one, "b": one.view(torch.int32)}))
    assert not list(tmp_path.iterdir())


def test_an_expanded_tensor_in_a_ptmodel_is_refused(tmp_path):
    expanded = {"a": torch.ones(1).expand(2**32)}
    with pytest.raises(CheckpointError, match=r"cannot write .*: 'a': an expanded tensor"):
        checkpoint.save(tmp_path / "m.ptmodel", Checkpoint(expanded))
    content = checkpoint.shallow_dict(Checkpoint(expanded))
    checkpoint.save_dict(tmp_path / "m.ptmodel", {"format": checkpoint.FORMAT, **content})
    with pytest.raises(CheckpointError, match="read, 'a': an expanded tensor"):
        checkpoint.load(tmp_path / "m.ptmodel")


def test_a_small_expanded_tensor_is_no_matter(tmp_path):
    torch.save({"a": torch.ones(1).expand(1000)}, tmp_path / "m.pt")
    assert torch.equal(checkpoint.load(tmp_path / "m.pt").state_dict["a"], torch.ones(1000))


@pytest.mark.parametrize("extra", [3, [1], {"a": torch.ones(1)}, {"a": [[[{"b": {1, 2}}]]]}])
def test_what_is_not_plain_beside_the_tensors_of_a_ptmodel_is_damage(tmp_path, model, extra):
    content = {"format": checkpoint.FORMAT, **checkpoint.shallow_dict(model), "extra": extra}
    checkpoint.save_dict(tmp_path / "m.ptmodel", content)
    with pytest.raises(CheckpointError, match="is damaged: fields are missing"):
        checkpoint.load(tmp_path / "m.ptmodel")


@pytest.mark.parametrize("about", [3, ["a"], {"a": 3}, {3: "a"}])
def test_a_field_that_is_called_as_the_metadata_are(tmp_path, about):
    torch.save({"__metadata__": about, "a": torch.ones(3)}, tmp_path / "m.pt")
    metadata = checkpoint.load(tmp_path / "m.pt").metadata()
    assert set(metadata) == {"format", "__metadata__"}
    assert all(isinstance(text, str) for text in metadata.values())


def test_an_archive_that_is_far_larger_than_its_file_is_refused(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        parts = [(part, archive.read(part)) for part in archive.namelist()]
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for part, content in parts:
            archive.writestr(part, content)
    assert not checkpoint.load(tmp_path / "m.pt").state_dict["a"].any()
    monkeypatch.setattr(checkpoint, "SMALL_INFLATED", 1000)
    with pytest.raises(CheckpointError, match=r"m\.pt is refused: unpacked, it takes 40\d{4} byt"):
        checkpoint.load(tmp_path / "m.pt")
    # "version needed", which Python's reader of archives believes, and torch's does not look at
    data = (tmp_path / "m.pt").read_bytes()
    at = data.index(b"PK\1\2") + 6
    (tmp_path / "m.pt").write_bytes(data[:at] + b"\x63" + data[at + 1 :])
    with pytest.raises(CheckpointError, match=r"m\.pt is not a checkpoint, or is damaged"):
        checkpoint.load(tmp_path / "m.pt")


@pytest.mark.parametrize("name", ["x" * 300, "\0", "folder/" * 1000])
def test_a_path_that_there_cannot_be(tmp_path, name):
    for suffix in (".pt", ".safetensors"):
        with pytest.raises(CheckpointError, match=r"no model at|is no path"):
            checkpoint.load(tmp_path / (name + suffix))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (MemoryError(), "not enough memory for what it holds"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, model, monkeypatch, error, text):
    checkpoint.save(tmp_path / "m.ptmodel", model)

    def failing(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(CheckpointError, match=rf"m\.ptmodel cannot be read: {text};"):
        checkpoint.load(tmp_path / "m.ptmodel")


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "m.pt")
    os.mkfifo(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"no model at .*m\.pt"):
        checkpoint.load(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"no model at .*m\.safetensors"):
        checkpoint.load(tmp_path / "m.safetensors")


def test_a_file_that_is_cut_off_while_its_tensors_are_in_use(tmp_path, monkeypatch):
    path = tmp_path / "m.ptmodel"
    checkpoint.save(path, Checkpoint({"w": torch.ones(100_000)}))
    read = checkpoint.load(path).state_dict
    monkeypatch.setattr(checkpoint, "MAPPED_FROM", 0)
    mapped = checkpoint.load(path).state_dict
    assert torch.equal(mapped["w"], read["w"])
    checkpoint.save(path, Checkpoint({"w": torch.zeros(9)}))  # another file of the same name
    assert torch.equal(mapped["w"], read["w"])
    mapped = checkpoint.load(path).state_dict
    os.truncate(path, 100)
    with pytest.raises(CheckpointError, match=r"m\.ptmodel was cut off while it was in use"):
        mapped["w"]
    assert torch.equal(read["w"], torch.ones(100_000))


@pytest.mark.parametrize("given", [{"a": torch.zeros(2)}, torch.nn.Linear(2, 2), None])
def test_what_is_saved_is_a_checkpoint(tmp_path, given):
    with pytest.raises(CheckpointError, match="not a Checkpoint"):
        checkpoint.save(tmp_path / "m.ptmodel", given)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("path", [None, 3, b"x", "a\0b"])
def test_what_is_no_path(path):
    uses = (
        checkpoint.load,
        checkpoint.load_dict,
        partial(checkpoint.save, checkpoint=Checkpoint({})),
    )
    for use in uses:
        with pytest.raises(CheckpointError, match="is no path"):
            use(path)
