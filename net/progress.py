"""What a killed run of pruning.py needs to go on, saved after every epoch."""

from pathlib import Path

import torch

from net import checkpoint
from net.errors import UserError


class Progress:
    """The state of training at the end of its last whole epoch, in the file `path`.

    Everything that the next step depends on is in it (weights, optimiser, generators), so that a
    resumed run ends with the same weights as one that was not interrupted.
    """

    def __init__(self, path: Path, options: dict, resume: bool):
        self.path, self.options, self.record = path, options, None
        if resume and path.exists():
            record = checkpoint.load_dict(path)
            if record.get("options") != options:
                raise UserError(
                    f"{path} is of a run with other options; give the same ones, or leave out "
                    "--resume to start anew"
                )
            self.record = record

    def reached(self, phase: str) -> bool:
        return self.record is not None and self.record["phase"] == phase

    def restore(self, phase: str, model, optimizer) -> int:
        """Put the state back if it is of this phase; return the number of epochs already done."""
        if not self.reached(phase):
            return 0
        model.load_state_dict(self.record["state_dict"])
        optimizer.load_state_dict(self.record["optimizer"])
        torch.set_rng_state(self.record["rng"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self.record["cuda_rng"])
        return self.record["epoch"]

    def save(self, phase: str, epoch: int, model, optimizer) -> None:
        content = {
            "options": self.options,
            "phase": phase,
            "epoch": epoch,
            "state_dict": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        checkpoint.save_dict(self.path, content)

    def finish(self) -> None:
        self.path.unlink(missing_ok=True)
