"""`.ptmodel` files: `torch.save` of a plain dict, always read with `weights_only=True`.

{"format": "deep-compression 1",
 "state_dict": {name: tensor},          # of the plain architecture: a pruned weight is a zero
 "arch": "lenet-300-100", "stage": "retrained", "dataset": "mnist",
 "options": {option: value},            # what made it; no paths, no clock: same run, same bytes
 "metrics": {name: number}}
"""

import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, cast

import torch

from . import shards
from .codec.tensors import NO_VALUES, has_values, identity
from .errors import UserError
from .files import atomic_write

FORMAT = "deep-compression 1"
# Bytes. A smaller file is read as a whole, and may change while its tensors are in use.
MAPPED_FROM = 1 << 28
# Keys of the model in files that hold more than one state dict, as others publish them.
NESTED = ("state_dict", "model_state_dict", "model")

# What the stages call their files.
INITIAL = "initial_model.ptmodel"
TEACHER = "teacher_model.ptmodel"
RETRAINED = "model_after_retraining.ptmodel"
SHARED = "model_after_weight_sharing.ptmodel"
DECODED = "model_after_decoding.ptmodel"
STAGE_FILES = {
    "initial": INITIAL,
    "retrained": RETRAINED,
    "weight_shared": SHARED,
    "decoded": DECODED,
}


class CheckpointError(UserError):
    """The file is missing, damaged, unsafe, or not a model."""


@dataclass
class Checkpoint:
    """A model between two stages.  `arch` and `dataset` are None for a bare state dict."""

    state_dict: Mapping[str, torch.Tensor]
    arch: str | None = None
    stage: str | None = None
    dataset: str | None = None
    options: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)


def save(path: str | Path, checkpoint: Checkpoint) -> int:
    """Write `checkpoint` to `path` atomically; return the size of the file in bytes."""
    state = dict(checkpoint.state_dict)
    for name, tensor in state.items():
        if not has_values(tensor):
            raise CheckpointError(f"cannot write {path}: {name}: {NO_VALUES}")
    content = shallow_dict(checkpoint) | {"state_dict": state}
    save_dict(path, {"format": FORMAT, **content})
    return Path(path).stat().st_size


def shallow_dict(checkpoint: Checkpoint) -> dict:
    return {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint, or a bare state dict that somebody else saved: a .pt or .safetensors file,
    or a folder of Hugging Face's shards.

    Tensors are read when they are asked for (safetensors), or memory-mapped where the file is large
    and allows it, so that a large model is read tensor by tensor.  Raises CheckpointError; never
    runs code from the file.
    """
    found = _load(path)
    if is_mapped(Path(path)):
        found.state_dict = MappedState(Path(path), found.state_dict)
    return found


def _load(path: str | Path) -> Checkpoint:
    if shards.is_shards(path):
        try:
            return Checkpoint(shards.Shards(path))
        except shards.ShardsError as error:
            raise CheckpointError(str(error)) from None
    content = load_dict(path)
    if content.get("format") == FORMAT:
        fields: dict[str, Any] = {
            name: content.get(name) for name in Checkpoint.__dataclass_fields__
        }
        valid = (
            is_state_dict(fields["state_dict"])
            and all(isinstance(fields[k], str | None) for k in ("arch", "stage", "dataset"))
            and all(isinstance(fields[k], dict) for k in ("options", "metrics"))
        )
        if not valid:
            raise CheckpointError(f"{path} is damaged: fields are missing; make it again")
        return Checkpoint(**fields)
    if is_state_dict(content):
        return Checkpoint(dict(content))
    nested = {key: value for key, value in content.items() if is_state_dict(value)}
    for key in (*NESTED, *(nested if len(nested) == 1 else ())):
        if key in nested:
            return Checkpoint(dict(nested[key]))
    if nested:
        raise CheckpointError(
            f"{path} holds several models: {', '.join(map(str, nested))}; save one by itself"
        )
    raise CheckpointError(f"{path} holds no model: expected a .ptmodel file or a state dict")


class MappedState(Mapping[str, torch.Tensor]):
    """A state dict in a memory-mapped file.

    Touching memory whose part of the file is gone ends the process (SIGBUS). So the size of the
    file is looked at before a tensor is given: CheckpointError where it has been cut off.
    """

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        self.path, self.tensors, self.status = path.absolute(), tensors, path.stat()

    def __getitem__(self, name: str) -> torch.Tensor:
        with suppress(OSError):  # what is removed or replaced by a rename stays mapped
            now = self.path.stat()
            if os.path.samestat(now, self.status) and now.st_size < self.status.st_size:
                raise CheckpointError(f"{self.path} was cut off while it was in use; make it again")
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def copied(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy of a state dict on the CPU, contiguous; names of one tensor (tied weights) stay so.

    What is written in place under one name is then written under all, and a file holds it once.
    """
    found = dict(state)
    copies = {}
    for name, tensor in found.items():
        if not has_values(tensor):
            raise CheckpointError(f"cannot copy {name}: {NO_VALUES}")
        if identity(tensor) not in copies:
            copy = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            copies[identity(tensor)] = copy
    return {name: copies[identity(tensor)] for name, tensor in found.items()}


def save_dict(path: str | Path, content: dict) -> None:
    """`torch.save` to `path`, atomically; CheckpointError where that cannot be written."""
    # Given a file object, torch.save names the archive "archive" whatever the path, so that equal
    # content gives equal bytes.
    try:
        with atomic_write(path) as file:
            _torch_save(content, _Sink(file))
    except UserError as error:
        raise CheckpointError(str(error)) from None


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


def _torch_save(content: dict, sink: _Sink) -> None:
    target = cast(BinaryIO, sink)
    with ThreadPoolExecutor(1) as pool:
        try:
            # Signals come to the main thread, which can wait for torch and then say what came.
            saving = pool.submit(torch.save, content, target)
        except RuntimeError:  # no thread to be had
            torch.save(content, target)
        else:
            try:
                saving.result()
            except BaseException as error:
                sink.error = sink.error or error  # and the rest is not written
    if sink.error is not None:
        raise sink.error


def load_dict(path: str | Path) -> dict:
    """The dict in a file written by `torch.save`, unpickled with `weights_only=True`."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no model at {path}{origin(path)}")
    try:
        with warnings.catch_warnings():  # of pickle protocols, which say nothing to a user
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped(path))
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is refused: it is not a file of plain tensors, and reading more than that "
            "could run code; save its state_dict() instead"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # torch.load raises whatever a damaged zip or pickle leads to
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript archive, which is code; save the state_dict() of what "
                "torch.jit.load gives instead"
            ) from None
        raise CheckpointError(
            f"{path} is not a checkpoint, or is damaged or cut off; make it again"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no model: expected a .ptmodel file or a state dict")
    return content


def is_mapped(path: Path) -> bool:
    """Whether the file is large enough, and of the layout (PyTorch 1.6 and later), to be mapped."""
    return path.is_file() and path.stat().st_size >= MAPPED_FROM and zipfile.is_zipfile(path)


def is_state_dict(content: object) -> TypeGuard[Mapping[str, torch.Tensor]]:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items())
    )


MADE_BY = {
    INITIAL: "pruning.py",
    TEACHER: "pruning.py",
    RETRAINED: "pruning.py",
    SHARED: "weight_share.py",
    DECODED: "huffman_decode.py",
}


def origin(path: str | Path) -> str:
    """What to do about a missing file: the script that makes it, if it is a stage's."""
    script = MADE_BY.get(Path(path).name)
    return f"; run {script} first" if script else "; give the path of a saved model"
