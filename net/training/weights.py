"""Weights that somebody else has trained, loaded into a model."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from .. import checkpoint
from ..errors import UserError
from ..parameters import compressible, layer_of

# What DistributedDataParallel and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")


def start_from(path: str | Path, model: nn.Module, arch: str) -> list[str]:
    """Load the state dict in the file `path` into `model`, of the architecture `arch`.

    Returns what a user should know of it, a line each.
    """
    return load_into(model, checkpoint.load(path).state_dict, str(path), arch)


def load_into(
    model: nn.Module, given: Mapping[str, torch.Tensor], source: str, arch: str
) -> list[str]:
    """Load the state dict `given`, of the file or the collection `source`, into `model`.

    A last layer of another number of classes is left as it was drawn, which the line returned says:
    that is how a published model is adapted to another data set.  Counters of batches, which
    BatchNorm has had since PyTorch 0.4.1 and needs for no output, may be missing.  Raises UserError
    for any other difference.
    """
    own = model.state_dict()
    given = without_prefixes(given, own)
    other_shape = [name for name in own if name in given and given[name].shape != own[name].shape]
    last_layer = [layer_of(name) for name in compressible(model)][-1:]
    fresh = [name for name in other_shape if layer_of(name) in last_layer]
    wrong = [name for name in other_shape if name not in fresh]
    if not wrong:
        kept = {name: tensor for name, tensor in given.items() if name not in fresh}
        try:  # modules may know names that they once had
            missing, unknown = model.load_state_dict(kept, strict=False)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{source} does not fit --arch {arch}: {reason}") from None
        # A file that stores tied weights once has one of their names.
        held = {own[name].data_ptr() for name in own.keys() - set(missing)}
        wrong = unknown + [
            name
            for name in missing
            if name not in fresh
            and own[name].data_ptr() not in held
            and name.rpartition(".")[2] != "num_batches_tracked"
        ]
    if wrong:
        raise UserError(
            f"{source} does not fit --arch {arch}: {len(wrong)} tensors are missing, unknown or "
            f"of another shape, {wrong[0]} the first; give the architecture that it was saved from"
        )
    if not fresh:
        return []
    names = ", ".join(fresh)
    return [f"{names} of {source} have another number of classes; they start from random values"]


def without_prefixes(
    given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`given` without what stands before every one of its names, unless the model has it too."""
    given = dict(given)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in given) and not given.keys() <= own.keys():
            given = {name.removeprefix(prefix): tensor for name, tensor in given.items()}
    return given
