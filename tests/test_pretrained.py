"""What receives an encoding: a module of one's own, and a class of transformers."""

import copy
import gc
import json
import sys
import types
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import net
from net import encoding
from net.errors import UserError


class Net(nn.Module):
    """Tied weights, a buffer that is saved and one that is not, a counter, two types."""

    def __init__(self, size=6, persistent=False):
        super().__init__()
        self.embedding = nn.Embedding(9, size)
        self.norm = nn.BatchNorm1d(size)
        self.lstm = nn.LSTM(size, size, batch_first=True)
        self.head = nn.Linear(size, 9, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.full((size,), 2.0))
        self.register_buffer("table", torch.arange(9.0), persistent=persistent)
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x):
        y = self.lstm(self.embedding(x) * self.scale)[0]
        return self.head(self.norm(y[:, -1])) + self.table


X = torch.arange(12).view(4, 3) % 9


@pytest.fixture(params=["model.dc", "encodings"])
def saved(tmp_path, request):
    torch.manual_seed(0)
    model = Net().eval()
    model.norm.running_mean.normal_()
    net.encoding.save(model.state_dict(), tmp_path / request.param)
    return model, tmp_path / request.param


def test_the_model_is_loaded_in_its_own_memory(saved):
    model, path = saved
    other = Net().eval()
    memory = other.head.weight.data_ptr()
    assert net.load_into(other, path) == ([], [])
    assert torch.equal(other(X), model(X))
    assert other.head.weight is other.embedding.weight
    assert other.head.weight.data_ptr() == memory


def test_a_model_without_memory_gets_the_tensors_of_the_file(saved):
    model, path = saved
    with torch.device("meta"):
        other = Net(persistent=True)
    other.register_buffer("table", torch.arange(9.0), persistent=False)
    other.lstm.weight_ih_l0.requires_grad_(False)
    net.load_into(other.eval(), path)
    assert torch.equal(other(X), model(X))
    assert other.head.weight is other.embedding.weight
    assert not other.lstm.weight_ih_l0.requires_grad
    assert other.lstm.weight_hh_l0.requires_grad


def test_what_no_state_dict_has_may_not_stay_without_memory(saved):
    with torch.device("meta"):
        other = Net()
    with pytest.raises(UserError, match=r"no state dict has .* on the meta device table$"):
        net.load_into(other, saved[1])
    with pytest.raises(UserError, match="on the meta device, which needs assign"):
        net.load_into(other, saved[1], strict=False, assign=False)
    assert other.scale.is_meta
    net.load_into(other, saved[1], strict=False)
    assert not other.scale.is_meta
    assert other.table.is_meta


def test_types_are_those_of_the_model_or_with_assign_of_the_file(saved):
    model, path = saved
    other = Net().bfloat16()
    net.load_into(other, path)
    assert torch.equal(other.head.weight, model.head.weight.bfloat16())
    net.load_into(other, path, assign=True)
    assert torch.equal(other.head.weight, model.head.weight)
    assert other.head.weight is other.embedding.weight


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_a_model_in_a_wrapper(saved, wrap):
    model, path = saved
    other = Net().eval()
    net.load_into(wrap(other), path)
    assert torch.equal(other(X), model(X))


def test_a_parametrized_model(tmp_path):
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    net.encoding.save(model.state_dict(), tmp_path)
    other = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    net.load_into(other, tmp_path)
    assert torch.equal(other.weight, model.weight)


def change(state, **changes):
    return {name: tensor for name, tensor in (state | changes).items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": None}, "does not fit the model: the file lacks scale$"),
        ({"more": torch.ones(1)}, "the model lacks more$"),
        ({"scale": None, "b": torch.ones(1)}, "the file lacks scale; the model lacks b$"),
        ({"scale": torch.ones(7)}, r"scale is float32 \[7\] in the file, float32 \[6\] in the"),
        ({"mask": torch.ones(2)}, r"mask is float32 \[2\] in the file, bool \[2\] in the model"),
        ({"head.weight": torch.ones(9, 6)}, "are one tensor in the model, and differ in the file"),
        ({f"{i}": torch.ones(1) for i in "abcde"}, "the model lacks a, b, c and 2 more$"),
    ],
)
def test_what_does_not_fit_is_one_line_and_changes_nothing(tmp_path, changes, message):
    net.encoding.save(change(Net().state_dict(), **changes), tmp_path)
    model = Net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=message) as error:
        net.load_into(model, tmp_path)
    assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_left_out_is_returned_where_that_is_allowed(tmp_path):
    state = change(Net().state_dict(), scale=None, more=torch.ones(1))
    net.encoding.save(state, tmp_path)
    found = net.load_into(Net(), tmp_path, strict=False)
    assert found == (["scale"], ["more"])
    assert found.missing_keys == ["scale"]


def test_one_name_of_tied_weights_is_enough_and_counters_may_be_missing(tmp_path):
    given = Net().state_dict()
    counter = "norm.num_batches_tracked"
    net.encoding.save(change(given, **{"head.weight": None, counter: None}), tmp_path)
    model = Net()
    assert net.load_into(model, tmp_path) == ([], [])
    assert torch.equal(model.head.weight, given["embedding.weight"])


def test_counters_that_are_missing_begin_anew_in_a_model_without_memory(tmp_path):
    state = nn.BatchNorm1d(3).state_dict()
    net.encoding.save(change(state, num_batches_tracked=None), tmp_path)
    with torch.device("meta"):
        model = nn.BatchNorm1d(3)
    assert net.load_into(model, tmp_path) == ([], [])
    assert torch.equal(model.num_batches_tracked, torch.tensor(0))


def test_equal_tensors_of_the_file_fit_one_of_the_model(tmp_path):
    given = Net().state_dict()
    net.encoding.save(change(given, **{"head.weight": given["head.weight"].clone()}), tmp_path)
    model = Net()
    net.load_into(model, tmp_path)
    assert torch.equal(model.head.weight, given["head.weight"])


def test_a_damaged_file_says_that_a_part_is_loaded(tmp_path):
    net.encoding.save(Net().state_dict(), tmp_path / "model.dc")
    data = bytearray((tmp_path / "model.dc").read_bytes())
    data[-3] ^= 1
    (tmp_path / "model.dc").write_bytes(data)
    with pytest.raises(encoding.EncodingError, match=r"checksum .*a part of the model is loaded"):
        net.load_into(Net(), tmp_path / "model.dc")


@pytest.mark.exhaustive
def test_beside_the_model_there_is_at_most_its_largest_tensor(tmp_path, monkeypatch):
    model = nn.Sequential(*(nn.Linear(n, 50) for n in (40, 10, 90, 20, 90, 30)))
    net.encoding.save(model.state_dict(), tmp_path)
    most, alive = 0, []
    read = encoding.Encoding.__getitem__

    def counted(self, name):
        nonlocal most
        gc.collect()
        tensor = read(self, name)
        alive.append((weakref.ref(tensor), tensor.nbytes))
        most = max(most, sum(size for ref, size in alive if ref() is not None))
        return tensor

    monkeypatch.setattr(encoding.Encoding, "__getitem__", counted)
    net.load_into(copy.deepcopy(model), tmp_path)
    assert len(alive) == 12
    assert most <= 90 * 50 * 4


# transformers


@pytest.fixture
def transformers(monkeypatch):
    """A stand-in for the library, as far as it is used."""
    module = types.ModuleType("transformers")

    class Config:
        name_or_path = None

        def __init__(self, **fields):
            self.__dict__.update(fields)

        @classmethod
        def from_pretrained(cls, folder, **changes):
            return cls(**json.loads((Path(folder) / cls.file).read_text()) | changes)

    class AutoConfig(Config):
        file = "config.json"

    class GenerationConfig(Config):
        file = "generation_config.json"

    class Model(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config = config
            self.net = Net(config.size)

        @classmethod
        def from_pretrained(cls, path, config, state_dict, dtype=None):
            assert path is None
            model = cls(config)
            model.load_state_dict(state_dict)
            return model.eval().to(dtype)

        def can_generate(self):
            return True

    class AutoModel:
        @classmethod
        def from_config(cls, config):
            return Model(config)

    class AutoTokenizer:
        @classmethod
        def from_pretrained(cls, folder):
            return (Path(folder) / "vocab.txt").read_text()

    for each in (AutoConfig, GenerationConfig, Model, AutoModel, AutoTokenizer):
        each.__module__ = "transformers.stand_in"
        setattr(module, each.__name__, each)
    monkeypatch.setitem(sys.modules, "transformers", module)
    return module


@pytest.fixture
def folder(tmp_path, transformers):
    """(a model, the .dc file of its folder)."""
    model = transformers.Model(transformers.AutoConfig(size=4)).eval()
    files = {
        "config.json": b'{"size": 4, "dropout": 0.1, "dtype": "float32"}',
        "generation_config.json": b'{"top_k": 7}',
        "vocab.txt": b"words",
    }
    state = model.state_dict() | {"2_Dense/weight": torch.ones(2, 2)}
    net.encoding.save(state, tmp_path / "model.dc", files=files)
    return model, tmp_path / "model.dc"


@pytest.mark.parametrize("name", ["AutoModel", "Model"])
def test_from_pretrained(transformers, folder, name):
    model, path = folder
    found = net.from_pretrained(getattr(transformers, name), path)
    assert type(found) is transformers.Model
    assert torch.equal(found.net(X), model.net(X))
    assert found.generation_config.top_k == 7
    assert found.config.name_or_path == str(path)
    half = net.from_pretrained(transformers.AutoModel, path, dtype=torch.float16)
    assert half.net.head.weight.dtype == torch.float16
    assert (half.config.dropout, half.config.dtype) == (0.1, "float32")
    assert net.from_pretrained(getattr(transformers, name), path, dropout=0).config.dropout == 0


def test_from_pretrained_of_what_lies_beside_the_weights(transformers, folder):
    assert net.from_pretrained(transformers.AutoTokenizer, folder[1]) == "words"


def test_from_pretrained_says_what_it_cannot_load(transformers, folder, tmp_path):
    with pytest.raises(UserError, match="Linear is no class of transformers; decompress"):
        net.from_pretrained(nn.Linear, folder[1])
    for files, message in (
        ({}, r"has no config\.json; decompress it"),
        ({"adapter_config.json": b"{}"}, "an adapter of PEFT's; decompress it"),
    ):
        net.encoding.save({"a": torch.ones(2)}, tmp_path / "b.dc", files=files)
        with pytest.raises(UserError, match=message):
            net.from_pretrained(transformers.AutoModel, tmp_path / "b.dc")


@pytest.mark.parametrize("kind", ["expanded", "inference"])
def test_memory_that_cannot_be_written_to_is_refused_before_anything_changes(kind, tmp_path):
    source = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net.encoding.save(source.state_dict(), tmp_path / "m.dc")
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.inference_mode(kind == "inference"):
        model[1].weight = nn.Parameter(torch.ones(1, 4).expand(2, 4))
    before = model[0].weight.clone()
    with pytest.raises(UserError, match=r"1\.weight of the model cannot be written to"):
        net.load_into(model, tmp_path / "m.dc")
    assert torch.equal(model[0].weight, before)
    net.load_into(model, tmp_path / "m.dc", assign=True)
    assert torch.equal(model[1].weight, source[1].weight)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_names_of_a_wrapper(tmp_path, prefix):
    model, other = Net().eval(), Net().eval()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    net.encoding.save(state, tmp_path / "model.dc")
    assert net.load_into(other, tmp_path / "model.dc") == ([], [])
    assert torch.equal(other(X), model(X))
    own = nn.ModuleDict({"module": Net()})  # whose names are such
    net.encoding.save(own.state_dict(), tmp_path / "own.dc")
    assert net.load_into(own, tmp_path / "own.dc") == ([], [])
    del state[f"{prefix}scale"]
    net.encoding.save(state | {f"{prefix}more": X}, tmp_path / "model.dc")
    with pytest.raises(UserError, match=f"the file lacks scale; the model lacks {prefix}more"):
        net.load_into(other, tmp_path / "model.dc")
