"""From checkpoints to modules, and which of a checkpoint's parameters are compressed."""

import math

import torch
from torch import nn

from ..checkpoint import Checkpoint
from ..errors import UserError
from ..parameters import compressible
from ..shards import info_of
from . import architectures


def restored(source: Checkpoint, device: torch.device | str = "cpu") -> nn.Module:
    """The module that `source` is the state dict of, on `device`. Raises UserError if it does not
    fit its architecture."""
    if source.arch is None:
        raise UserError("a bare state dict cannot be run: name its architecture")
    if ":" not in source.arch:  # code of the user's own may take what it likes
        _check_size(source)
    model = architectures.build(source.arch)
    try:
        model.load_state_dict(source.state_dict)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"the model does not fit the architecture {source.arch}: {reason}"
        ) from None
    return placed(model, device)


def _check_size(source: Checkpoint) -> None:
    """Refuse an architecture far larger than its state dict before memory is taken for it: the
    file that names it may ask for a thousand million classes."""
    state, skeleton = source.state_dict, architectures.skeleton(source.arch or "")
    wanted = sum(parameter.numel() for parameter in skeleton.parameters())
    given = sum(math.prod(info_of(state, name).shape) for name in state)
    if wanted > 2 * given + 1_000_000:
        raise UserError(
            f"the model does not fit the architecture {source.arch}: it has {given} values, not "
            f"{wanted}"
        )


def placed(model: nn.Module, device: torch.device | str) -> nn.Module:
    """`model` on `device`, 2-D convolutions in channels-last order: on a CPU LeNet-5 trains 1.5
    times as fast, and GPUs prefer it too."""
    model = model.to(device)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def kinds_of(source: Checkpoint) -> dict[str, str]:
    """{name: kind} of the parameters that are compressed (net.parameters), from the architecture
    where it is known, else from the names and shapes in the state dict."""
    if source.arch is not None:
        return compressible(architectures.skeleton(source.arch))
    return compressible(source.state_dict)


def parameter_names(arch: str) -> set[str]:
    """The names in the state dict that are parameters, not buffers; of tied ones the first."""
    return {name for name, _ in architectures.skeleton(arch).named_parameters()}
