import json
from itertools import pairwise

import pytest
import torch
from torch import nn

import pruning
from net import checkpoint
from net.pipeline import scan
from net.training.loop import evaluate
from tests.conftest import FAST

OPTIONS = [*FAST[:-2]]  # without --finetune-epochs, which pruning.py does not have


def curve(name, parameters, losses):
    """A scanned layer with these {density: loss}."""
    points = [{"density": d, "loss": loss, "error_percent": 0.0} for d, loss in losses.items()]
    return {"name": name, "parameters": parameters, "points": points}


def kept(figures, density):
    sizes = {layer["name"]: layer["parameters"] for layer in figures["layers"]}
    return sum(density[name] * n for name, n in sizes.items()) / sum(sizes.values())


def test_each_layer_is_pruned_alone_and_put_back(blobs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    figures = scan.scan(model, blobs.validation, densities=(1.0, 0.5, 0.1))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    loss, error = evaluate(model, blobs.validation)
    assert (figures["loss"], figures["error_percent"]) == (loss, error)
    assert [layer["name"] for layer in figures["layers"]] == ["1", "3"]
    for layer in figures["layers"]:
        assert layer["points"][0]["loss"] == loss  # density 1: nothing is pruned
    # The middle point of the second layer, by hand: the threshold keeps half of the weights.
    point = figures["layers"][1]["points"][1]
    weight = model[3].weight.data
    keep = weight.abs() >= point["sensitivity"] * weight.std(correction=0) * (1 - 1e-6)
    assert keep.sum() == weight.numel() // 2
    weight.masked_fill_(~keep, 0.0)
    assert evaluate(model, blobs.validation)[0] == pytest.approx(point["loss"])


def test_an_entirely_pruned_layer_can_be_scanned(blobs):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    nn.init.zeros_(model[1].weight)
    (layer,) = scan.scan(model, blobs.validation, densities=(0.5,))["layers"]
    assert layer["points"][0]["sensitivity"] == 0


def test_the_choice_meets_the_target_and_spares_the_sensitive_layer():
    tough = curve("tough", 1000, {1.0: 0.1, 0.5: 0.1, 0.1: 0.11, 0.01: 0.5})
    frail = curve("frail", 1000, {1.0: 0.1, 0.5: 0.4, 0.1: 2.0, 0.01: 3.0})
    figures = {"loss": 0.1, "layers": [tough, frail]}
    density = scan.choose(figures, 0.5)
    assert kept(figures, density) == pytest.approx(0.5)
    assert density["tough"] < 0.15
    assert density["frail"] > 0.85


def test_the_choice_is_the_best_of_a_grid():
    layers = [
        curve("a", 300, {1.0: 0.0, 0.5: 0.1, 0.25: 0.3, 0.125: 1.0}),
        curve("b", 100, {1.0: 0.0, 0.5: 0.2, 0.25: 0.5, 0.125: 0.9}),
    ]
    figures = {"loss": 0.0, "layers": layers}

    def loss(layer, density):  # convex: its own hull
        points = sorted((p["density"], p["loss"]) for p in layer["points"])
        for (x0, y0), (x1, y1) in pairwise(points):
            if x0 <= density <= x1:
                return y0 + (y1 - y0) * (density - x0) / (x1 - x0)
        raise AssertionError(density)

    for target in (0.9, 0.6, 0.4, 0.2):
        density = scan.choose(figures, target)
        ours = sum(loss(layer, density[layer["name"]]) for layer in layers)
        for i in range(101):
            a = 0.125 + 0.875 * i / 100
            b = (target * 400 - 300 * a) / 100
            if 0.125 <= b <= 1:
                assert ours <= loss(layers[0], a) + loss(layers[1], b) + 1e-9


def test_a_target_that_the_scan_has_not_reached_gives_its_lowest_densities():
    figures = {"loss": 0.0, "layers": [curve("a", 10, {0.5: 0.1, 0.1: 0.2})]}
    assert scan.choose(figures, 0.001) == pytest.approx({"a": 0.1})
    assert scan.choose(figures, 1.0) == {"a": 1.0}


def test_the_script_scans_the_model_that_is_there(pipeline, tmp_path, capsys):
    path = pipeline.saves / checkpoint.INITIAL
    before = path.read_bytes()
    arguments = [*OPTIONS, "--output", str(pipeline.saves), "--scan", "--scan-target", "0.1"]
    pictures = ["--json", str(tmp_path / "scan.json"), "--plot", str(tmp_path / "scan.png")]
    assert pruning.main([*arguments, *pictures]) == 0
    assert path.read_bytes() == before
    printed = capsys.readouterr().out
    assert "epoch" not in printed  # not trained again
    assert max(map(len, printed.splitlines())) <= 100
    figures = json.loads((tmp_path / "scan.json").read_text())
    assert (figures["dataset"], figures["arch"], figures["target"]) == (
        *("digits", "lenet-300-100", 0.1),
    )
    assert kept(figures, figures["chosen"]) == pytest.approx(0.1)
    assert f"--density '{figures['density_option']}'" in printed
    assert (tmp_path / "scan.png").stat().st_size > 1000


def test_the_printed_option_is_one_of_pruning():
    text = scan.option({"features.0": 0.51234567, "fc": 0.03})
    args = pruning.parser().parse_args(["--density", text])
    assert args.density == {"features.0": 0.5123, "fc": 0.03}


def test_the_script_trains_a_model_where_there_is_none(tmp_path):
    arguments = [*OPTIONS, "--epochs", "1", "--output", str(tmp_path), "--scan"]
    assert pruning.main(arguments) == 0
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.INITIAL]
    assert checkpoint.load(tmp_path / checkpoint.INITIAL).options["epochs"] == 1


def test_what_is_excluded_is_not_scanned(pipeline, tmp_path, capsys):
    arguments = [*OPTIONS, "--output", str(pipeline.saves), "--scan", "--json"]
    assert pruning.main([*arguments, str(tmp_path / "s.json"), "--exclude", "fc2"]) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert [layer["name"] for layer in found["layers"]] == ["fc1", "fc3"]
    capsys.readouterr()
    assert pruning.main([*arguments, "/proc/no/s.json"]) == 1
    assert "fc1" not in capsys.readouterr().out
    assert pruning.main([*arguments, str(tmp_path / "t.json"), "--exclude", "fc9"]) == 1
    assert "no parameter matches 'fc9'" in capsys.readouterr().err
