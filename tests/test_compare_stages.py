import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import compare_stages
import weight_share
from net import checkpoint, encoding, sparse
from net.report import comparison, plots
from net.training.architectures import build


@pytest.fixture
def figures(pipeline):
    return json.loads(pipeline.json.read_text())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Not where somebody may have run the pipeline, whose encodings/ is the default."""
    monkeypatch.chdir(tmp_path)


def test_a_stage_without_an_architecture_beside_others(pipeline, tmp_path, capsys):
    for name in (checkpoint.INITIAL, checkpoint.RETRAINED):
        shutil.copy(pipeline.saves / name, tmp_path)
    state = checkpoint.load(pipeline.saves / checkpoint.SHARED).state_dict
    checkpoint.save(tmp_path / checkpoint.SHARED, checkpoint.Checkpoint(state))
    assert compare_stages.main(["--path", str(tmp_path), "--device", "cpu"]) == 0
    assert re.search(r"^weight-shared +- +- +- ", capsys.readouterr().out, re.M)


def test_data_that_the_model_does_not_take(tmp_path, capsys):
    arch = "tests.own_classes:Takes100"
    own = checkpoint.Checkpoint(build(arch).state_dict(), arch, "initial", "digits")
    checkpoint.save(tmp_path / checkpoint.INITIAL, own)
    assert compare_stages.main(["--path", str(tmp_path), "--device", "cpu"]) == 1
    assert f"{arch} does not take the inputs of digits" in capsys.readouterr().err


def test_json_has_the_documented_layout(figures):
    assert {
        *("dataset", "arch", "original_bytes", "encoded_bytes", "compression_ratio"),
        *("stages", "layers"),
    } <= figures.keys()
    assert (figures["dataset"], figures["arch"]) == ("digits", "lenet-300-100")
    names = [stage["stage"] for stage in figures["stages"]]
    assert names == ["initial", "retrained", "weight_shared", "decoded"]
    for stage in figures["stages"]:
        assert {"error_percent", "parameters", "nonzero", "bytes"} <= stage.keys()
    assert [layer["name"] for layer in figures["layers"]] == ["fc1", "fc2", "fc3"]
    for layer in figures["layers"]:
        assert {"parameters", "nonzero", "weight_bits", "index_bits"} <= layer.keys()


def test_the_ratio_counts_every_byte_on_disk(figures, pipeline):
    on_disk = sum(p.stat().st_size for p in pipeline.encodings.rglob("*") if p.is_file())
    assert figures["original_bytes"] == 1_066_440
    assert figures["encoded_bytes"] == on_disk
    assert figures["compression_ratio"] == 1_066_440 / on_disk


def test_stages_are_evaluated(figures):
    initial, retrained, shared, decoded = figures["stages"]
    assert initial["parameters"] == 266_610
    assert initial["nonzero"] > retrained["nonzero"]
    assert retrained["nonzero"] < 0.3 * 266_610
    assert decoded["nonzero"] == shared["nonzero"]
    assert decoded["error_percent"] == shared["error_percent"] < 50
    assert figures["decoded_equals_weight_shared"] is True


def test_changes_of_the_error_are_against_the_initial_model(figures):
    initial, retrained, *_ = figures["stages"]
    assert initial["error_change"] == 0
    assert retrained["error_change"] == retrained["error_percent"] - initial["error_percent"]


def test_divergences_are_from_the_initial_model(figures):
    initial, retrained, shared, decoded = (row["kl_divergence"] for row in figures["stages"])
    assert initial == 0
    assert retrained > 0
    assert shared == decoded > 0


def test_a_model_that_was_shared_without_training(pipeline, tmp_path, capsys):
    """No pruning stage is nothing to complain of; the dense model may lie elsewhere."""
    shared = tmp_path / "s" / checkpoint.SHARED
    options = ["--epochs", "0", "--device", "cpu", "--output", str(shared)]
    assert weight_share.main([str(pipeline.saves / checkpoint.INITIAL), *options]) == 0
    capsys.readouterr()
    arguments = ["--path", str(shared.parent), "--directory", str(pipeline.encodings)]
    assert compare_stages.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "missing: retrained, since the model was shared as it was, without training" in printed
    assert "run pruning.py" not in printed
    arguments += ["--initial", str(pipeline.saves / checkpoint.INITIAL)]
    assert compare_stages.main([*arguments, "--json", str(tmp_path / "f.json")]) == 0
    first, second = json.loads((tmp_path / "f.json").read_text())["stages"]
    assert (first["stage"], second["stage"]) == ("initial", "weight_shared")
    assert second["kl_divergence"] > first["kl_divergence"] == 0


def test_every_byte_on_disk_is_accounted_for(figures):
    layers, other = figures["layers"], figures["other"]
    files = sum(layer["encoded_bytes"] for layer in layers) + other["encoded_bytes"]
    assert files == figures["encoded_bytes"] == figures["total"]["encoded_bytes"]
    parts = sum(sum(layer["parts"].values()) for layer in layers) + other["bytes_beside_layers"]
    assert parts == pytest.approx(figures["encoded_bytes"])
    assert sum(layer["parameters"] for layer in layers) + other["parameters"] == 266_610
    assert figures["decoded_equals_encoded"] is True


def test_each_step_takes_bytes_off(figures):
    for layer in figures["layers"]:
        assert layer["encoded_bytes"] < layer["bytes_before_huffman"] < layer["bytes_pruned"]
        assert layer["bytes_pruned"] < 4 * layer["parameters"]


def test_sizes_without_huffman_coding_are_those_of_the_paper():
    # Figure 2: gaps of 1, 3 and, beyond the 8 that 3 bits reach, 11: one padding zero.
    weight = torch.zeros(16)
    weight[[1, 4, 15]] = torch.tensor([3.4, 0.9, 1.7])
    assert comparison.fixed_width_bytes(weight, 4) == 3 * (4 + 4) / 8  # 4 bits need no padding
    assert comparison.fixed_width_bytes(weight, 32) == 3 * (32 + 4) / 8
    # Equation 1 for a dense layer: n values of log2 k bits and k of 32.
    assert comparison.fixed_width_bytes(torch.ones(16), 2, 4, sparse=False) == 16 * 2 / 8 + 4 * 4
    assert comparison.fixed_width_bytes(torch.zeros(16), 32) == 0


def test_the_script_gives_the_same_figures(figures, pipeline, tmp_path, capsys):
    arguments = ["--path", str(pipeline.saves), "--directory", str(pipeline.encodings)]
    arguments += ["--json", str(tmp_path / "f.json"), "--device", "cpu"]
    assert compare_stages.main(arguments) == 0
    assert json.loads((tmp_path / "f.json").read_text()) == figures
    printed = capsys.readouterr().out
    assert "paper" in printed
    assert "digits" in printed
    assert all(len(line) <= 100 for line in printed.splitlines())


@pytest.mark.parametrize(
    ("name", "script"),
    [
        (checkpoint.INITIAL, "pruning.py"),
        (checkpoint.SHARED, "weight_share.py"),
        (checkpoint.DECODED, "huffman_decode.py"),
    ],
)
def test_a_missing_stage_is_named_and_the_others_shown(pipeline, tmp_path, capsys, name, script):
    shutil.copytree(pipeline.saves, tmp_path / "s")
    (tmp_path / "s" / name).unlink()
    arguments = ["--path", str(tmp_path / "s"), "--directory", str(pipeline.encodings)]
    assert compare_stages.main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"{name}; run {script} first" in printed
    assert "retrained" in printed


def test_a_missing_encoding_is_named(pipeline, tmp_path, capsys):
    arguments = ["--path", str(pipeline.saves), "--directory", str(tmp_path)]
    assert compare_stages.main([*arguments, "--json", str(tmp_path / "f.json")]) == 0
    assert "run huffman_encode.py first" in capsys.readouterr().out
    assert json.loads((tmp_path / "f.json").read_text())["compression_ratio"] is None


def test_nothing_to_compare(tmp_path, capsys):
    assert compare_stages.main(["--path", str(tmp_path), "--directory", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: no stage is in ")


def test_an_initial_model_that_is_not_there(pipeline, tmp_path, capsys):
    arguments = ["--path", str(pipeline.saves), "--directory", str(pipeline.encodings)]
    assert compare_stages.main([*arguments, "--initial", str(tmp_path / "none.pth")]) == 1
    assert capsys.readouterr().err.startswith("error: no model at ")


def test_stages_of_several_runs_are_refused(pipeline, tmp_path, capsys):
    saves = tmp_path / "saves"
    shutil.copytree(pipeline.saves, saves)
    path = saves / "model_after_retraining.ptmodel"
    model = checkpoint.load(path)
    checkpoint.save(path, replace(model, dataset="mnist"))
    where = ["--device", "cpu", "--directory", str(pipeline.encodings)]
    assert compare_stages.main(["--path", str(saves), *where]) == 1
    assert (
        "holds stages of several runs (initial: digits, retrained: mnist" in capsys.readouterr().err
    )
    model.state_dict["fc1.weight"][0, 0] += 1  # pruned once more, since
    checkpoint.save(path, model)
    csv = tmp_path / "x.csv"
    shutil.rmtree(tmp_path / "none", ignore_errors=True)
    assert compare_stages.main(["--path", str(saves), *where]) == 0
    assert "missing: the model that was shared" in capsys.readouterr().out
    where[-1] = str(tmp_path / "none")
    assert compare_stages.main(["--path", str(saves), *where, "--csv", str(csv)]) == 0
    assert (tmp_path / "x-layers.csv").exists()


def copied(pipeline, tmp_path):
    for each in (pipeline.saves, pipeline.encodings):
        shutil.copytree(each, tmp_path / each.name)
    return tmp_path / pipeline.saves.name, tmp_path / pipeline.encodings.name


def compared(saves, encodings, tmp_path):
    given = ["--path", str(saves), "--directory", str(encodings), "--device", "cpu"]
    assert compare_stages.main([*given, "--json", str(tmp_path / "j.json")]) == 0
    return json.loads((tmp_path / "j.json").read_text())


def test_an_encoding_of_another_model_is_said_and_has_no_error(pipeline, tmp_path, capsys):
    saves, encodings = copied(pipeline, tmp_path)
    shutil.rmtree(encodings)
    encoding.save(checkpoint.load(saves / checkpoint.INITIAL).state_dict, encodings)
    found = compared(saves, encodings, tmp_path)
    assert found["decoded_equals_encoded"] is False
    assert "the decoded model is NOT WHAT IS ENCODED now" in capsys.readouterr().out
    assert "test error" not in plots.title(found)
    shutil.rmtree(encodings)
    assert compared(saves, encodings, tmp_path)["decoded_equals_encoded"] is None


def test_a_model_that_is_missing_was_not_pruned_anew(pipeline, tmp_path, capsys):
    saves, encodings = copied(pipeline, tmp_path)
    (saves / checkpoint.RETRAINED).unlink()
    found = compared(saves, encodings, tmp_path)
    assert not any("pruned anew" in line for line in found["missing"])


def test_bits_are_averages_over_what_is_stored():
    bits = ["weight_bits", "index_bits", "weight_bits_before_huffman", "index_bits_before_huffman"]
    dense = {"parameters": 100, "nonzero": 50} | dict(zip(bits, (2.0, 0, 4, 0), strict=True))
    sparse = {"parameters": 900, "nonzero": 100} | dict(zip(bits, (4.0, 3, 5, 4), strict=True))
    total = comparison.total_row([dense, sparse], 4000, 400)
    assert [total[name] for name in bits] == [3, 1.5, 4.5, 2]
    assert total["nonzero"] == 150


def test_what_pruning_left_is_counted_in_the_pruned_model(tmp_path):
    """Zeros of sharing are no zeros of pruning."""
    dense = torch.linspace(-1, 1, 1024).view(32, 32)
    shared = torch.where(dense.abs() < 0.5, 0.0, dense.sign())
    stages = comparison.Stages(
        {"retrained": checkpoint.Checkpoint({"a.weight": dense})},
        {},
        [],
        {"a.weight": shared},
        [],
        1,
    )
    [info] = encoding.write({"a.weight": shared}, tmp_path / "x.dc").tensors
    [row] = comparison.layer_rows(replace(stages, tensors=[info]), ["a.weight"])
    assert row["bytes_pruned"] >= 4 * 1024 > row["bytes_before_huffman"]


def test_a_dense_model_in_shards_is_as_large_as_its_files(tmp_path):
    state = build("lenet-5").state_dict()
    parts = {f"{i}.safetensors": dict(list(state.items())[i::2]) for i in range(2)}
    (tmp_path / "dense").mkdir()
    for file, part in parts.items():
        save_file(part, tmp_path / "dense" / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "dense" / "model.safetensors.index.json").write_text(json.dumps(index))
    found = comparison.read(tmp_path, tmp_path / "none", tmp_path / "dense")
    sizes = [(tmp_path / "dense" / file).stat().st_size for file in parts]
    assert found.file_bytes == {"initial": sum(sizes)}


def test_latency_is_of_as_many_inputs_as_it_says(blobs, monkeypatch):
    arch = "lenet-300-100(num_classes=3)"
    model = checkpoint.Checkpoint(build(arch).state_dict(), arch)
    stages = comparison.Stages({"initial": model}, {}, [], {}, [], None)
    monkeypatch.setattr(sparse, "latency", lambda _, inputs: inputs)
    assert len(blobs.test) < 64
    assert comparison.latency(stages, blobs).shape == (64, 1, 28, 28)
