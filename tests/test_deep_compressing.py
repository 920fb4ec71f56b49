import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import deep_compressing
from net import checkpoint, encoding
from net.pipeline import runs
from net.report import plots
from tests.conftest import FAST

ROOT = Path(__file__).parent.parent


def test_leaves_the_files_of_every_stage_and_no_other(pipeline):
    names = {
        checkpoint.INITIAL,
        checkpoint.RETRAINED,
        checkpoint.SHARED,
        checkpoint.DECODED,
        "comparison.png",
    }
    assert {path.name for path in pipeline.saves.iterdir()} == names
    assert len(list(pipeline.encodings.iterdir())) == 7  # six tensors and the manifest


def test_run_twice_the_same_bytes(pipeline, tmp_path):
    arguments = ["--output", str(tmp_path / "s"), "--directory", str(tmp_path / "e")]
    assert deep_compressing.main([*FAST, *arguments]) == 0
    for mine, other in ((tmp_path / "s", pipeline.saves), (tmp_path / "e", pipeline.encodings)):
        files = {path.name: path.read_bytes() for path in mine.iterdir()}
        assert files == {path.name: path.read_bytes() for path in other.iterdir()}


def test_another_seed_gives_another_model(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    arguments = ["--output", str(tmp_path / "s"), "--directory", str(tmp_path / "m.dc")]
    arguments += ["--seed", "8", "--retrain-epochs", "0", "--finetune-epochs", "0"]
    assert deep_compressing.main([*FAST, *arguments]) == 0
    a, b = (checkpoint.load(p / checkpoint.INITIAL) for p in (tmp_path / "s", pipeline.saves))
    assert not torch.equal(a.state_dict["fc1.weight"], b.state_dict["fc1.weight"])
    decoded = checkpoint.load(tmp_path / "s" / checkpoint.DECODED).state_dict
    assert torch.equal(decoded["fc1.weight"], encoding.open(tmp_path / "m.dc")["fc1.weight"])


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--bits", "0"], ["--bits", "99"], ["--epochs", "-1"], ["--batch-size", "0"]),
        *(["--sensitivity", "nan"], ["--dataset", "svhn"], ["--seed", "-1"], ["--lr", "inf"]),
    ],
)
def test_bad_usage(arguments, tmp_path, capsys):
    assert deep_compressing.main([*arguments, "--output", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: argument {arguments[0]}: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--output", "--directory", "--json"])
def test_unwritable_places_are_found_before_training(tmp_path, capsys, monkeypatch, option):
    monkeypatch.setattr(runs.Run, "prune", lambda *args: pytest.fail("trained first"))
    (tmp_path / "file").write_text("precious")
    places = {
        "--output": tmp_path / "s",
        "--directory": tmp_path / "e",
        "--json": tmp_path / "figures.json",
    }
    places[option] = tmp_path / "file" / "below.json"
    arguments = [str(part) for pair in places.items() for part in pair]
    assert deep_compressing.main([*FAST, *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: cannot write ")
    assert err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("table", ["stages", "layers"])
def test_a_folder_where_a_table_is_to_be_is_found_before_training(
    tmp_path, capsys, monkeypatch, table
):
    monkeypatch.setattr(runs, "load_data", lambda *_: pytest.fail("began"))
    (tmp_path / f"x-{table}.csv").mkdir()
    places = ["--output", str(tmp_path / "s"), "--directory", str(tmp_path / "e")]
    assert deep_compressing.main([*FAST, *places, "--csv", str(tmp_path / "x.csv")]) == 1
    assert capsys.readouterr().err.startswith(f"error: cannot write {tmp_path / f'x-{table}.csv'}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(tmp_path, capsys):
    arguments = [*FAST, "--device", "cuda", "--output", str(tmp_path / "s")]
    assert deep_compressing.main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: --device cuda: ")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "kind",
    [signal.SIGINT, signal.SIGTERM, signal.SIGKILL],
)
@pytest.mark.exhaustive  # test_signals and the tests of --resume stop runs at other moments
def test_an_interrupted_run_leaves_whole_files(tmp_path, kind):
    command = [sys.executable, "deep_compressing.py", *FAST, "--epochs", "200"]
    command += ["--output", str(tmp_path / "s"), "--directory", str(tmp_path / "e")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Ignored where the tests run in the background of a shell, and inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    progress = tmp_path / "s" / runs.PROGRESS
    deadline = time.monotonic() + 60
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(kind)
    error = process.communicate(timeout=30)[1].decode()
    assert "Traceback" not in error
    assert process.returncode == (130 if kind == signal.SIGINT else -kind)
    assert checkpoint.load_dict(progress)["phase"] == "train"
    if kind != signal.SIGKILL:
        assert list((tmp_path / "s").iterdir()) == [progress]


def test_the_encoding_stands_alone(pipeline):
    state, meta = encoding.load(pipeline.encodings)
    assert meta == {"arch": "lenet-300-100", "dataset": "digits"}
    assert sum(tensor.numel() for tensor in state.values()) == 266_610
