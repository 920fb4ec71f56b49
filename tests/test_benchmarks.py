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
    page = curve.page(figures)
    ours, others, dense = page.axes[0].lines
    assert ours.get_xydata().tolist() == [[10, 1.5], [40, 0.9]]
    assert others.get_xydata().tolist() == [[20, 0.7]]
    assert set(dense.get_ydata()) == {0.5}
    plots.save(page, tmp_path / "curve.svg")
    text = (tmp_path / "curve.svg").read_text()
    assert all(name in text for name in ("1000x", "250x", "somebody else", "dense model"))


def test_a_peer_is_compared_at_equal_divergence(tmp_path):
    peers = importlib.import_module("peers")

    def point(codec, size, divergence):
        return peers.Point(codec, "", size, [divergence / 2, 3 * divergence / 2])

    points = [
        point("ours", 500, 0.01),  # between the two of nncodec that count
        point("ours", 500, 1.0),  # where no peer has been
        point("nncodec", 100, 0.1),
        point("nncodec", 900, 0.05),  # no better than what takes fewer bytes
        point("nncodec", 400, 0.04),
        point("nncodec", 1600, 0.0025),
        point("GGUF", 9000, 0.2),
        point("GGUF", 12000, 0.001),
    ]
    assert [p.bytes for p in peers.envelope(points[2:6])] == [100, 400, 1600]
    between, beyond = peers.rows(points)
    assert between["best_peer"] == "nncodec"
    assert between["peer_bytes"] == 800  # halfway in both logarithms
    assert between["ratio"] == pytest.approx(0.625)
    assert beyond["ratio"] is beyond["best_peer"] is None
    path = tmp_path / "points.json"
    peers.write(path, {"a network": points})
    assert peers.read(path) == {"a network": points}
    peers.plot({"a network": points}, tmp_path / "peers.svg")
    text = (tmp_path / "peers.svg").read_text()
    assert all(name in text for name in ("a network", "nncodec", "GGUF", "ours"))


def test_what_is_known_of_a_peer_is_not_measured_again(tmp_path, monkeypatch, capsys):
    peers = importlib.import_module("peers")
    monkeypatch.setattr(peers, "ours", lambda subject, *_: (1000, subject.model.state_dict()))
    path = tmp_path / "points.json"
    known = peers.Point("nncodec", "qp -32", 123, [0.5, 0.7])
    short = peers.Point("nncodec", "qp -36", 456, [])  # of too few draws
    peers.write(path, {"gpt2": [known, short]})
    assert peers.main(["--quick", "--json", str(path)]) == 0
    found = peers.read(path)
    assert known._replace(divergences=[0.5]) in found["gpt2"]
    assert short not in found["gpt2"]
    own = [p for p in found["gpt2"] if p.codec in peers.OURS]
    assert [p.divergence for p in own] == [pytest.approx(0, abs=1e-9)] * 2  # it is the dense one
    coarse, fine = (p for p in found["bert"] if p.codec == "GGUF")
    assert coarse.bytes < fine.bytes < 0.3 * 4 * 40_000
    assert 100 * fine.divergence < coarse.divergence < 0.1
    assert "qp -32" in capsys.readouterr().out


def test_the_evidence_never_trains_on_what_it_is_tested_on(tmp_path, monkeypatch):
    evidence = importlib.import_module("evidence")
    monkeypatch.setattr(evidence, "IMAGES", 5)
    (tmp_path / evidence.BATCHES).mkdir()
    for i in range(1, 6):
        batch = bytes([i]) * 5 * evidence.RECORD
        (tmp_path / evidence.BATCHES / f"data_batch_{i}.bin").write_bytes(batch)
    (tmp_path / evidence.BATCHES / "test_batch.bin").write_bytes(bytes([9]))
    made = evidence.divided(tmp_path, tmp_path / "made") / evidence.BATCHES
    trained = [(made / f"data_batch_{i}.bin").read_bytes() for i in range(1, 6)]
    assert {len(each) for each in trained} == {4 * evidence.RECORD}
    assert set(b"".join(trained)) == {1, 2, 3, 4}
    assert (made / "test_batch.bin").read_bytes() == b"\5" * 5 * evidence.RECORD


def test_the_evidence_of_several_networks_is_one_picture(tmp_path):
    evidence = importlib.import_module("evidence")
    points = [{"name": "dense", "bytes": 4000, "error": 10.0}]
    points += [{"name": "trained", "bytes": 100, "error": 10.5, "seconds": 60.0}]
    file = tmp_path / "evidence.json"
    assert evidence.added(None, "a", {"points": points, "images": 900}).keys() == {"a"}
    for arch in ("a", "b", "a"):
        networks = evidence.added(file, arch, {"points": points, "images": 900})
    assert networks.keys() == {"a", "b"}
    plots.save(evidence.page(networks), tmp_path / "evidence.svg")
    text = (tmp_path / "evidence.svg").read_text()
    assert all(label in text for label in ("a: dense, trained", "b: dense, trained", "40x"))
    assert evidence.standard_error(10.0, 900) == 1.0
    assert "40.0" in evidence.text(points, 900)
