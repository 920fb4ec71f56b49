"""State dicts as a folder of Huffman-coded files, without loss (paper, sections 3 and 4).

Every tensor is written in the smallest of four forms, with or without its zeros and with or
without a codebook of shared values. docs/format.md specifies every byte.
"""

import dataclasses
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .codec.bits import BitReader, HuffmanError
from .codec.tensors import DTYPES, identity, patterns, read_tensor, write_tensor
from .errors import UserError
from .files import atomic_write, unwritable

MANIFEST = "manifest.huff"
MAGIC = b"DCE\x01"  # Deep Compression encoding, version 1
MAX_TENSOR_BYTES = 1 << 34
MAX_MANIFEST_BYTES = 1 << 23
TENSOR_FILE = re.compile(r"\d+-[\w.-]*-[0-9a-f]{8}\.huff|\.[\w.-]+\.huff\.\w+\.tmp")

SECTIONS = ("header", "positions", "codebook", "values")  # of a tensor's file

# Likely text of a manifest for DEFLATE to refer to; the best matches come last.
DICTIONARY = (
    b'"int64",[]]],["bfloat16","float16","float64","uint8","bool",'
    b'"epochs":"lr":"stage":"initial","retrained","bits":"seed":42,'
    b'"cifar10""alexnet""vgg16""lenet-5","digits""metrics":{"error_percent":'
    b'.num_batches_tracked","int64",[]],["layer1.0.bn1.running_mean","float32",[64]],'
    b'["layer1.0.bn1.running_var","float32",[64]],["layer1.0.downsample.0.weight","float32",['
    b'["features.0.weight","float32",[64,3,11,11]],["features.0.bias","float32",[64]],'
    b'["classifier.1.weight","float32",[4096,9216]],["classifier.1.bias","float32",[4096]],'
    b'["conv1.weight","float32",[20,1,5,5]],["conv1.bias","float32",[20]],'
    b'["conv2.weight","float32",[50,20,5,5]],["conv2.bias","float32",[50]],'
    b'["fc1.weight","float32",[500,800]],["fc1.bias","float32",[500]],'
    b'["fc2.weight","float32",[10,500]],["fc2.bias","float32",[10]]]'
    b'{"tensors":[["fc1.weight","float32",[300,784]],["fc1.bias","float32",[300]],'
    b'["fc2.weight","float32",[100,300]],["fc2.bias","float32",[100]],'
    b'["fc3.weight","float32",[10,100]],["fc3.bias","float32",[10]]],'
    b'"meta":{"arch":"lenet-300-100","dataset":"mnist"}}'
)


class EncodingError(UserError):
    """A folder that cannot be read or written, or a state dict that cannot be encoded."""


@dataclasses.dataclass
class Stream:
    """One Huffman code in use: what the plots show."""

    symbols: np.ndarray  # int64: numbers of shared values, or tokens of gaps
    frequencies: np.ndarray  # int64, how often each symbol occurs
    lengths: np.ndarray  # uint8, bits of its code word


@dataclasses.dataclass
class TensorInfo:
    """What one tensor costs in the folder. All bits are averages per stored (non-zero) value."""

    name: str
    tied: list[str]  # its other names
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    nonzero: int  # elements whose bits are not all zero
    kind: str  # "sparse shared", "dense shared", "sparse raw" or "raw"
    weight_bits_before: int  # ceil(log2(codebook)), or the width of the type if not shared
    weight_bits: float  # code words, or raw values
    index_bits_before: int  # the fixed width with the smallest total, padding zeros included
    index_bits: float  # everything that says where the non-zeros are
    dense_bytes: int  # all elements in their type
    encoded_bytes: int  # size of the file
    sections: dict[str, float]  # bytes of header, positions, codebook, values, checksum
    value_stream: Stream | None
    gap_streams: list[Stream]


def save(state: dict[str, torch.Tensor], directory: str | Path, meta: dict | None = None) -> int:
    """Encode every tensor of ``state`` into files of ``directory``; return the bytes written.

    ``meta`` is anything that JSON can hold. Tensors are touched one at a time, so a checkpoint
    that was opened with mmap never has to fit into memory. Names of the same memory (tied
    weights) are one tensor, and have one file.

    An earlier encoding stays valid until its manifest is replaced in one step, after all files
    of the new one are on the disk; its files are removed then. Other files are left alone.
    Raises EncodingError, after removing whatever it wrote, if the state cannot be encoded or
    the folder cannot be written.
    """
    directory = Path(directory)
    written: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        entries, sums, files, numbers = [], [], set(), {}
        total = 0
        for name, tensor in state.items():
            _check_tensor(name, tensor)
            first = numbers.setdefault(identity(tensor), len(entries))
            if first < len(entries):
                entries.append([name, first])
                continue
            data = write_tensor(tensor).finish()
            sums.append(zlib.crc32(data))
            path = directory / _file_name(len(entries), name, sums[-1])
            if not _holds(path, data):
                written.append(path)
                _write_file(path, data)
            entries.append([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
            files.add(path.name)
            total += len(data)
        manifest = _pack_manifest(entries, sums, meta)
        _write_file(directory / MANIFEST, manifest)
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error = unwritable(directory, error)
        if isinstance(error, UserError) and not isinstance(error, EncodingError):
            raise EncodingError(f"{error}; what was there before is unchanged") from None
        raise
    _remove_others(directory, files)
    return total + len(manifest)


def load(directory: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The state dict and the meta data that ``save`` was given ({} for none).

    Raises EncodingError, naming the file and the fault, for anything else than a whole folder
    that ``save`` has written.
    """
    entries, meta = _read_manifest(Path(directory))
    state = {}
    for entry in entries:
        state[entry.name] = state[entry.same.name] if entry.same else entry.read()[0]
    return state, meta


def directory_bytes(directory: str | Path) -> int:
    """The sizes of all files in the folder and below it, whoever wrote them."""
    return sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file())


def describe(directory: str | Path) -> list[TensorInfo]:
    """What every tensor costs, and in what; raises EncodingError as ``load`` does."""
    entries = _read_manifest(Path(directory))[0]
    tied = {entry.name: [] for entry in entries}
    for entry in entries:
        if entry.same:
            tied[entry.same.name].append(entry.name)
    return [_describe(entry, tied[entry.name]) for entry in entries if not entry.same]


# --- files --------------------------------------------------------------------------------------


def _file_name(number: int, name: str, checksum: int) -> str:
    """Unique by number, new with every content, harmless on any file system."""
    return f"{number:02d}-{re.sub(r'[^A-Za-z0-9_.]', '_', name)[-40:]}-{checksum:08x}.huff"


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


def _write_file(path: Path, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)


def _remove_others(directory: Path, keep: set[str]) -> None:
    """Remove files of earlier encodings, and of killed runs."""
    for path in directory.iterdir():
        if TENSOR_FILE.fullmatch(path.name) and path.name not in keep:
            path.unlink(missing_ok=True)


# --- the manifest -------------------------------------------------------------------------------


@dataclasses.dataclass
class Entry:
    """One line of the manifest: a name, and the file of its tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    checksum: int  # CRC-32 of the file
    path: Path
    same: "Entry | None" = None  # the first name of a tied tensor, whose file this is, too

    def read(self, notes: list | None = None) -> tuple[torch.Tensor, BitReader]:
        """The tensor, and the reader that has read it, with the codes in use if it has a list."""
        parameters = int(np.prod(self.shape, dtype=object))
        try:
            # raw form: every byte of every element, and a few bytes of header
            if self.path.stat().st_size > parameters * self.dtype.itemsize + 64:
                raise HuffmanError("longer than its tensor")
            data = self.path.read_bytes()
            if zlib.crc32(data) != self.checksum:
                raise HuffmanError("the checksum does not match: damaged, or of another encoding")
            reader = BitReader(data)
            reader.notes = notes
            tensor = read_tensor(reader, self.shape, self.dtype)
            reader.begin("header")
            reader.finish()
            return tensor, reader
        except (OSError, HuffmanError, MemoryError) as error:
            raise EncodingError(f"{self.path}: {_reason(error)}; encode the model again") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "not enough memory for its tensor" if isinstance(error, MemoryError) else str(error)


def _check_tensor(name: object, tensor: object) -> None:
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise EncodingError(f"cannot encode {name!r}: a {type(tensor).__name__}, not a tensor")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise EncodingError(f"cannot encode {name!r}: make it a dense, unquantized tensor first")
    if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
        raise EncodingError(f"cannot encode {name!r}: no form for {tensor.dtype}")
    if not _fits(tuple(tensor.shape), tensor.dtype):
        raise EncodingError(f"cannot encode {name!r}: more than {MAX_TENSOR_BYTES} bytes")


def _fits(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """At most 64 dimensions; the product of those that are not 0 within MAX_TENSOR_BYTES."""
    size = dtype.itemsize
    for extent in shape:
        size *= max(extent, 1)
    return len(shape) <= 64 and size <= MAX_TENSOR_BYTES


def _pack_manifest(entries: list, sums: list[int], meta: dict | None) -> bytes:
    """Magic and version, CRC-32 of the rest, DEFLATE of the JSON text, CRC-32 of every file."""
    try:
        document = {"tensors": entries} | ({"meta": meta} if meta else {})
        text = json.dumps(document, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise EncodingError(f"cannot store the meta data as JSON: {error}") from error
    if len(text) > MAX_MANIFEST_BYTES:
        raise EncodingError("names and meta data of more than 8 MiB")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    body = packer.compress(text) + packer.flush()
    body += np.array(sums, ">u4").tobytes()
    return MAGIC + zlib.crc32(body).to_bytes(4, "big") + body


def _read_manifest(directory: Path) -> tuple[list[Entry], dict]:
    path = directory / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EncodingError(f"{path}: {_reason(error)}; encode a model first") from error
    try:
        return _parse_manifest(directory, data)
    except (ValueError, RecursionError, MemoryError, zlib.error) as error:
        raise EncodingError(f"{path}: {error}; encode the model again") from error


def _parse_manifest(directory: Path, data: bytes) -> tuple[list[Entry], dict]:
    """Raises ValueError for anything that ``_pack_manifest`` does not write."""
    if data[:3] != MAGIC[:3]:
        raise ValueError("not a manifest of this program")
    if data[3:4] != MAGIC[3:]:
        raise ValueError(f"format version {data[3:4].hex()}; this program reads version 01")
    if zlib.crc32(data[8:]) != int.from_bytes(data[4:8], "big"):
        raise ValueError("the checksum does not match: the file is damaged")
    unpacker = zlib.decompressobj(-15, zdict=DICTIONARY)
    text = unpacker.decompress(data[8:], MAX_MANIFEST_BYTES)
    if not unpacker.eof:
        raise ValueError("the data ends early, or is beyond 8 MiB")
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("tensors"), list):
        raise ValueError("no list of tensors")
    tensors, meta = document["tensors"], document.get("meta", {})
    if not isinstance(meta, dict) or document.keys() - {"tensors", "meta"}:
        raise ValueError("fields that this version does not have")
    stored = sum(isinstance(fields, list) and len(fields) == 3 for fields in tensors)
    if len(unpacker.unused_data) != 4 * stored:
        raise ValueError("not one checksum for each tensor")
    sums = iter(np.frombuffer(unpacker.unused_data, ">u4").tolist())
    entries = []
    for fields in tensors:
        entries.append(_entry(directory, entries, fields, sums))
    if len({entry.name for entry in entries}) < len(entries):
        raise ValueError("two tensors of the same name")
    return entries, meta


def _entry(directory: Path, before: list[Entry], fields: object, sums: Iterator[int]) -> Entry:
    number = len(before)
    match fields:
        case [str(name), first] if type(first) is int and 0 <= first < number:
            if before[first].same:
                raise ValueError(f"tensor {number}: the same as one that has no file itself")
            return dataclasses.replace(before[first], name=name, same=before[first])
        case [str(name), str(dtype), list(shape)] if dtype in DTYPES:
            if all(type(extent) is int and extent >= 0 for extent in shape) and _fits(
                tuple(shape), DTYPES[dtype]
            ):
                checksum = next(sums)
                path = directory / _file_name(number, name, checksum)
                return Entry(name, DTYPES[dtype], tuple(shape), checksum, path)
    raise ValueError(f"tensor {number}: not a name, a known type and a shape within the limits")


# --- reports ------------------------------------------------------------------------------------


def _describe(entry: Entry, tied: list[str]) -> TensorInfo:
    tensor, reader = entry.read(notes=[])
    raw = patterns(tensor)
    flat = raw.reshape(tensor.numel(), -1).any(axis=1) if raw.size else raw
    positions = np.flatnonzero(flat)
    streams = {"values": [], "positions": []}
    for section, code, counts in reader.notes:
        counts = np.pad(counts, (0, len(code.symbols) - len(counts)))
        streams.get(section, []).append(Stream(code.symbols, counts, code.lengths))
    sparse, shared = "positions" in reader.sections, "codebook" in reader.sections
    value_stream = streams["values"][0] if shared else None
    stored = max(len(positions) if sparse else tensor.numel(), 1)
    weight_bits = 8 * entry.dtype.itemsize
    if shared:
        weight_bits = (len(value_stream.symbols) - 1).bit_length()
    sections = {name: reader.sections.get(name, 0) / 8 for name in SECTIONS}
    sections["header"] += len(reader.data) - sum(sections.values())  # padding
    return TensorInfo(
        name=entry.name,
        tied=tied,
        shape=entry.shape,
        dtype=str(entry.dtype).removeprefix("torch."),
        parameters=tensor.numel(),
        nonzero=len(positions),
        kind=_kind(sparse, shared),
        weight_bits_before=weight_bits,
        weight_bits=sections["values"] * 8 / stored,
        index_bits_before=fixed_index_bits(positions, weight_bits) if sparse else 0,
        index_bits=sections["positions"] * 8 / stored,
        dense_bytes=tensor.numel() * entry.dtype.itemsize,
        encoded_bytes=len(reader.data),
        sections=sections | {"checksum": 4.0},
        value_stream=value_stream,
        gap_streams=streams["positions"],
    )


def fixed_index_bits(positions: np.ndarray, weight_bits: int) -> int:
    """The width of relative indexes, 1 to 16 bits, with which paper's section 2 stores least.

    A difference beyond 2**width needs padding zeros, each with an index and a weight.
    """
    gaps = np.diff(positions, prepend=-1) - 1
    return min(range(1, 17), key=lambda w: (len(gaps) + int((gaps >> w).sum())) * (w + weight_bits))


def _kind(sparse: bool, shared: bool) -> str:
    if shared:
        return "sparse shared" if sparse else "dense shared"
    return "sparse raw" if sparse else "raw"
