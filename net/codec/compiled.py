"""How a loop is compiled by numba: when it is first called, and kept where that can be.

numba takes half a second to load; import what is compiled where it is needed.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numba

from ..errors import UserError

if getattr(numba.config, "DISABLE_JIT", False):  # the loops count on the types of its integers
    raise UserError("numba compiles nothing, and the codec needs it: unset NUMBA_DISABLE_JIT")

Function = TypeVar("Function", bound=Callable[..., Any])

# Without the wrappers that nobody calls there is less to compile.
OPTIONS: Any = {"nogil": True, "no_cfunc_wrapper": True, "error_model": "numpy"}
HELPER_OPTIONS: Any = OPTIONS | {"no_cpython_wrapper": True}


def kernel(function: Function) -> Function:
    """Compile on the first call; keep the result where numba finds a folder that it can write."""
    try:
        compiled = numba.njit(cache=True, **OPTIONS)(function)
    except (RuntimeError, OSError):  # there is none: compile in every process
        return numba.njit(**OPTIONS)(function)
    forgive(compiled._cache)
    return compiled


def forgive(cache: Any) -> None:
    """Compile in this process where `cache` of numba's cannot be read or written.

    Its folder may be full, damaged or gone since; what is compiled does not need it.
    """
    load, save = cache.load_overload, cache.save_overload

    def load_or_none(*args: Any) -> Any:
        try:
            return load(*args)
        except Exception:  # unpickling a damaged file may raise any
            with suppress(Exception):
                cache.flush()  # an empty index, to which `save` can add
            return None

    def save_or_not(*args: Any) -> None:
        with suppress(Exception):
            save(*args)

    cache.load_overload, cache.save_overload = load_or_none, save_or_not


def helper(function: Function) -> Function:
    """Compile what only kernels call."""
    return numba.njit(**HELPER_OPTIONS)(function)
