"""State dicts as a folder of Huffman-coded files, without loss (paper, sections 3 and 4).

Every tensor is written in the smallest of four forms, with or without its zeros and with or
without a codebook of shared values. docs/format.md specifies every byte.
"""

import dataclasses
import json
import re
import weakref
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from . import unfinished
from .codec import manifest
from .codec.bits import PAD, BitReader, HuffmanError
from .codec.costs import Stream, TensorInfo, fixed_index_bits, tensor_info
from .codec.manifest import MANIFEST, Entry
from .codec.tensors import DTYPES, read_tensor, reads_as, write_tensor
from .errors import UserError
from .files import (
    FOREIGN,
    atomic_write,
    check_output,
    checksum,
    locked,
    one_line,
    open_regular,
    read_file,
    sync_files,
    sync_folder,
    unwritable,
)
from .tensors import check_dense, identity
from .threads import in_order

__all__ = ["Encoded", "EncodingError", "Folder", "Stream", "TensorInfo", "directory_bytes"]
__all__ += ["fixed_index_bits", "load", "open", "read", "save", "write"]

TENSOR_FILE = re.compile(r"\d+-[\w.-]*-([0-9a-f]{8})\.huff")
TEMPORARY = re.compile(r"\.[\w.-]+\.huff(\.\w+)?\.tmp")  # the longer ones of earlier versions
ATTEMPTS = 20  # to read a folder that is replaced meanwhile


class EncodingError(UserError):
    """A folder that cannot be read or written, or a state dict that cannot be encoded."""


@dataclasses.dataclass
class Encoded:
    """What ``write`` has written."""

    bytes: int  # the sizes of all its files
    tensors: list[TensorInfo]  # what every tensor costs; tied ones once


def save(
    state: Mapping[str, torch.Tensor],
    directory: str | Path,
    meta: dict | None = None,
    verify: bool = True,
) -> int:
    """Encode every tensor of ``state`` into files of ``directory``; return the bytes written.

    ``meta`` is a dict that comes back from JSON as it was: no tuples, no keys but strings.
    Tensors are asked for one after the other and let go again, so a mapping that reads them from
    a file never has to fit into memory. Names of the same memory (tied weights) are one tensor,
    and have one file.

    An earlier encoding stays valid until its manifest is replaced in one step, after all files
    of the new one are on the disk and read back; its files are removed then. With ``verify``,
    what is written has been decoded and found equal, bit for bit. Other files are left alone.
    Raises EncodingError, after removing whatever it wrote, if the state cannot be encoded or the
    folder cannot be written, and before writing if another process is writing there.
    """
    return write(state, directory, meta, verify, describe=False).bytes


def load(directory: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The state dict and the meta data that ``save`` was given ({} for none).

    A folder that is replaced meanwhile is read again. Raises EncodingError, naming the file and
    the fault, for anything else than a whole folder that ``save`` has written.
    """
    return read(directory, describe=False)[:2]


class Folder(Mapping[str, torch.Tensor]):
    """An encoded folder as a read-only mapping: folder[name] reads that tensor's file alone.

    ``meta``: the meta data; ``info(name)``: its type and shape, without reading it. All that one
    mapping gives is of one model: EncodingError where another has replaced it meanwhile.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory).absolute()  # stays what it is after a change of directory
        entries, self.meta = _read_manifest(self.directory)
        self._entries = {entry.name: entry for entry in entries}
        self._given: set[str] = set()

    def info(self, name: str) -> Entry:
        """The ``dtype``, ``shape`` and ``bytes`` of a tensor."""
        return self._entries[name]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._entries.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        for _ in range(ATTEMPTS):
            entries = self._entries
            try:
                tensor = _read_entry(self.directory, entries[name])[0]
            except EncodingError:
                if not self._replaced(entries):
                    raise
            else:
                self._given.add(name)
                return tensor
        raise EncodingError(f"{self.directory} {REPLACED}")

    def _replaced(self, before: dict[str, Entry]) -> bool:
        """Go on with the encoding that is in the folder now; False if that is the one of before.

        EncodingError if it shows: for other names, types, shapes or meta data, or if a tensor
        that has been read is no longer the same."""
        entries, meta = _read_manifest(self.directory)
        found = {entry.name: entry for entry in entries}
        if found == before:
            return False
        lines = [entry.line() for entry in entries]
        alike = lines == [entry.line() for entry in before.values()] and meta == self.meta
        if not alike or any(found[name] != before[name] for name in self._given):
            raise EncodingError(f"{self.directory} was replaced while it was read; open it again")
        self._entries = found
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def open(directory: str | Path) -> Folder:
    """The folder as a mapping that reads a tensor only when it is asked for."""
    return Folder(directory)


def directory_bytes(directory: str | Path) -> int:
    """The sizes of all files in the folder and below it, whoever wrote them."""
    return sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file())


# --- writing ------------------------------------------------------------------------------------


def write(
    state: Mapping[str, torch.Tensor],
    directory: str | Path,
    meta: dict | None = None,
    verify: bool = True,
    describe: bool = True,
) -> Encoded:
    """As ``save``, and say what every tensor costs, which decoding it has shown."""
    directory = Path(directory).absolute()  # stays what it is after a change of directory
    if not isinstance(state, Mapping):
        raise EncodingError(f"cannot encode a {type(state).__name__}: it is no state dict")
    try:
        with locked(directory) as alone:
            return _Writing(directory, verify, describe, alone).run(state, meta)
    except EncodingError:
        raise
    except UserError as error:
        raise EncodingError(str(error)) from None


class _Writing:
    """One call of ``write``: the entries so far, and the files that were not there before it."""

    def __init__(self, directory: Path, verify: bool, describe: bool, alone: bool) -> None:
        self.directory, self.verify, self.describe, self.alone = directory, verify, describe, alone
        self.entries: list[Entry] = []
        self.written: list[Path] = []
        self.before, self.packed = _stored_manifest(directory), b""
        self.old = _files_named_by(self.before)

    def run(self, state: Mapping[str, torch.Tensor], meta: dict | None) -> Encoded:
        try:
            check_output(self.directory / MANIFEST)  # both are refused before any work
            _packed([], meta)
            results = list(in_order(self.encode, self.distinct(state), _tensor_bytes))
            self.packed = _packed(self.entries, meta)
            sync_files(self.written)  # and their names, before what names them
            sync_folder(self.directory)
            self.release()
            _write_file(self.directory / MANIFEST, self.packed)
        except BaseException as error:
            new = self.settle()
            if isinstance(error, OSError):
                error = unwritable(self.directory, error)
            if isinstance(error, (UserError, manifest.ManifestError)):
                what = str(error).removesuffix(f"; {AGAIN}")
                raise EncodingError(
                    what if new else f"{what}; what was there before is unchanged"
                ) from None
            raise
        self.settle()
        total = sum(size for size, _ in results) + len(self.packed)
        return Encoded(total, [info for _, info in results if info])

    def settle(self) -> bool:
        """Remove the files of the encoding that has lost; return whether that is the earlier one.

        Which one it is says the disk: a signal may have come right after the manifest was
        replaced. Nothing is removed where that names neither, or cannot be read.
        """
        self.release()
        found = _stored_manifest(self.directory)
        new = bool(self.packed) and found == self.packed
        if not new and found != self.before:
            return False
        new_files = {entry.file_name for entry in self.entries if not entry.same}
        keep = new_files if new else self.old
        lost = {path.name for path in self.written} | self.old
        try:
            if new:
                sync_folder(self.directory)
                lost |= self.leavings(keep)
            for name in lost - keep:
                (self.directory / name).unlink(missing_ok=True)
        except OSError:  # too much is left, which harms no reader
            pass
        return new

    def release(self) -> None:
        """Leave the files to the manifest that is about to name them, or to ``settle``: the end
        of the process no longer removes them."""
        for path in self.written:
            unfinished.discard(path)

    def leavings(self, keep: set[str]) -> set[str]:
        """What killed writers have left: files whose names give their checksums, temporaries.

        Whoever is not alone here cannot tell them from those of a writer that lives."""
        if not self.alone:
            return set()
        names = {path.name for path in self.directory.iterdir() if path.is_file()} - keep
        tensors = {
            name
            for name in names
            if (match := TENSOR_FILE.fullmatch(name))
            and checksum(self.directory / name)[1] == int(match[1], 16)
        }
        return tensors | {name for name in names if TEMPORARY.fullmatch(name)}

    def distinct(self, state: Mapping[str, torch.Tensor]) -> Iterator[tuple[Entry, torch.Tensor]]:
        """Every tensor of ``state`` once, with its entry; further names become entries too."""
        seen: dict[tuple, tuple[int, weakref.ref]] = {}
        for name in state:
            tensor = state[name]
            _check_tensor(name, tensor)
            # an address says nothing once the tensor that was there is gone
            before = seen.get(identity(tensor))
            same = self.entries[before[0]] if before and before[1]() is not None else None
            entry = Entry(len(self.entries), name, tensor.dtype, tuple(tensor.shape), same=same)
            self.entries.append(entry)
            if same:
                same.tied.append(name)
            else:
                seen[identity(tensor)] = entry.number, weakref.ref(tensor)
                yield entry, tensor

    def encode(self, entry: Entry, tensor: torch.Tensor) -> tuple[int, TensorInfo | None]:
        """Write the file of one tensor; return its bytes, and what it costs if that is wanted."""
        padded = write_tensor(tensor).finish()
        data = padded[:-PAD].data
        entry = dataclasses.replace(entry, checksum=zlib.crc32(data))
        self.entries[entry.number] = entry
        info = None
        if self.verify or self.describe:
            info = self._decoded(entry, tensor, padded)
        path = self.directory / entry.file_name
        if not (path.is_file() and checksum(path) == (len(data), entry.checksum)):
            self.written.append(path)
            if entry.file_name not in self.old:
                unfinished.add(path)
            _write_file(path, data, sync=False)
        return len(data), info

    def _decoded(self, entry: Entry, tensor: torch.Tensor, padded: np.ndarray) -> TensorInfo | None:
        """Decode what is about to be written, and refuse it if it is not ``tensor``."""
        reader = BitReader(padded, self.describe)
        try:
            same = reads_as(reader, tensor)
            reader.finish()
        except HuffmanError as error:
            raise EncodingError(f"cannot encode {entry.name!r}: {error}") from error
        if self.verify and not same:
            raise EncodingError(f"cannot encode {entry.name!r}: it decodes to another tensor")
        return tensor_info(entry, tensor, reader) if self.describe else None


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
        raise EncodingError(f"cannot encode {name!r}: more than {manifest.MAX_TENSOR_BYTES} bytes")


def _tensor_bytes(job: tuple) -> int:
    """Of a job of threads, which begins with its Entry."""
    return job[0].bytes


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
    """What a manifest says. The first of tied names may have got its checksum after the others."""
    return [(entry.line(), None if entry.same else entry.file_name) for entry in entries]


def _stored_manifest(directory: Path) -> bytes | None:
    """The bytes of the manifest in the folder; None for none, or for one that cannot be read."""
    try:
        return read_file(directory / MANIFEST, manifest.MAX_MANIFEST_BYTES)
    except OSError:
        return None


def _files_named_by(packed: bytes | None) -> set[str]:
    """None for a manifest that is not of this version, or damaged."""
    try:
        return {entry.file_name for entry in manifest.unpack(packed or b"")[0]}
    except FOREIGN:
        return set()


# --- reading ------------------------------------------------------------------------------------

AGAIN = "encode the model again"
REPLACED = "was replaced again and again while it was read; read it when nobody writes there"


def read(
    directory: str | Path, describe: bool = True
) -> tuple[dict[str, torch.Tensor], dict, list[TensorInfo]]:
    """As ``load``, and what every tensor costs; the folder is read once."""
    directory = Path(directory)
    for _ in range(ATTEMPTS):
        entries, meta = _read_manifest(directory)
        try:
            state, infos = _read_files(directory, entries, describe)
        except EncodingError:
            if _read_manifest(directory) == (entries, meta):
                raise
        else:
            return state, meta, infos
    raise EncodingError(f"{directory} {REPLACED}")


def _read_files(
    directory: Path, entries: list[Entry], describe: bool
) -> tuple[dict[str, torch.Tensor], list[TensorInfo]]:
    def decode(entry: Entry) -> tuple[torch.Tensor, TensorInfo | None]:
        tensor, reader = _read_entry(directory, entry, describe)
        return tensor, tensor_info(entry, tensor, reader) if describe else None

    files = [(entry,) for entry in entries if not entry.same]
    results = in_order(decode, files, _tensor_bytes)
    found = {entry.number: result for (entry,), result in zip(files, results, strict=True)}
    state = {entry.name: found[(entry.same or entry).number][0] for entry in entries}
    return state, [info for _, info in found.values() if info]


def _read_manifest(directory: Path) -> tuple[list[Entry], dict]:
    path = directory / MANIFEST
    with one_line(path, EncodingError, "encode a model first"):
        data = read_file(path, manifest.MAX_MANIFEST_BYTES, manifest.MAGIC[:3])
    with one_line(path, EncodingError, AGAIN):
        return manifest.unpack(data)


def _read_entry(
    directory: Path, entry: Entry, describe: bool = False
) -> tuple[torch.Tensor, BitReader]:
    """The tensor, and the reader that has read it, with the codes in use if asked to describe."""
    path = directory / entry.file_name
    with one_line(path, EncodingError, AGAIN, HuffmanError):
        with open_regular(path) as (file, size):
            # raw form: every byte of every element, and a few bytes of header
            if size > entry.bytes + 64:
                raise HuffmanError("longer than its tensor")
            data = np.zeros(size + PAD, np.uint8)
            file.readinto(data.data[:size])
        if zlib.crc32(data.data[:size]) != entry.checksum:
            raise HuffmanError("the checksum does not match: damaged, or of another encoding")
        reader = BitReader(data, describe)
        tensor = read_tensor(reader, entry.shape, entry.dtype)
        reader.finish()
        return tensor, reader
