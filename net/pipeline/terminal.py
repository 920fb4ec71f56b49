"""What the scripts print: it cannot fail, and nothing that is printed is obeyed by a terminal."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from ..errors import printable


class Output:
    """A text stream that never fails: what cannot be written is dropped, and work goes on.

    An hour of training must not end with its terminal. `failure` is the first error. Characters
    that the stream's encoding does not have become escapes, as those do that a terminal obeys.
    """

    def __init__(self, stream: TextIO | None, keep: str = "\n") -> None:
        self._stream, self._keep = stream, keep
        self.failure: str | None = None if stream else "it is closed"

    def write(self, text: str) -> int:
        if self._stream and not self.failure:
            try:
                self._stream.write(printable(text, self.encoding, self._keep))
                self._stream.flush()  # nothing is left to be written by the end of the process
            except (OSError, ValueError) as error:  # ValueError: closed since
                self.failure = getattr(error, "strerror", None) or str(error)
                self._drop()
        return len(text)

    def _drop(self) -> None:
        """What is still in the buffer would fail again when the interpreter ends."""
        try:
            descriptor = self.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
        except (OSError, ValueError):  # not of a file
            pass

    def flush(self) -> None:
        pass

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return bool(self._stream and not self.failure and self._stream.isatty())

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("closed")
        return self._stream.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def outputs() -> Iterator[Output]:
    """sys.stdout and sys.stderr as `Output` within the block, which is given the former."""
    before = sys.stdout, sys.stderr
    out = Output(sys.stdout)
    # Progress bars begin with a carriage return.
    sys.stdout, sys.stderr = out, Output(sys.stderr, keep="\n\r")
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before
