"""Encoded models in the hands of who receives them: into a module, or as transformers has it.

net.load_into(model, "model.dc")
model = net.from_pretrained(transformers.AutoModel, "model.dc")
"""

import inspect
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import nn

from . import encoding
from .encoding import Encoding, EncodingError
from .errors import UserError
from .parameters import unwrapped
from .tensors import COMPUTED, fault
from .threads import in_order

SHOWN = 3  # names in an error
CONFIG, GENERATION, ADAPTER = "config.json", "generation_config.json", "adapter_config.json"


class Loaded(NamedTuple):
    """What ``strict=False`` has let pass; called as torch's ``load_state_dict`` calls it."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class _Place(NamedTuple):
    """A tensor of a module, with everything in the module that is this tensor (tied weights)."""

    tensor: torch.Tensor
    owners: list[tuple[nn.Module, str]]
    names: list[str]  # in the state dict


def load_into(
    model: nn.Module, path: str | Path, *, strict: bool = True, assign: bool | None = None
) -> Loaded:
    """Load the encoded model at `path`, a .dc file or a folder, into `model`, tensor by tensor.

    As ``model.load_state_dict(net.encoding.load(path)[0])`` without a second copy of the model in
    memory: with it there is at most the largest of its tensors. The model may be in a wrapper
    (DistributedDataParallel, torch.compile). Values go into the memory of the model and become of
    its floating-point type; with `assign` the tensors of the file take the place of the model's, in
    the type that they have there, which None does for those on the meta device alone. Tied weights
    stay tied, and need one of their names in the file. BatchNorm's counters may be missing.

    Returns the names that were left out, which must be none with `strict`. Raises UserError, before
    anything is changed, for these, for other shapes and types, and for tensors on the meta device
    that no state dict has (buffers that are not persistent); EncodingError for a damaged file.
    """
    source, inner = encoding.open(path), unwrapped(model)
    places = _places(inner)
    named = {name: place for place in places for name in place.names}
    missing = [
        place.names[0]
        for place in places
        if not any(name in source for name in place.names)
        and not place.names[0].endswith("num_batches_tracked")
    ]
    unexpected = [name for name in source if name not in named]
    problems = [
        f"{what} {_listed(names)}"
        for what, names in (("the file lacks", missing), ("the model lacks", unexpected))
        if strict and names
    ]
    jobs = []
    for place in places:
        given = [name for name in place.names if name in source]
        if given:
            replace = place.tensor.is_meta if assign is None else assign
            problems += _misfits(place, source, given, replace)
            jobs.append((given[0], place, replace))
    if strict:
        here = {id(owner) for _, place, _ in jobs for owner in (place.tensor,)}
        problems += [
            f"{name} is on the meta device and in no state dict; make the model on the CPU"
            for name, tensor in (*inner.named_parameters(), *inner.named_buffers())
            if tensor.is_meta and id(tensor) not in here and name not in named
        ]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(f"{path} does not fit the model: " + "; ".join(problems[:SHOWN]) + more)

    def decoded(name: str, place: _Place, replace: bool) -> tuple[torch.Tensor, _Place, bool]:
        return source[name], place, replace

    largest = max((source.info(name).bytes for name, *_ in jobs), default=0)
    try:
        for tensor, place, replace in in_order(
            decoded, jobs, lambda job: source.info(job[0]).bytes, largest
        ):
            _put(tensor, place, replace)
    except EncodingError as error:
        raise EncodingError(f"{error} (a part of the model is loaded already)") from None
    return Loaded(missing, unexpected)


def _places(model: nn.Module) -> list[_Place]:
    """Of every tensor in the state dict of `model`, once each, in that order."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            owners.setdefault(id(tensor), []).append((module, name))
    found: dict[int, _Place] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in owners:
            raise UserError(
                f"{name!r} of the model is no parameter or buffer; use load_state_dict with what "
                "net.encoding.load gives"
            )
        found.setdefault(id(tensor), _Place(tensor, owners[id(tensor)], [])).names.append(name)
    return list(found.values())


def _misfits(place: _Place, source: Encoding, given: list[str], replace: bool) -> Iterator[str]:
    """What keeps the tensors of the file from `place`."""
    target = place.tensor
    if not target.is_meta and (what := fault(target)):
        yield f"{given[0]} of the model is {what}"
        return
    for name in given:
        info = source.info(name)
        if info.shape != tuple(target.shape):
            yield f"{name} is {list(info.shape)} in the file and {list(target.shape)} in the model"
        elif info.dtype != target.dtype and not (
            info.dtype in COMPUTED and target.dtype in COMPUTED
        ):
            yield f"{name} is {info.dtype} in the file and {target.dtype} in the model"
    if target.is_meta and not replace:
        yield f"{given[0]} of the model is on the meta device: give assign=True"
    if (
        len(given) > 1
        and len({id(source.info(name).same or source.info(name)) for name in given}) > 1
    ):
        first = source[given[0]]
        for name in given[1:]:
            if not torch.equal(source[name], first):
                yield f"{given[0]} and {name} are one in the model and differ in the file"


def _put(tensor: torch.Tensor, place: _Place, replace: bool) -> None:
    if not replace:
        with torch.no_grad():
            place.tensor.copy_(tensor)
        return
    new = tensor
    if isinstance(place.tensor, nn.Parameter):
        wants = place.tensor.requires_grad and tensor.is_floating_point()
        new = nn.Parameter(tensor, requires_grad=wants)
    for module, name in place.owners:
        setattr(module, name, new)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


# --- transformers ---------------------------------------------------------------------------------


def from_pretrained(cls: Any, path: str | Path, **options: Any) -> Any:
    """What ``cls.from_pretrained(folder, **options)`` gives for the folder of Hugging Face's that
    was compressed into the .dc file at `path`.

    `cls` is a class of transformers': AutoModel and its kin or a model's own, and AutoTokenizer,
    AutoConfig and others that read what lies beside the weights. Nothing is written but these small
    files, for a moment. Raises UserError for a file without a configuration, for an adapter of
    PEFT's, which is not a model of its own, and for a class of another library.
    """
    if not (inspect.isclass(cls) and _is_transformers(cls)):
        name = getattr(cls, "__name__", repr(cls))
        raise UserError(
            f"{name} is no class of transformers; decompress {path}, and load the folder with it"
        )
    source = encoding.open(path)
    if CONFIG not in source.files:
        what = "holds an adapter of PEFT's" if ADAPTER in source.files else f"has no {CONFIG}"
        raise UserError(f"{path} {what}; decompress it, and load it with what wrote it")
    with TemporaryDirectory() as folder:
        source.extract(folder)
        if not (issubclass(cls, nn.Module) or hasattr(cls, "from_config")):
            return cls.from_pretrained(folder, **options)
        return _model(cls, source, folder, options)


def _is_transformers(cls: type) -> bool:
    return any(base.__module__.partition(".")[0] == "transformers" for base in cls.__mro__)


def _model(cls: Any, source: Encoding, folder: str, options: dict[str, Any]) -> Any:
    """Built by transformers from its configuration and a state dict, so that its own rules hold for
    names of earlier versions, tied weights, types, and buffers that no state dict has."""
    transformers = import_module("transformers")
    config = options.pop("config", None)
    trusted = {name: options[name] for name in ("trust_remote_code",) if name in options}
    if config is None:
        own = getattr(cls, "config_class", None) if issubclass(cls, nn.Module) else None
        config = (own or transformers.AutoConfig).from_pretrained(folder, **trusted)
    if not issubclass(cls, nn.Module):
        with torch.device("meta"):  # the class that this configuration asks for
            cls = type(cls.from_config(config, **trusted))
    state, _ = encoding.load(source.path)
    loaded = cls.from_pretrained(None, config=config, state_dict=state, **options)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.name_or_path = model.config.name_or_path = os.fspath(source.path)
    if GENERATION in source.files and model.can_generate() and "generation_config" not in options:
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return loaded
