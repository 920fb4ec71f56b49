"""Models of repeated blocks, as decoders and encoders are, run with one block in memory at a time.

All inputs pass a block before the next one is loaded, as in GPTQ (Frantar et al. 2023). The model's
own forward is run for that, so that masks, positions and whatever else a block gets are its own:
the blocks before give what they gave, the run ends behind the one that is in memory.
"""

import tempfile
import threading
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .errors import UserError
from .files import reason
from .limits import release_freed
from .modules import copied, evaluating, parameters_by_name
from .pretrained import Place, install, places_of
from .samples import Call, on_device
from .state_dicts import Renamed
from .tensors import Info, TensorMap, info_of, is_computed, memory, version_of
from .threads import SWITCHED

MOST_IN_MEMORY = 1 << 26  # bytes of a run's activations; what is more goes to the disk
ALIGNED = 64  # bytes, of which a tensor on the disk begins at a multiple
OUTSIDE = -1  # the place of what is in no block
TENSOR = object()  # in the place of a tensor that an output has there
ORDER = "its blocks are not run once each, in their order"


class OnDisk(TensorMap, MutableMapping[str, torch.Tensor]):
    """Tensors in a file without a name, which ends with this object or the process.

    A tensor takes the place of one of the same name and size; else it goes to the end.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._places: dict[str, tuple[int, torch.dtype, torch.Size]] = {}
        self._named = self._places

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        begin = -(-self._file.seek(0, 2) // ALIGNED) * ALIGNED
        if name in self._places:
            old, dtype, shape = self._places[name]
            begin = old if shape.numel() * dtype.itemsize == tensor.nbytes else begin
        try:
            self._file.seek(begin)
            self._file.write(memory(tensor).data)
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{tempfile.gettempdir()} cannot hold a model's tensors ({reason(error)}); "
                "set TMPDIR to another folder"
            ) from None
        self._places[name] = begin, tensor.dtype, tensor.shape

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.mapped(name).clone()

    def mapped(self, name: str) -> torch.Tensor:
        """The tensor, of which what is used is in memory; what is written to it stays there."""
        begin, dtype, shape = self._places[name]
        size = shape.numel() * dtype.itemsize
        if not size:
            return torch.empty(shape, dtype=dtype, device="cpu")
        elements = np.memmap(self._file, np.uint8, "c", begin, (size,))
        return torch.from_numpy(elements).view(dtype).reshape(shape)

    def __delitem__(self, name: str) -> None:
        del self._places[name]


class Kept:
    """Tensors by name: in memory up to MOST_IN_MEMORY bytes of them, and on the disk beyond."""

    def __init__(self) -> None:
        self._in_memory: dict[str, torch.Tensor] = {}
        self._disk = OnDisk()

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        self._in_memory.pop(name, None)
        held = sum(each.nbytes for each in self._in_memory.values())
        fits = held + tensor.nbytes <= MOST_IN_MEMORY
        (self._in_memory if fits else self._disk)[name] = tensor.detach().cpu()

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._in_memory[name] if name in self._in_memory else self._disk.mapped(name)

    def clear(self) -> None:
        self._in_memory.clear()


class _Passed(Exception):
    """The block in memory has answered, which ends the run."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class _Buffer:
    """A buffer of a module, in which that may keep what it has met."""

    def __init__(self, module: nn.Module, name: str, buffer: torch.Tensor) -> None:
        self.module, self.name, self.value = module, name, buffer.detach().clone()
        self._known = buffer, version_of(buffer)  # held, so that no other one has its id

    def restore(self) -> None:
        """As it was, in new memory: gradients of the last run may need what it is now."""
        now = self.module._buffers.get(self.name)
        if now is None or version_of(now) != self._known[1]:
            self.module._buffers[self.name] = fresh = self.value.clone()
            self._known = fresh, version_of(fresh)


class Passage:
    """Runs of a model whose blocks are in memory one after the other.

        for place in passage:  # all inputs to the end of block 0, then of block 1, ...
            for number, call in enumerate(calls):
                output = passage(number, call, keep=True)  # at last what the model answers

    Without blocks there is one place, and the model is run as it is. With blocks `model` has its
    parameters on the meta device, and `tensors`, {name in its state dict: tensor}, is asked for
    them when they are needed: those of a block at its place, all others at once; behind the last
    place nothing is kept. Activations are in memory up to MOST_IN_MEMORY bytes, and else on the
    disk. Where the model uses what an earlier block gave otherwise than through the block after it,
    NaN comes out. With `trail` what each block gave is kept, not only the last (net.backward).
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: list[str] | None = None,
        tensors: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.model, self.blocks = model, blocks or []
        self.place = 0
        self._tensors: Mapping[str, torch.Tensor] = tensors or {}
        self._trees: dict[str, tuple[list[Any], TreeSpec]] = {}
        self._places: dict[int, list[Place]] = {}
        self._number = self._met = 0
        self._buffers: list[_Buffer] = []
        self.trail = False
        self.entries: dict[int, torch.Tensor] = {}  # leaves of what came from the trail, by number
        if self.blocks:
            self._kept, self._outside = Kept(), OnDisk()
            self.device = device()
            for module in model.modules():
                for name, buffer in module._buffers.items():
                    if buffer is not None and not buffer.is_meta:
                        module._buffers[name] = buffer.to(self.device)
            for each in places_of(model):
                self._places.setdefault(block_of(each.names[0], self.blocks), []).append(each)
            for i, name in enumerate(self.blocks):
                self._take_over(i, model.get_submodule(name))
        else:
            self._buffers = [
                _Buffer(module, name, buffer)
                for module in model.modules()
                for name, buffer in module._buffers.items()
                if buffer is not None and not buffer.is_meta
            ]
            first = next(model.parameters(), None)
            self.device = torch.device("cpu") if first is None else first.device

    def parameters(self, names: Any) -> dict[str, nn.Parameter]:
        """Those of `names` that are in memory."""
        every = parameters_by_name(self.model).items()
        return {name: each for name, each in every if name in names and not each.is_meta}

    @property
    def is_new(self) -> bool:
        """Whether what is run now has not been run at an earlier place."""
        return self._met >= self.place

    def __iter__(self) -> Iterator[int]:
        return self.through(range(len(self.blocks) + 1))

    def through(self, places: Iterable[int]) -> Generator[int, None, None]:
        """`places` one after the other, each with what belongs to it in memory."""
        try:
            self._load(OUTSIDE)
            for place in places:
                self._free(self.place)
                self.place = place
                self._load(place)
                yield place
        finally:  # whoever still holds this
            self._free(self.place)
            self._free(OUTSIDE)
            self.entries = {}
            if self.blocks:
                self._kept.clear()

    def _load(self, place: int) -> None:
        for each in self._places.get(place, ()):
            on_disk = place == OUTSIDE and self.device.type == "cpu"
            install((self._mapped if on_disk else self._read)(each), each, replace=True)

    def _read(self, place: Place) -> torch.Tensor:
        found = self._tensors[place.names[0]]
        return found.to(self.device, place.tensor.dtype, copy=True)

    def _mapped(self, place: Place) -> torch.Tensor:
        """Embeddings and heads are large, and little of them is used before the last place."""
        name = place.names[0]
        if name not in self._outside:
            self._outside[name] = self._read(place)
        return self._outside.mapped(name)

    def _free(self, place: int) -> None:
        for each in self._places.get(place, ()):
            install(each.tensor, each, replace=True)  # on the meta device
        if self.blocks:
            release_freed()

    def __call__(self, number: int, call: Call, keep: bool = False) -> Any:
        """What the model answers to batch `number`, or None at the place of a block, whose output
        is taken for the next place with `keep`."""
        output = self.run(number, call)
        if self.place == len(self.blocks):
            return output
        if keep:
            self._keep(number, output)
        return None

    def run(self, number: int, call: Call) -> Any:
        """What the model answers, or at the place of a block what that gives."""
        self._number, self._met, self.entries = number, 0, {}
        args, kwargs = on_device(call, self.device)
        for buffer in self._buffers:
            buffer.restore()
        try:
            # What is random, and what goes on from run to run, is the same in all runs of a batch.
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(number)
                output = self.model(*args, **kwargs)
        except _Passed as passed:
            return passed.output
        if self._met < len(self.blocks):
            raise ValueError(ORDER)
        return output

    def _take_over(self, i: int, block: nn.Module) -> None:
        """Have `block`, the one of number `i`, do what is its part in a run."""
        own = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._met != i:
                raise ValueError(ORDER)
            self._met += 1
            if i == self.place:
                raise _Passed(own(*args, **kwargs))
            return self._output(is_last=i == self.place - 1)

        block.forward = forward

    def _slot(self, number: int, place: int) -> str:
        """What the names of the tensors begin with that the block at `place` gave for a batch."""
        return f"{number}/{place if self.trail else ''}/"

    def _keep(self, number: int, output: Any) -> None:
        slot = self._slot(number, self.place)
        leaves, tree = tree_flatten(output)
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                leaves[i] = TENSOR
                self._kept[f"{slot}{i}"] = leaf
        self._trees[slot] = leaves, tree

    def _output(self, is_last: bool) -> Any:
        """What the block before this place gave, or something like it that must not be used."""
        slot = self._slot(self._number, self.place - 1)
        leaves, tree = self._trees[slot]
        found = [
            self._came(i, self._kept[f"{slot}{i}"], is_last) if leaf is TENSOR else leaf
            for i, leaf in enumerate(leaves)
        ]
        return tree_unflatten(found, tree)

    def _came(self, i: int, kept: torch.Tensor, is_last: bool) -> torch.Tensor:
        if not kept.is_floating_point():
            return kept.to(self.device, copy=True)
        if not is_last:
            return torch.full_like(kept, torch.nan, device=self.device)
        if self.trail and torch.is_grad_enabled():
            kept = self.entries[i] = kept.detach().to(self.device).requires_grad_()
            return kept.clone()
        return kept.to(self.device, copy=True)  # which the model may change in place


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# --- which models these are -----------------------------------------------------------------------


class NoBlocks(ValueError):
    """Why a model cannot be taken block by block."""


class Skeleton:
    """A model of repeated blocks whose tensors are in `state`, a mapping that reads them.

    `model` is made in `without_parameters`; `names` is {name in its state dict: name in `state`}.
    Raises NoBlocks for a model without such blocks, and where `state` lacks one of its tensors.
    """

    def __init__(self, model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        self.model, self.state = evaluating(model).requires_grad_(False), state
        self.blocks = repeated(model)
        if not self.blocks:
            raise NoBlocks("it has no repeated blocks with most of its parameters")
        self.names = names_by_prefix(model, state)

    def passage(self, state: Mapping[str, torch.Tensor]) -> Passage:
        """A passage with the tensors of `state`, which has the names of the skeleton's own."""
        return Passage(copied(self.model), self.blocks, Renamed(state, self.names))


@contextmanager
def without_parameters() -> Iterator[None]:
    """Modules made in this block have their parameters on the meta device; their buffers, which a
    checkpoint need not have, are as always."""
    own = threading.get_ident()

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        here = threading.get_ident() == own  # other threads make modules as always
        if here and param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    with SWITCHED:
        register = nn.Module.register_parameter
        nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]


def repeated(model: nn.Module) -> list[str]:
    """The names of the blocks in the list of modules that has most of the model's parameters: two
    or more of one class, with the same parameters, which nothing outside shares. Else none."""
    total = sum(each.numel() for each in model.parameters())
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2:
            continue
        forms = {
            (type(block), tuple((n, each.shape) for n, each in block.named_parameters()))
            for block in module
        }
        own = {id(each): each.numel() for each in module.parameters()}
        every = model.named_parameters(remove_duplicate=False)
        is_apart = len(own) == sum(id(each) in own for _, each in every)
        if len(forms) == 1 and 2 * sum(own.values()) > total and is_apart:
            return [f"{name}.{i}" for i in range(len(module))]
    return []


def block_of(name: str, blocks: list[str]) -> int:
    """The number of the block that has the tensor of this name, or OUTSIDE."""
    return next((i for i, block in enumerate(blocks) if name.startswith(f"{block}.")), OUTSIDE)


def _is_stored_as(info: Info, tensor: torch.Tensor) -> bool:
    """Whether what a file has is the tensor: not numbers, perhaps, that have a scale elsewhere."""
    return info.shape == tensor.shape and (is_computed(info) or not tensor.is_floating_point())


def names_by_prefix(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """{name in the state dict of `model`: name in `state`}: the same, or all of them with the same
    prefix here or there. NoBlocks where a tensor is missing, or of another shape, or stored as
    numbers that have a scale elsewhere."""
    places = places_of(model)
    first = places[-1].names[0]
    longer = [name.removesuffix(first) for name in state if name.endswith(first)]
    shorter = [first.removesuffix(name) for name in state if first.endswith(name)]
    prefixes = [("", each) for each in longer] + [(each, "") for each in shorter if each]
    for here, there in sorted(prefixes, key=lambda pair: len("".join(pair))):
        found: dict[str, str] = {}
        for place in places:
            for name in place.names:
                other = there + name.removeprefix(here)
                if other in state and _is_stored_as(info_of(state, other), place.tensor):
                    found |= dict.fromkeys(place.names, other)
                    break
        if len(found) == sum(len(place.names) for place in places):
            return found
    raise NoBlocks("its tensors have other names, shapes or kinds of types in the file")
