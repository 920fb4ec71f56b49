"""Training figures: to the terminal, and one line per event to `--log`."""

import json
from pathlib import Path

from ..errors import UserError


class Log:
    """Prints epochs and results; with `path`, writes every event there.

    As JSON lines if `path` ends in .jsonl, else as text.  `interval` is the number of batches
    between two "batch" events, which go to the file and the progress bar alone.
    """

    def __init__(self, path=None, interval: int = 50, append: bool = False):
        self.interval = interval
        self.json_lines = path is not None and str(path).endswith(".jsonl")
        self.file = None
        if path is not None:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                self.file = open(path, "a" if append else "w", buffering=1)  # noqa: SIM115
            except OSError as error:
                raise UserError(f"cannot write the log {path}: {error.strerror}") from None

    def close(self) -> None:
        if self.file:
            self.file.close()

    def batch(self, phase: str, epoch: int, batch: int, loss: float, bar) -> None:
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        text = f"{phase}  epoch {epoch}  batch {batch}  loss {loss:.4f}"
        self.write(text, event="batch", phase=phase, epoch=epoch, batch=batch, loss=loss)

    def epoch(self, phase, epoch, epochs, loss, validation_loss, validation_error) -> None:
        text = (
            f"{phase:<9} epoch {epoch:>{len(str(epochs))}}/{epochs}  loss {loss:.4f}  "
            f"held-out loss {validation_loss:.4f}  held-out error {validation_error:.2f} %"
        )
        print(text, flush=True)
        self.write(
            text,
            event="epoch",
            phase=phase,
            epoch=epoch,
            loss=loss,
            validation_loss=validation_loss,
            validation_error_percent=validation_error,
        )

    def result(self, text: str, **event) -> None:
        """A line of a stage's own: `text` to the terminal and a text log, `event` to a JSON log."""
        print(text, flush=True)
        self.write(text, **event)

    def write(self, text: str, **event) -> None:
        if self.file:
            self.file.write((json.dumps(event) if self.json_lines else text) + "\n")
