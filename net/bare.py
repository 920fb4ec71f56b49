"""Weight sharing of a state dict alone, tensor by tensor: no architecture, no data, no training."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch

from .clustering import Clustering, relative_change
from .errors import UserError, naming
from .plan import Bits, SharingConfig, Treatment, plan, treated
from .post_training import share_tensor, steps_of
from .shards import Info, info_of
from .shared_tensor import SharedTensor
from .tensors import TensorError, check_dense
from .vectors import rounded_vector, scale_of


class SharedState(Mapping[str, torch.Tensor]):
    """A state dict with shared values; state[name] reads, shares and returns one tensor.

    Nothing is kept, so that a checkpoint larger than memory can be shared and encoded, but for
    tied tensors of a plain dict, which stay one tensor. The options are those of WeightSharing, the
    fields of net.plan.SharingConfig, or one of these in place of `bits`; `plan` is {name:
    Treatment}. `clusterings` and `rounded`, {name: relative change}, fill with every tensor that
    was asked for. Raises ValueError for options out of range, UserError for a pattern that matches
    nothing and for a tensor that is not finite, or not dense.
    """

    def __init__(
        self,
        source: Mapping[str, torch.Tensor],
        bits: Bits | Literal["auto"] | SharingConfig = "auto",
        **options: Any,
    ) -> None:
        if not hasattr(source, "info"):  # in memory; what is read from a file is dense
            for name in source:
                try:
                    check_dense(name, source[name])
                except TensorError as error:
                    raise UserError(f"cannot share {error}") from None
        if isinstance(bits, SharingConfig) and options:
            raise ValueError("give either a SharingConfig or its fields")
        self.source = source
        self.config = bits if isinstance(bits, SharingConfig) else SharingConfig(bits, **options)
        self.plan = plan(source, self.config)
        self.clusterings: dict[str, Clustering] = {}
        self.rounded: dict[str, float] = {}
        self._kept: dict[str, torch.Tensor] = {}
        self._tied = {each.tied for each in self.plan.values() if each.tied}
        self._steps = steps_of(source, treated(self.plan, "rate"), self.config.noise)

    def info(self, name: str) -> Info:
        """The type and shape of a tensor."""
        return info_of(self.source, name)

    def __getitem__(self, name: str) -> torch.Tensor:
        treatment = self.plan.get(name)
        if treatment is None:  # no tensor
            return self.source[name]
        first = treatment.tied or name
        if first not in self._tied:
            return self._treated(name, treatment)
        if first not in self._kept:
            self._kept[first] = self._treated(first, self.plan[first])
        return self._kept[first]

    def _treated(self, name: str, treatment: Treatment) -> torch.Tensor:
        before = self.source[name]
        if treatment.how == "exact":
            return before
        if treatment.how == "round":
            rounded = rounded_vector(name, self.source, self.config.noise)
            self.rounded[name] = relative_change(before, rounded, scale_of(name, self.source))
            return rounded
        with naming(f"cannot share {name}"):  # not finite
            if treatment.how == "rate":
                after = share_tensor(before, self._steps[name], treatment.kind)
            else:
                after = torch.zeros_like(before)
                how = treatment.bits, self.config.init, self.config.seed
                SharedTensor.clustered(before, *how).write(after)
        self.clusterings[name] = Clustering.of(before, after)
        return after

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)
