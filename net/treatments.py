"""What can become of a tensor when a model is shared: a class for each treatment, all of it here.

A class says by what word of `bits` a user asks for it, when the plan (net.plan) gives it, how the
plan shows it, and what it makes of a tensor: its values, or those in a form that can be trained.
WeightSharing, SharedState and the plan know of a treatment what stands in its class, no more; a
new one is a class like `PerTensor`, and its place in TREATMENTS, where the first that wants a
tensor gets it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from .constants import few_values
from .parameters import Patterns, listed, normed_axes
from .quantization import INITS
from .roles import felt
from .rounding import (
    NOISE,
    Spread,
    cast,
    directed,
    round_vector,
    scale_of,
    share_alone,
    spreads_of,
    steps,
)
from .shared_tensor import SharedTensor

MOST_BITS = 16
FEW = 16  # values that sharing by rate would not make fewer
EXACT_VECTORS = "vectors are to stay exact"
NOT_MEASURED = "the steps are not by measured sensitivity: {}"
Bits = int | str | Mapping[str, int | str]


@dataclass(frozen=True)
class SharingConfig:
    """How weights are shared: what WeightSharing and SharedState take, each declared here.

    bits: 2**bits values at most per tensor by k-means, a number from 1 to 16; "auto" for values by
        rate: those of the fewest bytes at `noise`; or {pattern: one of these}.
    noise: of bits "auto", the width of the steps in standard deviations of the weights.
    bias_bits: a number, or {pattern: number}, for the biases of these weights, by the weights'
        names; 0 for no k-means.
    exact_vectors: leave normalisation and, beside bits "auto", biases as they are, unrounded.
    init, seed: of k-means (net.quantization).
    include, exclude: patterns over names (net.parameters). `include` takes the tensors of two or
        more dimensions that match, whatever else is said of them here, and rounds beside them their
        biases and the normalisation that matches; `exclude` leaves exact what it matches.
    parts: in which the weights of a model are shared, the largest first.
    reassign: training steps in which a weight may still change its shared value.

    Raises ValueError for a value out of range.
    """

    bits: Bits = 5
    noise: float = NOISE
    bias_bits: Bits = 0
    exact_vectors: bool = False
    init: str = "linear"
    seed: int = 42
    include: Patterns | None = None
    exclude: Patterns = ()
    parts: int = 1
    reassign: int = 0

    @classmethod
    def of(cls, bits: "Bits | SharingConfig", options: Mapping[str, Any]) -> "SharingConfig":
        """`bits`, if it is a config, or that of these fields."""
        if not isinstance(bits, SharingConfig):
            return cls(bits, **options)
        if options:
            raise ValueError("give either a SharingConfig or its fields")
        return bits

    def __post_init__(self) -> None:
        for bits in self.bits.values() if isinstance(self.bits, Mapping) else [self.bits]:
            if not isinstance(bits, str):
                _check_whole("bits", bits, 1, MOST_BITS)
            elif not any(each.is_asked_for(bits) for each in TREATMENTS):
                raise ValueError(
                    f"bits must be a number, {{pattern: number}} or 'auto', not {bits!r}"
                )
        of_biases = self.bias_bits
        for bits in of_biases.values() if isinstance(of_biases, Mapping) else [of_biases]:
            _check_whole("bias_bits", bits, 0, MOST_BITS)
        for name, least in (("seed", 0), ("parts", 1), ("reassign", 0)):
            _check_whole(name, getattr(self, name), least)
        number = isinstance(self.noise, Real) and not isinstance(self.noise, bool)
        if not number or not math.isfinite(self.noise) or self.noise <= 0:
            raise ValueError(f"noise must be a positive number, not {self.noise!r}")
        if self.init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}, not {self.init!r}")
        if not isinstance(self.exact_vectors, bool):
            raise ValueError(f"exact_vectors must be True or False, not {self.exact_vectors!r}")
        listed(self.include or ())
        listed(self.exclude)


def _check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {span}, not {value!r}")


@dataclass(frozen=True)
class Asked:
    """A tensor that the plan may change, and what the config says of it."""

    role: Literal["weight", "bias", "norm"]  # bias: of a weight that is changed
    config: SharingConfig
    read: Callable[[], torch.Tensor]
    kind: str = ""  # of a weight, as of parameters.compressible
    bits: int | str = 0  # of `config.bits` for a weight, of `config.bias_bits` for a bias
    weight_bits: int | str = 0  # of a bias: those of its weight
    trained: bool = False  # by whoever trains the module

    @cached_property
    def few(self) -> int:
        """How many values a weight has, if that is no more than it would get; otherwise 0."""
        return few_values(self.read(), FEW if isinstance(self.bits, str) else 2**self.bits)


@dataclass
class Work:
    """The tensors that are treated, for what a treatment has to know beside its own."""

    tensors: Mapping[str, torch.Tensor]  # a state dict
    config: SharingConfig
    plan: Mapping[str, "Treatment"]
    model: nn.Module | None = None  # whose state dict that is, if there is one
    samples: Any = None  # inputs of the model (net.samples.Samples)
    final: bool = False  # whether nothing will train the values
    spreads: Mapping[str, Spread] | None = None  # of all that is shared by rate, if they are known
    calibrated: Mapping[str, torch.Tensor] = field(default_factory=dict)
    without_data: dict[str, str] = field(default_factory=dict)  # {name: why}
    unmeasured: str = ""  # why the steps are not those by measured sensitivity, with samples
    steps: dict[str, float] = field(init=False)  # of what is shared by rate
    noise: float = field(init=False)  # of vectors

    def __post_init__(self) -> None:
        names = treated(self.plan, ByRate.how)
        traces: Mapping[str, float] = {}
        if names and self.model is not None and self.samples is not None:
            from .sensitivity import known_traces

            model = self.model
            traces, self.unmeasured = known_traces(lambda: model, self.samples, names)
        told = felt_in(self.plan)
        spreads = spreads_of(self.tensors, names) if self.spreads is None else self.spreads
        self.steps = steps(spreads, self.config.noise, traces, told)
        # Where errors of the weights are compensated, those of the vectors would show.
        compensated = self.samples is not None or bool(self.calibrated)
        self.noise = self.config.noise / 2 if compensated else self.config.noise


@dataclass(frozen=True)
class Treatment:
    """What becomes of one tensor.

    kind: of a weight, as of parameters.compressible. bits, reason: where a class uses them.
    tied: the name under which the same tensor comes first, and is treated.
    """

    how: ClassVar[str]  # its name
    shares: ClassVar[bool] = True  # makes few values, which can be trained; not so: rounds
    kind: str = ""
    bits: int = 0
    reason: str = ""
    tied: str = ""

    @staticmethod
    def is_asked_for(bits: str) -> bool:
        """Whether this word in `SharingConfig.bits` asks for the treatment."""
        return False

    @classmethod
    def given(cls, asked: Asked) -> "Treatment | None":
        """The treatment, if the tensor is to have it."""
        raise NotImplementedError

    def text(self) -> str:
        """What the plan says of it."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, names: Sequence[str], work: Work) -> None:
        """Called once for all of `names` that are treated together, before any of them changes."""

    # A class has one of these two, or both; either follows from the other.

    def values(self, tensor: torch.Tensor, name: str, work: Work) -> torch.Tensor:
        """What becomes of `tensor`, of the same shape and type; a ValueError is the user's."""
        after = torch.zeros_like(tensor)
        self.trainable(tensor, name, work).write(after)
        return after

    def trainable(
        self, tensor: torch.Tensor, name: str, work: Work, reassignable: bool = False
    ) -> SharedTensor:
        """The same in a form whose few values an optimizer can train."""
        return SharedTensor.of_values(tensor, self.values(tensor, name, work), reassignable)

    def __str__(self) -> str:
        return f"{self.text()} (tied to {self.tied})" if self.tied else self.text()


class Unsigned(Treatment):
    """Few values as they are, but for the negative zeros among them, which become zeros: a weight
    times a mask has them, or one that torch.round has seen, and each would cost its sign."""

    how = "unsigned"

    @classmethod
    def given(cls, asked: Asked) -> Treatment | None:
        if asked.role != "weight" or asked.trained or not asked.few:
            return None
        weight = asked.read()
        if not bool(((weight == 0) & weight.signbit()).any()):
            return None
        return cls(asked.kind, reason=f"{asked.few} values only")

    def text(self) -> str:
        return f"negative zeros become zeros: {self.reason}"

    def values(self, tensor: torch.Tensor, name: str, work: Work) -> torch.Tensor:
        return tensor.masked_fill(tensor == 0, 0.0)


class Exact(Treatment):
    """Nothing, for `reason`."""

    how = "exact"
    shares = False

    def text(self) -> str:
        return f"exact: {self.reason}"

    @classmethod
    def given(cls, asked: Asked) -> Treatment | None:
        if asked.role == "weight":
            few = not asked.trained and asked.few
            return cls(asked.kind, reason=f"{few} values only") if few else None
        if asked.bits:
            return None
        if asked.config.exact_vectors:
            return cls(reason=EXACT_VECTORS)
        if asked.role == "bias" and not ByRate.is_asked_for(str(asked.weight_bits)):
            return cls(reason="a bias, for which there are no bits")
        return None

    def values(self, tensor: torch.Tensor, name: str, work: Work) -> torch.Tensor:
        return tensor


class ByRate(Treatment):
    """Multiples of a step that the config's noise sets, zeros where these pay (net.rounding); with
    sample inputs so that errors cancel in what these have in common (net.calibration)."""

    how = "rate"

    @staticmethod
    def is_asked_for(bits: str) -> bool:
        return bits == "auto"

    @classmethod
    def given(cls, asked: Asked) -> Treatment | None:
        wanted = asked.role == "weight" and asked.bits == "auto" and not asked.few
        return cls(asked.kind) if wanted else None

    def text(self) -> str:
        return "shared by rate"

    @classmethod
    def prepare(cls, names: Sequence[str], work: Work) -> None:
        if names and work.model is not None and work.samples is not None:
            from .calibration import calibrate

            kinds = {name: work.plan[name].kind for name in names}
            walks = set(names) if work.final else ()
            values, reasons = calibrate(work.model, work.samples, kinds, work.steps, walks)
            work.calibrated = {**work.calibrated, **values}
            work.without_data.update(reasons)

    def values(self, tensor: torch.Tensor, name: str, work: Work) -> torch.Tensor:
        axes = normed_axes(work.tensors, name)
        if name in work.calibrated:
            return directed(tensor, cast(work.calibrated[name], tensor.dtype), axes)
        # Training would leave the trellis (net.compensation).
        return share_alone(tensor, work.steps[name], self.kind, work.final, axes)


class PerTensor(Treatment):
    """2**`bits` values at most, by k-means over the non-zero entries."""

    how = "cluster"

    @classmethod
    def given(cls, asked: Asked) -> Treatment | None:
        if asked.bits and not isinstance(asked.bits, str):
            return cls(asked.kind, asked.bits)
        if asked.role == "weight" and asked.few:  # kept, as centroids that can be trained
            return cls(asked.kind, max(1, math.ceil(math.log2(asked.few))))
        return None

    def text(self) -> str:
        return f"shared, {2**self.bits} values at most"

    def trainable(
        self, tensor: torch.Tensor, name: str, work: Work, reassignable: bool = False
    ) -> SharedTensor:
        config = work.config
        return SharedTensor.clustered(tensor, self.bits, config.init, config.seed, reassignable)


class Rounded(Treatment):
    """Each value of a vector to a few binary digits, as roughly as the noise allows."""

    how = "round"
    shares = False

    @classmethod
    def given(cls, asked: Asked) -> Treatment | None:
        return None if asked.role == "weight" else cls()

    def text(self) -> str:
        return "rounded"

    def values(self, tensor: torch.Tensor, name: str, work: Work) -> torch.Tensor:
        return round_vector(tensor, work.noise, scale_of(name, work.tensors))


TREATMENTS: tuple[type[Treatment], ...] = (Unsigned, Exact, ByRate, PerTensor, Rounded)


def treated(plan: Mapping[str, Treatment], how: str) -> list[str]:
    """The names of the tensors that `plan` treats in this way, of tied ones the first."""
    return [name for name, each in plan.items() if each.how == how and not each.tied]


def felt_in(plan: Mapping[str, Treatment]) -> dict[str, float]:
    """What names tell of the sensitivity of weights that are shared by rate (net.roles.felt)."""
    return felt(plan, {name: plan[name].kind for name in treated(plan, ByRate.how)})
