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
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import formats
from .errors import UserError
from .files import FOREIGN, atomic_write, one_line, open_regular, read_file, reason
from .tensors import TensorError, check_dense

SUFFIX = ".safetensors"
AGAIN = "fetch it again"
MAX_INDEX_BYTES = 1 << 26
MAX_HEADER_BYTES = 100_000_000  # as in the format's own library
MAX_DIMENSIONS = 64  # of a tensor
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
METADATA = "__metadata__"  # of a header: what the file says of itself
# What a folder may hold beside: of a trainer's state, not of the model.
NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state).*")
WEIGHTS = (SUFFIX, ".bin", ".pth", ".pt", ".th", ".pth.tar", ".ckpt", ".ptmodel")

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
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
if hasattr(torch, "float8_e8m0fnu"):
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ShardsError(UserError):
    """A safetensors file or a folder of them that cannot be read or written."""


class Info(NamedTuple):
    """What a header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Shards(Mapping[str, torch.Tensor]):
    """A read-only mapping: shards[name] reads that tensor and no other.

    `path` is a safetensors file, an index, or a folder with one of them. `metadata` is what the
    files say of themselves. The headers are read once, and a tensor's file is opened when it is
    asked for, by as many threads as like. Raises ShardsError for what is missing or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = weights_file(path)
        self.metadata: dict[str, str] = {}
        if is_index(self.path):
            self._parts = self._indexed(self.path)
        elif not os.path.isfile(self.path):
            raise ShardsError(f"no model at {self.path}; give the path of a saved model")
        else:
            self._parts = self._of_file(self.path)
        if not self._parts:
            raise ShardsError(f"{self.path} holds no tensors")

    def info(self, name: str) -> Info:
        """The type and shape of a tensor, without reading it."""
        part = self._parts[name]
        if part.kind not in DTYPES:
            raise ShardsError(
                f"{part.file.path}: {name} is of type {part.kind}, which is not supported"
            )
        return Info(DTYPES[part.kind], part.shape)

    def __getitem__(self, name: str) -> torch.Tensor:
        part, info = self._parts[name], self.info(name)
        elements = part.file.read(part.begin, part.end)
        return elements.view(info.dtype).reshape(info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def _of_file(self, path: Path) -> "dict[str, _Part]":
        parts, metadata = _read_header(path)
        self.metadata |= metadata
        return parts

    def _indexed(self, index: Path) -> "dict[str, _Part]":
        files = weight_map(index)
        parts = {file: self._of_file(file) for file in sorted(set(files.values()))}
        for name, file in files.items():
            if name not in parts[file]:
                raise ShardsError(f"{file} lacks {name}, which {index.name} names")
        return {name: parts[file][name] for name, file in files.items()}


def is_shards(file: str | Path) -> bool:
    """Whether a file is one of safetensors', or an index of some, whatever it is called."""
    file = Path(file)
    if is_index(file):
        return all(name.suffix == SUFFIX for name in weight_map(file).values())
    try:
        with open_regular(file) as (opened, size):
            head = opened.read(9)
    except OSError:
        return file.suffix == SUFFIX
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size:
        return True
    # One that is cut off or something else; torch's files alone are not read as safetensors.
    return file.suffix == SUFFIX and not head.startswith((b"PK\3\4", b"\x80"))


def is_index(file: str | Path) -> bool:
    return bool(re.fullmatch(r".+\.index(\.\w+)?\.json", Path(file).name))


def weight_map(index: Path) -> dict[str, Path]:
    """{tensor: its file, beside the index}. Raises ShardsError."""
    with one_line(index, ShardsError, "give the path of a saved model"):
        data = read_file(index, MAX_INDEX_BYTES)
    try:
        content = json.loads(data)
        files = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(files, dict) or not files:
            raise ValueError("no weight_map")
        for name, file in files.items():
            # beside the index, and nowhere else
            plain = isinstance(file, str) and file.isprintable() and file not in ("", "..")
            if not plain or Path(file).name != file:
                raise ValueError(f"the file of {name[:80]!r} in its weight_map is missing")
    except FOREIGN as error:
        what = formats.instead(index) or ""
        what = f"it is {what}" if "LFS" in what or "HTML" in what else f"{reason(error)}; {AGAIN}"
        raise ShardsError(f"{index} is damaged: {what}") from error
    return {name: index.parent / file for name, file in files.items()}


def weights_file(path: str | Path) -> Path:
    """`path`, or of a folder the file of its weights, or the index of its files.

    An index comes first, then model.safetensors, then the only other one; a safetensors file makes
    those of torch.save unnecessary. Raises ShardsError for none, and for several.
    """
    path = Path(path)
    if not os.path.isdir(path):
        return path
    with one_line(path, ShardsError, "give the path of a saved model"):
        files = sorted(file for file in path.iterdir() if os.path.isfile(file))
    indexes = [file for file in files if is_index(file)]
    single = [path / SINGLE] if path / SINGLE in files else []
    weights = [
        file
        for file in files
        if file.name.endswith(WEIGHTS) and not NO_WEIGHTS.fullmatch(file.name)
    ]
    safe = [file for file in weights if file.suffix == SUFFIX]
    safe_indexes = [file for file in indexes if SUFFIX in file.name]
    for found in (safe_indexes, single, safe, indexes, weights):
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(file.name for file in found)
            raise ShardsError(f"{path} holds several weights: {names}; give the path of one")
    below = sorted({file.parent.name for file in path.glob("*/*") if file.name.endswith(WEIGHTS)})
    if below:
        raise ShardsError(
            f"{path} holds no weights itself; give the path of one of its folders: "
            + ", ".join(below)
        )
    other = max(files, key=lambda file: file.stat().st_size, default=path)
    if what := formats.instead(other):
        raise ShardsError(f"{path} holds no weights; its largest file, {other.name}, is {what}")
    raise ShardsError(
        f"no {INDEX} or {SINGLE} in {path}, nor other weights; give the path of a saved model"
    )


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
    one, stays until the new one is whole. Raises ShardsError for a type
    that the format does not have, and for a tensor that is not as announced.
    """
    fields, size = {}, 0
    for name, (dtype, shape) in infos.items():
        if dtype not in NAMES:
            raise ShardsError(f"cannot write {path}: the format has no {dtype}, which {name} is")
        end = size + dtype.itemsize * math.prod(shape)
        fields[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [size, end]}
        size = end
    about = {"format": "pt"} if metadata is None else dict(metadata)
    try:
        "".join((*fields, *about, *about.values())).encode()
    except (TypeError, ValueError) as error:
        raise ShardsError(
            f"cannot write {path}: a name, or a part of the metadata, is no text ({error})"
        ) from None
    if METADATA in fields:
        raise ShardsError(f"cannot write {path}: the format has no tensor called {METADATA}")
    text = json.dumps({METADATA: about, **fields}).encode()
    text += b" " * (-len(text) % 8)  # elements begin at a multiple of 8
    text = text if header is None else header
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, info), tensor in zip(infos.items(), tensors, strict=True):
            try:
                check_dense(name, tensor)
            except TensorError as error:
                raise ShardsError(f"cannot write {path}: {error}") from None
            if (tensor.dtype, tuple(tensor.shape)) != info:
                raise ShardsError(f"cannot write {path}: {name} is not of the announced type")
            flat = tensor.detach().cpu().resolve_conj().resolve_neg().reshape(-1)
            if flat.stride(0) != 1:  # an expanded tensor, or one element of a strided one
                flat = flat.clone(memory_format=torch.contiguous_format)
            file.write(flat.view(torch.uint8).numpy().data)
    return 8 + len(text) + size


def info_of(state: Mapping[str, torch.Tensor], name: str) -> Info:
    """Type and shape of state[name], from its header where the mapping has one."""
    of = getattr(state, "info", None)
    found = of(name) if of else state[name]
    return Info(found.dtype, tuple(found.shape))


# --- headers --------------------------------------------------------------------------------------


class _File(NamedTuple):
    """A file as it was when its header was read."""

    path: Path
    start: int  # where the elements begin
    stamp: tuple[int, ...]

    def read(self, begin: int, end: int) -> torch.Tensor:
        """The bytes of one tensor, uint8[end - begin]."""
        with _opened(self.path) as file:
            if _stamp(file.fileno()) != self.stamp:
                raise ShardsError(f"{self.path} has been changed meanwhile; start again")
            elements = torch.empty(end - begin, dtype=torch.uint8)
            file.seek(self.start + begin)
            left = elements.numpy().data
            while left:  # a call reads 2 GiB at most
                count = file.readinto(left)
                if not count:
                    raise ShardsError(f"{self.path} is cut off; {AGAIN}")
                left = left[count:]
            return elements


class _Part(NamedTuple):
    """Where a tensor is."""

    file: _File
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _read_header(path: Path) -> tuple[dict[str, _Part], dict[str, str]]:
    """({name: where it is}, the metadata) of a file whose every byte belongs to a tensor."""
    with _opened(path) as opened:
        stamp = _stamp(opened.fileno())
        length = int.from_bytes(opened.read(8), "little")
        size = stamp[0] - 8 - length
        try:
            if size < 0 or stamp[0] < 8:
                raise ValueError("the header ends early")
            if length > MAX_HEADER_BYTES:
                raise ValueError("the header is too large")
            header = json.loads(opened.read(length), object_pairs_hook=_distinct)
            if not isinstance(header, dict):
                raise ValueError("the header is no object")
            metadata = header.pop(METADATA, None) or {}
            if not isinstance(metadata, dict) or not all(
                isinstance(text, str) for text in metadata.values()
            ):
                raise ValueError("the metadata are no texts")
            file = _File(path.absolute(), 8 + length, stamp)  # whatever directory comes
            parts = {name: _part(file, name, fields) for name, fields in header.items()}
            position = 0
            for part in sorted(parts.values(), key=lambda part: (part.begin, part.end)):
                if part.begin != position:
                    raise ValueError("tensors overlap, or there is a gap between them")
                position = part.end
            if position != size:
                raise ValueError(f"{size} bytes of elements, not {position}")
        except FOREIGN as error:
            if what := formats.instead(path):
                raise ShardsError(f"{path} is no safetensors file, but {what}") from None
            raise ShardsError(f"{path} is damaged or cut off ({reason(error)}); {AGAIN}") from None
    return parts, metadata


def _part(file: _File, name: str, fields: object) -> _Part:
    match fields:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [begin, end]} if all(
            type(number) is int and number >= 0 for number in (*shape, begin, end)
        ):
            known = DTYPES.get(kind)
            possible = len(shape) <= MAX_DIMENSIONS and begin <= end
            if possible and (known is None or _bytes(shape, known) == end - begin):
                return _Part(file, kind, tuple(shape), begin, end)
    raise ValueError(f"{name[:80]} has no type, or its shape is not that of its elements")


def _bytes(shape: list[int], dtype: torch.dtype) -> int | None:
    """None for more than can be counted, of which an extent of 0 would make nothing."""
    if math.prod(max(extent, 1) for extent in shape) * dtype.itemsize >= 1 << 63:
        return None
    return math.prod(shape) * dtype.itemsize


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name appears twice")
    return found


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    problem = f"{path} cannot be read"
    with one_line(problem, ShardsError, AGAIN, RuntimeError):
        if not path.exists():
            raise ShardsError(f"{path} is missing; {AGAIN}")
        with open_regular(path) as (file, _):
            yield file


def _stamp(handle: int) -> tuple[int, ...]:
    """The size of an open file, and what changes when another takes its place."""
    found = os.fstat(handle)
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev
