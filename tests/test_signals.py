"""SIGINT and SIGTERM at any moment of any script: an exit code, a line, and whole files."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from net import checkpoint, encoding, unfinished
from net.files import atomic_write
from net.pipeline.process import INTERRUPTED, start

ROOT = Path(__file__).parents[1]
COMMON = ("--dataset", "digits", "--device", "cpu")
TINY = (*COMMON, "--batch-size", "64", "--epochs", "1")
SAVES, ENCODINGS = ("--path", "saves"), ("--directory", "encodings")
SCRIPTS = {
    "pruning.py": (*TINY, "--retrain-epochs", "1", "--output", "saves"),
    "weight_share.py": (
        "saves/model_after_retraining.ptmodel",
        *TINY,
        "--output",
        "saves/w.ptmodel",
    ),
    "huffman_encode.py": (f"saves/{checkpoint.SHARED}", *ENCODINGS),
    "huffman_decode.py": (*ENCODINGS, "--output", "saves/d.ptmodel"),
    "compare_stages.py": (
        *COMMON,
        "--path",
        "saves",
        "--directory",
        "encodings",
        "--json",
        "c.json",
    ),
    "deep_compressing.py": (*TINY, "--retrain-epochs", "1", "--finetune-epochs", "1"),
}


def script(name, folder):
    command = [sys.executable, str(ROOT / name), *SCRIPTS[name]]
    return started(command, folder)


def heard():
    """Signals are ignored where the tests run in the background of a shell, or by nohup, and that
    is inherited."""
    for kind in (signal.SIGINT, signal.SIGHUP):
        signal.signal(kind, signal.SIG_DFL)


def started(command, folder):
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    )


def expected(kind):
    return 130 if kind == signal.SIGINT else -kind


def as_a_script(body, folder, kind):
    """Run `body` as a script does, and send it the signal when it has printed a line."""
    code = f"from net.pipeline import process; process.start()\n{body}"
    process = started([sys.executable, "-c", code], folder)
    process.stdout.readline()
    process.send_signal(kind)
    error = process.communicate(timeout=30)[1]
    return process.returncode, error


KINDS = pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


@KINDS
def test_code_that_swallows_exceptions(tmp_path, kind):
    body = (
        "import time; print('here', flush=True)\n"
        "while True:\n  try: time.sleep(9)\n  except BaseException: pass"
    )
    assert as_a_script(body, tmp_path, kind) == (expected(kind), f"\n{INTERRUPTED}\n")


@KINDS
def test_what_is_not_finished_is_removed(tmp_path, kind):
    (tmp_path / "a.bin").write_bytes(b"old")
    body = (
        "import time; from net.files import atomic_write\n"
        "with atomic_write('a.bin') as file:\n"
        "  file.write(b'new'); print('here', flush=True); time.sleep(9)"
    )
    assert as_a_script(body, tmp_path, kind) == (expected(kind), f"\n{INTERRUPTED}\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.bin": b"old"}


def test_the_files_of_an_encoding_that_is_not_finished_are_removed(tmp_path):
    """In a copy of this process, which has loaded torch."""
    folder, error = tmp_path / "encodings", tmp_path / "error"
    folder.mkdir()

    class State(dict):
        def __getitem__(self, name):
            if name == "c":
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(9)
            return torch.ones(5)

    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(error, os.O_CREAT | os.O_WRONLY), 2)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            start()
            encoding.save(State.fromkeys("abc"), folder)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert error.read_text() == f"\n{INTERRUPTED}\n"
    assert not list(folder.iterdir())


def test_a_file_that_another_thread_is_about_to_make_is_removed(tmp_path):
    body = (
        "import os, pathlib, threading, time; from net.files import atomic_write\n"
        "opened, unlink = pathlib.Path.open, os.unlink\n"
        "def slowly(*given, **named):\n"
        "  print('here', flush=True); time.sleep(0.5); return opened(*given, **named)\n"
        "def late(path):\n"
        "  try: unlink(path)\n"
        "  finally: time.sleep(1)\n"
        "def write():\n"
        "  try:\n"
        "    with atomic_write('a.bin'): pass\n"
        "  except Exception: pass\n"
        "pathlib.Path.open, os.unlink = slowly, late\n"
        "threading.Thread(target=write).start(); time.sleep(9)"
    )
    assert as_a_script(body, tmp_path, signal.SIGINT) == (130, f"\n{INTERRUPTED}\n")
    assert not list(tmp_path.iterdir())


def test_a_second_signal_does_not_break_the_clean_up(tmp_path):
    body = (
        "import os, signal, time; from net import unfinished\n"
        "for i in range(300): unfinished.add(f'{i}'); open(f'{i}', 'w').close()\n"
        "unlink = os.unlink\n"
        "def again(path): os.kill(os.getpid(), signal.SIGINT); unlink(path)\n"
        "os.unlink = again\n"
        "print('here', flush=True); time.sleep(9)"
    )
    assert as_a_script(body, tmp_path, signal.SIGINT) == (130, f"\n{INTERRUPTED}\n")
    assert not list(tmp_path.iterdir())


def test_a_forked_worker_removes_nothing(tmp_path):
    body = (
        "import os, signal, sys, time; from net import unfinished\n"
        "unfinished.add('a'); open('a', 'w').close()\n"
        "child = os.fork()\n"
        "if not child: os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130\n"
        "assert os.path.exists('a'); print('here', flush=True); time.sleep(9)"
    )
    assert as_a_script(body, tmp_path, signal.SIGINT) == (130, f"\n{INTERRUPTED}\n")


@pytest.mark.parametrize("name", SCRIPTS)
def test_while_a_script_imports(tmp_path, name):
    """Stopped in the first import after the handler is there: `argparse` of a folder before it."""
    (tmp_path / "argparse.py").write_text("import time; print('here', flush=True); time.sleep(9)")
    process = subprocess.Popen(
        [sys.executable, "-c", f"import runpy; runpy.run_path({name!r}, run_name='__main__')"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == f"\n{INTERRUPTED}\n"
    assert process.returncode == 130


def test_ignored_signals_stay_ignored(tmp_path):
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"  # as `script &` does
        "from net.pipeline import process; process.start()\n"
        "assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN"
    )
    assert started([sys.executable, "-c", code], tmp_path).wait(30) == 0


def test_nothing_is_left_to_remove_in_a_process_that_goes_on(tmp_path):
    with atomic_write(tmp_path / "a") as file:
        file.write(b"1")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a"):
        raise ZeroDivisionError
    encoding.save({}, tmp_path / "e")
    assert not unfinished._paths


def handles(pid):
    """Whether a process has begun to handle SIGTERM, which Python itself does not."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught & 1 << signal.SIGTERM - 1)


@pytest.mark.exhaustive
@pytest.mark.release
@pytest.mark.parametrize("name", SCRIPTS)
def test_signals_at_random_moments(pipeline, tmp_path, name):
    """From the first line of the script on: what is before it is Python's own."""
    for source in (pipeline.saves, pipeline.encodings):
        shutil.copytree(source, tmp_path / source.name)
    begun = time.monotonic()
    assert script(name, tmp_path).wait(120) == 0
    longest = time.monotonic() - begun
    draw = random.Random(name)
    outcomes = []
    for i in range(20):
        kind = (signal.SIGINT, signal.SIGTERM)[i % 2]
        process = script(name, tmp_path)
        while not handles(process.pid) and process.poll() is None:
            pass
        time.sleep(draw.uniform(0, 0.2) if i < 6 else draw.uniform(0.2, longest))
        process.send_signal(kind)
        if i % 3 == 0:
            process.send_signal(kind)
        error = process.communicate(timeout=60)[1]
        # 0: it had ended, or was about to
        outcomes.append(process.returncode)
        assert process.returncode in (expected(kind), 0), error
        lines = [line for line in error.splitlines() if line and not line.startswith("NOTE: ")]
        assert lines in ([], [INTERRUPTED]), error
        for path in (tmp_path / "saves").glob("*.ptmodel"):
            checkpoint.load_dict(path)
        assert encoding.load(tmp_path / "encodings")[0]
        assert not list(tmp_path.rglob("*.tmp"))
    print(name, f"{longest:.1f} s", outcomes)
