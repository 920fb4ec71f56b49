"""`.ptmodel` files: `torch.save` of a plain dict, always read with `weights_only=True`.

{"format": "deep-compression 1",
 "state_dict": {name: tensor},          # of the plain architecture: a pruned weight is a zero
 "arch": "lenet-300-100", "stage": "retrained", "dataset": "mnist",
 "options": {option: value},            # what made it; no paths, no clock: same run, same bytes
 "metrics": {name: number}}
"""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import torch

from . import shards
from .codec.tensors import identity, is_expanded
from .errors import UserError
from .files import atomic_write

FORMAT = "deep-compression 1"
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
    content = shallow_dict(checkpoint) | {"state_dict": dict(checkpoint.state_dict)}
    save_dict(path, {"format": FORMAT, **content})
    return Path(path).stat().st_size


def shallow_dict(checkpoint: Checkpoint) -> dict:
    return {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint, or a bare state dict that somebody else saved: a .pt or .safetensors file,
    or a folder of Hugging Face's shards.

    Tensors are read when they are asked for (safetensors), or memory-mapped where the file allows
    it, so that a large model is read tensor by tensor.  Raises CheckpointError; never runs code
    from the file.
    """
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
        return Checkpoint(**{**fields, "state_dict": _stored(path, fields["state_dict"])})
    if is_state_dict(content):
        return Checkpoint(_stored(path, content))
    nested = {key: value for key, value in content.items() if is_state_dict(value)}
    for key in (*NESTED, *(nested if len(nested) == 1 else ())):
        if key in nested:
            return Checkpoint(_stored(path, nested[key]))
    if nested:
        raise CheckpointError(
            f"{path} holds several models: {', '.join(map(str, nested))}; save one by itself"
        )
    raise CheckpointError(f"{path} holds no model: expected a .ptmodel file or a state dict")


def _stored(path: str | Path, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict out of the file `path`, whose tensors are about as large as the file says."""
    for name, tensor in state.items():
        if tensor.is_meta:
            raise CheckpointError(f"{path}: {name} has no values (device meta); save it with them")
        if is_expanded(tensor):
            raise CheckpointError(
                f"{path}: {name} is an expanded tensor of {tensor.nbytes} bytes; save what it is "
                "expanded from"
            )
    return dict(state)


def copied(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy of a state dict on the CPU, contiguous; names of one tensor (tied weights) stay so.

    What is written in place under one name is then written under all, and a file holds it once.
    """
    found = dict(state)
    copies = {}
    for tensor in found.values():
        if identity(tensor) not in copies:
            copy = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            copies[identity(tensor)] = copy
    return {name: copies[identity(tensor)] for name, tensor in found.items()}


def save_dict(path: str | Path, content: dict) -> None:
    # Given a file object, torch.save names the archive "archive" whatever the path, so that equal
    # content gives equal bytes.
    with atomic_write(path) as file:
        torch.save(content, file)


def load_dict(path: str | Path) -> dict:
    """The dict in a file written by `torch.save`, unpickled with `weights_only=True`."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no model at {path}{origin(path)}")
    try:
        with warnings.catch_warnings():  # of pickle protocols, which say nothing to a user
            warnings.simplefilter("ignore")
            # Only the zip layout (PyTorch 1.6 and later) can be mapped.
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
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
