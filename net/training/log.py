"""Training figures: to the terminal, and one line per event to a file."""

import json
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..extras import ProgressBar


class Log:
    """Prints epochs and results; with `path`, writes every event there.

    As JSON lines if `path` ends in .jsonl, else as text.  `interval` is the number of batches
    between two "batch" events, which go to the file and the progress bar alone. A silent log shows
    nothing: neither lines nor progress bars.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        interval: int = 50,
        append: bool = False,
        silent: bool = False,
    ) -> None:
        self.interval, self.silent = interval, silent
        self.json_lines = path is not None and str(path).endswith(".jsonl")
        self.file = None
        if path is not None:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                self.file = open(  # noqa: SIM115
                    path, "a" if append else "w", buffering=1, encoding="utf-8"
                )
            except OSError as error:
                raise UserError(f"cannot write the log {path}: {error.strerror}") from None

    def close(self) -> None:
        if self.file:
            self.file.close()

    def batch(self, phase: str, epoch: int, batch: int, loss: float, bar: ProgressBar) -> None:
        bar.show(loss=f"{loss:.4f}")
        text = f"{phase}  epoch {epoch}  batch {batch}  loss {loss:.4f}"
        self.write(text, event="batch", phase=phase, epoch=epoch, batch=batch, loss=loss)

    def epoch(
        self,
        phase: str,
        epoch: int,
        epochs: int,
        loss: float,
        held_out: tuple[float, float] | None,
    ) -> None:
        """The mean training loss of an epoch, and the loss and error in percent held out."""
        text = f"{phase:<9} epoch {epoch:>{len(str(epochs))}}/{epochs}  loss {loss:.4f}"
        event = {"event": "epoch", "phase": phase, "epoch": epoch, "loss": loss}
        if held_out:
            text += "  held-out loss {:.4f}  held-out error {:.2f} %".format(*held_out)
            event |= {"validation_loss": held_out[0], "validation_error_percent": held_out[1]}
        self.result(text, **event)

    def result(self, text: str, **event: Any) -> None:
        """A line of a stage's own: `text` to the terminal and a text log, `event` to a JSON log."""
        self.table(printable(text), **event)

    def table(self, text: str, **event: Any) -> None:
        """The same for several lines of printable text (report.tables)."""
        if not self.silent:
            print(text, flush=True)
        self.write(text, **event)

    def note(self, text: str) -> None:
        """What a user should know and did not ask for; on stderr."""
        text = printable(text)
        if not self.silent:
            print(f"NOTE: {text}", file=sys.stderr, flush=True)
        self.write(f"NOTE: {text}", event="note", note=text)

    def write(self, text: str, **event: Any) -> None:
        if not self.file:
            return
        try:
            self.file.write((json.dumps(finite(event)) if self.json_lines else text) + "\n")
        except OSError as error:  # hours of training must not end with a full disk
            file, self.file = self.file, None
            with suppress(OSError):  # what is in its buffer would fail again
                file.close()
            self.note(f"the log {file.name} ends here: {error.strerror}; work goes on without it")


def finite(event: Any) -> Any:
    """`event` with null for what JSON has no number for."""
    if isinstance(event, dict):
        return {name: finite(value) for name, value in event.items()}
    if isinstance(event, list | tuple):
        return [finite(each) for each in event]
    return event if not isinstance(event, float) or math.isfinite(event) else None
