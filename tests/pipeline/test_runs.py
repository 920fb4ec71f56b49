"""One run in a folder at a time. What runs do is tested with the scripts."""

import fcntl
import os

import pytest

import deep_compressing
import pruning
import weight_share
from net import files
from net.pipeline import runs
from net.report import plots
from tests.conftest import FAST


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A folder in which another process is writing."""
    monkeypatch.setattr(files, "WAIT", 0)
    folder = tmp_path / "saves"
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield folder
    os.close(handle)


@pytest.mark.parametrize("script", [deep_compressing, pruning, weight_share])
def test_a_second_run_in_a_folder_is_refused_before_any_work(
    script, held, pipeline, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(runs, "load_data", lambda *_: pytest.fail("began"))
    log = tmp_path / "log.txt"  # of the run that goes on
    log.write_text("epoch 1")
    arguments = ["--dataset", "digits", "--device", "cpu", "--log", str(log)]
    if script is weight_share:
        source = pipeline.saves / "model_after_retraining.ptmodel"
        arguments = [str(source), *arguments, "--output", str(held / "m.ptmodel")]
    else:
        arguments += ["--output", str(held)]
    assert script.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {held}: another process is writing here; wait until it has")
    assert err.count("\n") == 1
    assert os.listdir(held) == []
    assert log.read_text() == "epoch 1"


def test_of_several_processes_the_writer_alone_locks(held, monkeypatch):
    monkeypatch.setattr(runs.distributed, "is_writer", lambda: False)
    with runs.alone(held):
        pass


def test_one_folder_for_all_files(few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)  # which takes most of the time
    arguments = [*FAST, "--epochs", "1", "--output", str(tmp_path), "--directory", str(tmp_path)]
    assert deep_compressing.main(arguments) == 0


@pytest.mark.parametrize("script", [deep_compressing, weight_share])
def test_an_output_that_is_no_file_is_refused_before_any_work(
    script, pipeline, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(runs.stages, "share", lambda *_: pytest.fail("began"))
    monkeypatch.setattr(runs.stages, "train", lambda *_: pytest.fail("began"))
    os.mkfifo(tmp_path / "pipe")
    if script is weight_share:
        source = pipeline.saves / "model_after_retraining.ptmodel"
        arguments = [str(source), *FAST[:4], "--output", str(tmp_path / "pipe")]
    else:
        arguments = [*FAST, "--output", str(tmp_path / "s"), "--json", str(tmp_path / "pipe")]
    assert script.main(arguments) == 1
    err = capsys.readouterr().err
    assert err == (
        f"error: cannot write {tmp_path / 'pipe'}: a pipe or a device, not a file; give another "
        "path\n"
    )
    assert (tmp_path / "pipe").is_fifo()
