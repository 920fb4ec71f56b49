"""How a loop is compiled by numba: when it is first called, and kept where that can be.

numba takes half a second to load; import what is compiled where it is needed.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

# Without the wrappers that nobody calls there is less to compile.
OPTIONS: Any = {"nogil": True, "no_cfunc_wrapper": True, "error_model": "numpy"}
HELPER_OPTIONS: Any = OPTIONS | {"no_cpython_wrapper": True}


def kernel(function: Function) -> Function:
    """Compile on the first call; keep the result where numba finds a folder that it can write."""
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # there is none: compile in every process
        return numba.njit(**OPTIONS)(function)


def helper(function: Function) -> Function:
    """Compile what only kernels call."""
    return numba.njit(**HELPER_OPTIONS)(function)
