"""One file, model.dc: what it holds, and what is refused."""

import errno
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from net import container, encoding
from net.codec import manifest
from net.codec.bits import PAD
from net.codec.manifest import ManifestError
from net.codec.tensors import DTYPES, patterns, write_tensor
from net.container import Stored
from net.encoding import EncodingError
from tests import fuzz, slow_decoder
from tests.test_encoding import content, golden_state, random_bits


def state_of(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(20, 30, generator=generator)
    return {"a.weight": weight, "b": torch.arange(5), "tied": weight, "c": torch.tensor(2.5)}


# A short name of any letters that may be in one
NAME = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\:"),
    min_size=1,
    max_size=9,
).filter(lambda name: name not in (".", ".."))


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.tuples(
            st.sampled_from(sorted(DTYPES)),
            st.lists(st.integers(0, 5), max_size=3).map(tuple),
            st.sampled_from([0.1, 1.0]),
        ),
        max_size=4,
    ),
    st.dictionaries(
        st.lists(NAME, min_size=1, max_size=3).map("/".join), st.binary(max_size=300), max_size=4
    ),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers(), max_size=2),
)
def test_what_is_saved_comes_back(
    tmp_path_factory: pytest.TempPathFactory, infos: dict, files: dict, layout: dict
) -> None:
    try:
        container.check_names(files)
        "".join(infos).encode()
    except ValueError:
        return
    path = tmp_path_factory.mktemp("any") / "m.dc"
    state = {
        name: random_bits(shape, DTYPES[dtype], density, i)
        for i, (name, (dtype, shape, density)) in enumerate(infos.items())
    }
    size = encoding.save(state, path, {"a": 1}, files=files, layout=layout)
    assert size == path.stat().st_size == encoding.directory_bytes(path)
    loaded, meta = encoding.load(path)
    found = encoding.open(path)
    assert fuzz.same(loaded, state)
    assert fuzz.same(dict(found), state)
    assert (meta, found.meta, found.layout) == ({"a": 1}, {"a": 1}, layout)
    assert found.files == {name: len(data) for name, data in files.items()}
    assert {name: found.read_file(name) for name in found.files} == files
    slow, slow_meta, slow_files, slow_layout = slow_decoder.one_file(path)
    assert (slow_meta, slow_files, slow_layout) == (meta, files, layout)
    assert [values for _, _, values in slow.values()] == [
        patterns(tensor).tolist() for tensor in state.values()
    ]


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".dc"])
def test_a_path_that_there_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(EncodingError, match="File name too long"):
        encoding.open(tmp_path / name)


def test_the_same_streams_and_manifest_as_in_a_folder(tmp_path: Path) -> None:
    encoding.save(state_of(), tmp_path / "folder", {"arch": "x"})
    encoding.save(state_of(), tmp_path / "m.dc", {"arch": "x"})
    packed, table, parts = fuzz.opened_up((tmp_path / "m.dc").read_bytes())
    files = content(tmp_path / "folder")
    assert packed == files.pop(encoding.MANIFEST)
    assert parts == b"".join(files[name] for name in sorted(files))
    assert json.loads(table) == {"sizes": [len(files[name]) for name in sorted(files)]}


def as_version(data: bytes, version: int) -> bytes:
    """What an earlier version wrote, which has fewer forms of tensors: the same."""
    split, length = (int.from_bytes(data[at : at + 4], "big") for at in (8, 12))
    number = bytes([version])
    head = data[8:16] + data[16:19] + number + data[20 : 16 + split + length]
    start = b"DCF" + number + zlib.crc32(head).to_bytes(4, "big")
    return start + head + data[16 + split + length :]


def test_golden_file(tmp_path: Path) -> None:
    layout, files = {"weights": [1]}, {"config.json": b'{"a":1}', "b/zeros": bytes(64)}
    encoding.save(golden_state(), tmp_path / "m.dc", None, files=files, layout=layout)
    data = bytes.fromhex(GOLDEN)
    if "ng" not in zlib.ZLIB_RUNTIME_VERSION:  # compresses as well, with other bytes
        assert (tmp_path / "m.dc").read_bytes().hex() == GOLDEN
    for version in (3, 4, 5, 6):
        (tmp_path / "old.dc").write_bytes(as_version(data, version))
        found = encoding.open(tmp_path / "old.dc")
        assert fuzz.same(dict(found), golden_state())
        assert {name: found.read_file(name) for name in found.files} == files
        assert found.layout == layout


GOLDEN = (
    "4443460662d47bb70000002700000059444345062eabc73f43b5222dd9109b2d263a66600341d218"
    "569900ada90500a82ab78ae58d6863ab562aceac4a05596068a863680ed4909699930ab110181f69"
    "99e97a59c5f940079b03a1a189898999a98991a929c8f824fdaad4a27ca0bd66263a663ac6160666"
    "2686a6e6c696205b81090718b6207b218e065b105b5b0b005706a219b706e1340600500000066800"
    "00033001800198003fc03d007b2261223a317d6360a00c0000"
)


def test_a_lenet_in_one_file_costs_at_most_40_bytes_more(tmp_path: Path) -> None:
    size = encoding.save(golden_state(), tmp_path / "m.dc", {"arch": "lenet"})
    assert size <= encoding.save(golden_state(), tmp_path / "m", {"arch": "lenet"}) + 40


def test_names_of_one_tensor_are_one_tensor(tmp_path: Path) -> None:
    encoding.save(state_of(), tmp_path / "m.dc")
    loaded, _ = encoding.load(tmp_path / "m.dc")
    assert loaded["tied"] is loaded["a.weight"]
    assert encoding.read(tmp_path / "m.dc")[2][0].tied == ["tied"]


def test_one_tensor_is_read_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "m.dc"
    encoding.save(state_of(), path, files={"x": b"1234567890"})
    data = bytearray(path.read_bytes())
    _, table, parts = fuzz.opened_up(bytes(data))
    at = len(data) - len(parts)
    for i in range(at, at + json.loads(table)["sizes"][0]):
        data[i] ^= 255
    path.write_bytes(data)
    found = encoding.open(path)
    assert found["b"].tolist() == [0, 1, 2, 3, 4]
    assert found.read_file("x") == b"1234567890"
    for name in ("a.weight", "tied"):
        with pytest.raises(EncodingError, match=rf"m\.dc: '{name}': the checksum does not match"):
            found[name]
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(EncodingError, match=r"m\.dc: 'x': the checksum does not match.*; encode"):
        found.read_file("x")
    with pytest.raises(KeyError):
        found.read_file("y")


def test_a_file_of_more_than_four_gigabytes(tmp_path: Path) -> None:
    """Mostly a hole, of a tensor that is not read."""
    stream = write_tensor(torch.arange(7)).finish()[:-PAD].tobytes()
    entries = [
        manifest.Entry(0, "large", torch.uint8, (5 << 30,)),
        manifest.Entry(1, "small", torch.int64, (7,), zlib.crc32(stream)),
    ]
    header = container.pack(manifest.pack(entries, None), [5 << 30, len(stream)], {}, None)
    with (tmp_path / "m.dc").open("wb") as file:
        file.write(header)
        file.seek(5 << 30, os.SEEK_CUR)
        file.write(stream)
    assert encoding.open(tmp_path / "m.dc")["small"].tolist() == list(range(7))


def test_files_are_deflated_where_that_helps(tmp_path: Path) -> None:
    sources = {"text": b"again " * 999, "random": os.urandom(999), "zeros": bytes(1 << 22)}
    (tmp_path / "text").write_bytes(sources["text"])
    files = sources | {"text": tmp_path / "text"}
    size = encoding.save({}, tmp_path / "m.dc", files=files)
    found = encoding.open(tmp_path / "m.dc")
    assert {name: found.read_file(name) for name in found.files} == sources
    # what is smaller than a reader believes is stored as it is
    assert 1 << 22 < size < (1 << 22) + 1500


def test_files_are_extracted(tmp_path: Path) -> None:
    encoding.save({}, tmp_path / "m.dc", files={"a/b/c": b"1", "d": b"2"})
    found = encoding.open(tmp_path / "m.dc")
    paths = [tmp_path / "out" / name for name in ("a/b/c", "d")]
    assert found.extract(tmp_path / "out") == paths
    assert [path.read_bytes() for path in paths] == [b"1", b"2"]
    with pytest.raises(EncodingError, match=r"out/a/b/c is there already; give another folder"):
        found.extract(tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(EncodingError, match=r"cannot write .*file"):
        found.extract(tmp_path / "file")


def test_names_that_are_one_to_the_file_system_are_not_written_over_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_case(path: Path) -> bool:
        return path.name.lower() in {each.name.lower() for each in tmp_path.iterdir()}

    encoding.save({}, tmp_path / "m.dc", files={"README": b"1", "readme": b"2"})
    found = encoding.open(tmp_path / "m.dc")
    monkeypatch.setattr(os.path, "lexists", without_case)
    with pytest.raises(EncodingError, match=r"readme is there already; give another folder"):
        found.extract(tmp_path)
    assert (tmp_path / "README").read_bytes() == b"1"


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "../a",
            "a/../b",
            "./a",
            "a/.",
            "C:a",
            "C:\\a",
            "a\\b",
        ),
        *("a\nb", "\0", "\x7f", "\ud800", "x" * 256, "/".join(["x" * 200] * 6), 3, None),
    ],
)
def test_names_that_are_not_of_a_file_within_a_folder(name: Any, tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match="the file ") as error:
        encoding.save({}, tmp_path / "m.dc", files={name: b""})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "names", [["a", "a/b"], ["a/b/c", "a/b"], ["a", "a-b", "a/b"], ["a b", "a/b", "a/b c", "a/b/c"]]
)
def test_a_file_in_a_folder_that_is_a_file(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match="in a folder that is a file"):
        encoding.save({}, tmp_path / "m.dc", files=dict.fromkeys(names, b""))


def test_names_are_refused_where_one_is_a_folder_of_another_and_only_there() -> None:
    parts = [part for depth in (1, 2, 3) for part in itertools.product(["a", "a-"], repeat=depth)]
    for some in itertools.combinations(parts, 3):
        names = {"/".join(part): b"" for part in some}
        if any(part[:depth] in some for part in some for depth in range(1, len(part))):
            with pytest.raises(ManifestError, match="in a folder that is a file"):
                container.check_names(names)
        else:
            container.check_names(names)


class NotLookedUp(dict):
    def __contains__(self, name: object) -> bool:
        raise AssertionError(f"{name!r} is looked for")


def test_folders_of_deep_names_are_not_looked_for_one_by_one() -> None:
    """Of 65,536 names 500 folders deep that took minutes."""
    container.check_names(NotLookedUp.fromkeys(f"{'a/' * 500}{i}" for i in range(9)))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([], "a list, not a dict"),
        ({"a": (1, 2)}, "comes back from JSON as another"),
        ({1: 2}, "comes back from JSON as another"),
        ({"a": float("nan")}, "as JSON: Out of range float"),
        ({"a": torch.ones(1)}, "as JSON: Object of type Tensor"),
    ],
)
def test_layouts_that_would_come_back_as_others(layout: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match=f"cannot store the layout.*{message}"):
        encoding.save(state_of(), tmp_path / "m.dc", layout=layout)
    assert not list(tmp_path.iterdir())


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    encoding.save(state_of(), tmp_path / "m.dc")
    before = content(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for name, message in [("pipe", "not a regular file"), ("none", "No such file")]:
        with pytest.raises(EncodingError, match=f"cannot add the file x: {message}"):
            encoding.save({}, tmp_path / "m.dc", files={"x": tmp_path / name})
    (tmp_path / "pipe").unlink()
    assert content(tmp_path) == before


class Unread(dict):
    def __getitem__(self, name: str) -> torch.Tensor:
        raise AssertionError(f"{name!r} is read")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (bytearray(b"{}"), "bytes or a path, not a bytearray"),
        (None, "bytes or a path, not a NoneType"),
        (b"[0]", "more than 2 bytes"),
    ],
)
def test_what_is_no_source_is_refused_before_any_tensor_is_read(
    source: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "MAX_FILE_BYTES", 2)
    files = {"a": b"{}", "config.json": source}
    with pytest.raises(EncodingError, match=rf"the file 'config\.json': {message}"):
        encoding.save(Unread(state_of()), tmp_path / "m.dc", files=files)
    assert not list(tmp_path.iterdir())


def test_a_folder_has_no_size_to_keep_to(tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match=r"only a \.dc file has a size to keep to"):
        encoding.save(state_of(), tmp_path / "folder", most=1 << 20)
    assert not list(tmp_path.iterdir())


def test_a_folder_holds_no_other_files(tmp_path: Path) -> None:
    for more in ({"files": {"a": b""}}, {"layout": {"a": 1}}):
        with pytest.raises(EncodingError, match=r"only a \.dc file holds other files"):
            encoding.save({}, tmp_path / "folder", **more)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.dc").mkdir()
    with pytest.raises(EncodingError, match=r"folder\.dc: Is a directory"):
        encoding.save({}, tmp_path / "folder.dc")
    os.mkfifo(tmp_path / "pipe.dc")
    with pytest.raises(EncodingError, match=r"pipe\.dc: a pipe or a device, not a file"):
        encoding.save({}, tmp_path / "pipe.dc")
    (tmp_path / "file").touch()
    with pytest.raises(EncodingError, match=r"cannot write .*file"):
        encoding.save({}, tmp_path / "file" / "m.dc")
    encoding.save({}, tmp_path / "new" / "m.dc")
    os.symlink("new/m.dc", tmp_path / "link.dc")
    encoding.save(state_of(), tmp_path / "link.dc")
    assert fuzz.same(encoding.load(tmp_path / "new" / "m.dc")[0], state_of())
    assert (tmp_path / "link.dc").is_symlink()


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_failure_keeps_the_earlier_file(
    function: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding.save(state_of(), tmp_path / "m.dc")
    before = content(tmp_path)

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(EncodingError if isinstance(error, OSError) else KeyboardInterrupt):
        encoding.save(state_of(1), tmp_path / "m.dc")
    assert content(tmp_path) == before


def test_a_state_that_cannot_be_encoded_keeps_the_earlier_file(tmp_path: Path) -> None:
    encoding.save(state_of(), tmp_path / "m.dc")
    before = content(tmp_path)
    with pytest.raises(EncodingError, match="cannot encode 'x'"):
        encoding.save({**state_of(1), "x": torch.ones(2, device="meta")}, tmp_path / "m.dc")
    assert content(tmp_path) == before


def test_what_reads_back_as_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that damages what is kept until the header is known."""
    real = container.copy

    def damaged(source: Any, *arguments: Any) -> None:
        source.seek(0)
        source.write(b"\xaa\xaa")
        real(source, *arguments)

    monkeypatch.setattr(container, "copy", damaged)
    with pytest.raises(EncodingError, match="what is read back is not what was written"):
        encoding.save(state_of(), tmp_path / "m.dc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.exhaustive)])
def test_many_tensors(count: int, tmp_path: Path) -> None:
    state = {f"model.layers.{i}.mlp.weight": torch.tensor([i]) for i in range(count)}
    encoding.save(state, tmp_path / "m.dc", verify=False)
    found = encoding.open(tmp_path / "m.dc")
    assert found["model.layers.277.mlp.weight"].tolist() == [277]
    assert list(found) == list(state)
    assert [path.name for path in tmp_path.iterdir()] == ["m.dc"]


# --- reading --------------------------------------------------------------------------------------

# A file of one tensor and of one file beside it, whose parts the cases below change
STREAM = write_tensor(torch.tensor([True])).finish()[:-PAD].tobytes()
PACKED = manifest.pack([manifest.Entry(0, "a", torch.bool, (1,), zlib.crc32(STREAM))], None)
SIZE = len(STREAM)
BESIDE = b"{}"
LINE = ["x", 2, 2, zlib.crc32(BESIDE)]


def table(**fields: Any) -> bytes:
    return json.dumps({"sizes": [SIZE], "files": [LINE]} | fields).encode()


def line(*fields: Any) -> bytes:
    return table(files=[list(fields)])


def file_of(text: bytes = table(), packed: bytes = PACKED, parts: bytes = STREAM + BESIDE) -> bytes:
    return fuzz.joined(packed, manifest.deflated(text), parts)


def changed(offset: int, *values: int) -> bytes:
    data = bytearray(file_of())
    data[offset : offset + len(values)] = values
    return bytes(data)


ZEROS = fuzz.deflate_plain(bytes(1 << 22))
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not an encoded model of this program"),
    "three bytes": (b"DCF", "format version ; this program reads 03, 04, 05 and 06"),
    "another program": (b"PK\3\4" + bytes(40), "not an encoded model of this program"),
    "the manifest of a folder": (PACKED, "not an encoded model of this program"),
    "another version": (changed(3, 7), "format version 07; this program reads 03, 04, 05 and 06"),
    "no sizes": (file_of()[:9], "the header ends early"),
    "a part of the header": (file_of()[:30], "the header ends early: the file is cut off"),
    "checksum": (changed(4, 1, 2), "the checksum of the header does not match"),
    "a flipped bit": (changed(40, 7), "the checksum of the header does not match"),
    "a manifest of 2 GB": (changed(8, 127), "a header larger than such a file may have"),
    "a table of 4 GB": (changed(12, 255), "a header larger than such a file may have"),
    "sizes that are moved": (changed(11, len(PACKED) + 1), "the header ends early|checksum"),
    "no manifest": (file_of(packed=b""), "not a manifest"),
    "a damaged manifest": (file_of(packed=PACKED[:-1] + b"x"), "the checksum does not match"),
    "no table": (fuzz.joined(PACKED, b"", STREAM + BESIDE), "the data ends early"),
    "a table of noise": (fuzz.joined(PACKED, b"\x07", STREAM + BESIDE), "invalid block type"),
    "a table that ends early": (
        fuzz.joined(PACKED, manifest.deflated(table())[:-2], STREAM + BESIDE), "the data ends early"
    ),
    "something after the table": (
        fuzz.joined(PACKED, manifest.deflated(table()) + b"x", STREAM + BESIDE),
        "something follows the table",
    ),
    "a bomb": (
        fuzz.joined(PACKED, fuzz.deflate(b" " * (1 << 22) + table()), STREAM + BESIDE),
        "more text than a file of this size may hold",
    ),
    "a bomb of lists": (
        fuzz.joined(PACKED, fuzz.deflate(b'{"layout":{"a":[' + b"[]," * 30_000), b""),
        "more text than a file of this size may hold",
    ),
    "no JSON": (file_of(b"{"), "Expecting property name"),
    "no text": (file_of(b"\xff"), "utf-8"),
    "nested": (file_of(b"[" * 9999), "nested too deeply"),
    "a list": (file_of(b"[]"), "fields that this version does not have"),
    "another field": (file_of(table(more=1)), "fields that this version does not have"),
    "sizes no list": (file_of(table(sizes={})), "no list of sizes"),
    "a size that is no number": (file_of(table(sizes=[str(SIZE)])), "no list of sizes"),
    "a size of 1.0": (file_of(table(sizes=[float(SIZE)])), "no list of sizes"),
    "a size of true": (file_of(table(sizes=[True])), "no list of sizes"),
    "a size below 0": (file_of(table(sizes=[-1])), "no list of sizes"),
    "a size of 2**63": (file_of(table(sizes=[1 << 63])), "no list of sizes"),
    "a size of 4,000 digits": (
        file_of(table().replace(b"[%d]" % SIZE, b"[%s]" % (b"9" * 4000), 1)), "no list of sizes"
    ),
    "too few sizes": (file_of(table(sizes=[])), "not one size for each tensor"),
    "too many sizes": (file_of(table(sizes=[SIZE, 0])), "not one size for each tensor"),
    "a larger size": (file_of(table(sizes=[SIZE + 1])), "its parts take .*: cut off, or damaged"),
    "a size of 2**60": (file_of(table(sizes=[1 << 60])), "its parts take .*: cut off, or damaged"),
    "cut off": (file_of()[:-1], "its parts take .*: cut off, or damaged"),
    "something at the end": (file_of() + b"\0", "its parts take .*: cut off, or damaged"),
    "layout no object": (file_of(table(layout=[1])), "the layout is no object"),
    "files no list": (file_of(table(files={})), "no list of files"),
    "too many files": (
        file_of(json.dumps({"files": [0] * (container.MAX_FILES + 1)}).encode()),
        "no list of files|more text|not one size",
    ),
    "a file that is no line": (file_of(table(files=[3])), "a file without a name, sizes"),
    "a file of three fields": (file_of(line("x", 2, 2)), "a file without a name, sizes"),
    "a file without a name": (file_of(line(3, *LINE[1:])), "a file without a name, sizes"),
    "a file of -1 bytes": (file_of(line("x", -1, *LINE[2:])), "a file without a name, sizes"),
    "a file of 2.0 bytes": (file_of(line("x", 2.0, *LINE[2:])), "a file without a name, sizes"),
    "a checksum of 2**32": (file_of(line(*LINE[:3], 1 << 32)), "a file without a name, sizes"),
    "stored larger": (file_of(line("x", 1, *LINE[2:])), "'x': a size beyond the limits"),
    "inflated beyond": (
        file_of(line("x", 1 << 22, *LINE[2:])), "'x': a size beyond the limits"
    ),
    "a file of 2 GiB": (file_of(line("x", 1 << 31, 1 << 31, 0)), "'x': a size beyond the limits"),
    "files of 17 GiB": (
        file_of(table(files=[[f"x{i}", 1 << 30, 1 << 30, 0] for i in range(17)])),
        "files of more than 16 GiB",
    ),
    "two of a name": (file_of(table(files=[LINE, LINE])), "two files of the name 'x'"),
    "a name outside": (file_of(line("../x", *LINE[1:])), "not a relative path within a folder"),
    "an absolute name": (file_of(line("/x", *LINE[1:])), "not a relative path within a folder"),
    "a drive": (file_of(line("C:x", *LINE[1:])), "a character that not every system has"),
    "a lone surrogate": (file_of(line("\ud800", *LINE[1:])), "not UTF-8"),
    "a long name": (file_of(line("x" * 2000, *LINE[1:])), "too long a name"),
    "a file as a folder": (
        file_of(table(files=[LINE, ["x/y", 0, 0, 0]])), "'x/y': in a folder that is a file"
    ),
    # of the parts
    "another tensor": (file_of(parts=b"\xff" * SIZE + BESIDE), "'a': the checksum does not match"),
    "a longer tensor": (
        file_of(table(sizes=[99]), parts=bytes(99) + BESIDE), "'a': longer than its tensor"
    ),
    "another file": (file_of(parts=STREAM + b"[]"), "'x': the checksum does not match"),
    "deflated noise": (
        file_of(line("x", 9, 2, zlib.crc32(b"\x07\0")), parts=STREAM + b"\x07\0"),
        "'x': .*invalid block type",
    ),
    "deflated zeros of another size": (
        file_of(
            line("x", (1 << 20) + 9, len(ZEROS), zlib.crc32(ZEROS)), parts=STREAM + ZEROS
        ),
        "'x': not the bytes that it is to have",
    ),
    "bytes after the deflated ones": (
        file_of(
            line("x", 20, len(end := fuzz.deflate_plain(bytes(20)) + b"x"), zlib.crc32(end)),
            parts=STREAM + end,
        ),
        "'x': not the bytes that it is to have",
    ),
}  # fmt: skip


def test_the_file_that_the_cases_change_is_whole(tmp_path: Path) -> None:
    (tmp_path / "m.dc").write_bytes(file_of())
    found = encoding.open(tmp_path / "m.dc")
    assert (found["a"].tolist(), found.read_file("x")) == ([True], BESIDE)


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files(case: str, tmp_path: Path) -> None:
    data, message = MALFORMED[case]
    (tmp_path / "m.dc").write_bytes(data)

    def read() -> Iterator[object]:
        found = encoding.open(tmp_path / "m.dc")
        yield dict(found)
        for name in found.files:
            yield found.read_file(name)

    with pytest.raises(EncodingError, match=rf"m\.dc: .*({message}).*; encode") as error:
        list(read())
    assert "\n" not in str(error.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match=r"m\.dc: No such file .*; encode a model first"):
        encoding.load(tmp_path / "m.dc")


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_a_pipe_and_a_device_and_a_file_without_end(kind: str, tmp_path: Path) -> None:
    path, message = tmp_path / "m.dc", "not a regular file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(file_of())
        os.truncate(path, 1 << 40)
        message = "1099511627776 bytes, where its parts take"
    for read in (encoding.load, encoding.open):
        with pytest.raises(EncodingError, match=rf"m\.dc: {message}.*; encode"):
            read(path)


def replacing(path: Path, new: dict, meta: dict | None = None, **more: Any) -> Callable[[], int]:
    return lambda: encoding.save(new, path, meta, **more)


def test_a_mapping_gives_the_tensors_of_one_model(tmp_path: Path) -> None:
    path = tmp_path / "m.dc"
    files = {"x": b"1", "y": b"2"}
    encoding.save(state_of(), path, files=files)
    opened = encoding.open(path)
    encoding.save(state_of(1), path, files=files)
    assert fuzz.same(dict(opened), state_of(1))  # nothing of the one before was given
    for more in (
        replacing(path, state_of(2), files=files),
        replacing(path, state_of(1), {"arch": "another"}, files=files),
        replacing(path, state_of(1), files={"x": b"1"}),
        replacing(path, state_of(1), files=files, layout={"a": 1}),
        replacing(path, {"b": torch.ones(3)}, files=files),
    ):
        encoding.save(state_of(1), path, files=files)
        opened = encoding.open(path)
        assert torch.equal(opened["a.weight"], state_of(1)["a.weight"])
        more()
        with pytest.raises(EncodingError, match="replaced while it was read; open it again"):
            dict(opened)


def test_a_mapping_gives_the_files_of_one_model(tmp_path: Path) -> None:
    path = tmp_path / "m.dc"
    encoding.save(state_of(), path, files={"x": b"1", "y": b"2"})
    opened = encoding.open(path)
    assert opened.read_file("x") == b"1"
    encoding.save(state_of(), path, files={"x": b"3", "y": b"4"})
    with pytest.raises(EncodingError, match="replaced while it was read; open it again"):
        opened.read_file("y")


def test_the_form_is_what_is_there(tmp_path: Path) -> None:
    encoding.save(state_of(), tmp_path / "m.dc")
    (tmp_path / "m.dc").rename(tmp_path / "model")
    assert fuzz.same(encoding.load(tmp_path / "model")[0], state_of())
    encoding.save(state_of(), tmp_path / "folder")
    (tmp_path / "folder").rename(tmp_path / "folder.dc")
    assert fuzz.same(encoding.load(tmp_path / "folder.dc")[0], state_of())
    assert (encoding.open(tmp_path / "folder.dc").files, Stored._fields[0]) == ({}, "size")
