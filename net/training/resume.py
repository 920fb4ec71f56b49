"""What a killed run needs to go on, saved after every epoch and every search."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from ..errors import UserError
from ..files import one_line
from . import distributed

PHASES = ("train", "teacher", "prune", "retrain")  # in the order in which a run goes through them

START_AGAIN = "start again without resuming"
# In what a run is recognised by: of the contents of the files of --weights and --teacher.
WEIGHTS, TAUGHT_BY = "weights_sum", "teacher_sum"


def sharing_phases(parts: int) -> tuple[str, ...]:
    """Those of weight sharing in so many parts."""
    return (*(f"share {part}/{parts}" for part in range(1, parts)), "finetune")


def same_run(one: dict, other: dict) -> bool:
    """Whether two runs are of the same options and contents; where a file of `other` has gone, what
    was in it is not asked."""
    unknown = {each for each in (WEIGHTS, TAUGHT_BY) if other.get(each, 0) is None}
    first, second = ({k: v for k, v in each.items() if k not in unknown} for each in (one, other))
    return first == second


class RunProgress:
    """The state of a run at the end of its last whole epoch, in the file `path`.

    Everything that the next step depends on is in it (weights, masks, optimizer, generators), so
    that a resumed run ends with the same weights as one that was not interrupted. `phases` are
    those of the run, in their order. Raises UserError for a file of a run with other options.
    """

    def __init__(
        self, path: Path, options: dict, resume: bool, phases: tuple[str, ...] = PHASES
    ) -> None:
        self.path, self.options, self.phases = path, options, phases
        self.record: dict | None = None
        self.found: dict[str, Any] = {}
        if resume and path.exists():
            record = checkpoint.load_dict(path)
            if not _is_record(record, phases):
                raise UserError(f"{path} is no progress of a run; {START_AGAIN}")
            if not same_run(record["options"], options):
                raise UserError(
                    f"{path} is of a run with other options; give the same ones, or {START_AGAIN}"
                )
            self.record, self.found = record, record["found"]

    def passed(self, phase: str) -> bool:
        """Whether the interrupted run was in a later phase than this."""
        return self.record is not None and (
            self.phases.index(self.record["phase"]) > self.phases.index(phase)
        )

    def part(self, phase: str, name: str) -> dict[str, Any] | None:
        """The state of a part, if the run was interrupted in this phase."""
        if self.record is None or self.record["phase"] != phase or not self.record["epoch"]:
            return None
        return self.record["parts"].get(name)

    def once(self, name: str, search: Callable[[], Any], before: str) -> Any:
        """What `search`, before a phase, gives, kept at once: a resumed run has not to search."""
        if name not in self.found:
            self.found[name] = search()
            self.save(before, 0, {})
        return self.found[name]

    def of(self, phase: str, **parts: Any) -> "PhaseProgress":
        """The progress of one phase, in which `parts` change: a module, an optimizer, a Pruner."""
        return PhaseProgress(self, phase, parts)

    def save(self, phase: str, epoch: int, parts: dict[str, Any]) -> None:
        content = {
            "options": self.options,
            "phase": phase,
            "epoch": epoch,
            "found": self.found,
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        distributed.by_writer(lambda: checkpoint.save_dict(self.path, content))

    def finish(self) -> None:
        if distributed.is_writer():
            self.path.unlink(missing_ok=True)


class PhaseProgress:
    """What the training loop needs of it: where a phase stands, and to say that it went on."""

    def __init__(self, run: RunProgress, phase: str, parts: dict[str, Any]) -> None:
        self.run, self.phase, self.parts = run, phase, parts

    def restore(self) -> int:
        """Put the state back if it is of this phase; return the number of epochs already done."""
        record = self.run.record
        if record is None or record["phase"] != self.phase or not record["epoch"]:  # a search
            return 0
        with one_line(self.run.path, UserError, START_AGAIN, RuntimeError):
            for name, part in self.parts.items():
                part.load_state_dict(record["parts"][name])
            torch.set_rng_state(record["rng"])
            if torch.cuda.is_available():
                torch.cuda.set_rng_state_all(record["cuda_rng"])
        return record["epoch"]

    def save(self, epoch: int) -> None:
        self.run.save(self.phase, epoch, self.parts)


def _is_record(record: dict, phases: tuple[str, ...]) -> bool:
    """Whether a file, which anyone may have written, holds what RunProgress.save writes, the
    parts aside."""
    kinds = {"options": dict, "parts": dict, "found": dict, "rng": torch.Tensor, "cuda_rng": list}
    return (
        all(isinstance(record.get(name), kind) for name, kind in kinds.items())
        and all(type(number) in (int, float) for number in record["found"].values())
        and record.get("phase") in phases
        and type(record.get("epoch")) is int
        and record["epoch"] >= 0
    )
