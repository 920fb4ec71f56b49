"""What meets each weight while a network runs: the inputs of the products that it is part of."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
EMBEDDING = "an embedding"  # of which a row is its inputs' output; these are the rows' numbers


class Use(NamedTuple):
    """A product that a weight, or some of its rows, is part of."""

    name: str
    kind: str  # "rows": x W^T; "columns": x W; "convolution"; what is not supported, otherwise
    first: int = 0  # row of the weight
    rows: int = 0
    groups: int = 1

    @property
    def supported(self) -> bool:
        return self.kind in ("rows", "columns", "convolution")

    def matrices(self, weight: torch.Tensor) -> torch.Tensor:
        """The part of `weight` that is in use as [groups, outputs, inputs]."""
        if self.kind == "columns":
            return weight.t()[None]
        part = weight[self.first : self.first + self.rows]
        return part.reshape(self.groups, self.rows // self.groups, -1)

    def restore(self, matrices: torch.Tensor, weight: torch.Tensor) -> None:
        """Write `matrices` over the part of `weight` that ``matrices`` gave."""
        if self.kind == "columns":
            weight.copy_(matrices[0].t())
        else:
            part = weight[self.first : self.first + self.rows]
            part.copy_(matrices.reshape(part.shape))


class Inputs(NamedTuple):
    """Inputs of a product, of which some vectors can be drawn."""

    x: torch.Tensor  # [n, inputs], or of a convolution, padded, [n, channels, *extents]
    kernel: Sequence[int] = ()
    stride: Sequence[int] = ()
    dilation: Sequence[int] = ()
    groups: int = 1

    def draw(self, limit: int, generator: torch.Generator) -> torch.Tensor:
        """[groups, at most `limit`, inputs], chosen at random; inputs in the order of ``Use``."""
        x = self.x
        if not self.kernel:
            return x[_some(len(x), limit, generator).to(x.device)][None]
        axes = len(self.kernel)
        for axis, extent in enumerate(self.kernel):
            reach = (extent - 1) * self.dilation[axis] + 1
            x = x.unfold(axis + 2, reach, self.stride[axis])[..., :: self.dilation[axis]]
        places = (x.shape[0], *x.shape[2 : 2 + axes])
        chosen = np.unravel_index(_some(math.prod(places), limit, generator).numpy(), places)
        at = tuple(torch.from_numpy(each).to(x.device) for each in chosen)
        x = x.movedim(1, 1 + axes)[at]  # [drawn, channels, *kernel]
        return x.reshape(len(x), self.groups, -1).transpose(0, 1)


def _some(count: int, limit: int, generator: torch.Generator) -> torch.Tensor:
    if count <= limit:
        return torch.arange(count, device="cpu")
    return torch.randint(count, (limit,), generator=generator, device="cpu")


class Foreign(TorchDispatchMode):
    """While active, notes in `met` whether anything is computed with the memory of `tensors`: those
    of a model of which a copy is run, say, whose own are elsewhere."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.pointers = {_pointer(each) for each in tensors} - {0}
        self.met = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for each in tree_leaves((args, kwargs)):
            if isinstance(each, torch.Tensor):
                self.met |= _pointer(each) in self.pointers
        return function(*args, **(kwargs or {}))


def _pointer(tensor: torch.Tensor) -> int:
    """Where the memory of a tensor is; 0 for one that has none of its own, as some kinds have."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


class Watch(TorchDispatchMode):
    """While active, calls `note`(use, inputs) for each product with one of `parameters`.

    Products are recognised by the memory of the weight, whatever module or function computes
    them: Linear, convolutions, attention's projections, recurrent cells, Hugging Face's Conv1D.
    An exception out of `note` ends the network's run.
    """

    def __init__(
        self, parameters: Mapping[str, torch.Tensor], note: Callable[[Use, Inputs], None]
    ) -> None:
        super().__init__()
        self.note = note
        self.by_memory: dict[int, list[tuple[str, torch.Tensor]]] = {}
        for name, parameter in parameters.items():
            if pointer := _pointer(parameter):
                self.by_memory.setdefault(pointer, []).append((name, parameter))

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        packet = function.overloadpacket
        if packet is aten.mm or packet is aten.bmm:
            self._product(args[0], args[1])
        elif packet is aten.addmm or packet is aten.baddbmm:
            self._product(args[1], args[2])
        elif packet is aten.mv:
            self._product(args[1][None], args[0].t())
        elif packet is aten.addmv:
            self._product(args[2][None], args[1].t())
        elif packet is aten.linear:
            self._product(args[0], args[1].t())
        elif packet is aten.convolution:
            self._convolution(*args)
        elif packet is aten.embedding:
            self._embedding(args[0], args[1])
        return function(*args, **(kwargs or {}))

    def _find(self, tensor: torch.Tensor) -> tuple[str | None, torch.Tensor, int]:
        """(name, parameter, place of the first element in it) that `tensor` is memory of."""
        for name, parameter in self.by_memory.get(_pointer(tensor), ()):
            first = int(tensor.storage_offset()) - int(parameter.storage_offset())
            if 0 <= first < parameter.numel():
                return name, parameter, first
        return None, tensor, 0

    def _embedding(self, table: torch.Tensor, numbers: torch.Tensor) -> None:
        name, parameter, first = self._find(table)
        if name is None:
            return
        if table.dim() == parameter.dim() == 2 and table.stride() == parameter.stride():
            row, column = divmod(first, parameter.stride(0))
            if column == 0 and table.shape[1] == parameter.shape[1]:
                self.note(Use(name, EMBEDDING), Inputs(numbers + row))
                return
        self.note(Use(name, "an embedding by a view of it"), Inputs(numbers))

    def _product(self, inputs: torch.Tensor, matrix: torch.Tensor) -> None:
        name, parameter, first = self._find(matrix)
        if name is None or parameter.dim() != 2 or not parameter.is_contiguous():
            return
        if matrix.dim() == 3 and (matrix.shape[0] == 1 or matrix.stride(0) == 0):
            matrix = matrix[0]  # one matrix for the whole batch
        width = parameter.shape[1]
        if matrix.dim() != 2:
            return
        if matrix.shape[0] == width and matrix.stride() == (1, width):
            use = Use(name, "rows", first // width, matrix.shape[1])
        elif matrix.shape == parameter.shape and matrix.stride() == parameter.stride():
            use = Use(name, "columns", 0, matrix.shape[1])
        else:
            return
        self.note(use, Inputs(inputs.detach().reshape(-1, matrix.shape[0])))

    def _convolution(
        self,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> None:
        name, parameter, first = self._find(weight)
        if name is None:
            return
        if transposed:
            self.note(Use(name, "a transposed convolution"), Inputs(inputs))
            return
        if (weight.shape, weight.stride(), first) != (parameter.shape, parameter.stride(), 0):
            self.note(Use(name, "a convolution with a view of it"), Inputs(inputs))
            return
        x = nn.functional.pad(inputs.detach(), [p for p in reversed(padding) for _ in range(2)])
        use = Use(name, "convolution", 0, weight.shape[0], groups)
        self.note(use, Inputs(x, weight.shape[2:], stride, dilation, groups))
