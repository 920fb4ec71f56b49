"""What a killed run of pruning.py needs to go on, saved after every epoch."""

from pathlib import Path

import torch

from .. import checkpoint
from ..errors import UserError
from . import distributed

PHASES = ("train", "teacher", "prune", "retrain")  # as run_pruning goes through them


class Progress:
    """The state of training at the end of its last whole epoch, in the file `path`.

    Everything that the next step depends on is in it (weights, masks, optimiser, generators), so
    that a resumed run ends with the same weights as one that was not interrupted.
    """

    def __init__(self, path: Path, options: dict, resume: bool):
        self.path, self.options, self.record = path, options, None
        if resume and path.exists():
            record = checkpoint.load_dict(path)
            if record.get("options") != options:
                raise UserError(
                    f"{path} is of a run with other options; give the same ones, or leave out "
                    "--resume to start again"
                )
            self.record = record

    def passed(self, phase: str) -> bool:
        """Whether the interrupted run was in a later phase than this."""
        return self.record is not None and (
            PHASES.index(self.record["phase"]) > PHASES.index(phase)
        )

    def restore(self, phase: str, epochs: int, model, optimizer) -> int:
        """Put the state back if it is of this phase; return the number of `epochs` already done."""
        if self.passed(phase):
            return epochs
        if self.record is None or self.record["phase"] != phase:
            return 0
        model.load_state_dict(self.record["state_dict"])
        for name, mask in self.record["masks"].items():
            model.get_buffer(name).copy_(mask)
        optimizer.load_state_dict(self.record["optimizer"])
        torch.set_rng_state(self.record["rng"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self.record["cuda_rng"])
        return self.record["epoch"]

    def save(self, phase: str, epoch: int, model, optimizer) -> None:
        state = model.state_dict()
        content = {
            "options": self.options,
            "phase": phase,
            "epoch": epoch,
            "state_dict": state,
            "masks": {name: b for name, b in model.named_buffers() if name not in state},
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        checkpoint.save_dict(self.path, content)

    def finish(self) -> None:
        if distributed.is_writer():
            self.path.unlink(missing_ok=True)
