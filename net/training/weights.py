"""From state dicts, of checkpoints or of what somebody else has trained, to modules."""

import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import torch
from torch import nn

from .. import checkpoint
from ..checkpoint import Checkpoint
from ..errors import UserError
from ..files import reason
from ..modules import only_tensors
from ..parameters import compressible, layer_of
from ..tensors import info_of
from . import architectures, distributed
from .download import downloading

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

# Of GoogLeNet and Inception: for training from scratch alone, which architectures.py leaves out.
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def restored(source: Checkpoint, device: torch.device | str = "cpu") -> nn.Module:
    """The module that `source` is the state dict of, on `device`. Raises UserError if it does not
    fit its architecture."""
    arch, state = source.arch, source.state_dict
    if arch is None:
        raise UserError("a bare state dict cannot be run: name its architecture")
    if ":" not in arch:  # code of the user's own may take what it likes
        # The file that names it may ask for a thousand million classes: no memory is taken yet.
        wanted = sum(parameter.numel() for parameter in architectures.skeleton(arch).parameters())
        given = sum(math.prod(info_of(state, name).shape) for name in state)
        if wanted > 2 * given + 1_000_000:
            raise UserError(
                f"the model does not fit the architecture {arch}: it has {given} values, not "
                f"{wanted}"
            )
    model = architectures.build(arch)
    with _fitting("the model", arch):
        model.load_state_dict(state)
    return placed(model, device)


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


def is_published(weights: str) -> bool:
    """Whether `weights` names some of torchvision's, such as DEFAULT, rather than a file."""
    return re.fullmatch(r"[A-Z][A-Z0-9_]*", weights) is not None


def start_from(weights: str | Path, model: nn.Module, arch: str) -> list[str]:
    """Load `weights`, a file or the name of torchvision's, into `model` of the architecture `arch`.

    Returns what a user should know of it, a line each. Raises UserError for a file that is not
    there or does not fit, and for weights that cannot be downloaded.
    """
    if is_published(str(weights)):
        name = architectures.parse(arch)[0]
        member = architectures.published_weights(name, str(weights))
        with distributed.writer_first():
            given = downloaded(member)
        return load_into(model, given, f"{member!r}", arch)
    source = checkpoint.load(weights)
    return source.notes + load_into(model, source.state_dict, str(weights), arch)


def downloaded(weights: "WeightsEnum") -> dict[str, torch.Tensor]:
    """A published state dict, from torch.hub's folder or else downloaded into it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name

    def get() -> dict[str, torch.Tensor]:
        # torch.hub says on stdout what it does; that is for results.
        with redirect_stdout(sys.stderr):
            given = weights.get_state_dict(
                map_location="cpu", check_hash=True, weights_only=True, progress=sys.stderr.isatty()
            )
        return {name: tensor for name, tensor in given.items() if not name.startswith(AUXILIARY)}

    if not path.is_file():
        hint = f"download {weights.url} elsewhere, and put it there as {path}"
        with downloading([weights.url], f"{weights!r} is not in {path.parent}", hint):
            return get()
    try:
        return get()
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged ({reason(error)}); delete it") from None


def adopted(source: Checkpoint, path: str | Path, arch: str) -> Checkpoint:
    """The state dict `source`, read from `path`, as a checkpoint of the architecture `arch`.

    Raises UserError where that has another last layer, since nothing is going to train it."""
    model = architectures.build(arch)
    if load_into(model, source.state_dict, str(path), arch):
        raise UserError(
            f"{path} has another number of classes than {arch}; give it with the architecture, as "
            "in resnet18(num_classes=5)"
        )
    return Checkpoint(checkpoint.copied(model.state_dict()), arch, extra=source.extra)


def load_into(
    model: nn.Module, given: Mapping[str, torch.Tensor], source: str, arch: str
) -> list[str]:
    """Load the state dict `given`, of the file or the collection `source`, into `model`.

    A last layer of another number of classes is left as it was drawn, which the line returned says:
    that is how a published model is adapted to another data set.  Counters of batches, which
    BatchNorm has had since PyTorch 0.4.1 and needs for no output, may be missing.  Raises UserError
    for any other difference.
    """
    own = only_tensors(model.state_dict())
    given = without_prefixes(given, own)
    other_shape = [name for name in own if name in given and given[name].shape != own[name].shape]
    last_layer = [layer_of(name) for name in compressible(model)][-1:]
    fresh = [name for name in other_shape if layer_of(name) in last_layer]
    wrong = [name for name in other_shape if name not in fresh]
    if not wrong:
        kept = {name: tensor for name, tensor in given.items() if name not in fresh}
        with _fitting(source, arch):  # modules may know names that they once had
            missing, unknown = model.load_state_dict(kept, strict=False)
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
            f"{source} does not fit the architecture {arch}: {len(wrong)} tensors are missing, "
            f"unknown or of another shape, {wrong[0]} the first; give the architecture that it was "
            "saved from"
        )
    if not fresh:
        return []
    names = ", ".join(fresh)
    return [f"{names} of {source} have another number of classes; they start from random values"]


@contextmanager
def _fitting(source: str, arch: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        *_, why = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{source} does not fit the architecture {arch}: {why.strip()}") from None


def without_prefixes(
    given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`given` without what stands before every one of its names: the attributes under which a
    wrapper (DistributedDataParallel, torch.compile, a module with a loss) has the model. As much
    is left out as gives the most names of the model's `own`, the least of what gives as many.
    """
    # An average of weights counts what is in it, beside the module that it has them in.
    forms = [{name: given[name] for name in given if name != "n_averaged" or name in own}]
    while True:
        heads = {name.partition(".")[::2] for name in forms[-1]}
        if len({head for head, _ in heads}) != 1 or not all(rest for _, rest in heads):
            break
        forms.append({name.partition(".")[2]: tensor for name, tensor in forms[-1].items()})
    return max(forms, key=lambda form: len(form.keys() & own.keys()))
