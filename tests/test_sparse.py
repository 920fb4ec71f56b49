import json

import pytest
import torch
from torch import nn

import compare_stages
from net import sparse
from net.training.architectures import build


def pruned(layer: nn.Linear, density: float) -> nn.Linear:
    with torch.no_grad():
        layer.weight.masked_fill_(torch.rand_like(layer.weight) > density, 0.0)
    return layer


@pytest.mark.parametrize("form", [sparse.TorchCSR, sparse.ScipyCSR])
@pytest.mark.parametrize("shape", [(1, 40), (7, 40), (40,), (2, 3, 40)])
@pytest.mark.parametrize(("density", "bias"), [(0.2, True), (0.2, False), (0.0, True)])
def test_a_sparse_layer_computes_what_the_dense_one_does(form, shape, density, bias):
    torch.manual_seed(0)
    layer = pruned(nn.Linear(40, 10, bias=bias), density)
    x = torch.randn(shape)
    expected = layer(x).detach()
    found = form(layer)(x)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)


def test_a_sparse_form_is_taken_only_where_it_is_clearly_faster():
    noisy = [1.0, 1.1, 0.9, 1.05] * 5
    assert sparse.fastest({"dense": noisy, "torch": [0.5] * 20, "scipy": [0.7] * 20}) == "torch"
    assert sparse.fastest({"dense": noisy, "torch": [2.0] * 20, "scipy": [3.0] * 20}) == "dense"
    assert sparse.fastest({"dense": noisy, "torch": [0.99] * 20, "scipy": [3.0] * 20}) == "dense"


def test_sparse_model_replaces_only_what_gains(monkeypatch):
    model = build("lenet-5")
    for layer in (model.fc1, model.fc2):
        pruned(layer, 0.05)
    times = {
        "fc1": {"dense": [2.0] * 9, "torch": [1.0] * 9, "scipy": [3.0] * 9},
        "fc2": {"dense": [1.0] * 9, "torch": [2.0] * 9, "scipy": [3.0] * 9},
    }
    monkeypatch.setattr(sparse, "layer_times", lambda model, batch: times)
    mixed = sparse.sparse_model(model)
    assert isinstance(mixed.fc1, sparse.TorchCSR)
    assert type(mixed.fc2) is nn.Linear
    assert type(model.fc1) is nn.Linear  # a copy
    density = float(model.fc2.weight.count_nonzero()) / model.fc2.weight.numel()
    assert mixed.choices.keys() == {"conv1", "conv2", "fc1", "fc2"}
    assert mixed.choices["conv1"] == "dense: no plain linear layer"
    assert mixed.choices["fc1"].startswith("torch: 1000000 us, dense 2000000 us, ")
    assert mixed.choices["fc2"] == (f"dense: 1000000 us, torch 2000000 us, {density:.1%} non-zero")
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(mixed(x), model.eval()(x))


@pytest.mark.parametrize(
    ("form", "kind"), [("torch", sparse.TorchCSR), ("scipy", sparse.ScipyCSR), ("dense", nn.Linear)]
)
def test_the_fastest_form_is_taken(monkeypatch, form, kind):
    times = {each: [3.0 - 2.0 * (each == form)] * 9 for each in ("dense", "torch", "scipy")}
    monkeypatch.setattr(sparse, "layer_times", lambda model, batch_size: {"0": times})
    mixed = sparse.sparse_model(nn.Sequential(pruned(nn.Linear(30, 20), 0.1)))
    assert type(mixed[0]) is kind
    assert mixed.choices["0"].startswith(f"{form}: 1000000 us")


def test_latency_on_the_script(pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sparse, "SAMPLES", 5)
    threads = torch.get_num_threads()
    arguments = ["--path", str(pipeline.saves), "--directory", str(pipeline.encodings)]
    arguments += ["--latency", "--json", str(tmp_path / "f.json")]
    assert compare_stages.main(arguments) == 0
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    assert "batch 1 " in printed
    assert "batch 64" in printed
    assert max(map(len, printed.splitlines())) <= 100
    latency = json.loads((tmp_path / "f.json").read_text())["latency"]
    assert [batch["batch_size"] for batch in latency["batches"]] == [1, 64]
    for batch in latency["batches"]:
        assert [layer["name"] for layer in batch["layers"]] == ["fc1", "fc2", "fc3"]
        assert batch["largest_difference"] < 1e-3
        for layer in batch["layers"]:
            for time in layer["times"].values():
                assert 0 < time["low"] <= time["median"] <= time["high"]


def test_convolutions_stay_dense():
    images = torch.randn(4, 1, 28, 28)
    assert sparse.latency(build("lenet-5"), images, (1,))["dense_layers"] == ["conv1", "conv2"]


def test_a_model_that_is_one_layer():
    model = nn.Linear(100, 100)
    assert not isinstance(sparse.replaced(model, {"": "torch"}), nn.Linear)
    assert isinstance(model, nn.Linear)
