"""Which options of `compress` contradict each other; asked before PyTorch is loaded, too."""

from collections.abc import Callable
from typing import Any

SUFFIX = ".dc"  # of one file (net.container)


def conflict(
    max_bytes: Any = None,
    noise: Any = None,
    max_divergence: Any = None,
    lossless: bool = False,
    inputs: Any = None,
    evaluate: Any = None,
    tolerance: Any = None,
    include: Any = None,
    exclude: Any = (),
    arch: Any = None,
    called: Callable[[str], str] = str,
    one_file: bool = True,
) -> str | None:
    """Which of these options of `compress` cannot have an effect beside the others, or with a
    target of several files; or None. `called` gives what the user calls an option."""
    goals = {
        "lossless": lossless,
        "noise": noise is not None,
        "max_bytes": max_bytes is not None,
        "max_divergence": max_divergence is not None,
        "tolerance": tolerance is not None,
    }
    chosen = [called(name) for name, given in goals.items() if given]
    if len(chosen) > 1:
        return f"{chosen[0]} decides alone; give it without {chosen[1]}"
    if tolerance is not None and evaluate is None:
        return "tolerance is for evaluate, a function of yours; give both"
    beside = {"include": include, "exclude": exclude, "inputs": inputs, "arch": arch}
    beside["evaluate"] = evaluate
    for name, value in beside.items():
        if lossless and value is not None and not (name == "exclude" and not len(value)):
            why = f"{called('lossless')}, which changes no tensor"
            return f"{called(name)} has no effect with {why}"
    looks = {"inputs": inputs, "arch": arch, "evaluate": evaluate}
    for name, value in (looks | {"max_divergence": max_divergence}).items():
        if not one_file and value is not None:
            return f"{called(name)} is for one file; give an output that ends in {SUFFIX}"
    return None
