"""State dicts as Huffman-coded streams, without loss (paper, sections 3 and 4).

In a folder of one file per tensor, or in one file with everything that belongs to a model. Vectors
of a kind share a file where that takes fewer bytes.

Every tensor is written in the smallest of several forms: as levels of a matrix; or with or without
its zeros, and values shared in a codebook, byte by byte, or as heads and tails. docs/format.md
specifies every byte.
"""

import dataclasses
import gc
import json
import math
import os
import re
import tempfile
import weakref
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch

from . import container, unfinished
from .codec import manifest
from .codec.bits import PAD, BitReader, BitWriter, HuffmanError
from .codec.codes import Empty
from .codec.costs import Stream, TensorInfo, fixed_index_bits, tensor_infos
from .codec.manifest import MANIFEST, Entry
from .codec.tensors import DTYPES, read_tensor, reads_as, write_tensor
from .container import SUFFIX, Contents, InFile, InFolder
from .errors import UserError
from .files import (
    FOREIGN,
    as_path,
    atomic_write,
    check_output,
    checksum,
    locked,
    one_line,
    read_file,
    reason,
    sync_files,
    sync_folder,
    unwritable,
)
from .tensors import TensorMap, check_dense, identity, memory
from .threads import in_order

__all__ = ["Encoded", "Encoding", "EncodingError", "Stream", "TensorInfo"]
__all__ += ["directory_bytes", "fixed_index_bits", "load", "open", "read", "save", "write"]

TENSOR_FILE = re.compile(r"\d+-[\w.-]*-([0-9a-f]{8})\.huff")
TEMPORARY = re.compile(r"\.[0-9a-f]+\.huff\.tmp")  # as of files.atomic_write
ATTEMPTS = 20  # to read what is replaced meanwhile

ROOM, ALIGNED = 1 << 25, 64  # bytes
LARGEST_JOINED = 1 << 13  # elements of a vector that may share a stream
BESIDE = 5  # bytes that a stream takes elsewhere: its checksum, and its size
KEPT = 16  # streams of several tensors that an Encoding has at hand

NOISE_PERCENT = "noise_percent"  # in the meta data, of an encoder that knows it: of each name

Read = TypeVar("Read")


class EncodingError(UserError):
    """What cannot be read or written, or a state dict that cannot be encoded."""


class TooLarge(EncodingError):
    """A file that would be larger than it may, and was not written."""

    def __init__(self, path: Path, size: int, most: int) -> None:
        super().__init__(f"{path} would take {size:,} bytes, more than {most:,}")
        self.bytes = size


@dataclasses.dataclass
class Encoded:
    """What ``write`` has written."""

    bytes: int  # the sizes of all its files
    tensors: list[TensorInfo]  # what every tensor costs; tied ones once


def save(
    state: Mapping[str, torch.Tensor],
    path: str | Path,
    meta: dict | None = None,
    verify: bool = True,
    *,
    files: Mapping[str, container.Source] | None = None,
    layout: dict | None = None,
    most: int | None = None,
) -> int:
    """Encode every tensor of ``state`` into the file ``path``, if that ends in .dc, or else into
    files of the folder ``path``; return the bytes written.

    ``meta`` is a dict that comes back from JSON as it was: no tuples, no keys but strings. A .dc
    file holds other files of the model, too: ``files``, {relative name: bytes or the Path to read
    from}, and a ``layout`` (``net.layouts``), another dict for JSON. One that would have more than
    ``most`` bytes is not written: TooLarge, which has its size.
    Tensors are asked for one after the other and let go again, so a mapping that reads them from
    a file never has to fit into memory. Names of the same memory (tied weights) are one tensor,
    and are stored once.

    An earlier encoding stays valid until the file, or the manifest of the folder, is replaced in
    one step, after everything new is on the disk and read back. With ``verify``, what is written
    has been decoded and found equal, bit for bit. Other files are left alone.
    Raises EncodingError, after removing whatever it wrote, if the state cannot be encoded or the
    path cannot be written, and before writing if another process is writing there.
    """
    return write(state, path, meta, verify, False, files=files, layout=layout, most=most).bytes


def load(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The state dict and the meta data that ``save`` was given ({} for none).

    A file or folder that is replaced meanwhile is read again. Raises EncodingError, naming the
    file and the fault, for anything else than a whole encoding that ``save`` has written.
    """
    return read(path, describe=False)[:2]


class Encoding(TensorMap):
    """An encoded model as a read-only mapping: encoding[name] reads that tensor and no other.

    ``meta``: the meta data; ``info(name)``: its type and shape, without reading it. Of a .dc file
    ``files``: {name: bytes} of those that ``read_file`` and ``extract`` give; ``layout``: that of
    the files that it was made of. All that one mapping gives is of one model: EncodingError where
    another has replaced it meanwhile.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = as_path(path, EncodingError).absolute()  # whatever directory comes
        self._store = container.stored_in(self.path)
        self._contents = _read_contents(self._store)
        self._named = self._contents.named  # as it stays, whatever comes instead
        self._given: set[str | tuple[str]] = set()
        # the last streams of several tensors that were read, by number and checksum
        self._joined: dict[tuple[int, int], torch.Tensor] = {}

    @property
    def meta(self) -> dict:
        return self._contents.meta

    @property
    def layout(self) -> dict:
        return self._contents.layout

    @property
    def files(self) -> dict[str, int]:
        """The names of the files beside the tensors, and their bytes."""
        return {name: file.size for name, file in self._contents.files.items()}

    @property
    def stored_files(self) -> dict[str, int]:
        """The same names, and the bytes that each takes here."""
        return {name: file.stored for name, file in self._contents.files.items()}

    def info(self, name: str) -> Entry:
        """The ``dtype``, ``shape`` and ``bytes`` of a tensor."""
        return self._contents.named[name]

    def tie(self, name: str) -> int:
        """Equal for the names of one tensor (net.tensors.tie_of)."""
        return self._contents.named[name].own.number

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._contents.named.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._read(name, lambda now: self._tensor(now, now.named[name]))

    def _tensor(self, now: Contents, entry: Entry) -> torch.Tensor:
        home = entry.home
        if not home.joined:
            return _read_stream(self._store, now, entry)[0]
        key = home.number, home.checksum
        whole = self._joined.get(key)
        if whole is None:
            whole = self._joined[key] = _read_stream(self._store, now, entry)[0]
            for old in [*self._joined][:-KEPT]:
                self._joined.pop(old, None)
        return entry.part(whole)

    def describe(self, name: str) -> tuple[torch.Tensor, TensorInfo]:
        """The same tensor, and what it costs."""

        def read(now: Contents) -> tuple[torch.Tensor, TensorInfo]:
            entry = now.named[name]
            whole, reader = _read_stream(self._store, now, entry, True)
            infos = tensor_infos(now.streams[entry.home.number], whole, reader)
            return entry.part(whole), next(i for i in infos if i.name == entry.own.name)

        return self._read(name, read)

    def read_file(self, name: str) -> bytes:
        """One of ``files``. Raises KeyError for another, EncodingError where it is damaged."""
        return self._read((name,), lambda now: _read_attached(self._store, now, name))

    def extract(self, folder: str | Path) -> list[Path]:
        """Write all ``files`` into ``folder``, and the folders that they are in; return where.

        Raises EncodingError where one of them is there already, or cannot be written."""
        paths = {name: Path(folder, name) for name in self._contents.files}
        for path in paths.values():
            if os.path.lexists(path):
                raise EncodingError(f"{path} is there already; give another folder")
        try:
            for name, path in paths.items():
                data = self.read_file(name)
                if os.path.lexists(path):  # one of these, where README and readme are one name
                    raise EncodingError(f"{path} is there already; give another folder")
                with atomic_write(path) as file:
                    file.write(data)
        except EncodingError:
            raise
        except UserError as error:
            raise EncodingError(str(error)) from None
        return list(paths.values())

    def _read(self, part: str | tuple[str], read: Callable[[Contents], Read]) -> Read:
        """What ``read`` gives of a tensor, or of a file (its name in a tuple); again, if another
        encoding has come instead."""
        for _ in range(ATTEMPTS):
            before = self._contents
            try:
                found = read(before)
            except EncodingError:
                if not self._replaced(before):
                    raise
            else:
                self._given.add(part)
                return found
        raise EncodingError(f"{self.path} {REPLACED}")

    def _replaced(self, before: Contents) -> bool:
        """Go on with the encoding that is there now; False if that is the one of before.

        EncodingError if it shows: for other names, types, shapes or meta data, or if something
        that has been read is no longer the same."""
        now = _read_contents(self._store)
        if now == before:
            return False
        if now.outline() != before.outline() or any(
            now.part(part) != before.part(part) for part in [*self._given]
        ):
            raise EncodingError(f"{self.path} was replaced while it was read; open it again")
        self._contents = now
        return True


def open(path: str | Path) -> Encoding:
    """A folder or a .dc file as a mapping that reads a tensor only when it is asked for."""
    return Encoding(path)


def directory_bytes(directory: str | Path) -> int:
    """The size of a .dc file, or of all files in a folder and below it, whoever wrote them."""
    if os.path.isfile(directory):
        return os.path.getsize(directory)
    return sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file())


# --- writing ------------------------------------------------------------------------------------


def write(
    state: Mapping[str, torch.Tensor],
    path: str | Path,
    meta: dict | None = None,
    verify: bool = True,
    describe: bool = True,
    *,
    files: Mapping[str, container.Source] | None = None,
    layout: dict | None = None,
    most: int | None = None,
) -> Encoded:
    """As ``save``, and say what every tensor costs, which decoding it has shown."""
    path = as_path(path, EncodingError).absolute()  # stays what it is after a change of directory
    if not isinstance(state, Mapping):
        raise EncodingError(f"cannot encode a {type(state).__name__}: it is no state dict")
    one = path.suffix == SUFFIX
    if not one and (files or layout or most is not None):
        what = "holds other files of a model" if files or layout else "has a size to keep to"
        raise EncodingError(f"{path}: only a {SUFFIX} file {what}")
    try:
        if one:  # of two writers the last is it: each renames a whole file
            return _FileWriting(path, verify, describe).run(state, meta, files, layout, most)
        with locked(path) as alone:
            return _FolderWriting(path, verify, describe, alone).run(state, meta)
    except EncodingError:
        raise
    except (UserError, manifest.ManifestError) as error:
        raise EncodingError(str(error)) from None
    except OSError as error:
        raise EncodingError(str(unwritable(path, error))) from None


class _Writing:
    """What both forms have in common: the tensors of a state dict, once each, as streams."""

    def __init__(self, path: Path, verify: bool, describe: bool) -> None:
        self.path, self.verify, self.describe = path, verify, describe
        self.entries: list[Entry] = []
        self.infos: dict[int, TensorInfo] = {}  # by the number of the tensor

    def encoded(self, state: Mapping[str, torch.Tensor]) -> Iterator[tuple[Entry, int, Any]]:
        """Of each stream the first tensor, the bytes, and what `keep` returns."""
        return in_order(self.encode, self.streams(state), _tensor_bytes)

    def streams(
        self, state: Mapping[str, torch.Tensor]
    ) -> Iterator[tuple[list[Entry], torch.Tensor, BitWriter | None]]:
        """The tensors of ``state``, in the end the small ones: those of a kind in one stream, where
        that takes fewer bytes, and what has been written to see that."""
        small: dict[tuple, list[tuple[Entry, torch.Tensor]]] = {}
        for entry, tensor in self.distinct(state):
            short = tensor.dim() < 2 and 0 < tensor.numel() <= LARGEST_JOINED
            if short and not tensor.is_complex():
                small.setdefault(entry.kind, []).append((entry, tensor))
            else:
                yield [entry], tensor, None
        for pairs in small.values():
            ends = accumulate(tensor.numel() for _, tensor in pairs)
            most = sum(end <= manifest.MAX_JOINED for end in ends)
            written = [write_tensor(tensor) for _, tensor in pairs]
            if most > 1:
                octets = np.concatenate([memory(tensor) for _, tensor in pairs[:most]])
                joined = torch.from_numpy(octets).view(pairs[0][1].dtype)  # bit for bit
                one = write_tensor(joined)
                if _stream_bytes(one) < sum(map(_stream_bytes, written[:most])):
                    entries = [entry for entry, _ in pairs[:most]]
                    for entry in entries:
                        entry.join(None if entry is entries[0] else entries[0])
                    yield entries, joined, one
                    pairs, written = pairs[most:], written[most:]
            for (entry, tensor), each in zip(pairs, written, strict=True):
                yield [entry], tensor, each

    def distinct(self, state: Mapping[str, torch.Tensor]) -> Iterator[tuple[Entry, torch.Tensor]]:
        """Every tensor of ``state`` once, with its entry; further names become entries too."""
        seen: dict[tuple, tuple[Entry, weakref.ref]] = {}
        told: dict[Hashable, Entry] = {}  # by what a mapping says of the names itself
        tie = getattr(state, "tie", lambda name: None)
        for name in state:
            try:
                tensor = state[name]
            except OSError as error:  # not of what is written
                raise EncodingError(f"cannot read {name!r}: {reason(error)}") from None
            _check_tensor(name, tensor)
            # an address says nothing once the tensor that was there is gone
            before, key = seen.get(identity(tensor)), tie(name)
            same = before[0] if before and before[1]() is not None else told.get(key)
            entry = Entry(len(self.entries), name, tensor.dtype, tuple(tensor.shape), same=same)
            self.entries.append(entry)
            if same:
                same.tied.append(name)
                continue
            seen[identity(tensor)] = entry, weakref.ref(tensor)
            if key is not None:
                told[key] = entry
            yield entry, tensor

    def encode(
        self, entries: list[Entry], tensor: torch.Tensor, written: BitWriter | None
    ) -> tuple[Entry, int, Any]:
        padded = (written or write_tensor(tensor)).finish()
        data, first = padded[:-PAD].data, entries[0]
        first.checksum = zlib.crc32(data)
        if self.verify or self.describe:
            self._decode(entries, tensor, padded)
        return first, len(data), self.keep(first, data)

    def keep(self, entry: Entry, data: memoryview) -> Any:
        """Called in a thread with a stream."""
        return data

    def _decode(self, entries: list[Entry], tensor: torch.Tensor, padded: np.ndarray) -> None:
        """Decode what is about to be written, and refuse it if it is not ``tensor``."""
        reader, name = BitReader(padded, self.describe), entries[0].name
        try:
            same = reads_as(reader, tensor)
            reader.finish()
        except HuffmanError as error:
            raise EncodingError(f"cannot encode {name!r}: {error}") from error
        if self.verify and not same:
            raise EncodingError(f"cannot encode {name!r}: it decodes to another tensor")
        if self.describe:
            for entry, info in zip(entries, tensor_infos(entries, tensor, reader), strict=True):
                self.infos[entry.number] = info

    def result(self, size: int) -> Encoded:
        return Encoded(size, [self.infos[number] for number in sorted(self.infos)])


class _FileWriting(_Writing):
    """One call of ``write`` for a .dc file."""

    def run(
        self,
        state: Mapping[str, torch.Tensor],
        meta: dict | None,
        files: Mapping[str, container.Source] | None,
        layout: dict | None,
        most: int | None,
    ) -> Encoded:
        check_output(self.path)  # what can be refused is, before any work
        folder = Path(os.path.realpath(self.path)).parent
        container.check_names(files or {})
        for name, source in (files or {}).items():
            container.check_source(name, source)
        self.header(_packed([], meta), [], {}, layout)
        with tempfile.TemporaryFile(dir=folder) as streams:
            found: dict[int, tuple[int, int, int]] = {}
            for first, size, data in self.encoded(state):
                found[first.number] = streams.tell(), size, first.checksum
                streams.write(data)
            parts = [found[number] for number in sorted(found)]  # as they are in the manifest
            sizes, stored = [size for _, size, _ in parts], {}
            for name, source in (files or {}).items():
                begin = streams.tell()
                try:
                    stored[name] = container.store(streams, source)
                except OSError as error:
                    raise EncodingError(f"cannot add the file {name}: {reason(error)}") from None
                parts.append((begin, *stored[name][1:]))
            header = self.header(_packed(self.entries, meta), sizes, stored, layout)
            total = len(header) + sum(size for _, size, _ in parts)
            if most is not None and total > most:
                raise TooLarge(self.path, total, most)
            with atomic_write(self.path) as file:
                file.write(header)
                container.copy(streams, file, parts)
                written = file.tell()
        sync_folder(folder)
        return self.result(written)

    def header(
        self,
        packed: bytes,
        sizes: list[int],
        stored: dict[str, container.Stored],
        layout: dict | None,
    ) -> bytes:
        """EncodingError if what it gives back is not what it was made of."""
        if layout is not None and not isinstance(layout, dict):
            raise EncodingError(f"cannot store the layout: a {type(layout).__name__}, not a dict")
        header = container.pack(packed, sizes, stored, layout)
        end = len(header) + sum(sizes) + sum(file.stored for file in stored.values())
        try:
            found = container.unpack(header, end)
        except (ValueError, RecursionError) as error:
            raise EncodingError(f"cannot store the files and the layout: {error}") from None
        if found.layout != (layout or {}) or found.files != stored:
            raise EncodingError("cannot store the layout: it comes back from JSON as another")
        return header


class _FolderWriting(_Writing):
    """One call of ``write`` for a folder, and the files that were not there before it."""

    def __init__(self, path: Path, verify: bool, describe: bool, alone: bool) -> None:
        super().__init__(path, verify, describe)
        self.alone = alone
        self.written: list[Path] = []
        self.new: list[Path] = []  # to the manifest: a killed writer may have left them
        self.before, self.packed = _stored_manifest(path), b""
        self.old = _files_named_by(self.before)

    def run(self, state: Mapping[str, torch.Tensor], meta: dict | None) -> Encoded:
        try:
            check_output(self.path / MANIFEST)  # both are refused before any work
            _packed([], meta)
            total = sum(size for _, size, _ in self.encoded(state))
            self.packed = _packed(self.entries, meta)
            sync_files(self.new)  # and their names, before what names them
            sync_folder(self.path)
            self.release()
            _write_file(self.path / MANIFEST, self.packed)
        except BaseException as error:
            new = self.settle()
            if isinstance(error, OSError):
                error = unwritable(self.path, error)
            if isinstance(error, (UserError, manifest.ManifestError)):
                what = str(error).removesuffix(f"; {AGAIN}")
                raise EncodingError(
                    what if new else f"{what}; what was there before is unchanged"
                ) from None
            raise
        self.settle()
        return self.result(total + len(self.packed))

    def settle(self) -> bool:
        """Remove the files of the encoding that has lost; return whether that is the earlier one.

        Which one it is says the disk: a signal may have come right after the manifest was
        replaced. Nothing is removed where that names neither, or cannot be read.
        """
        self.release()
        found = _stored_manifest(self.path)
        new = bool(self.packed) and found == self.packed
        if not new and found != self.before:
            return False
        new_files = {entry.file_name for entry in self.entries}
        keep = new_files if new else self.old
        lost = {path.name for path in self.written} | self.old
        try:
            if new:
                sync_folder(self.path)
                lost |= self.leavings(keep)
            for name in lost - keep:
                (self.path / name).unlink(missing_ok=True)
        except OSError:  # too much is left, which harms no reader
            pass
        return new

    def release(self) -> None:
        """Leave the files to the manifest that is about to name them, or to ``settle``: the end
        of the process no longer removes them."""
        unfinished.discard(*self.written)

    def leavings(self, keep: set[str]) -> set[str]:
        """What killed writers have left: files whose names give their checksums, temporaries.

        Whoever is not alone here cannot tell them from those of a writer that lives."""
        if not self.alone:
            return set()
        names = {path.name for path in self.path.iterdir() if path.is_file()} - keep
        tensors = {
            name
            for name in names
            if (match := TENSOR_FILE.fullmatch(name))
            and checksum(self.path / name)[1] == int(match[1], 16)
        }
        return tensors | {name for name in names if TEMPORARY.fullmatch(name)}

    def keep(self, entry: Entry, data: memoryview) -> None:
        """Write the file of a stream."""
        path = self.path / entry.file_name
        there = path.is_file() and checksum(path) == (len(data), entry.checksum)
        if not there or entry.file_name not in self.old:
            self.new.append(path)
        if not there:
            self.written.append(path)
            if entry.file_name not in self.old:
                unfinished.add(path)
            _write_file(path, data, sync=False)


def _check_tensor(name: object, tensor: torch.Tensor) -> None:
    if not isinstance(name, str):
        raise EncodingError(f"cannot encode {name!r}: a name is a text")
    try:
        check_dense(name, tensor)
    except UserError as error:
        raise EncodingError(f"cannot encode {error}") from None
    if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
        raise EncodingError(f"cannot encode {name!r}: no form for {tensor.dtype}")
    if not manifest.fits(tuple(tensor.shape), tensor.dtype):
        most = f"64 dimensions and {manifest.MAX_TENSOR_BYTES >> 30} GiB"
        raise EncodingError(f"cannot encode {name!r}: a tensor has at most {most}")


def _tensor_bytes(job: tuple) -> int:
    """Of a job of threads, which begins with the entries of a stream."""
    return sum(entry.bytes for entry in job[0])


def _stream_bytes(written: BitWriter) -> int:
    """What a stream takes, here and elsewhere."""
    return -(-written.length // 8) + BESIDE


def _write_file(path: Path, data: bytes | memoryview, sync: bool = True) -> None:
    with atomic_write(path, sync) as file:
        file.write(data)


def _packed(entries: list[Entry], meta: dict | None) -> bytes:
    """The manifest; EncodingError if what it gives back is not what it was made of."""
    if meta is not None and not isinstance(meta, dict):
        raise EncodingError(f"cannot store the meta data: a {type(meta).__name__}, not a dict")
    packed = manifest.pack(entries, meta)
    try:
        found, found_meta = manifest.unpack(packed)
    except (ValueError, RecursionError) as error:
        raise EncodingError(f"cannot store the names and meta data: {error}") from None
    if _lines(found) != _lines(entries):
        raise EncodingError("cannot store the names: they come back from JSON as others")
    given = meta or {}
    if found_meta != given or json.dumps(found_meta) != json.dumps(given):
        wrong = [k for k in given if k not in found_meta or found_meta[k] != given[k]]
        raise EncodingError(
            f"cannot store the meta data: {wrong[0]!r} does not come back from JSON as it was; "
            "make keys strings, and tuples lists"
        )
    return packed


def _lines(entries: list[Entry]) -> list[tuple]:
    """What a manifest says."""
    return [(entry.line(), entry.file_name) for entry in entries]


def _stored_manifest(directory: Path) -> bytes | None:
    """The bytes of the manifest in the folder; None for none, or for one that cannot be read."""
    try:
        return read_file(directory / MANIFEST, manifest.MAX_MANIFEST_BYTES)
    except OSError:
        return None


def _files_named_by(packed: bytes | None) -> set[str]:
    """Empty for none, for one that is not of this version, or damaged."""
    try:
        return {entry.file_name for entry in manifest.unpack(packed or b"")[0]}
    except FOREIGN:
        return set()


# --- reading ------------------------------------------------------------------------------------

AGAIN = "encode the model again"
REPLACED = "was replaced again and again while it was read; read it when nobody writes there"


def read(
    path: str | Path, describe: bool = True
) -> tuple[dict[str, torch.Tensor], dict, list[TensorInfo]]:
    """As ``load``, and what every tensor costs; every stream is read once."""
    path = as_path(path, EncodingError)
    for _ in range(ATTEMPTS):
        store = container.stored_in(path)
        contents = _read_contents(store)
        try:
            state, infos = _read_tensors(store, contents, describe)
        except EncodingError:
            if _read_contents(container.stored_in(path)) == contents:
                raise
        else:
            return state, contents.meta, infos
    raise EncodingError(f"{path} {REPLACED}")


def _read_tensors(
    store: InFolder | InFile, contents: Contents, describe: bool
) -> tuple[dict[str, torch.Tensor], list[TensorInfo]]:
    empty = _Room().empty

    def decode(entries: list[Entry]) -> tuple[torch.Tensor, list[TensorInfo]]:
        whole, reader = _read_stream(store, contents, entries[0], describe, empty)
        return whole, tensor_infos(entries, whole, reader) if describe else []

    jobs = [(entries,) for entries in contents.streams.values()]
    tensors: dict[int, torch.Tensor] = {}
    infos: dict[int, TensorInfo] = {}
    for (entries,), (whole, costs) in zip(jobs, in_order(decode, jobs, _tensor_bytes), strict=True):
        tensors |= {entry.number: entry.part(whole) for entry in entries}
        infos |= {entry.number: info for entry, info in zip(entries, costs, strict=False)}
    state = {entry.name: tensors[entry.own.number] for entry in contents.entries}
    return state, [infos[number] for number in sorted(infos)]


class _Room:
    """Memory for arrays that stay together, side by side: the system has huge pages for that, and
    one fault of 2 MiB costs less than hundreds of 4 KiB, which take as long as all decoding."""

    def __init__(self) -> None:
        self.left, self.given, self.lock = np.empty(0, np.uint8), 0, Lock()

    def empty(self, count: int, kind: np.dtype) -> np.ndarray:
        """As np.empty."""
        size = -(-count * kind.itemsize // ALIGNED) * ALIGNED
        if size > ROOM // 8:  # NumPy asks for huge pages itself
            return np.empty(count, kind)
        with self.lock:
            self.given += size
            if size > len(self.left):  # no more than is needed, or twice
                self.left = np.empty(min(self.given, ROOM), np.uint8)
            taken, self.left = self.left[:size], self.left[size:]
        return taken[: count * kind.itemsize].view(kind)


def _read_contents(store: InFolder | InFile) -> Contents:
    hidden = os.path.exists(store.head) and not os.access(store.head, os.R_OK)
    advice = "make it readable" if hidden else "encode a model first"
    with one_line(store.head, EncodingError, advice):
        data = store.read()
    # Ten thousand entries, all of which stay, are no reason to look through everything for garbage,
    # which takes longer than they do.
    collected = gc.isenabled()
    gc.disable()
    try:
        with one_line(store.head, EncodingError, AGAIN):
            return store.contents(data)
    finally:
        if collected:
            gc.enable()


def _read_stream(
    store: InFolder | InFile,
    contents: Contents,
    entry: Entry,
    describe: bool = False,
    empty: Empty = np.empty,
) -> tuple[torch.Tensor, BitReader]:
    """The tensor of the stream that `entry` is in, and the reader that has read it, with the codes
    in use if asked to describe."""
    home = entry.home
    with one_line(store.name(entry), EncodingError, AGAIN, HuffmanError):
        with store.stream(contents, entry) as (file, size):
            # raw form: every byte of every element, and a few bytes of header
            if size > math.prod(home.stream_shape) * home.dtype.itemsize + 64:
                raise HuffmanError("longer than its tensor")
            data = np.zeros(size + PAD, np.uint8)
            file.readinto(data.data[:size])
        if zlib.crc32(data.data[:size]) != home.checksum:
            raise HuffmanError("the checksum does not match: damaged, or of another encoding")
        reader = BitReader(data, describe)
        tensor = read_tensor(reader, home.stream_shape, home.dtype, empty)
        reader.finish()
        return tensor, reader


def _read_attached(store: InFolder | InFile, contents: Contents, name: str) -> bytes:
    file = contents.files[name]
    problem = f"{store.path}: {name!r}"
    with (
        one_line(problem, EncodingError, AGAIN),
        store.stream(contents, name) as (opened, size),
    ):
        return container.restored(opened.read(size), file)
