import sys
import threading
import types

import pytest

from net.training import download


def test_a_host_that_does_not_answer_costs_seconds(monkeypatch):
    """The probe ends when its time is up, though its thread still waits."""
    never = threading.Event()

    def hang(url, timeout):
        never.wait(30)
        raise OSError

    monkeypatch.setattr(download.urllib.request, "urlopen", hang)
    assert not download.reachable(["https://example.invalid"], seconds=0.3)
    never.set()


def test_a_host_that_answers_is_reachable(monkeypatch):
    answer = types.SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda url, timeout: answer)
    assert download.reachable(["https://example.invalid"])


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_drawn_on_a_terminal_alone(monkeypatch, capsys, terminal):
    monkeypatch.setattr(download, "reachable", lambda urls: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with download.downloading(["https://example.invalid"], "it is not here", "fetch it"):
        print("a notice", file=sys.stderr)
        sys.stderr.write("\r50 %")  # as tqdm does
        sys.stderr.write("\n")
    print("done", file=sys.stderr)
    bar = "\r50 %\n" if terminal else ""
    assert capsys.readouterr().err == f"a notice\n{bar}done\n"
