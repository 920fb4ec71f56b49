"""The base class of everything that a user can cause, and how its single line comes about."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def first_line(error: Exception) -> str:
    """Of what somebody else's code has raised: "ValueError: what it says"."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class UserError(Exception):
    """Shown as ``error: <message>`` with exit code 1, never as a traceback.

    The message says what is wrong, in which file, and what to do. The names in it may be
    anything: what a terminal would obey is shown as an escape.
    `missing` is the name of the file that is not there, where that is what is wrong: whoever knows
    what makes it can say so.
    """

    missing = ""

    def __str__(self) -> str:
        return printable(super().__str__(), keep="\n")


class Told(UserError):
    """An error of several processes, which another one shows: this one ends with exit code 1."""


def printable(text: str, encoding: str | None = None, keep: str = "") -> str:
    r"""`text` with escapes for what a terminal obeys or `encoding` (None: UTF-8) does not have.

    These are control characters, those that change the direction of writing, and lone surrogates,
    which stand for the bytes of file names of another encoding. Characters of `keep` stay.

    Example: "a\x1b[2J" (with an escape character) -> "a\x1b[2J" (with a backslash)
    """
    if not text.isprintable():
        text = "".join(
            c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
        )
    return text.encode(encoding or "utf-8", "backslashreplace").decode(encoding or "utf-8")


def some_names(names: Iterable[str], most: int = 6, between: str = ", ") -> str:
    """The first `most` of the names, for a line: "a, b and 3 more"."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return between.join(every[:most]) + more


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn a ValueError of the block, which knows only numbers, into a UserError: "`what`: ..."."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None
