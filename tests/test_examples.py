"""The examples as a reader runs them: what they print, and that it is what they are about."""

import contextlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """What an example prints, run in this process: torch takes seconds to import."""

    def run(name, *argv):
        path = EXAMPLES / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, argv)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with contextlib.suppress(SystemExit):  # of the one that lacks its library
            runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


def figures(text):
    """(ratio, before, after) of '... 35.0x' and '... 3.61 % -> 3.06 %'."""
    ratio = float(re.search(r"bytes, ([\d.]+)x", text)[1])
    before, after = re.search(r"(?:error|loss) ([\d.]+)(?: %)? -> ([\d.]+)", text).groups()
    return ratio, float(before), float(after)


def test_every_example_is_tested_and_fits_a_screen():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"own_loop", "hugging_face", "detection", "state_dict"}
    for name in names:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert f"python examples/{name}.py" in text
        assert text.count("\n") < 80


@pytest.mark.exhaustive  # as the loop of the README, which test_docs runs
def test_own_loop(run):
    ratio, before, after = figures(run("own_loop"))
    assert ratio > 25
    assert after < before + 2.5 < 10


@pytest.mark.exhaustive
def test_detection(run):
    ratio, before, after = figures(run("detection"))
    assert ratio > 10
    assert after < before + 0.1 < 0.8  # untrained: 2


def test_hugging_face(run):
    shown = run("hugging_face")
    try:
        import accelerate  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        assert shown.startswith("left out: this example needs transformers and accelerate")
        return
    ratio, before, after = figures(shown)
    assert ratio > 12
    assert after < before + 2.5 < 10


def test_state_dict_of_a_file(run, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(100, 60), torch.nn.Linear(60, 100, bias=False))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "theirs.pth")
    shown = run("state_dict", tmp_path / "theirs.pth")
    assert "theirs.pth: 48,240 -> " in shown
    assert float(re.search(r"bytes, ([\d.]+)x", shown)[1]) > 4.5
    assert "decoded bit for bit: True" in shown


@pytest.mark.exhaustive
def test_state_dict_of_no_file(run):
    assert run("state_dict").startswith("squeezenet1_1.pth: 4,941,984 -> ")


@pytest.mark.exhaustive
def test_it_is_found_from_another_folder(tmp_path):
    torch.save({"a.weight": torch.eye(3)}, tmp_path / "theirs.pth")
    command = [sys.executable, EXAMPLES / "state_dict.py", "theirs.pth"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("theirs.pth: 36 -> "), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pth"]
