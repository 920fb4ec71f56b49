"""Streams that cannot be written, terminals of few characters, and names that they would obey."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from net import checkpoint
from net.errors import UserError, printable
from net.pipeline import cli, fields
from net.pipeline.terminal import Output, outputs

ROOT = Path(__file__).parents[2]
EVIL = "a\x1b[2J\x9b1m\u202e\r日本\udce9"


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("fc1.weight × –", None, "fc1.weight × –"),
        ("a\x1b[31m\x07\x7f\x9b\n\r\t", None, r"a\x1b[31m\x07\x7f\x9b\n\r\t"),
        ("a\u202eb\u200bc\u2028", None, r"a\u202eb\u200bc\u2028"),
        ("a\udce9\ud800", None, r"a\udce9\ud800"),
        ("日×", "ascii", r"\u65e5\xd7"),
        ("日×", "cp1252", r"\u65e5×"),
    ],
)
def test_printable(text, encoding, shown):
    assert printable(text, encoding) == shown
    assert printable(shown, encoding) == shown


def test_an_error_is_printable():
    assert str(UserError("no\n\x1b[2J")) == "no\n\\x1b[2J"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_what_is_printed_is_not_obeyed(encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding)
    Output(stream).write(f"{EVIL}\n")
    shown = raw.getvalue().decode(encoding)
    assert shown.startswith(r"a\x1b[2J\x9b1m\u202e\r")
    assert shown.endswith("\\udce9\n")


class Broken(io.StringIO):
    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")


def test_work_goes_on_where_nothing_can_be_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken())
    seen = []

    def body(args):
        for i in range(3):
            print(i)
            seen.append(i)

    assert cli.run(fields.Parser("A test."), body, []) == 1
    assert seen == [0, 1, 2]
    assert capsys.readouterr().err == "error: cannot print the results: stdout: Broken pipe\n"


def test_the_streams_are_as_before_afterwards():
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), outputs():
        print(1 / (sys.stdout is before[0]))
    assert (sys.stdout, sys.stderr) == before


CODE = """
import sys
from net.pipeline import process
process.start()
from net.pipeline import cli, fields
def body(args):
    for i in range(2):
        with open("result", "wb") as file:
            assert file.fileno() > 2  # not that of a closed stream
            print(sys.argv[1], flush=True)
            file.write(b"whole")
sys.exit(cli.run(fields.Parser("A test."), body, []))
"""


def script(folder, redirection="", **environment):
    """(exit code, stdout, stderr) of a script that prints EVIL twice and writes a file."""
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {redirection}', "bash", sys.executable, "-c", CODE, EVIL],
        cwd=folder,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert (folder / "result").read_bytes() == b"whole"  # whatever happens to the output
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [
        (">&-", "it is closed"),
        (">/dev/full", "No space left on device"),
        ("<&- >&- 2>&-", None),
        (">/dev/full 2>/dev/full", None),
    ],
)
def test_results_that_cannot_be_printed(tmp_path, redirection, reason):
    code, out, err = script(tmp_path, redirection)
    line = f"error: cannot print the results: stdout: {reason}\n" if reason else ""
    assert (code, out, err) == (1, b"", line)


@pytest.mark.parametrize("redirection", ["<&-", "2>&-", "2>/dev/full"])
def test_streams_that_nobody_needs(tmp_path, redirection):
    code, out, err = script(tmp_path, redirection)
    assert (code, err) == (0, "")
    assert out.count(b"2J") == 2


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, rb"\u202e\r\u65e5\u672c\udce9"),
        ({"PYTHONIOENCODING": "shift-jis"}, "\\u202e\\r日本\\udce9".encode("shift-jis")),
        ({"LC_ALL": "C", "PYTHONUTF8": "0"}, rb"\udce6\udc97\udca5\udce6\udc9c\udcac\udce9"),
    ],
)
def test_a_terminal_of_few_characters(tmp_path, environment, shown):
    code, out, err = script(tmp_path, **environment)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].endswith(shown)


def test_paths_of_another_encoding(tmp_path, capsys):
    base = os.fsdecode(os.fsencode(tmp_path) + b"/m\xe9")
    state = {"a.weight": torch.randn(9, 9)}
    checkpoint.save(f"{base}.ptmodel", checkpoint.Checkpoint(state))

    def run(script, *argv):
        assert __import__(script).main(list(argv)) == 0, capsys.readouterr().err

    run("huffman_encode", f"{base}.ptmodel", "--directory", f"{base}.e")
    for end in ("ptmodel", "safetensors"):
        run("huffman_decode", "--directory", f"{base}.e", "--output", f"{base}.2.{end}")
        found = checkpoint.load(f"{base}.2.{end}").state_dict
        assert torch.equal(found["a.weight"], state["a.weight"])
    assert "m\\udce9.2.safetensors" in capsys.readouterr().out
    assert __import__("huffman_encode").main([f"{base}.no", "--directory", f"{base}.e"]) == 1
    assert "m\\udce9.no; give" in capsys.readouterr().err
