"""Folders of torch.distributed.checkpoint, read tensor by tensor, and none of their code run.

Its `.metadata` is a pickle, of what classes of PyTorch keep. Here it makes none of these: every
class that it may name becomes a `_Record`, which has their fields and does nothing, and any other
is refused. The parts of tensors, in `.distcp` files, are read as all files of torch.save are
(net.checkpoint).
"""

import io
import itertools
import math
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import checkpoint, state_dicts
from .container import unsafe
from .errors import some_names
from .files import one_line, read_file
from .formats import AGAIN, CheckpointError
from .tensors import Info, TensorMap

METADATA, SUFFIX = ".metadata", ".distcp"
MAX_METADATA_BYTES = 1 << 30
MAX_DIMENSIONS, MAX_ELEMENTS = 64, 1 << 58  # whose bytes an int64 can count


class _Record:
    """What the pickle holds of an object: its fields, or `state` where that is no dict of them."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


def _size(extents: Any = ()) -> tuple[int, ...]:
    found = tuple(extents) if len(extents) <= MAX_DIMENSIONS else ()
    if (
        len(found) < len(extents)
        or not all(type(each) is int and each >= 0 for each in found)
        or math.prod(max(each, 1) for each in found) > MAX_ELEMENTS
    ):
        raise ValueError("a shape that PyTorch does not have")
    return found


OWN = "torch.distributed.checkpoint"
CLASSES: dict[tuple[str, str], Any] = {
    **{
        (f"{OWN}.metadata", name): _Record
        for name in (
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata"),
            *("BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
            "_MEM_FORMAT_ENCODING",
        )
    },
    (f"{OWN}.filesystem", "_StorageInfo"): _Record,
    ("torch.serialization", "_get_layout"): _Record,
    ("torch", "Size"): _size,
    **{(f"pathlib{own}", f"{system}Path"): _Record for own in ("", "._local")
       for system in ("Posix", "Windows")},
    **{("torch", name): kind for name, kind in vars(torch).items() if type(kind) is torch.dtype},
}  # fmt: skip


class _Reader(pickle._Unpickler):
    """Python's own: that in C takes as much memory as a number in a few bytes asks it to."""

    def find_class(self, module: str, name: str) -> Any:
        found = CLASSES.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"refused: it names {module}.{name}, which could run code")
        return found


class _Part(NamedTuple):
    """A block of a tensor, and where it is."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    begin: int
    length: int


class Saved(TensorMap):
    """A state dict, of which a tensor is read when it is asked for."""

    def __init__(self, folder: Path, tensors: dict[str, tuple[Info, list[_Part]]]) -> None:
        self.folder = folder
        self.tensors = self._named = tensors

    @property
    def files(self) -> int:
        """How many files have some of it."""
        return len({part.file for _, parts in self.tensors.values() for part in parts}) or 1

    def info(self, name: str) -> Info:
        return self.tensors[name][0]

    def __getitem__(self, name: str) -> torch.Tensor:
        (dtype, shape), parts = self.tensors[name]
        for part in parts:  # before there is memory for them
            path = self.folder / part.file
            with one_line(path, CheckpointError, AGAIN):
                if path.stat().st_size < part.begin + part.length:
                    raise CheckpointError(f"{path} is cut off; {AGAIN}")
        found = torch.zeros(shape, dtype=dtype, device="cpu")
        for offsets, sizes, file, begin, length in parts:
            block = checkpoint.load_tensor(self.folder / file, begin, length)
            if (block.dtype, tuple(block.shape)) != (dtype, sizes):
                raise CheckpointError(f"{self.folder / file}: {name} is not as announced; {AGAIN}")
            found[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))] = block
        return found


def read(folder: Path, key: str | None = None) -> tuple[Saved, list[str]]:
    """The state dict that was saved into `folder`, or the one at the dotted path `key`, and what a
    user should know. Raises CheckpointError."""
    with one_line(folder / METADATA, CheckpointError, AGAIN, pickle.UnpicklingError, EOFError):
        data = read_file(folder / METADATA, MAX_METADATA_BYTES)
        metadata = _Reader(io.BytesIO(data)).load()
        tensors, others = _tensors(metadata)
        paths = metadata.planner_data or {}
        outline: dict = {}
        ends: dict[tuple[str, ...], str] = {}
        # By where they were in what was saved, as net.state_dicts finds a model in files.
        for name, (info, _) in tensors.items():
            place = tuple(map(str, paths.get(name, (name,))))
            inner = outline
            for part in place[:-1]:
                inner = inner.setdefault(part, {})
            inner[place[-1]] = torch.empty(info.shape, dtype=info.dtype, device="meta")
            ends[place] = name
        path = state_dicts.path_of(outline, key)
        own = {place[-1]: tensors[name] for place, name in ends.items() if place[:-1] == path}
    lost = [".".join(place) for place in ends if place[:-1] != path] + others
    notes = [f"beside the model and not kept: {some_names(lost)}"] if lost else []
    return Saved(folder, own), notes


def _tensors(metadata: Any) -> tuple[dict[str, tuple[Info, list[_Part]]], list[str]]:
    """(all tensors that are saved, the names of what is none). Raises what is in FOREIGN for what
    is not as PyTorch has it."""
    indexes = metadata.storage_data.items()
    places = {(index.fqn, getattr(index, "offset", None)): place for index, place in indexes}
    found, others = {}, []
    for name, each in metadata.state_dict_metadata.items():
        if not hasattr(each, "size"):
            others.append(str(name))
            continue
        info, parts = Info(each.properties.state[0], each.size), []
        if type(name) is not str or type(info.dtype) is not torch.dtype:
            raise ValueError("a tensor without a name or a type")
        for chunk in each.chunks:
            place = places[name, chunk.offsets]
            part = _Part(
                chunk.offsets, chunk.sizes, place.relative_path, place.offset, place.length
            )
            parts.append(part)
            ends = [o + s for o, s in zip(part.offsets, part.sizes, strict=True)]
            if any(e > extent for e, extent in zip(ends, info.shape, strict=True)):
                raise ValueError(f"{name[:80]!r} has a part that is outside of it")
            if what := unsafe(part.file):
                raise ValueError(f"a file {part.file[:80]!r}: {what}")
            if getattr(place, "transform_descriptors", None):
                raise ValueError(f"{name[:80]!r} was compressed by an extension; save it without")
            if not all(type(at) is int and at >= 0 for at in (part.begin, part.length)):
                raise ValueError(f"{name[:80]!r} is nowhere")
            if math.prod(part.sizes) * info.dtype.itemsize > part.length:
                raise ValueError(f"{name[:80]!r} has a part that is not whole")
        if sum(math.prod(part.sizes) for part in parts) != math.prod(info.shape) or _overlap(parts):
            raise ValueError(f"{name[:80]!r} lacks some of its parts")
        found[name] = info, parts
    return found, others


def _overlap(parts: list[_Part]) -> bool:
    """Whether two of the blocks have an element in common."""
    blocks = [part for part in parts if all(part.sizes)]
    if len(blocks) < 2:
        return False
    # Along the dimension that tells most of them apart, few have to be compared.
    dims = range(len(blocks[0].sizes))
    by = max(dims, key=lambda dim: len({block.offsets[dim] for block in blocks}), default=None)
    if by is None:  # two blocks of a tensor without dimensions
        return True
    blocks.sort(key=lambda block: block.offsets[by])
    for i, block in enumerate(blocks):
        for other in itertools.islice(blocks, i + 1, None):
            if other.offsets[by] >= block.offsets[by] + block.sizes[by]:
                break
            if all(
                max(block.offsets[dim], other.offsets[dim])
                < min(block.offsets[dim] + block.sizes[dim], other.offsets[dim] + other.sizes[dim])
                for dim in dims
            ):
                return True
    return False
