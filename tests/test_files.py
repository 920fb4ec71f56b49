import os

import pytest

from net.errors import UserError
from net.files import atomic_write, check_writable, one_line, read_file


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
