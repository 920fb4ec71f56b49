import csv
import io
import json
import sys

import pytest
import torch

from net import encoding
from net.report import tables
from net.sharing import SharedState


@pytest.fixture
def figures(pipeline):
    return json.loads(pipeline.json.read_text())


def test_columns_line_up():
    text = tables.table(
        ["name", "a", "b"],
        [["x", 1, 2.5], ["long name", 1234567, None]],
        [["total", 3, "y"]],
        groups=[("both", 1, 2)],
    )
    assert text.splitlines() == [
        "                      both",
        "name               a     b",
        "--------------------------",
        "x                  1  2.50",
        "long name  1,234,567     -",
        "--------------------------",
        "total              3     y",
    ]


def test_a_group_that_is_wider_than_its_columns_widens_them():
    text = tables.table(["", "a"], [["x", 1]], groups=[("a long title", 1, 1)])
    assert {len(line) for line in text.splitlines()} == {len("-  a long title")}


def test_stage_table_has_a_row_per_stage_and_the_papers(figures):
    lines = tables.stage_table(figures).splitlines()
    names = [line.split("  ")[0] for line in lines]
    for name in ("initial", "retrained", "weight-shared", "decoded", "encodings/"):
        assert name in names
    initial, encoded = (next(x for x in lines if x.startswith(n)) for n in ("initial", "encod"))
    assert initial.split()[2] == "-"  # nothing to compare its error with
    assert encoded.split()[-1] == f"{figures['compression_ratio']:.1f}x"
    assert lines[-1].split() == ["paper,", "compressed", "1.58", "-0.06", "-", "8.00", "27,000"] + [
        "40.0x"
    ]


def test_layer_table_has_the_papers_rows_below_ours(figures):
    lines = tables.layer_table(figures).splitlines()
    assert lines[1].split() == ["layer", "weights", "density", "%", *["P+Q", "P+Q+H"] * 3, "bytes"]
    assert [line.split("  ")[0] for line in lines[3:10]] == [
        *("fc1", " paper: ip1", "fc2", " paper: ip2", "fc3", " paper: ip3", "the rest")
    ]
    assert lines[4].split()[2:] == [*("235,000", "8.00", "6.0", "4.4", "5.0", "3.7")] + [
        *("3.10", "2.32", "-")
    ]
    assert lines[-2].split()[-1] == f"{figures['encoded_bytes']:,}"
    assert max(map(len, lines)) <= 80


def test_a_network_that_the_paper_lacks_has_no_rows_of_it(figures):
    figures["arch"] = None
    assert "paper" not in tables.layer_table(figures)
    assert "paper" not in tables.stage_table(figures)
    assert tables.headline(figures).startswith("model on digits: 1,066,440 -> ")


def test_options_of_an_architecture_do_not_hide_the_papers_figures(figures):
    figures["arch"] = "lenet-300-100(num_classes=10)"
    assert tables.paper_network(figures) is tables.PAPER["lenet-300-100"]


def test_an_entirely_pruned_layer_has_no_bits(figures):
    figures["layers"][1] |= {"nonzero": 0, "weight_bits": 0.0}
    line = tables.layer_table(figures).splitlines()[5]
    assert line.split()[:7] == ["fc2", "30,000", "0.00", "-", "-", "-", "-"]


@pytest.mark.parametrize("network", tables.PAPER.values(), ids=tables.PAPER)
def test_the_papers_figures_agree_with_each_other(network):
    ratio = network["original_bytes"] / network["compressed_bytes"]
    assert ratio == pytest.approx(network["ratio"], 0.03)
    weights = sum(layer[1] for layer in network["layers"])
    assert weights == pytest.approx(network["total"][1], rel=0.03)
    for *_, (shared, coded) in network["layers"]:
        assert coded < shared


def test_csv_holds_the_two_tables(figures, tmp_path):
    tables.write_csv(tmp_path / "f.csv", figures)
    assert {p.name for p in tmp_path.iterdir()} == {"f-stages.csv", "f-layers.csv"}
    with open(tmp_path / "f-stages.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows][-1] == "encodings"
    assert int(rows[-1]["bytes"]) == figures["encoded_bytes"]
    assert float(rows[1]["error_percent"]) == figures["stages"][1]["error_percent"]
    with open(tmp_path / "f-layers.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert int(rows["fc1"]["nonzero"]) == figures["layers"][0]["nonzero"]
    assert int(rows["total"]["encoded_bytes"]) == figures["encoded_bytes"]


def test_json_keeps_lists_of_numbers_on_one_line(tmp_path):
    figures = {"a": [1, 2, 3], "b": [{"c": [0.5]}], "text": "[\n 1]", "none": []}
    figures["diverged"] = float("nan")
    tables.write_json(tmp_path / "f.json", figures)
    figures["diverged"] = None
    text = (tmp_path / "f.json").read_text()
    assert json.loads(text) == figures
    assert '"a": [ 1, 2, 3 ]' in text


def test_latency_table():
    time = {"median": 2.0, "low": 1.0, "high": 4.0}
    fast = {"median": 1.0, "low": 1.0, "high": 1.0}
    layer = {"name": "fc1", "density": 0.05, "chosen": "scipy"}
    layer["times"] = {"dense": time, "torch": time, "scipy": fast}
    batch = {"batch_size": 1, "layers": [layer], "largest_difference": 1e-6}
    batch["total"] = {"dense": time, "sparse_model": fast}
    text = tables.latency_text({"dense_layers": ["conv1"], "batches": [batch]})
    assert ["fc1", "5.00", "2.0", "±1.5", "2.0", "±1.5", "1.0", "±0.0", "scipy", "2.00x"] in [
        line.split() for line in text.splitlines()
    ]
    assert "always dense, no sparse form: conv1" in text


@pytest.fixture
def shared():
    torch.manual_seed(0)
    return SharedState(
        {
            "fc.weight": torch.randn(64, 64),
            "fc.bias": torch.randn(64),
            "q.weight": torch.randn(8, 8),
            "q.weight_scale": torch.rand(8, 1),
            "table": torch.randn(30, 30),
            "ids": torch.randint(0, 1 << 40, (40, 20)),
            "causal": torch.ones(200, 200, dtype=torch.uint8).tril(),
        }
    )


def test_what_becomes_of_what(shared):
    lines = tables.plan_text(shared.plan, shared).splitlines()
    assert lines[0].split() == ["the", "plan", "tensors", "elements", "such", "as"]
    assert [" ".join(line.split()) for line in lines[2:5]] == [
        "shared by rate 1 4,096 fc.weight",
        "rounded 1 64 fc.bias",
        "exact: quantized already 2 72 q.weight, q.weight_scale",
    ]


def test_notes_on_what_was_rounded_and_what_is_left(shared):
    dict(shared)
    rounded, *left = tables.sharing_notes(shared.plan, shared.clusterings, shared.rounded, shared)
    assert "rounded beside the weights: 1 biases and parts of normalisation, by 0." in rounded
    assert rounded.endswith("% or less (fc.bias)")
    assert [note.partition(";")[0] for note in left] == [
        "left as they are (quantized already): q.weight, q.weight_scale",
        "left as they are (not a weight by its name): table",
        "left as they are (no floating-point numbers): ids, causal",
    ]
    assert float(left[2].split()[-5]) < 55  # the mask takes next to nothing


def test_what_is_stored_whole_is_named_whatever_its_type(shared, tmp_path):
    encoded = encoding.write(dict(shared), tmp_path)
    note = tables.encoding_text(encoded).splitlines()[-1]
    assert note.startswith("note: stored as they are, neither pruned nor shared: ")
    assert {"table", "ids"} <= set(note.partition("shared: ")[2].partition(" (")[0].split(", "))


def test_zeros_of_both_signs_are_told(tmp_path):
    masked = torch.linspace(-1, 1, 4000).reshape(50, 80) * torch.eye(50).repeat(1, 2)[:, :80]
    state = {"masked": masked, "plain": masked + 0.0, "bytes": torch.full((9,), 128).byte()}
    notes = tables.encoding_text(encoding.write(state, tmp_path)).splitlines()
    assert [line for line in notes if "zeros" in line] == [
        "note: zeros of both signs, which take more bytes than one zero: masked; "
        "`weight + 0.0` leaves one"
    ]


def test_names_that_a_terminal_would_obey_keep_their_columns(monkeypatch):
    names = ["a\x1b[2J\n", "日本", "ä×"]
    shown = tables.table(["name", "n"], [[name, i] for i, name in enumerate(names)])
    assert shown.splitlines()[2:] == [r"a\x1b[2J\n  0", "日本        1", "ä×          2"]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    shown = tables.table(["name", "n"], [[name, i] for i, name in enumerate(names)])
    assert shown.isascii()
    assert len(set(map(len, shown.splitlines()))) == 1
