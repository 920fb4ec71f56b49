"""Packages that only a part of the library uses, and that `[train]` installs."""

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from .errors import UserError

INSTALL = 'pip install "deep-compression[train]"'


def needs(module: str, what: str) -> Any:
    """The module of a package of `[train]`. Raises UserError, that `what` needs it, without."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        raise UserError(
            f"{what} needs {package}, which is not installed: {INSTALL}, or "
            "pip install -r requirements.txt in a clone"
        ) from None


class ProgressBar:
    """tqdm's bar around `steps` on stderr, none where that is no terminal or tqdm is missing."""

    def __init__(self, steps: Iterable, desc: str, disable: bool | None = None, **options: Any):
        try:
            from tqdm import tqdm
        except ModuleNotFoundError:
            self.bar, self.steps = None, steps
        else:
            self.bar = tqdm(steps, desc, leave=False, disable=disable, **options)
            self.steps = self.bar

    def __iter__(self) -> Iterator:
        return iter(self.steps)

    def show(self, **figures: Any) -> None:
        """Beside the bar, when it moves next."""
        if self.bar is not None:
            self.bar.set_postfix(figures, refresh=False)
