"""Where the parts of an encoded model are: in the files of a folder, one after the other in one
file, or so in each of several files.

docs/format.md specifies every byte. `InFolder`, `InFile` and `InShards` answer the same three
questions: what an encoding says of itself, where the stream of a tensor is, and how it is called in
a message.
"""

import dataclasses
import errno
import functools
import io
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .codec import manifest
from .codec.manifest import MANIFEST, Entry, ManifestError
from .files import FOREIGN, open_regular, read_file, reason
from .formats import ENCODED, MAX_INDEX_BYTES, mapped

SUFFIX = ".dc"
INDEX = "model.dc.index.json"  # of several files
MAGIC = ENCODED + manifest.MAGIC[3:]
START = 16  # bytes: magic, checksum, the sizes of the manifest and of the table
MAX_TABLE_BYTES = 1 << 26
MAX_FILES = 1 << 16  # beside the tensors
MAX_FILE_BYTES, MAX_FILES_BYTES = 1 << 30, 1 << 34
MAX_NAME_BYTES, MAX_PART_BYTES = 1024, 255  # of a path, and of each of its parts
PIECE = 1 << 20  # bytes that are copied at once

Source = bytes | str | Path  # of a file beside the tensors
Opened = tuple[io.BufferedReader, int]


class Stored(NamedTuple):
    """A file beside the tensors, as it is in a container."""

    size: int
    stored: int  # bytes; fewer than `size` if deflated
    checksum: int  # CRC-32 of those


@dataclasses.dataclass
class Contents:
    """What an encoding says of itself; of a folder there is no layout, nor other files."""

    entries: list[Entry]
    meta: dict
    layout: dict = dataclasses.field(default_factory=dict)
    files: dict[str, Stored] = dataclasses.field(default_factory=dict)
    # where in the file the streams, by number, and the files, by name, begin; and their bytes
    places: dict[int | str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    shards: dict[int | str, str] = dataclasses.field(default_factory=dict)  # of several: in which

    def __post_init__(self) -> None:
        self.named = {entry.name: entry for entry in self.entries}

    @functools.cached_property
    def streams(self) -> dict[int, list[Entry]]:
        """The tensors of each stream, in order, by the number of the first; of tied ones one."""
        found: dict[int, list[Entry]] = {}
        for entry in self.entries:
            if not entry.same:
                found.setdefault(entry.home.number, []).append(entry)
        return found

    def part(self, which: str | tuple[str]) -> Entry | Stored:
        """A tensor, or a file, whose name is in a tuple."""
        return self.named[which] if isinstance(which, str) else self.files[which[0]]

    def outline(self) -> list:
        """What any of its readers has been told, before anything was read."""
        sizes = {name: file.size for name, file in self.files.items()}
        return [[entry.line() for entry in self.entries], self.meta, self.layout, sizes]


class InFolder:
    """A manifest, and one file for each tensor."""

    def __init__(self, path: Path) -> None:
        self.path, self.head = path, path / MANIFEST

    def read(self) -> bytes:
        """The manifest. Raises OSError."""
        return read_file(self.head, manifest.MAX_MANIFEST_BYTES, manifest.MAGIC[:3])

    def contents(self, data: bytes) -> Contents:
        """Raises ValueError, RecursionError or zlib.error."""
        return Contents(*manifest.unpack(data))

    def name(self, entry: Entry) -> str | Path:
        return self.path / entry.file_name

    @contextmanager
    def stream(self, contents: Contents, part: Entry | str) -> Iterator[Opened]:
        """The file to read the stream of a tensor from, and its bytes. Raises OSError."""
        assert isinstance(part, Entry)  # nothing else is here
        with open_regular(self.path / part.file_name) as found:
            yield found


class InFile:
    """The manifest, a table of the parts, and these, in one file."""

    def __init__(self, path: Path) -> None:
        self.path = self.head = path

    def read(self) -> bytes:
        """The header, with the size of the file in 8 bytes before it. Raises OSError."""
        with open_regular(self.path) as (file, size):
            data = file.read(START)
            if data[:3] == ENCODED:
                # no more than there is, whatever it claims
                sizes = _numbers(data[8:16])
                if max(sizes) > MAX_TABLE_BYTES:
                    raise OSError(errno.EFBIG, "a header larger than such a file may have")
                data += file.read(min(sum(sizes), max(size - START, 0)))
            return size.to_bytes(8, "big") + data

    def contents(self, data: bytes) -> Contents:
        """Raises ValueError, RecursionError or zlib.error."""
        return unpack(data[8:], int.from_bytes(data[:8], "big"))

    def name(self, entry: Entry) -> str:
        return f"{self.path}: {entry.name[:80]!r}"

    @contextmanager
    def stream(self, contents: Contents, part: Entry | str) -> Iterator[Opened]:
        """The file, at the stream of a tensor or at a file of this name, and the bytes of that.

        Raises OSError."""
        which = part if isinstance(part, str) else part.home.number
        offset, size = contents.places[which]
        with open_regular(self.path / contents.shards.get(which, "")) as (file, _):
            file.seek(offset)
            yield file, size


class InShards(InFile):
    """An index, {"weight_map": {tensor: file}} as Hugging Face's is, and these files beside it,
    each of which is an encoding itself."""

    def __init__(self, path: Path) -> None:
        self.path, self.head = path, path / INDEX

    def read(self) -> bytes:
        """The index and the headers of its files, in the order of their names, each after its size
        in 8 bytes. Raises what is in FOREIGN."""
        texts = [read_file(self.head, MAX_INDEX_BYTES)]
        for name in sorted(set(mapped(texts[0]).values())):
            try:
                texts.append(InFile(self.path / name).read())
            except OSError as error:
                raise OSError(error.errno, f"{name}: {reason(error)}") from None
        return b"".join(len(text).to_bytes(8, "big") + text for text in texts)

    def contents(self, data: bytes) -> Contents:
        """Of all files, as if they were one: of meta data and layouts, lists follow one another,
        and anything else is as in the first. Raises as `InFile.contents`."""
        index, *headers = _texts(data)
        files = mapped(index)
        found = Contents([], {})
        for file, header in zip(sorted(set(files.values())), headers, strict=True):
            try:
                shard = super().contents(header)
            except FOREIGN as error:
                raise ManifestError(f"{file}: {reason(error)}") from error
            first = len(found.entries)
            places = {k + first if isinstance(k, int) else k: v for k, v in shard.places.items()}
            for entry in shard.entries:
                entry.number += first
            found = Contents(
                found.entries + shard.entries,
                _joined(found.meta, shard.meta),
                _joined(found.layout, shard.layout),
                found.files | shard.files,
                found.places | places,
                found.shards | dict.fromkeys(places, file),
            )
            if any(files.get(entry.name) != file for entry in shard.entries):
                raise ManifestError(f"{file}: tensors that the index does not name, or elsewhere")
        if missing := files.keys() - found.named.keys():
            raise ManifestError(f"{min(missing)[:80]!r} is not in the file that the index names")
        return found


def _texts(data: bytes) -> Iterator[bytes]:
    end = 0
    while end < len(data):
        begin = end + 8
        end = begin + int.from_bytes(data[end:begin], "big")
        yield data[begin:end]


def _joined(first: dict, second: dict) -> dict:
    """Both; where both have a key, one list after the other, or else what the first has."""
    pairs = {key: (first[key], second[key]) for key in first.keys() & second.keys()}
    lists = {k: a + b for k, (a, b) in pairs.items() if type(a) is type(b) is list}
    return {key: lists.get(key, value) for key, value in (second | first).items()}


def is_encoded(path: Path) -> bool:
    """Whether an encoded model is at `path`, or would be by its name."""
    return path.suffix == SUFFIX or any(os.path.isfile(path / name) for name in (MANIFEST, INDEX))


def stored_in(path: Path) -> InFolder | InFile:
    """What is at `path`; where there is nothing, what would be by its name."""
    if os.path.isfile(path / INDEX) and not os.path.exists(path / MANIFEST):
        return InShards(path)
    is_folder = os.path.isdir(path) or (path.suffix != SUFFIX and not os.path.exists(path))
    return InFolder(path) if is_folder else InFile(path)


# --- headers --------------------------------------------------------------------------------------


def pack(
    packed: bytes, sizes: Sequence[int], files: Mapping[str, Stored], layout: dict | None
) -> bytes:
    """The header of a file with the manifest `packed`. Raises ManifestError for what JSON cannot
    hold, or 64 MiB."""
    table: dict[str, Any] = {"sizes": list(sizes)} if sizes else {}
    table |= {"files": [[name, *stored] for name, stored in files.items()]} if files else {}
    table |= {"layout": layout} if layout else {}
    try:
        text = json.dumps(table, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError(f"cannot store the layout as JSON: {error}") from error
    body = manifest.deflated(text)
    if len(body) > MAX_TABLE_BYTES:
        raise ManifestError(f"names and a layout of more than {MAX_TABLE_BYTES >> 20} MiB")
    rest = len(packed).to_bytes(4, "big") + len(body).to_bytes(4, "big") + packed + body
    return MAGIC + zlib.crc32(rest).to_bytes(4, "big") + rest


def unpack(data: bytes, size: int) -> Contents:
    """What `pack` was given, in a file of `size` bytes.

    Raises ValueError, RecursionError or zlib.error for what it does not write."""
    if data[:3] != ENCODED:
        raise ManifestError("not an encoded model of this program")
    manifest.check_version(data)
    split, length = _numbers(data[8:START])
    if len(data) != START + split + length:
        raise ManifestError("the header ends early: the file is cut off")
    if zlib.crc32(data[8:]) != int.from_bytes(data[4:8], "big"):
        raise ManifestError("the checksum of the header does not match: the file is damaged")
    entries, meta = manifest.unpack(data[START : START + split])
    text, rest = manifest.inflated(data[START + split :])
    if rest:
        raise ManifestError("something follows the table of its parts")
    table = json.loads(text)
    if not isinstance(table, dict) or table.keys() - {"sizes", "files", "layout"}:
        raise ManifestError("fields that this version does not have")
    sizes, files, layout = table.get("sizes", []), table.get("files", []), table.get("layout", {})
    streams = [entry.number for entry in entries if entry.has_stream]
    if not isinstance(sizes, list) or not _are_sizes(sizes):
        raise ManifestError("no list of sizes")
    if len(sizes) != len(streams):
        raise ManifestError("not one size for each tensor")
    if not isinstance(layout, dict):
        raise ManifestError("the layout is no object")
    attached = _files(files)
    sizes += [file.stored for file in attached.values()]
    ends = list(accumulate(sizes, initial=len(data)))
    if ends[-1] != size:
        raise ManifestError(f"{size} bytes, where its parts take {ends[-1]}: cut off, or damaged")
    names: list[int | str] = [*streams, *attached]
    places = dict(zip(names, zip(ends, sizes, strict=False), strict=True))
    return Contents(entries, meta, layout, attached, places)


def _numbers(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")


def _are_sizes(values: list) -> bool:
    return set(map(type, values)) <= {int} and all(0 <= value <= 1 << 62 for value in values)


def _files(lines: object) -> dict[str, Stored]:
    if not isinstance(lines, list) or len(lines) > MAX_FILES:
        raise ManifestError("no list of files, or too long a one")
    found: dict[str, Stored] = {}
    for line in lines:
        match line:
            case [str(name), size, stored, crc] if _are_sizes(line[1:]) and crc < 1 << 32:
                most = MAX_FILE_BYTES if stored == size else manifest.most_text(stored)
                if name in found:
                    raise ManifestError(f"two files of the name {name[:80]!r}")
                if not stored <= size <= min(most, MAX_FILE_BYTES):
                    raise ManifestError(f"{name[:80]!r}: a size beyond the limits")
                found[name] = Stored(size, stored, crc)
            case _:
                raise ManifestError("a file without a name, sizes and a checksum")
    check_names(found)
    if sum(file.size for file in found.values()) > MAX_FILES_BYTES:
        raise ManifestError(f"files of more than {MAX_FILES_BYTES >> 30} GiB")
    return found


def check_names(names: Mapping[str, object]) -> None:
    """Raise ManifestError for a file that would be written outside its folder, or over another."""
    if len(names) > MAX_FILES:
        raise ManifestError(f"more than {MAX_FILES} files")
    for name in names:
        if what := unsafe(name):
            raise ManifestError(f"the file {str(name)[:80]!r}: {what}")
    # What is in a folder comes right after its name, since "\0" is less than all that is in names.
    for before, name in pairwise(sorted(names, key=lambda name: name.replace("/", "\0"))):
        if name.startswith(f"{before}/"):
            raise ManifestError(f"the file {name[:80]!r}: in a folder that is a file")


def unsafe(name: object) -> str | None:
    """Why a name is not one of a file within a folder, on any system; None if it is."""
    if not isinstance(name, str):
        return "a name is a text"
    try:
        parts = name.encode().split(b"/")
    except UnicodeEncodeError:
        return "not UTF-8"
    if len(name.encode()) > MAX_NAME_BYTES or max(map(len, parts)) > MAX_PART_BYTES:
        return "too long a name"
    if not {b"", b".", b".."}.isdisjoint(parts):
        return "not a relative path within a folder"
    if re.search(r"[\x00-\x1f\x7f\\:]", name):
        return "a character that not every system has in names"
    return None


# --- files beside the tensors ---------------------------------------------------------------------


def check_source(name: str, source: object) -> None:
    """Raises ManifestError for what cannot be stored, as far as that is seen without reading it."""
    if not isinstance(source, bytes | str | Path):
        raise ManifestError(f"the file {name!r}: bytes or a path, not a {type(source).__name__}")
    if isinstance(source, bytes) and len(source) > MAX_FILE_BYTES:
        raise ManifestError(f"the file {name!r}: more than {MAX_FILE_BYTES:,} bytes")


def store(target: BinaryIO, source: Source) -> Stored:
    """Write a file beside the tensors to `target`, deflated if that makes it smaller.

    Raises OSError, also for a pipe, and for what is larger than MAX_FILE_BYTES."""
    data = source if isinstance(source, bytes) else read_file(source, MAX_FILE_BYTES)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(data) + packer.flush()
    smaller = len(packed) < len(data) <= manifest.most_text(len(packed))
    kept = packed if smaller else data
    target.write(kept)
    return Stored(len(data), len(kept), zlib.crc32(kept))


def restored(kept: bytes, file: Stored) -> bytes:
    """The file of which `kept` was stored. Raises ManifestError."""
    if len(kept) != file.stored or zlib.crc32(kept) != file.checksum:
        raise ManifestError("the checksum does not match: the file is damaged")
    if file.stored == file.size:
        return kept
    unpacker = zlib.decompressobj(-15)
    data = unpacker.decompress(kept, file.size + 1)
    if len(data) != file.size or not unpacker.eof or unpacker.unused_data:
        raise ManifestError("not the bytes that it is to have")
    return data


def copy(source: BinaryIO, target: BinaryIO, parts: Sequence[tuple[int, int, int]]) -> None:
    """Copy `parts`: where they begin, bytes and their CRC-32. OSError where what is read is not
    what was written."""
    for begin, size, expected in parts:
        source.seek(begin)
        crc = 0
        while size:
            piece = source.read(min(size, PIECE))
            if not piece:
                break
            crc, size = zlib.crc32(piece, crc), size - len(piece)
            target.write(piece)
        if size or crc != expected:
            raise OSError(errno.EIO, "what is read back is not what was written")
