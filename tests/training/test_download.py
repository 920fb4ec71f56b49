import threading
import types

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
