import json

import pytest

from net.errors import UserError
from net.training.log import Log


class Bar:
    def show(self, **figures):
        self.figures = figures


def fill(log):
    log.batch("train", 1, 50, 0.25, Bar())
    log.epoch("train", 1, 20, 0.5, (0.75, 3.25))
    log.result("test error 2.00 %", event="test", test_error_percent=2.0)
    log.result("loss nan", event="other", losses=[float("nan"), 1.0])
    log.close()


def test_json_lines(tmp_path, capsys):
    fill(Log(tmp_path / "a" / "log.jsonl"))
    events = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["batch", "epoch", "test", "other"]
    assert events[3]["losses"] == [None, 1.0]
    assert events[1]["validation_error_percent"] == 3.25
    assert events[2]["test_error_percent"] == 2.0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3  # batches go to the progress bar alone
    assert "held-out error 3.25 %" in printed[0]


def test_text(tmp_path):
    fill(Log(tmp_path / "log.txt"))
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == 4
    assert lines[0] == "train  epoch 1  batch 50  loss 0.2500"
    assert lines[2] == "test error 2.00 %"


def test_no_file(capsys):
    fill(Log())
    assert "test error" in capsys.readouterr().out


def test_notes_go_to_stderr(tmp_path, capsys):
    log = Log(tmp_path / "log.jsonl")
    log.note("mind this")
    log.close()
    assert capsys.readouterr() == ("", "NOTE: mind this\n")
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {
        "event": "note",
        "note": "mind this",
    }


def test_a_silent_log_still_writes(tmp_path, capsys):
    fill(Log(tmp_path / "log.txt", silent=True))
    assert capsys.readouterr() == ("", "")
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 4


def test_append(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("before\n")
    fill(Log(path, append=True))
    assert path.read_text().startswith("before\ntrain")


def test_unwritable(tmp_path):
    with pytest.raises(UserError, match=r"cannot write the log .*Is a directory"):
        Log(tmp_path)


def test_names_in_lines(tmp_path, capsys):
    for name in ("log.txt", "log.jsonl"):
        log = Log(tmp_path / name)
        log.result("a\x1b[2J\n日\udce9", event="e", name="a\x1b[2J\n日\udce9")
        log.close()
        assert capsys.readouterr().out == "a\\x1b[2J\\n日\\udce9\n"
    assert (tmp_path / "log.txt").read_text("utf-8") == "a\\x1b[2J\\n日\\udce9\n"
    found = json.loads((tmp_path / "log.jsonl").read_text("utf-8"))
    assert found["name"] == "a\x1b[2J\n日\udce9"  # exact
