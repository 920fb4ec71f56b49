"""Figures, tables and plots; itself callable, as `net.report(before, "model.dc")`."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .contents import Before, Report


class _Callable(ModuleType):
    def __call__(self, before: "Before", encoded: str) -> "Report":
        """What became of the model `before` (a module, a state dict or a path) in what it was
        encoded to: str() of it is a table, `figures` the dict of `contents.figures`."""
        from .contents import Report, figures

        return Report(figures(encoded, before))


sys.modules[__name__].__class__ = _Callable
