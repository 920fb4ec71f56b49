"""Functions of the user's own that an option names, `package.module:function`."""

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import same_directory


def find(name: str, option: str) -> Callable[..., Any]:
    """The callable `package.module:function`, of code in the working directory or PYTHONPATH.

    `option` is what gave the name, for the UserError where there is none, or none of the user's.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # at the end: the user's files shadow no library
    top = module_name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # an empty name, or a module without a place such as __main__
        spec = None
    if spec is None:
        raise UserError(
            f"{option} {name}: no module {top!r} in the working directory {os.getcwd()}"
        )
    # The name may come from a checkpoint, which must not call whatever a library has to offer.
    if not is_own_code(spec):
        raise UserError(
            f"{option} {name}: {top!r} is not code of your own; write a function in a file of the "
            "working directory, and name that"
        )
    with one_line(f"{option} {name}: importing {module_name}"):
        module = importlib.import_module(module_name)
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UserError(
            f"{option} {name}: {module.__file__} has no function or class {attribute!r}"
        )
    return found


def is_own_code(spec: ModuleSpec) -> bool:
    """Whether a module is neither of the standard library nor an installed package."""
    if spec.origin is None and spec.submodule_search_locations:  # a folder without __init__.py
        origin = Path(next(iter(spec.submodule_search_locations)))
    elif spec.has_location and spec.origin:
        origin = Path(spec.origin)
    else:
        return False  # built in, or frozen
    paths = sysconfig.get_paths()
    libraries = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not any(origin.is_relative_to(library) for library in libraries) and not (
        {"site-packages", "dist-packages"} & set(origin.parts)
    )


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turn an exception of the user's code in the block into a UserError with its place."""
    try:
        with same_directory():
            yield
    except (Exception, SystemExit) as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{what} failed in {at.filename}, line {at.lineno}: {why}") from None
