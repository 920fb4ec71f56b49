import json
import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import net
from net import encoding
from net.errors import UserError
from net.report import contents, contents_page, names
from net.sharing import SharedState

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def transformer(layers=12, width=32):
    """Names and shapes as in a BERT, and a table of positions."""
    state = {"embeddings.position_ids": torch.arange(16)[None]}
    state["embeddings.word_embeddings.weight"] = normal(200, width)
    for i in range(layers):
        linear = {
            "attention.self.query": (width, width),
            "attention.self.key": (width, width),
            "attention.output.dense": (width, width),
            "intermediate.dense": (2 * width, width),
            "output.dense": (width, 2 * width),
        }
        for name, shape in linear.items():
            state[f"encoder.layer.{i}.{name}.weight"] = normal(*shape)
            state[f"encoder.layer.{i}.{name}.bias"] = normal(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            state[f"encoder.layer.{i}.{name}.weight"] = 1 + 0.1 * normal(width)
            state[f"encoder.layer.{i}.{name}.bias"] = normal(width)
    return state


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A state dict before, the file of what was made of it, and the figures of both."""
    path = tmp_path_factory.mktemp("contents") / "model.dc"
    state = transformer()
    files = {"config.json": b'{"layers": 12}', "vocab.txt": b"the\n" * 2000}
    encoding.save(dict(SharedState(state)), path, files=files)
    return state, path, contents.figures(path, state)


# Names


def test_names_that_differ_in_a_number_share_a_row():
    keys = {f"h.{i}.{x}": x for i in (0, 1, 2, 5) for x in ("w", "b")} | {"h.3.w": "other"}
    rows = names.grouped(keys)
    assert list(rows) == ["h.0-2,5.w", "h.0-2,5.b", "h.3.w"]
    assert rows["h.0-2,5.b"] == ["h.0.b", "h.1.b", "h.2.b", "h.5.b"]


def test_a_row_stands_for_every_combination_of_its_numbers():
    keys = dict.fromkeys(f"layers.{i}.experts.{j}.w" for i in range(3) for j in range(4))
    assert list(names.grouped(keys)) == ["layers.0-2.experts.0-3.w"]
    del keys["layers.1.experts.3.w"]
    rows = names.grouped(keys)
    assert sum(map(len, rows.values())) == 11
    for row, members in rows.items():
        counts = [len(list(expanded(part))) for part in row.split(".") if part[0].isdigit()]
        assert math.prod(counts) == len(members)


def expanded(part):
    for run in part.split(","):
        first, _, last = run.partition("-")
        yield from range(int(first), int(last or first) + 1)


def test_what_only_looks_like_a_number_or_a_range_is_none():
    keys = dict.fromkeys(["a.01.w", "a.1.w", "b.0-1.w", "b.0.w", "b.1.w", "layer1.w", "layer2.w"])
    assert names.grouped(keys) == {name: [name] for name in keys}
    backwards = dict.fromkeys(reversed(keys))
    assert names.grouped(backwards) == {name: [name] for name in keys}


def test_long_names_lose_what_most_of_them_have():
    short = names.shorten(transformer(), 26)
    assert short["encoder.layer.0.attention.self.query.weight"] == "..0..self.query.weight"
    assert short["encoder.layer.3.output.dense.bias"] == "..3.output.dense.bias"  # no .attention.
    assert short["embeddings.position_ids"] == "embeddings.position_ids"


@pytest.mark.parametrize("width", [12, 16, 24, 40])
def test_no_two_shortened_names_are_the_same(width):
    state = transformer(30)
    short = names.shorten(state, width)
    assert list(short) == list(state)
    assert len(set(short.values())) == len(state)
    assert max(map(len, short.values())) <= width


@given(st.lists(st.text("ab.~2\n", max_size=30), unique=True), st.integers(12, 20))
def test_nor_are_any_others(some, width):
    short = names.shorten(some, width)
    assert len(set(short.values())) == len(some)
    assert all(len(text) <= width and text.isprintable() for text in short.values())


# Figures


def test_the_figures_are_those_of_the_file(model):
    state, path, figures = model
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["bytes"] == path.stat().st_size
    assert figures["dense_bytes"] == sum(tensor.nbytes for tensor in state.values())
    assert figures["compression_ratio"] == figures["dense_bytes"] / figures["bytes"]
    assert [row["name"] for row in figures["tensors"]] == list(state)
    groups = {row["group"]: row for row in figures["groups"]}
    assert list(groups) == [
        *("weights", "biases and norms", "other tensors", "files beside", "header")
    ]
    assert sum(row["bytes"] for row in groups.values()) == figures["bytes"]
    assert sum(row["share_percent"] for row in groups.values()) == pytest.approx(100)
    assert groups["files beside"]["count"] == 2
    assert 14 < groups["files beside"]["bytes"] < 8014  # deflated
    known = {info.name: info.encoded_bytes for info in encoding.read(path)[2]}
    assert {row["name"]: row["bytes"] for row in figures["tensors"]} == known


def test_what_became_of_a_tensor(model):
    how = {row["name"]: row["treatment"] for row in model[2]["tensors"]}
    assert how.pop("embeddings.position_ids") == "exact"
    vectors = {name for name in how if name.endswith(".bias") or "Norm" in name}
    assert {how[name] for name in vectors} == {"rounded"}
    assert {how[name] for name in how.keys() - vectors} == {"by rate"}


def test_the_noise_is_the_root_mean_square_of_the_change(model):
    state, path, figures = model
    row = next(row for row in figures["tensors"] if row["name"].endswith("3.output.dense.weight"))
    before, after = state[row["name"]].double(), encoding.open(path)[row["name"]].double()
    assert row["noise_percent"] == pytest.approx(
        100 * float((after - before).norm() / before.norm())
    )
    assert row["values"] == len(after.unique())
    assert row["zeros_percent"] == pytest.approx(100 * float((after == 0).double().mean()))
    assert row["bits_per_weight"] == 8 * row["bytes"] / after.numel()


@pytest.mark.parametrize("form", ["encodings", "model.dc"])
def test_clustered_pruned_and_changed_weights(tmp_path, form):
    torch.manual_seed(0)
    layers = [nn.Linear(40, 30), nn.Linear(30, 30), nn.Linear(30, 30), nn.Linear(30, 30)]
    before = nn.Sequential(*layers)
    for layer in layers:
        nn.init.normal_(layer.weight)
    state = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    after = nn.Sequential(*[nn.Linear(*each.weight.shape[::-1]) for each in layers])
    after.load_state_dict(state)
    net.Pruner(after, density=0.3, include="0.weight")
    net.WeightSharing(after, bits=4, include=["0.weight", "1.weight"])
    with torch.no_grad():
        after[2].weight += 0.01
    path = tmp_path / form
    net.encoding.save(after.state_dict(), path)
    for source in (before, state):
        rows = {row["name"]: row for row in net.report(source, path).figures["tensors"]}
        how = [rows[f"{i}.weight"]["treatment"] for i in range(4)]
        assert how == ["clustered", "clustered", "changed", "exact"]
        assert rows["0.weight"]["values"] <= 17
        assert rows["0.weight"]["zeros_percent"] == pytest.approx(70, abs=0.1)
        assert rows["3.weight"]["noise_percent"] == 0
    how = [row["treatment"] for row in contents.figures(path)["tensors"] if "weight" in row["name"]]
    assert how == ["clustered", "clustered", "exact", "exact"]  # as far as the file shows


def test_types_of_16_bits_have_few_values_and_are_not_clustered(tmp_path):
    state = {str(dtype): normal(200, 300).to(dtype) for dtype in (torch.bfloat16, torch.float16)}
    encoding.save({f"{name}.weight": each for name, each in state.items()}, tmp_path / "a.dc")
    rows = contents.figures(tmp_path / "a.dc")["tensors"]
    assert [row["treatment"] for row in rows] == ["exact", "exact"]
    shared = SharedState({f"{name}.weight": each for name, each in state.items()})
    encoding.save(dict(shared), tmp_path / "a.dc")
    rows = contents.figures(tmp_path / "a.dc")["tensors"]
    assert [row["treatment"] for row in rows] == ["by rate", "by rate"]


def test_the_model_before_may_be_a_path(model, tmp_path):
    state, path, figures = model
    torch.save(state, tmp_path / "model.pth")
    encoding.save(state, tmp_path / "e")
    for before in (tmp_path / "model.pth", tmp_path / "e"):
        assert net.report(before, path).figures["tensors"] == figures["tensors"]


def test_the_noise_may_be_recorded_by_who_encoded(tmp_path):
    state = {"a.weight": normal(9, 9), "b.weight": normal(9, 9), "c.weight": normal(9, 9)}
    meta = {encoding.NOISE_PERCENT: [3.5, "much", None]}
    encoding.save(state, tmp_path / "a.dc", meta)
    rows = contents.figures(tmp_path / "a.dc")["tensors"]
    assert [row["noise_percent"] for row in rows] == [3.5, None, None]
    rows = contents.figures(tmp_path / "a.dc", state)["tensors"]
    assert [row["noise_percent"] for row in rows] == [0, 0, 0]


def test_another_model_is_an_error(model):
    with pytest.raises(UserError, match=r"no tensor of .*model.dc is in the model before"):
        net.report(nn.Linear(3, 3), model[1])
    with pytest.raises(UserError, match="no model at nowhere"):
        net.report("nowhere", model[1])
    with pytest.raises(UserError, match=r"no-model\.dc"):
        net.report(model[0], "no-model.dc")


def test_whatever_else_is_in_a_state_dict(tmp_path):
    state = {
        "nan.weight": torch.tensor([[math.nan, 1.0, -math.inf]]),
        "zero.weight": torch.zeros(3, 3),
        "empty": torch.zeros(0, 3),
        "complex": torch.randn(3, 2, dtype=torch.complex64),
        "float8": normal(5, 4).to(torch.float8_e4m3fn),
        "bool": torch.tensor([True, False]),
        "a\x1b$x$\n.weight": normal(3, 3),
    }
    state["tied"] = state["zero.weight"]
    encoding.save(state, tmp_path / "a.dc")
    report = net.report(state, tmp_path / "a.dc")
    assert json.dumps(report.figures, allow_nan=False)
    assert {row["treatment"] for row in report.figures["tensors"]} == {"exact"}
    assert "tied is tied to zero.weight" in str(report)
    assert "\x1b" not in str(report)
    report.draw(tmp_path / "a.png")
    other = state | {"zero.weight": torch.ones(3, 3), "nan.weight": torch.tensor(1.0)}
    del other["tied"]
    rows = {row["name"]: row for row in net.report(other, tmp_path / "a.dc").figures["tensors"]}
    assert rows["zero.weight"]["noise_percent"] == 100
    assert rows["nan.weight"]["noise_percent"] is None


def test_nothing_at_all(tmp_path):
    encoding.save({}, tmp_path / "a.dc")
    report = net.report({}, tmp_path / "a.dc")
    assert str(report).splitlines()[0].endswith("a.dc: 0 tensors")
    report.draw(tmp_path / "a.png")


# Table and picture


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_fits_and_has_no_row_twice(model, width):
    lines = contents.table(model[2], width).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("---")) + 1
    rows = [line.split("  ")[0] for line in lines[start : lines.index(lines[start - 1], start)]]
    assert max(map(len, lines)) <= width
    assert len(rows) == len(set(rows)) == 16
    assert "..0-11" in " ".join(rows)


def test_the_table_says_what_its_figures_are(model):
    text = contents.table(model[2])
    assert "noise: root mean square of the change, in % of that of the tensor before" in text
    assert "bits: all bytes of a tensor, in bits per element" in text
    assert " zeros %" in text
    assert f"-> {model[2]['bytes']:,} bytes, compression ratio " in text
    assert "files beside 2 files" in " ".join(text.split())


def test_columns_without_figures_are_left_out(tmp_path):
    encoding.save({"a.weight": 1 + torch.rand(9, 9), "b": torch.ones(3)}, tmp_path / "a")
    text = contents.table(contents.figures(tmp_path / "a"))
    assert "zeros" not in text
    assert "noise" not in text
    assert "b 3 exact" in " ".join(text.split())


def test_no_panel_is_empty(model, tmp_path):
    figures = model[2]
    page = contents_page.contents_page(figures, contents.rows_of(figures))
    labels = [axes.get_xlabel().partition(",")[0] for axes in page.get_axes()]
    assert (
        labels == ["size", "bits per element", "noise"] + ["the middle 99.8 % of the weights"] * 3
    )
    assert all(axes.has_data() for axes in page.get_axes())
    without = contents.figures(model[1])
    page = contents_page.contents_page(without, contents.rows_of(without))
    assert "noise" not in " ".join(axes.get_xlabel() for axes in page.get_axes())
    contents.draw(figures, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_outliers_flatten_no_histogram(tmp_path):
    state = {"a.weight": normal(300, 300)}
    state["a.weight"][0, :2] = torch.tensor([1e4, -1e4])
    encoding.save(state, tmp_path / "a")
    (histogram,) = contents.figures(tmp_path / "a")["histograms"]
    assert -4 < histogram["low"] < -2 < 2 < histogram["high"] < 4
    assert sum(histogram["encoded"]) == pytest.approx(99.8, abs=0.1)
    assert sum(percent > 0.1 for percent in histogram["encoded"]) > 40


def test_without_matplotlib_a_picture_is_an_error(model, monkeypatch):
    """And the table is printed: tests/test_base.py."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"a plot needs matplotlib, .*pip install"):
        contents.draw(model[2], "a.png")


def test_random_initial_weights_are_not_called_rounded(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10))
    net.compress(model, tmp_path / "a.dc", lossless=True)
    rows = contents.figures(tmp_path / "a.dc")["tensors"]
    assert {row["treatment"] for row in rows} == {"exact"}


@pytest.mark.parametrize("noise", [0.2, 0.02])
def test_shared_vectors_and_rounded_ones(tmp_path, noise):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 200), nn.LayerNorm(200))
    nn.init.normal_(model[1].weight, 1, 0.1)
    net.WeightSharing(model, bits=5, bias_bits=3)
    shared = {"0.bias": model[0].bias.detach().clone()}
    rounded = dict(SharedState(model.state_dict(), "auto", noise=noise))["1.weight"]
    encoding.save({**shared, "1.weight": rounded}, tmp_path / "a.dc")
    rows = contents.figures(tmp_path / "a.dc")["tensors"]
    assert [row["treatment"] for row in rows] == ["clustered", "rounded"]
