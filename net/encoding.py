"""State dicts as a folder of Huffman-coded files, without loss (paper, sections 3 and 4).

Every tensor is written in the smallest of four forms, with or without its zeros and with or
without a codebook of shared values. docs/format.md specifies every byte.
"""

import dataclasses
import os
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
from .codec.tensors import DTYPES, identity, read_tensor, reads_as, write_tensor
from .errors import UserError
from .files import atomic_write, unwritable
from .threads import in_order

__all__ = ["Encoded", "EncodingError", "Folder", "Stream", "TensorInfo", "directory_bytes"]
__all__ += ["fixed_index_bits", "load", "open", "read", "save", "write"]

TENSOR_FILE = re.compile(r"\d+-[\w.-]*-[0-9a-f]{8}\.huff|\.[\w.-]+\.huff\.\w+\.tmp")


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

    ``meta`` is anything that JSON can hold. Tensors are asked for one after the other and let go
    again, so a mapping that reads them from a file never has to fit into memory. Names of the
    same memory (tied weights) are one tensor, and have one file.

    An earlier encoding stays valid until its manifest is replaced in one step, after all files
    of the new one are on the disk; its files are removed then. With ``verify``, what is written
    has been decoded and found equal, bit for bit. Other files are left alone. Raises
    EncodingError, after removing whatever it wrote, if the state cannot be encoded or the folder
    cannot be written.
    """
    return write(state, directory, meta, verify, describe=False).bytes


def load(directory: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The state dict and the meta data that ``save`` was given ({} for none).

    Raises EncodingError, naming the file and the fault, for anything else than a whole folder
    that ``save`` has written.
    """
    return read(directory, describe=False)[:2]


class Folder(Mapping[str, torch.Tensor]):
    """An encoded folder as a read-only mapping: folder[name] reads that tensor's file alone.

    ``meta``: the meta data; ``info(name)``: its type and shape, without reading it.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        entries, self.meta = _read_manifest(self.directory)
        self._entries = {entry.name: entry for entry in entries}

    def info(self, name: str) -> Entry:
        """The ``dtype``, ``shape`` and ``bytes`` of a tensor."""
        return self._entries[name]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._entries.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return _read_entry(self.directory, self._entries[name])[0]

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
    directory = Path(directory)
    writing = _Writing(directory, verify, describe)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        results = list(in_order(writing.encode, writing.distinct(state), _tensor_bytes))
        packed = manifest.pack(writing.entries, meta)
        for path in writing.written:  # which the manifest is about to name
            unfinished.discard(path)
        _write_file(directory / MANIFEST, packed)
    except BaseException as error:
        for path in writing.written:
            path.unlink(missing_ok=True)
            unfinished.discard(path)
        if isinstance(error, OSError):
            error = unwritable(directory, error)
        if isinstance(error, (UserError, manifest.ManifestError)):
            what = str(error).removesuffix(AGAIN)
            raise EncodingError(f"{what}; what was there before is unchanged") from None
        raise
    keep = {entry.file_name for entry in writing.entries if not entry.same}
    for path in directory.iterdir():  # files of earlier encodings, and of killed runs
        if TENSOR_FILE.fullmatch(path.name) and path.name not in keep:
            path.unlink(missing_ok=True)
    total = sum(size for size, _ in results) + len(packed)
    return Encoded(total, [info for _, info in results if info])


class _Writing:
    """One call of ``write``: the entries so far, and the files that were not there before it."""

    def __init__(self, directory: Path, verify: bool, describe: bool) -> None:
        self.directory, self.verify, self.describe = directory, verify, describe
        self.entries: list[Entry] = []
        self.written: list[Path] = []

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
        if not (path.is_file() and path.read_bytes() == data):
            self.written.append(path)
            unfinished.add(path)
            _write_file(path, data)
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


def _check_tensor(name: object, tensor: object) -> None:
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise EncodingError(f"cannot encode {name!r}: a {type(tensor).__name__}, not a tensor")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise EncodingError(f"cannot encode {name!r}: make it a dense, unquantized tensor first")
    if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
        raise EncodingError(f"cannot encode {name!r}: no form for {tensor.dtype}")
    if not manifest.fits(tuple(tensor.shape), tensor.dtype):
        raise EncodingError(f"cannot encode {name!r}: more than {manifest.MAX_TENSOR_BYTES} bytes")


def _tensor_bytes(job: tuple) -> int:
    """Of a job of threads, which begins with its Entry."""
    return job[0].bytes


def _write_file(path: Path, data: bytes | memoryview) -> None:
    with atomic_write(path) as file:
        file.write(data)


# --- reading ------------------------------------------------------------------------------------

AGAIN = "; encode the model again"


def read(
    directory: str | Path, describe: bool = True
) -> tuple[dict[str, torch.Tensor], dict, list[TensorInfo]]:
    """As ``load``, and what every tensor costs; the folder is read once."""
    directory = Path(directory)
    entries, meta = _read_manifest(directory)

    def decode(entry: Entry) -> tuple[torch.Tensor, TensorInfo | None]:
        tensor, reader = _read_entry(directory, entry, describe)
        return tensor, tensor_info(entry, tensor, reader) if describe else None

    files = [(entry,) for entry in entries if not entry.same]
    results = in_order(decode, files, _tensor_bytes)
    found = {entry.file_name: result for (entry,), result in zip(files, results, strict=True)}
    state = {entry.name: found[entry.file_name][0] for entry in entries}
    return state, meta, [info for _, info in found.values() if info]


def _read_manifest(directory: Path) -> tuple[list[Entry], dict]:
    path = directory / MANIFEST
    try:
        return manifest.unpack(path.read_bytes())
    except OSError as error:
        raise EncodingError(f"{path}: {_reason(error)}; encode a model first") from error
    except (ValueError, RecursionError, MemoryError, zlib.error) as error:
        raise EncodingError(f"{path}: {error}{AGAIN}") from error


def _read_entry(
    directory: Path, entry: Entry, describe: bool = False
) -> tuple[torch.Tensor, BitReader]:
    """The tensor, and the reader that has read it, with the codes in use if asked to describe."""
    path = directory / entry.file_name
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
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
    except (OSError, HuffmanError, MemoryError) as error:
        raise EncodingError(f"{path}: {_reason(error)}{AGAIN}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "not enough memory for its tensor" if isinstance(error, MemoryError) else str(error)
