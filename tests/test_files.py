import os

import pytest

from net.errors import UserError
from net.files import atomic_write, check_writable


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
