import fcntl
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from net import files
from net.errors import UserError
from net.files import (
    FolderInUse,
    atomic_write,
    check_output,
    check_writable,
    locked,
    one_line,
    read_file,
)


def test_writes_the_file_and_leaves_no_other(tmp_path):
    with atomic_write(tmp_path / "deep" / "a.bin") as file:
        file.write(b"new")
    assert (tmp_path / "deep" / "a.bin").read_bytes() == b"new"
    assert os.listdir(tmp_path / "deep") == ["a.bin"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_file(tmp_path, failure):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write_half():
        with atomic_write(path) as file:
            file.write(b"half")
            raise failure

    with pytest.raises(failure):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk_is_one_line(tmp_path):
    path = tmp_path / "a.bin"

    with (
        pytest.raises(UserError, match=r"cannot write .*a\.bin: No space left on device"),
        atomic_write(path),
    ):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_the_umask_decides_on_the_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.bin") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640


def write(path, data=b"new"):
    with atomic_write(path) as file:
        file.write(data)


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "a.bin"
    path.touch()
    path.chmod(0o604)
    write(path)
    assert path.stat().st_mode & 0o777 == 0o604


def test_the_umask_is_the_process_s_and_stays_untouched(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", None)  # another thread would write under what is set
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, [tmp_path / str(i) for i in range(4)]))


@pytest.mark.parametrize("there", [True, False])
def test_links_are_followed(tmp_path, there):
    (tmp_path / "to").mkdir()
    target, link, second = tmp_path / "to" / "target", tmp_path / "link", tmp_path / "second"
    if there:
        target.write_bytes(b"old")
    link.symlink_to("to/target")
    second.symlink_to("link")
    write(second)
    assert (os.readlink(second), os.readlink(link)) == ("link", "to/target")
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path / "to") == ["target"]


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, message in [
        (tmp_path / "pipe", "a pipe or a device, not a file"),
        ("/dev/null", "a pipe or a device, not a file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
    ]:
        with pytest.raises(UserError, match=f"cannot write {path}: {message}; give another path"):
            write(path)
        with pytest.raises(UserError, match=message):
            check_output(path)
    assert sorted(os.listdir(tmp_path)) == ["loop", "pipe"]


@pytest.mark.parametrize("name", ["n" * 255, "n" * 247 + ".ptmodel", "." + "é" * 127])
def test_names_as_long_as_they_can_be(tmp_path, name):
    for data in (b"one", b"two"):
        write(tmp_path / name, data)
        assert (tmp_path / name).read_bytes() == data


def test_what_is_written_is_read_back_from_the_disk(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"old")

    def spoiled():
        with atomic_write(tmp_path / "a.bin") as file:
            file.write(b"new")
            [temporary] = tmp_path.glob(".*.tmp")
            temporary.write_bytes(b"what a bad disk adds")

    with pytest.raises(UserError, match=r"a\.bin: what is read back is not what was written"):
        spoiled()
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_folder_has_one_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WAIT", 0)

    def enter():
        with locked(tmp_path / "new") as alone:
            return alone

    with locked(tmp_path / "new") as alone:
        assert alone
        assert enter()  # the same thread
        with (
            ThreadPoolExecutor(1) as pool,
            pytest.raises(FolderInUse, match="new: another process is writing here; wait until"),
        ):
            pool.submit(enter).result()
        pid = os.fork()
        if not pid:
            try:
                enter()
            except FolderInUse:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert enter()
    assert os.listdir(tmp_path / "new") == []


def test_a_lock_ends_with_its_process_and_not_with_those_that_it_has_forked(tmp_path):
    said, say = os.pipe()
    pid = os.fork()
    if not pid:
        with locked(tmp_path):
            if os.fork():  # the child, as a worker that loads data, lives on
                os.write(say, b"x")
                signal.pause()
            signal.alarm(5)
            signal.pause()
    os.read(said, 1)
    with pytest.raises(FolderInUse), locked(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with locked(tmp_path) as alone:
        assert alone


def test_another_writer_is_waited_for_a_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WAIT", 60)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    threading.Timer(0.05, os.close, [handle]).start()
    with locked(tmp_path) as alone:
        assert alone


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path) as alone, locked(tmp_path):
        assert not alone
    monkeypatch.setattr(files, "fcntl", None)
    with locked(tmp_path) as alone:
        assert not alone


def test_check_writable_makes_the_folder_and_leaves_it_empty(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_check_writable_refuses_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        check_writable(tmp_path / "file")


# --- reading --------------------------------------------------------------------------------------


def test_reads_a_regular_file_and_follows_links(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"magic and more")
    (tmp_path / "link").symlink_to("a.bin")
    assert read_file(tmp_path / "link", 14, b"magic") == b"magic and more"
    assert read_file(tmp_path / "link", 14) == b"magic and more"


def test_of_another_kind_of_file_no_more_is_read_than_says_so(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"PK\3\4" + bytes(100))
    assert read_file(tmp_path / "a.bin", 9, b"DCE") == b"PK\3"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "sparse", "missing"])
def test_what_is_no_small_regular_file_is_refused_at_once(tmp_path, kind):
    path, message = tmp_path / "a", "not a regular file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
        message = "Is a directory"
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 40)
        message = "larger than the 100 bytes"
    else:
        message = "No such file"
    with pytest.raises(OSError, match=message):
        read_file(path, 100)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("one\n  two"), "one two"),
        (KeyError("a"), "no 'a'"),
        (RecursionError(), "nested too deeply"),
        (MemoryError(), "not enough memory for what it holds"),
        (OSError(2, "No such file"), "No such file"),
        (TypeError(), "TypeError"),
        (LookupError("also"), "also"),
    ],
)
def test_whatever_reading_leads_to_is_one_line(error, text):
    with (
        pytest.raises(UserError, match=rf"^a\.bin: {text}; make it again$"),
        one_line("a.bin", UserError, "make it again"),
    ):
        raise error
