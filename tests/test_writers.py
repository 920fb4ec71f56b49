"""Signals at any moment, several writers, and readers beside them: always one whole model.

python -m pytest tests/test_writers.py -m release    # hundreds of rounds
"""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from net import checkpoint, encoding, files, shards
from net.codec import manifest
from net.encoding import EncodingError
from net.errors import UserError
from net.tensors import info_of
from tests import fuzz

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
# SIGTERM is handled as SIGINT is: see `in_child`.
NUMBERS = pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive)],
)


def rounds(few: int, many: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "count",
        [few, pytest.param(many, marks=[pytest.mark.exhaustive, pytest.mark.release])],
        ids=["few", "many"],
    )


def model(seed: int, tensors: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"l{i}": torch.randn(20, 30, generator=generator) for i in range(tensors)}


# Both forms of an encoding, by their names
FORMS = pytest.mark.parametrize("form", ["folder", "model.dc"])


def is_alone(path: Path, number: int) -> bool:
    """Whether nothing lies about but an encoding of six tensors. A kill that nobody can handle may
    leave a hidden temporary of one file, which could as well be that of a writer that lives."""
    if path.is_file():
        names = {file.name for file in path.parent.iterdir()} - {path.name}
        killed = number == signal.SIGKILL
        return not names or (killed and all(re.fullmatch(r"\..*\.dc\.tmp", n) for n in names))
    return len(list(path.iterdir())) == len(model(0)) + 1


def in_child(work: Callable[[], object]) -> int:
    """The process that does it: 0 when done, 1 for a UserError, 3 for another exception, 130 for
    an interrupt, which both Ctrl-C and a kill are, as in the scripts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child can take one
    if pid := os.fork():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return pid
    code = 3
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        work()
        code = 0
    except UserError:
        code = 1
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def expected_codes(number: int) -> tuple[int, ...]:
    return (0, -9) if number == signal.SIGKILL else (0, 130)


@rounds(4, 500)
@FORMS
@NUMBERS
def test_a_signal_at_the_rename(number: int, form: str, count: int, tmp_path: Path) -> None:
    models = [model(0), model(1)]
    path = tmp_path / form
    encoding.save(models[1], path)
    for i in range(count):
        new, before = models[i % 2], i // 2 % 2

        def save(new: dict = new, before: int = before) -> None:
            real = os.replace

            def replace(source: str, target: str) -> None:
                if before:
                    os.kill(os.getpid(), number)
                real(source, target)
                if Path(target).name in (encoding.MANIFEST, path.name):
                    os.kill(os.getpid(), number)

            os.replace = replace
            encoding.save(new, path)

        assert exit_code(in_child(save)) in expected_codes(number)
        state, _ = encoding.load(path)
        assert fuzz.same(state, models[0]) or fuzz.same(state, models[1])
        assert before or fuzz.same(state, new)
    encoding.save(models[0], path)
    assert is_alone(path, number)


@rounds(3, 500)
@NUMBERS
@pytest.mark.parametrize("kind", ["encoding", "model.dc", "ptmodel", "safetensors"])
def test_a_signal_at_any_moment(kind: str, number: int, count: int, tmp_path: Path) -> None:
    models = [model(0), model(1)]
    path = tmp_path / kind

    def save(state: dict) -> None:
        if kind == "encoding":
            encoding.save(state, path)
        elif kind == "model.dc":
            encoding.save(state, path, files={"a": bytes(99)}, layout={"a": 1})
        elif kind == "ptmodel":
            checkpoint.save(path, checkpoint.Checkpoint(state))
        else:
            shards.write(
                path.with_suffix(shards.SUFFIX),
                {name: info_of(state, name) for name in state},
                state.values(),
            )

    def load() -> dict:
        if kind in ("encoding", "model.dc"):
            return encoding.load(path)[0]
        return dict(
            checkpoint.load(
                path if kind == "ptmodel" else path.with_suffix(".safetensors")
            ).state_dict
        )

    save(models[1])
    began = time.monotonic()
    save(models[0])
    took = time.monotonic() - began
    rng = random.Random(number)
    for i in range(count):
        pid = in_child(lambda i=i: save(models[i % 2]))
        time.sleep(rng.random() * 1.5 * took)
        os.kill(pid, number)
        assert exit_code(pid) in expected_codes(number)
        state = load()
        assert fuzz.same(state, models[0]) or fuzz.same(state, models[1])
    if kind in ("encoding", "model.dc"):
        save(models[0])
        assert is_alone(path, number)


@rounds(3, 200)
@FORMS
def test_two_writers(form: str, count: int, tmp_path: Path) -> None:
    models = [model(0), model(1, tensors=9)]
    path = tmp_path / form
    for _ in range(count):
        pids = [in_child(lambda m=m: encoding.save(m, path)) for m in models]
        codes = [exit_code(pid) for pid in pids]
        assert 0 in codes
        assert set(codes) <= {0, 1}
        state, _ = encoding.load(path)
        assert any(fuzz.same(state, m) for m in models)
        assert path.is_file() or len(list(path.iterdir())) == len(state) + 1
        assert [each.name for each in tmp_path.iterdir()] == [form]


@rounds(5, 200)
@FORMS
def test_two_readers_beside_a_writer(form: str, count: int, tmp_path: Path) -> None:
    models = [model(0), model(1)]
    path = tmp_path / form
    encoding.save(models[0], path)

    def write() -> None:
        for i in range(count):
            encoding.save(models[(i + 1) % 2], path)

    def whole(state: dict) -> None:
        if not (fuzz.same(state, models[0]) or fuzz.same(state, models[1])):
            os._exit(9)

    def read() -> None:
        for _ in range(count):
            whole(encoding.load(path)[0])
            try:
                whole(dict(encoding.open(path)))
            except EncodingError as error:  # a mapping gives one model, or says that it cannot
                if "was replaced while it was read" not in str(error):
                    raise

    assert [exit_code(pid) for pid in [in_child(w) for w in (write, read, read)]] == [0, 0, 0]


def test_a_second_writer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WAIT", 0)
    said, say = os.pipe()

    def hold() -> None:
        with files.locked(tmp_path):
            os.write(say, b"x")
            signal.pause()

    pid = in_child(hold)
    os.read(said, 1)
    with pytest.raises(EncodingError, match="another process is writing here; wait until it has"):
        encoding.save(model(0), tmp_path)
    assert not list(tmp_path.iterdir())
    # One file is nobody's but its own, whoever writes beside it, and whatever others have begun.
    begun = tmp_path / ".0123.dc.tmp"
    begun.touch()
    encoding.save(model(0), tmp_path / "model.dc")
    os.kill(pid, signal.SIGKILL)
    exit_code(pid)
    assert sorted(tmp_path.iterdir()) == [begun, tmp_path / "model.dc"]


def test_without_locks_only_what_the_replaced_manifest_named_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    encoding.save({"of another": torch.ones(3)}, tmp_path / "other")
    [(name, data)] = [
        (p.name, p.read_bytes())
        for p in (tmp_path / "other").iterdir()
        if p.name != manifest.MANIFEST
    ]
    encoding.save({"a": torch.zeros(9)}, tmp_path)
    (tmp_path / name).write_bytes(data)  # of a writer that lives
    (tmp_path / ".0123.huff.tmp").touch()
    encoding.save({"a": torch.ones(9)}, tmp_path)
    found = {p.name for p in tmp_path.iterdir() if p.is_file()}
    assert {name, ".0123.huff.tmp"} < found
    assert len(found) == 4


# --- one reader, one replacement ------------------------------------------------------------------


def test_a_mapping_goes_on_with_what_replaces_it_before_it_has_given_anything(
    tmp_path: Path,
) -> None:
    encoding.save(model(0), tmp_path)
    opened = encoding.open(tmp_path)
    encoding.save(model(1), tmp_path)
    assert fuzz.same(dict(opened), model(1))


@pytest.mark.parametrize(
    ("state", "meta"),
    [
        (model(1), None),
        ({**model(0), "l3": torch.ones(2, 2)}, None),
        ({**model(0), "l3": torch.ones(20, 30, dtype=torch.float64)}, None),
        ({"l0": torch.ones(20, 30)}, None),
        ({**model(1), "l0": model(0)["l0"]}, {"arch": "another"}),
    ],
)
def test_a_mapping_says_that_it_was_replaced(
    state: dict, meta: dict | None, tmp_path: Path
) -> None:
    encoding.save(model(0), tmp_path)
    opened = encoding.open(tmp_path)
    first = opened["l0"]
    encoding.save(state, tmp_path, meta)
    with pytest.raises(EncodingError, match=r"was replaced while it was read; open it again"):
        opened["l3"]
    assert torch.equal(first, model(0)["l0"])


def test_load_begins_again_when_the_folder_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding.save(model(0), tmp_path)
    real, replacements = encoding._read_stream, iter([1, 2])

    def replaced(*arguments: object) -> object:
        if number := next(replacements, 0):
            encoding.save(model(number), tmp_path)
        return real(*arguments)

    monkeypatch.setattr(encoding, "_read_stream", replaced)
    assert fuzz.same(encoding.load(tmp_path)[0], model(2))
    replacements = iter(range(3, 999))
    with pytest.raises(EncodingError, match="was replaced again and again while it was read"):
        encoding.load(tmp_path)


def test_a_file_that_is_gone_for_good_is_named(tmp_path: Path) -> None:
    encoding.save(model(0), tmp_path)
    opened = encoding.open(tmp_path)
    [path] = tmp_path.glob("03-*")
    path.unlink()
    for read in (lambda: opened["l3"], lambda: encoding.load(tmp_path)):
        with pytest.raises(EncodingError, match=r"03-l3-.*: No such file .*; encode the model"):
            read()


def test_a_mapping_stays_what_it_is_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    encoding.save(model(0), "folder")
    opened = encoding.open("folder")
    monkeypatch.chdir("elsewhere")
    assert fuzz.same(dict(opened), model(0))


def test_a_change_of_directory_while_it_is_written_or_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    class Elsewhere(dict):
        def __getitem__(self, name: str) -> torch.Tensor:
            os.chdir("/")
            return super().__getitem__(name)

    encoding.save(Elsewhere(model(0)), "encodings")
    assert fuzz.same(encoding.load(tmp_path / "encodings")[0], model(0))
    state = model(0)
    infos = {name: info_of(state, name) for name in state}
    shards.write(tmp_path / "m.safetensors", infos, state.values())
    os.chdir(tmp_path)
    opened = shards.Shards("m.safetensors")
    os.chdir("/")
    assert fuzz.same({name: opened[name] for name in opened}, state)


def test_what_is_no_state_dict(tmp_path: Path) -> None:
    for other in (None, [torch.ones(2)], torch.nn.Linear(2, 2)):
        with pytest.raises(EncodingError, match=r"cannot encode a .*: it is no state dict"):
            encoding.save(other, tmp_path)  # type: ignore[arg-type]
