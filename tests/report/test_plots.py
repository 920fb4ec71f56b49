import json
import math
import sys
import warnings

import pytest
import torch

import compare_stages
import deep_compressing
from net import checkpoint, encoding
from net.checkpoint import Checkpoint
from net.pipeline import runs
from net.report import comparison, plots
from net.shared_tensor import SharedTensor
from tests.conftest import FAST


@pytest.fixture
def figures(pipeline):
    return json.loads(pipeline.json.read_text())


@pytest.fixture
def draw(monkeypatch):
    """Draws a page for real, and tells how many panels it has."""
    monkeypatch.delenv("DISPLAY", raising=False)

    def page(figures, path):
        figure = plots.comparison_page(figures)
        plots.save(figure, path)
        assert path.stat().st_size > 1000
        return len(figure.axes)

    return page


def test_the_pipeline_draws_into_its_folder(pipeline):
    data = (pipeline.saves / "comparison.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(data) < 200_000


@pytest.mark.exhaustive
def test_same_figures_give_the_same_bytes(figures, tmp_path, draw):
    # SVG has ids and a date; for PNG see test_deep_compressing.test_run_twice_the_same_bytes.
    figures |= {key: figures[key][:1] for key in ("layers", "distributions")}
    for name in ("a.svg", "b.svg"):
        draw(figures, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_size_bars_end_with_the_folder(figures):
    labels, sizes = zip(*plots.stage_bars(figures), strict=True)
    assert sizes[0] == figures["original_bytes"]
    assert sizes[-1] == figures["encoded_bytes"]
    assert list(sizes) == sorted(sizes, reverse=True)
    assert labels[1].startswith("pruned")


def test_part_bars_add_up_to_the_folder(figures, pipeline):
    bars = plots.part_bars(figures)
    assert [name for name, _ in bars] == ["fc1", "fc2", "fc3", "the rest"]
    total = sum(sum(parts.values()) for _, parts in bars)
    assert total == pytest.approx(encoding.directory_bytes(pipeline.encodings))


def test_part_bars_of_a_deep_network_sum_the_small_layers(figures):
    layer = figures["layers"][0]
    figures["layers"] = [
        layer | {"name": f"l{i}", "parts": {k: i * v for k, v in layer["parts"].items()}}
        for i in range(1, 21)
    ]
    bars = plots.part_bars(figures)
    assert [name for name, _ in bars][-2:] == ["8 smaller layers", "the rest"]
    assert len(bars) == plots.MAX_BARS + 2
    assert bars[0][0] == "l9"  # in the order of the model
    small = sum(range(1, 9)) * sum(layer["parts"].values())
    assert sum(bars[-2][1].values()) == pytest.approx(small)


def test_distributions_count_every_weight(figures, pipeline):
    states = {
        name: checkpoint.load(pipeline.saves / file).state_dict
        for name, file in (("initial", checkpoint.INITIAL), ("shared", checkpoint.DECODED))
    }
    for layer in figures["distributions"]:
        initial, shared = (states[kind][f"{layer['name']}.weight"] for kind in states)
        assert sum(layer["initial"]) == initial.numel()
        assert sum(layer["retrained"]) == shared.count_nonzero()
        values, counts = shared[shared != 0].unique(return_counts=True)
        assert layer["shared_values"] == values.tolist()
        assert layer["shared_counts"] == counts.tolist()
        assert layer["low"] < 0 < layer["high"]


def test_a_bin_holds_the_weights_between_its_edges():
    weight = torch.tensor([[-1.0, -0.99, 0.0, 0.5, 1.0]])
    found = {"initial": Checkpoint({"a.weight": weight})}
    (layer,) = [comparison.distribution("a.weight", found)]
    assert (layer["low"], layer["high"], layer["retrained"]) == (-1, 1, None)
    expected = [0] * comparison.BINS
    for value in weight[0].tolist():
        bin_of = int((value + 1) / 2 * comparison.BINS)
        expected[min(bin_of, comparison.BINS - 1)] += 1
    assert layer["initial"] == expected


def test_unusual_weights_have_distributions():
    odd = {
        "zero.weight": torch.zeros(3, 3),
        "constant.weight": torch.full((3, 3), 0.5),
        "nan.weight": torch.tensor([[1.0, math.nan, math.inf, 2.0]]),
        "empty.weight": torch.zeros(0, 3),
    }
    found = {stage: Checkpoint(odd) for stage in ("initial", "retrained", "decoded")}
    layers = {name.partition(".")[0]: comparison.distribution(name, found) for name in odd}
    assert sum(layers["zero"]["initial"]) == 9
    assert layers["zero"]["shared_values"] == []
    assert layers["constant"]["shared_counts"] == [9]
    assert sum(layers["nan"]["initial"]) == 2
    assert sum(layers["empty"]["initial"]) == 0
    json.dumps(layers, allow_nan=False)


def test_a_layer_that_a_stage_lacks_is_left_out_of_it():
    found = {"initial": Checkpoint({"a.weight": torch.randn(3, 3)}), "retrained": Checkpoint({})}
    (layer,) = [comparison.distribution("a.weight", found)]
    assert (sum(layer["initial"]), layer["retrained"], layer["shared_values"]) == (9, None, None)


def test_weights_that_are_not_shared_have_no_shared_values():
    weight = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    layer = comparison.distribution("a.weight", {"decoded": Checkpoint({"a.weight": weight})})
    assert (layer["shared_values"], layer["shared_counts"]) == (None, None)


def test_code_points_are_shares_and_bits(figures):
    stored = {layer["name"]: layer for layer in figures["layers"]}
    for name, shares, bits in plots.code_points(figures["layers"], "value_code"):
        assert sum(shares) == pytest.approx(1)
        average = sum(p * b for p, b in zip(shares, bits, strict=True))
        assert average == pytest.approx(stored[name]["weight_bits"], abs=0.01)
        assert sum(2.0**-b for b in bits) <= 1  # Kraft's inequality
    assert plots.code_points(figures["layers"], "gap_codes")


def test_mask_of_pixels(figures, pipeline):
    mask = figures["first_layer_mask"]
    weight = checkpoint.load(pipeline.saves / checkpoint.DECODED).state_dict["fc1.weight"]
    assert (mask["layer"], mask["kind"], mask["shape"]) == ("fc1", "pixels", [28, 28])
    assert mask["counts"] == (weight != 0).sum(0).tolist()
    assert mask["most"] == 300
    assert plots.mask_image(mask)[3, 5] == mask["counts"][3 * 28 + 5]


def test_mask_of_filters():
    weight = torch.zeros(5, 3, 2, 2)
    weight[4, :, 1, 0] = 1
    mask = comparison.first_layer_mask(Checkpoint({"conv.weight": weight}))
    assert (mask["kind"], mask["shape"], mask["most"]) == ("filters", [5, 2, 2], 3)
    image = plots.mask_image(mask)
    assert image.shape == (5, 8)  # 2 x 3 tiles of 2 x 2, a line between them
    assert image[4, 3] == 3
    assert math.isnan(image[2, 0])


def test_no_image_no_mask():
    assert comparison.first_layer_mask(Checkpoint({"a.weight": torch.ones(3, 784)})) is None
    assert comparison.first_layer_mask(Checkpoint({"bias": torch.ones(3)})) is None


def save_stages(folder, initial, pruned):
    """The files of all stages of a bare state dict, and its encoding."""
    shared = {name: tensor.clone() for name, tensor in pruned.items()}
    for tensor in shared.values():
        SharedTensor.clustered(tensor, 3).write(tensor)
    files = (checkpoint.INITIAL, checkpoint.RETRAINED, checkpoint.SHARED, checkpoint.DECODED)
    for name, state in zip(files, (initial, pruned, shared, shared), strict=True):
        checkpoint.save(folder / name, Checkpoint(state))
    encoding.save(shared, folder / "e")


def test_twenty_layers_one_of_them_entirely_pruned_and_no_architecture(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    initial = {
        f"block{i}.convolution.weight": torch.randn(4, 4, 3, 3, generator=generator)
        for i in range(20)
    }
    pruned = {name: w.masked_fill(w.abs() < 1, 0) for name, w in initial.items()}
    pruned["block7.convolution.weight"].zero_()
    save_stages(tmp_path, initial, pruned)
    arguments = ["--path", str(tmp_path), "--directory", str(tmp_path / "e"), "--device", "cpu"]
    page = ["--plot", str(tmp_path / "page.png"), "--json", str(tmp_path / "page.json")]
    assert compare_stages.main([*arguments, *page]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
    assert (tmp_path / "page.png").stat().st_size < 200_000
    figures = json.loads((tmp_path / "page.json").read_text())
    assert len(figures["layers"]) == 20
    assert len(plots.largest(figures["distributions"], 6)) == 6


@pytest.mark.parametrize(
    "missing",
    [
        checkpoint.INITIAL,
        pytest.param(checkpoint.RETRAINED, marks=pytest.mark.exhaustive),
        "encodings",
    ],
)
def test_pages_with_a_part_missing(figures, tmp_path, draw, missing):
    if missing == "encodings":
        figures |= {"layers": [], "encoded_bytes": None, "compression_ratio": None}
        figures |= {"other": None, "total": None, "first_layer_mask": None}
    else:
        stage = "initial" if missing == checkpoint.INITIAL else "retrained"
        for layer in figures["distributions"]:
            layer[stage] = None
    assert draw(figures, tmp_path / "page.pdf") >= 2 + 3 + 1


def test_without_matplotlib_a_plot_that_was_asked_for_is_an_error(
    pipeline, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ["--path", str(pipeline.saves), "--directory", str(pipeline.encodings)]
    assert compare_stages.main([*arguments, "--plot", str(tmp_path / "p.png")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: a plot needs matplotlib")
    assert err.count("\n") == 1
    # The pipeline draws unasked, and must not fail for it.
    monkeypatch.setattr(runs, "load_data", lambda *args: pytest.exit("too far"))
    monkeypatch.setattr(runs.Run, "prune", lambda *args: pytest.exit("too far"))
    with pytest.raises(pytest.exit.Exception):
        deep_compressing.main([*FAST, "--output", str(tmp_path / "s")])
    assert "comparison.png is not drawn" in capsys.readouterr().err


def test_an_unknown_kind_of_picture_is_bad_usage(capsys):
    assert compare_stages.main(["--plot", "page.bmp"]) == 2
    assert "'page.bmp' ends in none of .png, .svg and .pdf" in capsys.readouterr().err


def test_names_that_matplotlib_cannot_draw(figures, tmp_path):
    figures["dataset"] = figures["layers"][0]["name"] = "a\x1b\n\udce9 $x$ $ 日本"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph")  # signs that no font has
        plots.save(plots.comparison_page(figures), tmp_path / "a.png")
    assert figures["dataset"].startswith("a\x1b")  # as it was
    assert plots.drawable({"a$": ["$b\n", 1]}) == {r"a\$": [r"\$b\n", 1]}


def test_a_model_of_which_nothing_is_left_is_drawn(figures):
    nothing = {"bytes_pruned": 0, "bytes_before_huffman": 0}
    figures["layers"] = [layer | nothing for layer in figures["layers"]]
    figures["other"] |= nothing
    axes = plots.new_figure(3).subplots()
    plots.draw_stages(axes, figures)
    shown = [text.get_text().split() for text in axes.texts]
    assert [text for text in shown if text[:2] == ["0", "B"]] == [["0", "B"]] * 2
    assert shown[-1][-1] == f"{figures['original_bytes'] / figures['encoded_bytes']:.1f}x"
    assert 0 < axes.get_xlim()[0] < 1


def test_the_largest_layers_of_a_model_that_was_shared_as_it_was():
    sizes = (4, 64, 8, 100, 64)
    found = {"decoded": Checkpoint({f"l{i}.weight": torch.ones(n) for i, n in enumerate(sizes)})}
    layers = [comparison.distribution(name, found) for name in found["decoded"].state_dict]
    assert [layer["name"] for layer in plots.largest(layers, 3)] == ["l1", "l3", "l4"]


def test_a_scan_without_an_error_has_a_linear_scale():
    points = [
        {"density": density, "error_percent": error, "loss": 0.1 + error}
        for density, error in ((1.0, 0.0), (0.1, 0.5))
    ]
    figures = {"arch": "a", "dataset": "b", "reached": 0.5, "chosen": {"fc": 0.5}}
    figures |= {"error_percent": 0.0, "loss": 0.1, "layers": [{"name": "fc", "points": points}]}
    error, loss = plots.scan_page(figures).axes
    assert (error.get_yscale(), error.get_ylabel()) == ("linear", "held-out error, percent")
    assert (loss.get_yscale(), loss.get_ylabel()) == ("log", "held-out loss, nats (log scale)")
