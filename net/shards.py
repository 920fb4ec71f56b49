"""Safetensors files, a single one or a folder of shards, read and written tensor by tensor.

The layout of a file (https://github.com/huggingface/safetensors): the length of the header in 8
bytes, little-endian; the header, JSON {name: {"dtype", "shape", "data_offsets"}}, in which
"__metadata__" is a dict of texts; the elements. A folder has an index, JSON {"weight_map": {name:
file}}, as Hugging Face's save_pretrained writes it.
"""

import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from .files import FOREIGN, atomic_write, one_line, open_regular, reason, utf8_path
from .formats import AGAIN, CheckpointError, indexed, instead, is_index, weights_file
from .formats import SUFFIX as SUFFIX
from .tensors import Info, TensorMap, check_dense, memory

MAX_DIMENSIONS = 64  # of a tensor
METADATA = "__metadata__"  # of a header: what the file says of itself

# What the format calls the types; each is stored as it is in memory, little-endian.
_TYPES = (
    "BOOL=bool U8=uint8 I8=int8 U16=uint16 I16=int16 F16=float16 BF16=bfloat16 U32=uint32 "
    "I32=int32 F32=float32 U64=uint64 I64=int64 F64=float64 C64=complex64 F8_E4M3=float8_e4m3fn "
    "F8_E5M2=float8_e5m2 F8_E4M3FNUZ=float8_e4m3fnuz F8_E5M2FNUZ=float8_e5m2fnuz "
    "F8_E8M0=float8_e8m0fnu"
)
_PAIRS = [pair.split("=") for pair in _TYPES.split()]
DTYPES = {name: getattr(torch, own) for name, own in _PAIRS if hasattr(torch, own)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Shards(TensorMap):
    """A read-only mapping: shards[name] reads that tensor and no other.

    `path` is a safetensors file, an index, or a folder with one of them. `metadata` is what the
    files say of themselves. The headers are read once, and a tensor's file is opened when it is
    asked for, by as many threads as like. Raises CheckpointError for what is missing or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = weights_file(path)
        self.metadata: dict[str, str] = {}
        if is_index(self.path):
            self._parts = indexed(self.path, self._of_file)
        else:
            self._parts = self._of_file(self.path)
        if not self._parts:
            raise CheckpointError(f"{self.path} holds no tensors")
        self._named = self._parts

    def _of_file(self, path: Path) -> "dict[str, _Part]":
        parts, metadata = _read_header(path)
        self.metadata |= metadata
        return parts

    def info(self, name: str) -> Info:
        """The type and shape of a tensor, without reading it."""
        part = self._parts[name]
        if part.kind not in DTYPES:
            raise CheckpointError(
                f"{part.path}: {name} is of type {part.kind}, which is not supported"
            )
        return Info(DTYPES[part.kind], part.shape)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._parts[name].read(self.info(name))


def fields_of(infos: Mapping[str, Info]) -> dict[str, dict]:
    """What a header says of tensors that follow one another in this order."""
    fields, end = {}, 0
    for name, info in infos.items():
        begin, end = end, end + info.bytes
        fields[name] = {"dtype": NAMES.get(info.dtype), "shape": list(info.shape)}
        fields[name]["data_offsets"] = [begin, end]
    return fields


def usual_header(infos: Mapping[str, Info], metadata: Mapping[str, str]) -> bytes:
    """The header that safetensors' own library writes."""
    header = ({METADATA: dict(metadata)} if metadata else {}) | fields_of(infos)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"))
    data = text.encode(errors="surrogatepass")
    return data + b" " * (-len(data) % 8)  # elements begin at a multiple of 8


def write(
    path: str | Path,
    infos: Mapping[str, Info],
    tensors: Iterable[torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    header: bytes | None = None,
) -> int:
    """Write a .safetensors file, its `tensors` one after the other in the order of `infos`; return
    its bytes. They need not fit into memory together, as they must for safetensors.torch.save_file.

    `metadata` is what the file says of itself, by default that its tensors are PyTorch's; `header`
    the whole text of a header that says the same as the usual one would. The old file, if there is
    one, stays until the new one is whole. Raises CheckpointError for a type
    that the format does not have, and for a tensor that is not as announced.
    """
    problem = f"cannot write {path}:"
    for name, (dtype, _) in infos.items():
        if dtype not in NAMES:
            raise CheckpointError(f"{problem} the format has no {dtype}, which {name} is")
    about = {"format": "pt"} if metadata is None else metadata
    try:
        "".join((*infos, *about, *about.values())).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{problem} a name, or a part of the metadata, is no text ({error})"
        ) from None
    if METADATA in infos:
        raise CheckpointError(f"{problem} the format has no tensor called {METADATA}")
    text = usual_header(infos, about) if header is None else header
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, info), tensor in zip(infos.items(), tensors, strict=True):
            check_dense(name, tensor, f"{problem} ", CheckpointError)
            if (tensor.dtype, tuple(tensor.shape)) != info:
                raise CheckpointError(f"{problem} {name} is not of the announced type")
            file.write(memory(tensor).data)
    return 8 + len(text) + sum(info.bytes for info in infos.values())


# --- files ----------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """Where a tensor is, in a file as it was when its header was read."""

    path: Path
    stamp: tuple[int, ...]
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def read(self, info: Info) -> torch.Tensor:
        with _opened(self.path) as (file, stamp):
            if stamp != self.stamp:
                raise CheckpointError(f"{self.path} has been changed meanwhile; start again")
            size = self.end - self.begin
            if size == 0:
                return torch.empty(info.shape, dtype=info.dtype, device="cpu")
            elements = np.fromfile(file, np.uint8, size, offset=self.begin)
            if len(elements) < size:
                raise CheckpointError(f"{self.path} is cut off; {AGAIN}")
            return torch.from_numpy(elements).view(info.dtype).reshape(info.shape)


def _read_header(path: Path) -> tuple[dict[str, _Part], dict[str, str]]:
    """({name: where it is}, the metadata) of a file that the format's own library finds whole."""
    path = path.absolute()  # whatever directory comes
    with _opened(path) as (file, stamp):
        try:
            with utf8_path(path) as name, safe_open(name, "numpy"):
                pass  # has been checked; it gives the metadata in another order every time
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
            metadata = header.pop(METADATA, None) or {}
            parts = {}
            for name, fields in header.items():
                begin, end = (start + offset for offset in fields["data_offsets"])
                shape = tuple(fields["shape"])
                parts[name] = _Part(path, stamp, fields["dtype"], shape, begin, end)
                # PyTorch counts the elements, even if there are none for an extent of 0
                elements = math.prod(max(extent, 1) for extent in shape[:MAX_DIMENSIONS])
                if len(shape) > MAX_DIMENSIONS or elements >= 1 << 60:
                    raise ValueError(f"{name[:80]} has a shape that PyTorch does not have")
        except (*FOREIGN, SafetensorError) as error:
            if what := instead(path):
                raise CheckpointError(f"{path} is no safetensors file, but {what}") from None
            raise CheckpointError(
                f"{path} is damaged or cut off ({reason(error)}); {AGAIN}"
            ) from None
    return parts, metadata


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedReader, tuple[int, ...]]]:
    """A file, and its size and what changes when another takes its place."""
    with one_line(f"{path} cannot be read", CheckpointError, AGAIN, RuntimeError):
        if not path.exists():
            raise CheckpointError(f"{path} is missing; {AGAIN}")
        with open_regular(path) as (file, size):
            found = os.fstat(file.fileno())
            yield file, (size, found.st_mtime_ns, found.st_ino, found.st_dev)
