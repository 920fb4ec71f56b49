"""Safetensors files, a single one or a folder of shards, read and written tensor by tensor.

The layout of a file (https://github.com/huggingface/safetensors): the length of the header in 8
bytes, little-endian; the header, JSON {name: {"dtype", "shape", "data_offsets"}}; the elements. A
folder has an index, JSON {"weight_map": {name: file}}, as Hugging Face's save_pretrained writes it.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from .errors import UserError
from .files import atomic_write, one_line, read_file, reason

SUFFIX = ".safetensors"
AGAIN = "fetch it again"
MAX_INDEX_BYTES = 1 << 26
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# What the format calls the types; each is stored as it is in memory, little-endian.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ShardsError(UserError):
    """A safetensors file or a folder of them that cannot be read or written."""


class Info(NamedTuple):
    """What a header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Shards(Mapping[str, torch.Tensor]):
    """A read-only mapping: shards[name] reads that tensor and no other.

    `path` is a .safetensors file, or a folder with an index or with a single model.safetensors.
    Raises ShardsError for what is missing or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._files = _files_of(self.path)

    def info(self, name: str) -> Info:
        """The type and shape of a tensor, without reading it."""
        with self._reading(name) as file:
            part = file.get_slice(name)
            kind = part.get_dtype()
            if kind not in DTYPES:
                raise ShardsError(f"{self.path}: {name} is of type {kind}, which is not supported")
            return Info(DTYPES[kind], tuple(part.get_shape()))

    def __getitem__(self, name: str) -> torch.Tensor:
        with self._reading(name) as file:
            return file.get_tensor(name)

    @contextmanager
    def _reading(self, name: str) -> Iterator[Any]:
        path = self._files[name]
        with one_line(path, ShardsError, AGAIN, SafetensorError), _opened(path) as file:
            yield file

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def is_shards(path: str | Path) -> bool:
    """Whether `path` names a .safetensors file or a folder that is to hold some."""
    path = Path(path)
    return path.suffix == SUFFIX or path.is_dir()


def write(
    path: str | Path,
    infos: Mapping[str, Info],
    tensors: Iterable[torch.Tensor],
) -> int:
    """Write a .safetensors file, its `tensors` one after the other in the order of `infos`; return
    its bytes. They need not fit into memory together, as they must for safetensors.torch.save_file.

    The old file, if there is one, stays until the new one is whole. Raises ShardsError for a type
    that the format does not have, and for a tensor that is not as announced.
    """
    header, size = {}, 0
    for name, (dtype, shape) in infos.items():
        if dtype not in NAMES:
            raise ShardsError(f"cannot write {path}: the format has no {dtype}, which {name} is")
        end = size + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [size, end]}
        size = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)  # elements begin at a multiple of 8
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, info), tensor in zip(infos.items(), tensors, strict=True):
            if (tensor.dtype, tuple(tensor.shape)) != info:
                raise ShardsError(f"cannot write {path}: {name} is not of the announced type")
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return 8 + len(text) + size


def info_of(state: Mapping[str, torch.Tensor], name: str) -> Info:
    """Type and shape of state[name], from its header where the mapping has one."""
    of = getattr(state, "info", None)
    found = of(name) if of else state[name]
    return Info(found.dtype, tuple(found.shape))


def _files_of(path: Path) -> dict[str, Path]:
    """{tensor: file}."""
    if path.is_dir() and (path / INDEX).is_file():
        return _indexed(path / INDEX)
    file = path / SINGLE if path.is_dir() else path
    if not file.is_file():
        what = f"no {INDEX} or {SINGLE} in {path}" if path.is_dir() else f"no model at {path}"
        raise ShardsError(f"{what}; give the path of a saved model")
    with _opened(file) as opened:
        names = list(opened.keys())
    if not names:
        raise ShardsError(f"{file} holds no tensors")
    return dict.fromkeys(names, file)


def _indexed(index: Path) -> dict[str, Path]:
    with one_line(f"{index} is damaged", ShardsError, AGAIN):
        files = json.loads(read_file(index, MAX_INDEX_BYTES))
        files = files.get("weight_map") if isinstance(files, dict) else None
        if not isinstance(files, dict) or not files:
            raise ValueError("no weight_map")
        for name, file in files.items():
            # beside the index, and nowhere else
            plain = isinstance(file, str) and file.isprintable() and file not in ("", "..")
            if not plain or Path(file).name != file:
                raise ValueError(f"the file of {name[:80]!r} in its weight_map is missing")
    held: dict[str, set[str]] = {}
    for name, file in files.items():
        held.setdefault(file, set()).add(name)
    for file in sorted(held):
        with _opened(index.parent / file) as opened:
            missing = held[file] - set(opened.keys())
        if missing:
            raise ShardsError(
                f"{index.parent / file} lacks {min(missing)}, which {index.name} names"
            )
    return {name: index.parent / file for name, file in files.items()}


def _opened(file: Path) -> Any:
    try:
        if not file.is_file():
            raise ShardsError(f"{file} is missing; {AGAIN}")
        return safe_open(str(file), framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise ShardsError(f"{file} is damaged or cut off ({reason(error)}); {AGAIN}") from None
