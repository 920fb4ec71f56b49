"""What a compression writes, and what it says of it."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import encoding
from .encoding import NOISE_PERCENT
from .outputs import Moved
from .shared_tensor import Clustering
from .tensors import TensorMap
from .treatments import Treatment

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Result:
    """What `compress` has done; str() is one line of it."""

    path: Path
    bytes: int  # of the whole file, with all that is in it
    dense_bytes: int  # of the tensors, as they were
    noise: float | None  # None: nothing is lost
    moved: Moved | None  # None: nobody has looked, for the reason `unseen`, or nothing is lost
    judged_by: str = ""  # which inputs
    unseen: str = ""
    measured: tuple[float, float] | None = None  # by `evaluate`, before and after
    notes: list[str] = field(default_factory=list)
    plan: Mapping[str, Treatment] = field(default_factory=dict)
    clusterings: Mapping[str, Clustering] = field(default_factory=dict)
    rounded: Mapping[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Bytes of the dense tensors over those on the disk."""
        return self.dense_bytes / self.bytes

    def __str__(self) -> str:
        if self.noise is None:
            outputs = "nothing is lost"
        else:
            told = [f"{self.measured[0]:.5g} -> {self.measured[1]:.5g}"] if self.measured else []
            told += [f"{self.moved} ({self.judged_by})"] if self.moved else []
            outputs = f"noise {self.noise:.3g}, outputs: {'; '.join(told) or 'not checked'}"
        return f"{self.path}: {self.bytes:,} bytes, {self.ratio:.2f}x; {outputs}"


class Shared(NamedTuple):
    """Tensors as they are written, and what became of each, once all have been asked for."""

    state: Mapping[str, torch.Tensor]
    noise: float | None = None
    plan: Mapping[str, Treatment] = {}
    clusterings: Mapping[str, Clustering] = {}
    rounded: Mapping[str, float] = {}


class Counted(TensorMap):
    """A mapping that tells how many of its tensors have been asked for."""

    def __init__(self, state: Mapping[str, torch.Tensor], what: str, tell: Tell) -> None:
        self.state = self._named = state
        self.what, self.tell, self.done = what, tell, 0

    @property
    def tie(self) -> Callable[[str], Hashable]:
        """That of the mapping, if it has one (net.tensors.tie_of)."""
        state: Any = self.state
        return state.tie

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self.state[name]
        self.done += 1
        self.tell(self.what, self.done, len(self.state))
        return tensor


class _Noted(Counted):
    """The same for a mapping that is shared as it is read: `percents` has the noise of what was,
    in the order of the names, None for what is not shared."""

    def __init__(self, shared: Shared, what: str, tell: Tell) -> None:
        super().__init__(shared.state, what, tell)
        self.clusterings = shared.clusterings
        self.percents: list[float | None] = []

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = super().__getitem__(name)
        found = self.clusterings.get(name)
        self.percents.append(None if found is None else float(f"{100 * found.noise:.2g}"))
        return tensor


def write(
    shared: Shared,
    target: Path,
    files: Mapping[str, Path],
    layout: dict,
    tell: Tell,
    about: Mapping[str, Any] | None = None,
    most: int | None = None,
) -> int:
    """Write the tensors, and how far they are from what they were, into the file `target`; return
    its bytes. `about` is further meta data; `most` as of encoding.save."""
    what = "encoding" if shared.noise is None else f"encoding, noise {shared.noise:.3g}"
    state, meta = _Noted(shared, what, tell), dict(about or {})
    if shared.noise is not None:
        meta |= {"noise": float(f"{shared.noise:.4g}"), NOISE_PERCENT: state.percents}
    return encoding.save(
        state, target, meta or None, files=dict(files) or None, layout=layout or None, most=most
    )


def nothing_shared(plan: Mapping[str, Treatment]) -> str:
    """The note that all tensors stay as they are, and why."""
    reasons = dict.fromkeys(each.reason for each in plan.values() if each.reason)
    why = f" ({', '.join(reasons)})" if reasons else ""
    return f"nothing in it can be shared{why}: it is encoded without loss"
