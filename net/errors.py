"""The one base class of everything that a user can cause and should read as a single line."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Shown as ``error: <message>`` with exit code 1, never as a traceback.

    The message says what is wrong, in which file, and what to do.
    """


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn a ValueError of the block, which knows only numbers, into a UserError: "`what`: ..."."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None
