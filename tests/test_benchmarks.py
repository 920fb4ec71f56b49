"""What the benchmarks draw; what they measure takes too long for a test."""

import importlib
from pathlib import Path

import pytest

from net.report import plots


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")


def test_the_tradeoff_shows_every_point_of_use(tmp_path):
    """What has an error beyond the page is left out, and does not squeeze the rest."""

    def points(key, *pairs):
        return [{key: x, "error_percent": y, "clustered_error_percent": y + 0.1} for x, y in pairs]

    figures = {
        "arch": "lenet-300-100",
        "dataset": "digits",
        "original_bytes": 10_000,
        "dense_error_percent": 1.0,
        "methods": {
            "pruning": points("bytes", (9, 88.0), (2000, 1.2), (4000, 1.0)),
            "quantization": points("bytes", (500, 4.9), (1000, 1.1)),
        },
        "initialisations": {"linear": points("bits", (1, 60.0), (3, 2.0), (5, 1.1))},
    }
    tradeoff = importlib.import_module("tradeoff")
    page = tradeoff.tradeoff_page(figures)
    methods, starts = page.axes
    assert 2 < methods.get_xlim()[0] < 5 < 40 < methods.get_xlim()[1]  # percent of dense
    assert 1 < starts.get_xlim()[0] < 3 < 5 < starts.get_xlim()[1]
    assert methods.get_ylim()[1] == 5.0
    plots.save(page, tmp_path / "tradeoff.svg")
    text = (tmp_path / "tradeoff.svg").read_text()
    assert all(name in text for name in ("pruning", "quantization", "linear", "dense model"))


def test_the_curve_shows_every_point_and_those_of_others(tmp_path):
    def point(size, error):
        return {
            **{"bytes": size, "original_bytes": 10_000},
            **{"error_percent": error, "dense_error_percent": 0.5},
        }

    figures = {
        "arch": "lenet-5",
        "dataset": "digits",
        "points": [point(10, 1.5), point(40, 0.9)],
        "others": {"somebody else": [(20, 0.7)]},
    }
    curve = importlib.import_module("curve")
    page = curve.curve_page(figures)
    ours, others, dense = page.axes[0].lines
    assert ours.get_xydata().tolist() == [[10, 1.5], [40, 0.9]]
    assert others.get_xydata().tolist() == [[20, 0.7]]
    assert set(dense.get_ydata()) == {0.5}
    plots.save(page, tmp_path / "curve.svg")
    text = (tmp_path / "curve.svg").read_text()
    assert all(name in text for name in ("1000x", "250x", "somebody else", "dense model"))
