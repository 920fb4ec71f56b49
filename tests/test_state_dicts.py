import argparse
import io
import json
import math
import pathlib
from collections import OrderedDict

import numpy as np
import pytest
import torch

from net import checkpoint, state_dicts
from net.checkpoint import Checkpoint, CheckpointError
from net.pipeline import stages
from net.state_dicts import find, from_json, to_json

ONE, OTHER = {"a.weight": torch.ones(2, 3)}, {"a.weight": torch.zeros(2, 3)}


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"model": {"state_dict": ONE}}, None),
        ({"model": {"state_dict": ONE, "args": {"x": 1}}, "epoch": 3}, None),
        ({"a": {"b": {"c": {"d": ONE}}}}, None),
        ({"state_dict": ONE, "epoch": torch.tensor(3), "seen": torch.zeros((), dtype=int)}, None),
        ({"state_dict": ONE, "mean": torch.zeros(3)}, None),
        ({**ONE, "statistics": {"mean": torch.zeros(3)}}, None),
        ({"weights": ONE, "optimizer": {"state": {0: {"exp_avg": torch.ones(9)}}}}, None),
        ({"weights": ONE, "opt": {"state": {"x": torch.ones(9)}, "param_groups": []}}, None),
        ({"weights": ONE, "callbacks": {"best": {"score": torch.ones(9)}}}, None),
        ({"net": ONE, "rng_state": {"cpu": torch.ones(9)}, "lr_schedulers": [{"x": 1}]}, None),
        ({"state_dict": ONE, "state_dict_ema": OTHER}, None),
        ({"ema": {"state_dict": OTHER}, "model": {"state_dict": ONE}}, None),
        ({"params": OTHER, "params_ema": ONE}, "params_ema"),
        ({"ema": {"v1.5": ONE}, "model": OTHER}, "ema.v1.5"),
        ({"ema": ONE, **OTHER}, "ema"),
        ({"ema": OTHER, **ONE}, "."),
        ({"upscaler": ONE, "scaler": {"scale": torch.ones(9)}}, None),
        ({"downscaler": ONE, "epoch": 3}, None),
        ({"schedule_net": ONE, "model": OTHER}, "schedule_net"),
        ({"rng": {"optimal": ONE, "scheduled": OTHER}, "model": OTHER}, "rng.optimal"),
    ],
)
def test_the_state_dict_that_is_meant(content, key):
    found = find(content, key)
    assert list(found.state) == ["a.weight"]
    assert torch.equal(found.state["a.weight"], ONE["a.weight"])


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ({"params": ONE, "params_ema": ONE}, None, "several models: params, params_ema; .*key"),
        ({"params": ONE, "params_ema": OTHER}, None, "several models: params, params_ema; .*key"),
        ({"model": {"g": ONE, "d": OTHER}}, None, r"several models: model\.g, model\.d; .*key"),
        ({"model": ONE, "state_dict": OTHER}, None, "several models: model, state_dict"),
        ({"params": ONE}, "ema", "no state dict 'ema'; there are: params"),
        ({"optimizer": {"x": torch.ones(3)}}, None, "holds no model"),
        ({"epoch": 3}, None, "holds no model"),
        ({0: torch.ones(3)}, None, "holds no model"),
        ({1: ONE, "1": OTHER}, None, "two dicts under keys that read 1"),
        ({"model": {1: ONE, "1": OTHER}}, None, r"two dicts under keys that read model\.1"),
    ],
)
def test_none_or_several(content, key, message):
    with pytest.raises(ValueError, match=message):
        find(content, key)


def test_others_that_could_be_meant_are_named():
    found = find({"ema": OTHER, "model": ONE, "optimizer": {"x": torch.ones(1)}})
    assert found.notes == [
        "the state dict model is taken; there are others, which a key would name: ema",
        "beside the tensors and not kept: optimizer",
    ]


def test_what_is_no_tensor_is_kept_and_named():
    found = find({"a.weight": ONE["a.weight"], "a._extra_state": None, "version": 2})
    assert found.extra == {"a._extra_state": None, "version": 2}
    assert found.notes == ["no tensors, and kept as they are: a._extra_state, version"]


@pytest.mark.parametrize("key", ["1", 1])
def test_it_is_named_under_a_key_that_is_a_number_too(key):
    found = find({key: {**ONE, "version": 2}})
    assert found.extra == {key: {"version": 2}}
    assert found.notes == ["no tensors, and kept as they are: version"]


def test_a_key_that_reads_alike_and_has_no_dict():
    found = find({1: 5, "1": {**ONE, "version": 2}})
    assert found.extra == {1: 5, "1": {"version": 2}}
    assert found.notes == ["no tensors, and kept as they are: version"]


def test_plain_values_stay_where_they_were():
    names = {0: "cat", 1: "dog"}
    content = {"epoch": 3, "model": {"args": (1, [2.5, None]), "state_dict": ONE}, "names": names}
    found = find({**content, "when": torch.Size([3]), "arguments": argparse.Namespace(x=1)})
    assert found.extra == {"epoch": 3, "model": {"args": (1, [2.5, None])}, "names": names}
    assert list(found.extra) == ["epoch", "model", "names"]
    assert found.notes == ["beside the tensors and not kept: when, arguments"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": [1, 2.5, "x", True, None], "b": {}},
        {0: "cat", 1: ("a", 2)},
        {(1, "x"): math.inf, 1.5: -math.inf},
        {"$tuple": [1], "$dict": {"$float": "inf"}},
        ((), [], {}, [()]),
        {math.inf: 1},
    ],
)
def test_json_and_back(value):
    assert from_json(json.loads(json.dumps(to_json(value), allow_nan=False))) == value


def test_nan_and_what_to_json_never_wrote():
    assert math.isnan(from_json(to_json([math.nan]))[0])
    for other in ({"$dict": [[[1], 2]]}, {"$dict": 3}, {"$float": "1"}, {"$tuple": 1, "x": 2}):
        assert from_json(other) == other


def test_a_value_that_contains_itself_or_grows_beyond_measure(monkeypatch):
    monkeypatch.setattr(state_dicts, "MAX_FIELDS", 1 << 12)  # seconds less than of 1 << 21
    knot: dict = {"a.weight": ONE["a.weight"]}
    knot["self"] = knot
    doubled: list = ["x"]
    for _ in range(30):
        doubled = [doubled, doubled]
    knot["doubled"] = doubled
    assert find(knot).notes == ["beside the tensors and not kept: self, doubled"]


# through files


def test_an_ordered_dict_and_parameters(tmp_path):
    state = OrderedDict(b=torch.nn.Parameter(torch.ones(2)), a=torch.zeros(3, requires_grad=True))
    torch.save(state, tmp_path / "m.pt")
    found = checkpoint.load(tmp_path / "m.pt").state_dict
    assert [(name, type(t), t.requires_grad) for name, t in found.items()] == [
        ("b", torch.Tensor, False),
        ("a", torch.Tensor, False),
    ]


def test_arguments_and_numbers_of_numpy_are_no_reason_to_refuse(tmp_path):
    arguments = argparse.Namespace(lr=0.1, output=pathlib.Path("out"))
    content = {"model": {**ONE, "a._extra_state": io.BytesIO(b"x")}, "args": arguments}
    numbers = {"best": np.float64(3), "mean": np.zeros(3, np.float32)}
    torch.save({**content, **numbers}, tmp_path / "m.pt")
    found = checkpoint.load(tmp_path / "m.pt")
    assert list(found.state_dict) == ["a.weight"]
    lost = "model.a._extra_state, args, best, mean"
    assert found.notes == [f"{tmp_path}/m.pt: beside the tensors and not kept: {lost}"]


@pytest.mark.parametrize("shape", [(1 << 36,), (5,), "x"])
def test_an_array_that_is_larger_than_its_file(tmp_path, shape):
    class Array:
        def __reduce__(self):
            return np.zeros(0).__reduce__()[0], (np.ndarray, shape, b"b")

    torch.save({"w": torch.ones(3), "a": Array()}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt is not a checkpoint, or is damaged"):
        checkpoint.load(tmp_path / "m.pt")


@pytest.mark.parametrize("data", [(), (b"1234567",), (None,)])
def test_a_number_that_is_larger_than_its_file(tmp_path, data):
    class Kind:
        def __reduce__(self):
            return np.dtype, ("V200000000",)

    class Number:
        def __reduce__(self):
            return np.float64(0).__reduce__()[0], (Kind(), *data)

    torch.save({"w": torch.ones(3), "a": Number()}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt is not a checkpoint, or is damaged"):
        checkpoint.load(tmp_path / "m.pt")


def test_the_class_that_is_refused_is_named(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "m.pt")
    with pytest.raises(
        CheckpointError, match=r"m\.pt is refused.*\(torch\.nn\.modules\.linear\.Li"
    ):
        checkpoint.load(tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (lambda: torch.eye(3).to_sparse(), "'b.x': of the layout sparse_coo; make it a dense"),
        (lambda: torch.eye(3).to_sparse_csr(), "'b.x': of the layout sparse_csr"),
        (lambda: torch.ones(3, device="meta"), "'b.x': on the meta device"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 1, 0, torch.qint8), "'b.x': quantized"),
        (lambda: torch.nested.nested_tensor([torch.ones(2)]), "'b.x': a nested tensor"),
        (lambda: (torch.quantize_per_tensor(torch.ones(3), 1, 0, torch.qint8), None), "'b.x': qua"),
    ],
)
def test_a_tensor_without_plain_values_is_named(tmp_path, tensor, what):
    torch.save({"a.weight": torch.ones(3, 3), "b.x": tensor()}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=rf"m\.pt holds what cannot be read, {what}"):
        checkpoint.load(tmp_path / "m.pt")


def test_key_of_a_file_that_holds_one_model(tmp_path):
    checkpoint.save(tmp_path / "m.ptmodel", Checkpoint(ONE))
    with pytest.raises(CheckpointError, match="holds one model, which needs no key"):
        checkpoint.load(tmp_path / "m.ptmodel", key="ema")


def test_extra_is_saved_where_there_is_some(tmp_path):
    checkpoint.save(tmp_path / "a.ptmodel", Checkpoint(ONE, notes=["of a file"]))
    assert list(torch.load(tmp_path / "a.ptmodel")) == ["format", *checkpoint.FIELDS]
    assert checkpoint.load(tmp_path / "a.ptmodel").extra == {}
    extra = {"names": {0: "cat"}, "shape": (1, 2)}
    checkpoint.save(tmp_path / "b.ptmodel", Checkpoint(ONE, extra=extra))
    assert checkpoint.load(tmp_path / "b.ptmodel").extra == extra
    broken = {"format": checkpoint.FORMAT, **checkpoint.shallow_dict(Checkpoint(ONE)), "extra": 3}
    checkpoint.save_dict(tmp_path / "c.ptmodel", broken)
    with pytest.raises(CheckpointError, match="fields are missing"):
        checkpoint.load(tmp_path / "c.ptmodel")


def test_extra_and_the_order_of_names_survive_encoding(tmp_path):
    state = {"z": torch.ones(2), "a": torch.ones(3)}
    extra = {"names": {0: "cat", 1: "dog"}, "size": (3, 224), "best": math.inf}
    stages.encode(Checkpoint(state, extra=extra), tmp_path / "e")
    for decoded in (stages.decode(tmp_path / "e"), stages.open_encoded(tmp_path / "e")):
        assert decoded.extra == extra
        assert list(decoded.state_dict) == ["z", "a"]


def test_metadata_of_a_safetensors_file():
    assert Checkpoint(ONE).metadata() == {"format": "pt"}
    kept = Checkpoint(ONE, extra={checkpoint.METADATA: {"a": "b"}})
    assert kept.metadata() == {"a": "b"}
    beside = Checkpoint(ONE, extra={"name": "x", "size": [1, 2]})
    assert beside.metadata() == {"format": "pt", "name": "x", "size": "[1, 2]"}


def test_ten_thousand_dicts_within_each_other_and_beside():
    content: dict = {"state_dict": ONE}
    deep: dict = {}
    content["deep"] = deep
    for _ in range(10_000):
        deep["d"] = {}
        deep = deep["d"]
    assert find(content).notes == ["beside the tensors and not kept: deep"]
    assert state_dicts.MAX_DEPTH < 100
