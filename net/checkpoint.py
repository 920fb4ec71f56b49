"""`.ptmodel` files: `torch.save` of a plain dict, always read with `weights_only=True`.

{"format": "deep-compression 1",
 "state_dict": {name: tensor},          # of the plain architecture: a pruned weight is a zero
 "arch": "lenet-300-100", "stage": "retrained", "dataset": "mnist",
 "options": {option: value},            # what made it; no paths, no clock: same run, same bytes
 "metrics": {name: number},
 "extra": {field: value}}               # what else the file had from which it was made; or absent
"""

import argparse
import io
import json
import os
import pickle
import re
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from . import formats, state_dicts
from .errors import UserError
from .files import FOREIGN, as_path, atomic_write, open_regular, reason, utf8_path
from .formats import CheckpointError as CheckpointError
from .shards import METADATA, Shards
from .state_dicts import NotPlain, plain, to_json
from .tensors import TensorMap, check_dense, identity, memory
from .threads import in_order

FORMAT = "deep-compression 1"
# What a file has; "extra" only where there is something in it.
FIELDS = ("state_dict", "arch", "stage", "dataset", "options", "metrics")

# What the stages call their files.
INITIAL = "initial_model.ptmodel"
TEACHER = "teacher_model.ptmodel"
RETRAINED = "model_after_retraining.ptmodel"
MADE_FROM = "made_from"  # in the options of a shared model: the fingerprint of its source
SHARED = "model_after_weight_sharing.ptmodel"
DECODED = "model_after_decoding.ptmodel"
STAGE_FILES = {
    "initial": INITIAL,
    "retrained": RETRAINED,
    "weight_shared": SHARED,
    "decoded": DECODED,
}


@dataclass
class Checkpoint:
    """A model between two stages.  `arch` and `dataset` are None for a bare state dict.

    `extra` has the plain values that somebody else's file holds beside its tensors, where it has
    them; those of a safetensors file under METADATA. `notes`, which are not saved, are what a user
    should know of a file that was read.
    """

    state_dict: Mapping[str, torch.Tensor]
    arch: str | None = None
    stage: str | None = None
    dataset: str | None = None
    options: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    extra: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def metadata(self) -> dict[str, str]:
        """What a safetensors file of this model says of itself."""
        own = {str(key): value for key, value in self.extra.items()}
        about = own.get(METADATA)
        if isinstance(about, dict) and all(
            isinstance(each, str) for each in (*about, *about.values())
        ):
            del own[METADATA]
        else:
            about = {"format": "pt"}
        texts = {k: v if isinstance(v, str) else json.dumps(to_json(v)) for k, v in own.items()}
        return about | texts


def load(path: str | Path, key: str | None = None) -> Checkpoint:
    """Read a checkpoint, or a bare state dict that somebody else saved: a file of torch.save or a
    safetensors file, whatever it is called, or a folder of Hugging Face's with its shards.

    The state dict may be at any depth; `key`, its dotted path, chooses one of several. Tensors are
    read when they are asked for (safetensors), or memory-mapped where the file allows it, so that
    a large model is read tensor by tensor.  Raises CheckpointError; never runs code from the file.
    """
    file = formats.weights_file(as_path(path, CheckpointError))
    if formats.is_safetensors(file):
        state = Shards(file)
        model = Checkpoint(state, extra={METADATA: state.metadata} if state.metadata else {})
    else:
        index = formats.is_index(file)
        content = formats.indexed(file, load_dict) if index else load_dict(file)
        if content.get("format") == FORMAT:
            model = _own(file, content)
        else:
            try:
                tensors, extra, notes, _ = state_dicts.find(content, key)
            except ValueError as error:
                raise CheckpointError(f"{file} {error}") from None
            model = Checkpoint(tensors, extra=extra, notes=[f"{file}: {note}" for note in notes])
            key = None  # has been used
        files = set(formats.weight_map(file).values()) if index else {file}
        if mapped := [part for part in files if is_mapped(part)]:
            model.state_dict = MappedState(mapped, model.state_dict)
    if key is not None:
        raise CheckpointError(f"{file} holds one model, which needs no key")
    return model


def save(path: str | Path, checkpoint: Checkpoint) -> int:
    """Write `checkpoint` to `path` atomically; return the size of the file in bytes.

    Raises CheckpointError, with the old file as it was, for what `load` would refuse."""
    path = as_path(path, CheckpointError)
    if not isinstance(checkpoint, Checkpoint):
        kind = type(checkpoint).__name__
        raise CheckpointError(
            f"cannot write {path}: a {kind}, not a Checkpoint; give Checkpoint(state_dict)"
        )
    if not isinstance(checkpoint.state_dict, Mapping):
        kind = type(checkpoint.state_dict).__name__
        raise CheckpointError(f"cannot write {path}: a {kind}, not a state dict")
    state = dict(checkpoint.state_dict)
    _check(state, f"cannot write {path}: ")
    content = {"format": FORMAT, **shallow_dict(checkpoint), "state_dict": state}
    outline = content | {"state_dict": dict.fromkeys(state, torch.empty(0, device="cpu"))}
    file = io.BytesIO()
    try:  # whether what is beside the tensors comes back
        torch.save(outline, file)
        file.seek(0)
        _own(path, _unpickled(file))
    except (*FOREIGN, pickle.PickleError, CheckpointError) as error:
        what = f" ({refused})" if (refused := _refused(error)) else ""
        raise CheckpointError(
            f"cannot write {path}: it could not be read again; there must be tensors, all under "
            f"texts, and beside them only numbers, texts, lists and dicts{what}"
        ) from None
    save_dict(path, content)
    return path.stat().st_size


def shallow_dict(checkpoint: Checkpoint) -> dict:
    found = {name: getattr(checkpoint, name) for name in FIELDS}
    return found | ({"extra": checkpoint.extra} if checkpoint.extra else {})


def _own(path: Path, content: Mapping) -> Checkpoint:
    fields: dict[str, Any] = {name: content.get(name) for name in FIELDS}
    try:
        fields["extra"] = plain(content.get("extra", {}))
    except NotPlain:
        fields["extra"] = None
    state = fields["state_dict"]
    valid = (
        isinstance(state, dict)
        and state
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())
        and all(isinstance(fields[k], str | None) for k in ("arch", "stage", "dataset"))
        and all(isinstance(fields[k], dict) for k in ("options", "metrics", "extra"))
    )
    if not valid:
        raise CheckpointError(f"{path} is damaged: fields are missing; make it again")
    _check(state, f"{path} holds what cannot be read, ")
    return Checkpoint(**fields)


def _check(state: Mapping[str, torch.Tensor], problem: str) -> None:
    for name, tensor in state.items():
        check_dense(name, tensor, problem, CheckpointError)


def copied(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy of a state dict on the CPU, contiguous; names of one tensor (tied weights) stay so.

    What is written in place under one name is then written under all, and a file holds it once.
    """
    found = dict(state)
    _check(found, "cannot copy ")
    copies = {}
    for tensor in found.values():
        if identity(tensor) not in copies:
            copy = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            copies[identity(tensor)] = copy
    return {name: copies[identity(tensor)] for name, tensor in found.items()}


# --- files of torch.save: writing -----------------------------------------------------------------


def save_dict(path: str | Path, content: dict) -> None:
    """`torch.save` to `path`, atomically; CheckpointError where that cannot be written."""
    try:
        # Given a file object, torch.save names the archive "archive" whatever the path, so that
        # equal content gives equal bytes.
        with atomic_write(path) as file:
            sink = _Sink(file)
            # In a thread: signals come to the main thread, which can say what came.
            for _ in in_order(torch.save, [(content, cast(BinaryIO, sink))]):
                pass
            if sink.error is not None:
                raise sink.error
    except UserError as error:
        raise CheckpointError(str(error)) from None
    except RuntimeError as error:  # of torch, for views of one memory as different types
        raise CheckpointError(f"cannot write {path}: {reason(error)}") from None


class _Sink:
    """A file that torch.save can write to without ever seeing an error, which is kept instead.

    torch makes another error of one, or, in the destructor of its archive, ends the process.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except BaseException as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        pass


# --- files of torch.save: reading -----------------------------------------------------------------

# What torch's reader of plain tensors says of the class or function that is none.
REFUSED = re.compile(r"GLOBAL ([\w.]+)|class '([\w.]+)'|load (DTensors|nested jagged tensors)")
# Bytes. A smaller file is read as a whole, and may change while its tensors are in use.
MAPPED_FROM = 1 << 28
# Bytes that an archive may hold for each of its own, and that are no matter.
MOST_INFLATED, SMALL_INFLATED = 8, 1 << 26


def _empty_array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """What NumPy has every pickled array begin as, and no other, which could be of any size."""
    if kind is not np.ndarray or shape != (0,):
        raise ValueError("an array that NumPy has not pickled")
    return np.empty(0, np.int8)


def _scalar(kind: np.dtype, data: bytes) -> Any:
    """A number of NumPy's, all of whose bytes are there: without, it could be of any size."""
    if not isinstance(kind, np.dtype) or type(data) is not bytes or len(data) != kind.itemsize:
        raise ValueError("a number that NumPy has not pickled")
    return _SCALAR(kind, data)


_SCALAR: Any = np.float64(0).__reduce__()[0]
_RECONSTRUCT: Any = np.zeros(0).__reduce__()[0]
# What others have beside their tensors, which is data and no more: the arguments of a command line,
# paths in them, bytes, and the numbers of NumPy.
PLAIN_CLASSES: list = [
    argparse.Namespace,
    io.BytesIO,
    *((PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
    *(np.dtype, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}),
    np.ndarray,
    (_scalar, f"{_SCALAR.__module__}.{_SCALAR.__name__}"),
    (_empty_array, f"{_RECONSTRUCT.__module__}.{_RECONSTRUCT.__name__}"),
    # as NumPy 1 has called them
    (_scalar, "numpy.core.multiarray.scalar"),
    (_empty_array, "numpy.core.multiarray._reconstruct"),
]


def load_dict(path: str | Path) -> dict:
    """The dict in a file written by `torch.save`, unpickled with `weights_only=True`."""
    path = as_path(path, CheckpointError)
    if not os.path.isfile(path):
        raise formats.MissingError(path)
    if what := formats.instead(path):  # before torch.load reads it, whatever it takes
        raise CheckpointError(f"{path} is {what}")
    with _unpickling(path):
        _check_inflated(path, path, path.stat().st_size)
        with path.open("rb") as file, utf8_path(path) as name:
            content = _unpickled(name, mmap=True) if is_mapped(path) else _unpickled(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no model: expected a .ptmodel file or a state dict")
    return content


def load_tensor(path: Path, offset: int, size: int) -> torch.Tensor:
    """The tensor of which a part of a file is what `torch.save` has written. CheckpointError."""
    with _unpickling(path):
        with open_regular(path) as (file, _):
            file.seek(offset)
            part = io.BytesIO(file.read(size))
        _check_inflated(path, part, size)
        part.seek(0)
        found = _unpickled(part)
    if not isinstance(found, torch.Tensor):
        raise CheckpointError(f"{path} is damaged: it holds no tensor at {offset}; make it again")
    check_dense(path.name, found, f"{path} holds what cannot be read, ", CheckpointError)
    return found.detach()


@contextmanager
def _unpickling(path: Path) -> Iterator[None]:
    """CheckpointError for whatever torch.load raises of the file."""
    try:
        yield
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}; {formats.GIVE}") from None
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises whatever a damaged zip or pickle leads to
        if refused := _refused(error):
            raise CheckpointError(
                f"{path} is refused: it is not a file of plain tensors ({refused}), and "
                "reading more than that could run code; save its state_dict() instead"
            ) from None
        raise CheckpointError(
            f"{path} is not a checkpoint, or is damaged or cut off; make it again"
        ) from None


_ALLOWING = threading.Lock()  # torch's list of classes is one for all threads


def _unpickled(source: str | BinaryIO, mmap: bool = False) -> Any:
    with _ALLOWING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols, which say nothing to a user
        own = torch.serialization.get_safe_globals()
        try:
            with torch.serialization.safe_globals(PLAIN_CLASSES):
                return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
        finally:
            torch.serialization.add_safe_globals(own)  # some of which have been taken away again


def _refused(error: Exception) -> str | None:
    """The class or function that an error of torch's reader names."""
    found = REFUSED.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    return found[found.lastindex or 0] if found else None


def _check_inflated(path: Path, source: Path | BinaryIO, size: int) -> None:
    """Raise CheckpointError for an archive of `size` bytes that holds far more. torch.save
    compresses nothing, but torch.load unpacks what somebody else has compressed."""
    try:
        with zipfile.ZipFile(source) as archive:
            most = max(SMALL_INFLATED, MOST_INFLATED * size)
            inflated = sum(part.file_size for part in archive.infolist())
    except (*FOREIGN, zipfile.BadZipFile, NotImplementedError):
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
            file.seek(0)
            if file.read(4) == b"PK\3\4":  # which torch.load could read, whatever it takes
                raise
        return  # torch.load says what it is
    if inflated > most:
        raise CheckpointError(
            f"{path} is refused: unpacked, it takes {inflated} bytes; save its state_dict() again, "
            "without compression"
        )


def is_mapped(path: Path) -> bool:
    """Whether the file is large enough to be mapped, and of a layout that can be (PyTorch 1.6 and
    later); by its name, for which torch.load would take a safetensors file."""
    large = path.suffix != formats.SUFFIX and path.stat().st_size >= MAPPED_FROM
    return large and zipfile.is_zipfile(path)


def fingerprint(source: Checkpoint) -> int:
    """The CRC-32 of all tensors and their names."""
    found = 0
    for name, tensor in source.state_dict.items():
        found = zlib.crc32(memory(tensor).data, zlib.crc32(name.encode(), found))
    return found


class MappedState(TensorMap):
    """A state dict in memory-mapped files.

    Touching memory whose part of the file is gone ends the process (SIGBUS). So the sizes of the
    files are looked at before a tensor is given: CheckpointError where one has been cut off.
    """

    def __init__(self, files: list[Path], tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = self._named = tensors
        self.statuses = {path.absolute(): path.stat() for path in files}

    def __getitem__(self, name: str) -> torch.Tensor:
        for path, before in self.statuses.items():
            with suppress(OSError):  # what is removed or replaced by a rename stays mapped
                now = path.stat()
                if os.path.samestat(now, before) and now.st_size < before.st_size:
                    raise CheckpointError(f"{path} was cut off while it was in use; make it again")
        return self.tensors[name]
