"""A state dict in what others save: at any depth, one of several, with other things beside it."""

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from .tensors import check_dense

# Keys under which a file has its model, whatever else it holds.
MAIN = ("state_dict", "model_state_dict", "model")
# Keys under which there are tensors that are no model.
NO_MODEL = re.compile(r"optim|sched|scaler|callback|(^|_)rng", re.IGNORECASE)
MAX_DEPTH = 32
MAX_NAMES = 8  # of one and the same dict
MAX_FIELDS = 1 << 21  # a pickle can name one list a thousand times
SHOWN = 6

Path = tuple[str, ...]


class Found(NamedTuple):
    """A state dict, in its order; the plain values beside it, where they were; and what a user
    should know of the choice."""

    state: dict[str, torch.Tensor]
    extra: dict[str, Any]
    notes: list[str]


def find(content: object, key: str | None = None) -> Found:
    """The state dict in `content`, what torch.load gave, or the one at the dotted path `key`.

    Raises ValueError, whose text follows the name of the file, where there is none, where there
    are several and none is called as in MAIN, and for a tensor without plain values.
    """
    everything = _with_tensors(content)
    path, others = _chosen(everything, key)
    own = everything[path]
    state = {}
    for name, value in own.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            try:
                check_dense(name, value)
            except ValueError as error:
                raise ValueError(f"holds what cannot be read, {error}") from None
            state[name] = value.detach()
    extra, lost = _beside(content, path)
    lost = [name for name in lost if name not in map(_dotted, others)]
    notes = []
    if others:
        notes.append(
            f"the state dict {_dotted(path)} is taken; there are others, which a key would name: "
            + _listed(map(_dotted, others))
        )
    if kept := [str(name) for name in own if name not in state and name in _at(extra, path)]:
        notes.append(f"no tensors, and kept as they are: {_listed(kept)}")
    if lost:
        notes.append(f"beside the tensors and not kept: {_listed(lost)}")
    return Found(state, extra, notes)


def path_of(content: object, key: str | None = None) -> Path:
    """Where `find` finds it: the keys, as texts, that lead to it."""
    return _chosen(_with_tensors(content), key)[0]


def _with_tensors(content: object) -> dict[Path, dict]:
    """{path: dict} of all that hold tensors under names, but for those of optimizers."""
    found: dict[Path, dict] = {}
    seen: Counter[int] = Counter()

    def visit(value: object, path: Path, above: tuple[int, ...]) -> None:
        if not isinstance(value, dict) or "param_groups" in value or id(value) in above:
            return
        if len(path) > MAX_DEPTH or (path and NO_MODEL.search(path[-1])):
            return
        if seen[id(value)] == MAX_NAMES:
            return
        seen[id(value)] += 1
        if any(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items()):
            found[path] = value
        for name, inner in value.items():
            visit(inner, (*path, str(name)), (*above, id(value)))

    visit(content, (), ())
    return found


def _chosen(everything: Mapping[Path, dict], key: str | None) -> tuple[Path, list[Path]]:
    """(the path of the state dict to take, those of others that could be meant)."""
    if not everything:
        raise ValueError("holds no model: expected a .ptmodel file or a state dict")
    if key is not None:
        for path in everything:
            if _dotted(path) == key:
                return path, []
        known = _listed(map(_dotted, everything))
        raise ValueError(f"has no state dict {key!r}; there are: {known}")
    models = _largest({path: _elements(state) for path, state in everything.items()})
    if len(models) == 1:
        return models[0], []
    main = [path for path in models if path and all(part in MAIN for part in path)]
    if len(main) == 1:
        return main[0], [path for path in models if path != main[0]]
    raise ValueError(
        f"holds several models: {_listed(map(_dotted, models))}; choose one by its "
        f"key, such as {_dotted(models[0])}"
    )


def _largest(sizes: Mapping[Path, int]) -> list[Path]:
    """Of state dicts that are one within the other, that of the most elements: not the counter
    beside a model, nor the statistics of a layer. All if none has any."""
    below: Counter[Path] = Counter()  # the most of any below it
    for path, size in sizes.items():
        for end in range(len(path)):
            below[path[:end]] = max(below[path[:end]], size)

    def above(path: Path) -> int:
        return max((sizes.get(path[:end], 0) for end in range(len(path))), default=0)

    found = [path for path, size in sizes.items() if size and size >= max(below[path], above(path))]
    return found or list(sizes)


def _at(extra: dict, path: Path) -> dict:
    for part in path:
        extra = extra.get(part, {})
    return extra


def _elements(state: Mapping) -> int:
    """Of all tensors with a dimension: counters and scores are no weights."""
    return sum(
        tensor.numel()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor) and tensor.dim() > 0
    )


def _dotted(path: Path) -> str:
    return ".".join(path) or "."  # the outermost dict


def _listed(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# --- plain values beside the tensors --------------------------------------------------------------


class NotPlain(ValueError):
    """Something that is not made of numbers, texts, lists and dicts."""

    def __init__(self) -> None:
        super().__init__("not made of numbers, texts, lists and dicts, or of too many")


def _beside(content: object, path: Path) -> tuple[dict[str, Any], list[str]]:
    """(the plain values of `content` where they were, without the tensors of the state dict at
    `path`; the dotted names of what is not plain)."""
    found: dict = {}
    lost: list[str] = []
    for name, value in content.items() if isinstance(content, dict) else ():
        if not path and isinstance(name, str) and isinstance(value, torch.Tensor):
            continue
        if path and str(name) == path[0] and isinstance(value, dict):
            below, lost_below = _beside(value, path[1:])
            found |= {name: below} if below else {}
            lost += [f"{name}.{each}" for each in lost_below]
            continue
        try:
            found[plain(name)] = plain(value)
        except NotPlain:
            lost.append(str(name))
    return found, lost


def plain(value: object) -> Any:
    """A copy of `value`: of numbers, texts, None, lists, tuples and dicts. Raises NotPlain."""
    done: dict[int, tuple[Any, int]] = {}  # what was copied, and how many values it is written as

    def copy(value: Any, depth: int) -> tuple[Any, int]:
        if value is None or type(value) in (bool, int, float, str):
            return value, 1
        if id(value) in done:
            return done[id(value)]
        found: Any
        if depth > MAX_DEPTH:  # or within itself
            raise NotPlain
        if type(value) in (list, tuple):
            parts = [copy(each, depth + 1) for each in value]
            found = type(value)(part for part, _ in parts)
        elif type(value) in (dict, OrderedDict):
            parts = [copy(each, depth + 1) for pair in value.items() for each in pair]
            found = {parts[i][0]: parts[i + 1][0] for i in range(0, len(parts), 2)}
        else:
            raise NotPlain
        size = 1 + sum(size for _, size in parts)
        if size > MAX_FIELDS:
            raise NotPlain
        done[id(value)] = found, size
        return found, size

    return copy(value, 0)[0]


def to_json(value: Any) -> Any:
    """`value`, which is `plain`, as JSON can hold it: a tuple as {"$tuple": [...]}, a dict whose
    keys are no texts as {"$dict": [[key, value], ...]}, inf and NaN as {"$float": "inf"}."""
    if isinstance(value, tuple):
        return {"$tuple": [to_json(each) for each in value]}
    if isinstance(value, list):
        return [to_json(each) for each in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: to_json(each) for key, each in value.items()}
        return {"$dict": [[to_json(key), to_json(each)] for key, each in value.items()]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    return value


def from_json(value: Any) -> Any:
    """What `to_json` was given; any other JSON as it is."""
    match value:
        case {"$tuple": list(items), **rest} if not rest:
            return tuple(from_json(each) for each in items)
        case {"$dict": list(items), **rest} if not rest and all(_is_pair(each) for each in items):
            return {from_json(key): from_json(each) for key, each in items}
        case {"$float": "inf" | "-inf" | "nan" as text, **rest} if not rest:
            return float(text)
        case dict():
            return {key: from_json(each) for key, each in value.items()}
        case list():
            return [from_json(each) for each in value]
    return value


def _is_pair(item: object) -> bool:
    """A key, which must not be a list or a dict, and a value."""
    return (
        isinstance(item, list)
        and len(item) == 2
        and (not isinstance(item[0], list | dict) or _is_key(item[0]))
    )


def _is_key(item: object) -> bool:
    """A tuple of keys, or inf or NaN."""
    match item:
        case {"$tuple": list(items), **rest} if not rest:
            return all(not isinstance(each, list | dict) or _is_key(each) for each in items)
        case {"$float": "inf" | "-inf" | "nan", **rest}:
            return not rest
    return False
