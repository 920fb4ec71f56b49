"""Encoded models in the hands of who receives them: into a module, or as transformers has it.

net.load_into(model, "model.dc")
model = net.from_pretrained(transformers.AutoModel, "model.dc")
"""

import os
from collections.abc import Iterable, Iterator, Set
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import nn

from . import encoding
from .encoding import Encoding, EncodingError
from .errors import UserError, some_names
from .modules import unwrapped
from .tensors import COMPUTED, fault, overlaps
from .threads import in_order

SHOWN = 3  # names in an error
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
CONFIG, GENERATION, ADAPTER = "config.json", "generation_config.json", "adapter_config.json"
# Fields of a configuration that say how a model is loaded, and not what it is.
LOADING = ("dtype", "torch_dtype", "attn_implementation", "trust_remote_code")


class Loaded(NamedTuple):
    """What ``strict=False`` has let pass; called as torch's ``load_state_dict`` calls it."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Place(NamedTuple):
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
    (DistributedDataParallel, torch.compile), and the names in the file those of one. Values go
    into the memory of the model and become of its floating-point type; with `assign` the tensors
    of the file take the place of the model's, in the type that they have there, which None does for
    those on the meta device alone. Tied weights stay tied, and need one of their names in the file.
    BatchNorm's counters may be missing.

    Returns the names that were left out, which must be none with `strict`. Raises UserError, before
    anything is changed, for these, for other shapes and types, and for tensors on the meta device
    that no state dict has (buffers that are not persistent); EncodingError for a damaged file.
    """
    source, inner = encoding.open(path), unwrapped(model)
    places = places_of(inner)
    named = {name for place in places for name in place.names}
    stored = _unwrapped_names(source, named)
    missing: list[str] = []
    counters: list[Place] = []  # that begin anew
    problems: list[str] = []
    jobs: list[tuple[str, Place, bool]] = []
    for place in places:
        given = [stored[name] for name in place.names if name in stored]
        if given:
            replace = place.tensor.is_meta if assign is None else assign
            problems += _misfits(place, source, given, replace)
            jobs.append((given[0], place, replace))
        elif not place.names[0].endswith("num_batches_tracked"):
            missing.append(place.names[0])
        elif place.tensor.is_meta and assign is not False:
            counters.append(place)
    unexpected = [own for name, own in stored.items() if name not in named]
    if strict:
        stranded = [n for n, buffer in inner.named_buffers() if buffer.is_meta and n not in named]
        problems += [
            f"{what} {some_names(names, SHOWN)}"
            for what, names in (
                ("the file lacks", missing),
                ("the model lacks", unexpected),
                ("no state dict has the model's buffers on the meta device", stranded),
            )
            if names
        ]
    if problems:
        raise UserError(f"{path} does not fit the model: {some_names(problems, SHOWN, '; ')}")

    def decoded(name: str, place: Place, replace: bool) -> tuple[torch.Tensor, Place, bool]:
        return source[name], place, replace

    def size(job: tuple) -> int:
        return source.info(job[0]).bytes

    try:
        largest = max(map(size, jobs), default=0)
        for tensor, place, replace in in_order(decoded, jobs, size, largest):
            install(tensor, place, replace)
            del tensor  # before the next is decoded
        for place in counters:
            install(torch.zeros_like(place.tensor, device="cpu"), place, replace=True)
    except EncodingError as error:
        raise EncodingError(f"{error}; a part of the model is loaded already") from None
    return Loaded(missing, unexpected)


def _unwrapped_names(source: Iterable[str], wanted: Set[str]) -> dict[str, str]:
    """{name in a module: name in `source`}: without what wrappers begin all of them with, unless
    the module has such names, too."""
    names = {name: name for name in source}
    while names and wanted.isdisjoint(names):
        prefix = next((each for each in WRAPPERS if all(n.startswith(each) for n in names)), None)
        if prefix is None:
            break
        names = {name.removeprefix(prefix): own for name, own in names.items()}
    return names


def places_of(model: nn.Module) -> list[Place]:
    """Of every tensor in the state dict of `model`, once each, in that order."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            owners.setdefault(id(tensor), []).append((module, name))
    found: dict[int, Place] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):  # of get_extra_state
            continue
        if id(tensor) not in owners:
            raise UserError(
                f"{name!r} of the model is no parameter or buffer; use load_state_dict with what "
                "net.encoding.load gives"
            )
        found.setdefault(id(tensor), Place(tensor, owners[id(tensor)], [])).names.append(name)
    return list(found.values())


def _misfits(place: Place, source: Encoding, given: list[str], replace: bool) -> Iterator[str]:
    """What keeps the tensors `given` in the file from `place`."""
    target = place.tensor
    if not target.is_meta and (what := fault(target)):
        yield f"{given[0]} of the model is {what}"
        return
    if target.is_meta and not replace:
        yield f"{given[0]} of the model is on the meta device, which needs assign"
    elif not replace and (target.is_inference() or overlaps(target)):
        yield f"{given[0]} of the model cannot be written to, which needs assign"
    for name in given:
        info = source.info(name)
        same_kind = info.dtype == target.dtype or {info.dtype, target.dtype} <= set(COMPUTED)
        if info.shape != tuple(target.shape) or not same_kind:
            yield f"{name} is {_shown(info)} in the file, {_shown(target)} in the model"
            return
    # Under names of one tensor of the model the file may have several, if they are equal.
    first, *others = {source.info(name).own.name for name in given}
    for other in others:
        if not torch.equal(source[first], source[other]):
            yield f"{first} and {other} are one tensor in the model, and differ in the file"


def _shown(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def install(tensor: torch.Tensor, place: Place, replace: bool) -> None:
    if not replace:
        with torch.no_grad():
            place.tensor.copy_(tensor)
        return
    if isinstance(place.tensor, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=place.tensor.requires_grad)
    for module, name in place.owners:
        setattr(module, name, tensor)


# --- transformers ---------------------------------------------------------------------------------


def from_pretrained(cls: Any, path: str | Path, **options: Any) -> Any:
    """What ``cls.from_pretrained(folder, **options)`` gives for the folder of Hugging Face's that
    was compressed into the .dc file at `path`.

    `cls` is a class of transformers': AutoModel and its kin or that of one model, and AutoTokenizer
    and others that read what lies beside the weights. For a moment these small files are written
    into a temporary folder. Raises UserError for a file without a configuration, for an adapter of
    PEFT's, which is half a model, and for a class of another library: decompress these.
    """
    if not any(base.__module__.startswith("transformers.") for base in getattr(cls, "__mro__", ())):
        name = getattr(cls, "__name__", repr(cls))
        raise UserError(f"{name} is no class of transformers; decompress {path} for it")
    source = encoding.open(path)
    if CONFIG not in source.files:
        what = "holds an adapter of PEFT's" if ADAPTER in source.files else f"has no {CONFIG}"
        raise UserError(f"{path} {what}; decompress it, and load it with what wrote it")
    is_model = hasattr(cls, "from_config") or issubclass(cls, nn.Module)
    with TemporaryDirectory() as folder:
        for name in source.files:
            if not is_model or name in (CONFIG, GENERATION) or name.endswith(".py"):
                file = Path(folder, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(source.read_file(name))
        if is_model:
            return _model(cls, source, folder, options)
        return cls.from_pretrained(folder, **options)


def _model(cls: Any, source: Encoding, folder: str, options: dict[str, Any]) -> Any:
    """Built by transformers of a configuration and a state dict, so that its own rules hold for
    names of earlier versions, tied weights, types, and buffers that no state dict has."""
    transformers = import_module("transformers")
    config = options.pop("config", None)
    trust = {name: options[name] for name in ("trust_remote_code",) if name in options}
    if config is None:
        of_cls = getattr(cls, "config_class", None) or transformers.AutoConfig
        config = of_cls.from_pretrained(folder, **trust)
        # As transformers has it: what a configuration has a field for is one of its.
        fields = [each for each in options if hasattr(config, each) and each not in LOADING]
        if changes := {name: options.pop(name) for name in fields}:
            config = of_cls.from_pretrained(folder, **trust, **changes)
    if not issubclass(cls, nn.Module):  # the class that this configuration asks for
        known = getattr(cls, "_model_mapping", {})
        own = known[type(config)] if type(config) in known and not trust else None
        with torch.device("meta"):
            cls = own if isinstance(own, type) else type(cls.from_config(config, **trust))
    # Those of other folders, as sentence-transformers has them, are not of this model.
    state = {
        name: tensor for name, tensor in encoding.load(source.path)[0].items() if "/" not in name
    }
    found = cls.from_pretrained(None, config=config, state_dict=state, **options)
    model = found[0] if isinstance(found, tuple) else found  # output_loading_info
    model.name_or_path = model.config.name_or_path = os.fspath(source.path)
    if GENERATION in source.files and model.can_generate() and "generation_config" not in options:
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return found
