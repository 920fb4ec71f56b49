"""Weight sharing of a state dict alone, tensor by tensor: no architecture, no data, no training."""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch

from .clustering import Clustering
from .errors import UserError, naming
from .parameters import compressible
from .post_training import NOISE, share_tensor, steps_of
from .shards import Info, info_of
from .shared_tensor import SharedTensor
from .sharing import bits_of_tensors, vectors_to_round
from .tensors import TensorError, check_dense, identity
from .vectors import rounded_vector


class SharedState(Mapping[str, torch.Tensor]):
    """A state dict with shared values; state[name] reads, shares and returns one tensor.

    Nothing is kept, so that a checkpoint larger than memory can be shared and encoded, but for
    tied tensors of a plain dict, which stay one tensor. The options are those of WeightSharing.
    `clusterings` fills with every tensor that was asked for. Raises UserError for a tensor that
    is not finite, or not dense.
    """

    def __init__(
        self,
        source: Mapping[str, torch.Tensor],
        bits: int | Mapping[str, int] | Literal["auto"] = "auto",
        *,
        noise: float = NOISE,
        exact_vectors: bool = False,
        bias_bits: int | Mapping[str, int] = 0,
        init: str = "linear",
        seed: int = 42,
    ) -> None:
        if not hasattr(source, "info"):  # in memory; what is read from a file is dense
            for name in source:
                try:
                    check_dense(name, source[name])
                except TensorError as error:
                    raise UserError(f"cannot share {error}") from None
        self.source, self.noise = source, noise
        self._first = tied_names(source)
        self._kept: dict[str, torch.Tensor] = {}
        self.clusterings: dict[str, Clustering] = {}
        self._init, self._seed = init, seed
        self._steps: dict[str, float] = {}
        self._kinds = kinds = compressible(source)
        self._bits = bits_of_tensors(source, kinds, bits, bias_bits)
        if bits == "auto":
            self._steps = steps_of(source, kinds, noise)
        vectors = vectors_to_round(source, kinds, bits, self._bits)
        self._vectors = set() if exact_vectors else set(vectors)

    def info(self, name: str) -> Info:
        """The type and shape of a tensor."""
        return info_of(self.source, name)

    def __getitem__(self, name: str) -> torch.Tensor:
        first = self._first.get(name)
        if first is None:
            return self._shared(name)
        if first not in self._kept:
            self._kept[first] = self._shared(first)
        return self._kept[first]

    def _shared(self, name: str) -> torch.Tensor:
        before = self.source[name]
        if name not in self._steps and name not in self._bits:
            if name in self._vectors:
                return rounded_vector(name, self.source, self.noise)
            return before
        with naming(f"cannot share {name}"):  # not finite
            if name in self._steps:
                after = share_tensor(before, self._steps[name], self._kinds[name])
            else:
                after = torch.zeros_like(before)
                how = self._bits[name], self._init, self._seed
                SharedTensor.clustered(before, *how).write(after)
        self.clusterings[name] = Clustering.of(before, after)
        return after

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)


def tied_names(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """{name: the first name of the same tensor} of those that have several.

    Empty where the mapping reads tensors from a file: their addresses say nothing.
    """
    if hasattr(state, "info"):
        return {}
    names: dict[tuple, list[str]] = {}
    for name in state:
        names.setdefault(identity(state[name]), []).append(name)
    return {name: tied[0] for tied in names.values() if len(tied) > 1 for name in tied}
