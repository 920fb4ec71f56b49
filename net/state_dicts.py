"""A state dict in what others save: at any depth, one of several, with other things beside it."""

import itertools
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from .errors import some_names
from .tensors import TensorMap, check_dense, check_packed

# Keys under which a file has its model, whatever else it holds.
MAIN = ("state_dict", "model_state_dict", "model")
# Keys under which there are tensors that are no model.
NO_MODEL = re.compile(r"optim|sched|(?<!up|wn)scaler|callback|(^|_)rng", re.IGNORECASE)
MAX_DEPTH = 32
MAX_NAMES = 8  # of one and the same dict
MAX_FIELDS = 1 << 21  # of one value: a pickle can name one list a thousand times

Path = tuple[str, ...]


class Found(NamedTuple):
    """A state dict, in its order; the plain values beside it, where they were; what a user should
    know of the choice; and the keys, as texts, that lead to it."""

    state: dict[str, torch.Tensor]
    extra: dict[str, Any]
    notes: list[str]
    path: Path


def find(content: object, key: str | None = None) -> Found:
    """The state dict in `content`, what torch.load gave, or the one at the dotted path `key`.

    Raises ValueError, whose text follows the name of the file, where there is none, where there
    are several and none is called as in MAIN, and for a tensor without plain values.
    """
    everything = _with_tensors(content, key)
    path, others = _chosen(everything, key)
    own = everything[path]
    state = {}
    for name, value in own.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            check_dense(name, value, "holds what cannot be read, ")
            state[name] = value.detach()
        check_packed(name, value, "holds what cannot be read, ")
    extra, lost = _beside(content, path)
    here = extra
    for part in path:
        inner = (each for name, each in here.items() if str(name) == part)
        here = next((each for each in inner if isinstance(each, dict)), {})
    kept = [str(name) for name in own if name not in state and name in here]
    other_names = [_dotted(other) for other in others]
    lost = [name for name in lost if name not in other_names]
    notes = []
    if others:
        notes.append(
            f"the state dict {_dotted(path)} is taken; there are others, which a key would name: "
            + some_names(other_names)
        )
    if kept:
        notes.append(f"no tensors, and kept as they are: {some_names(kept)}")
    if lost:
        notes.append(f"beside the tensors and not kept: {some_names(lost)}")
    return Found(state, extra, notes, path)


def path_of(content: object, key: str | None = None) -> Path:
    """Where `find` finds it: the keys, as texts, that lead to it."""
    return _chosen(_with_tensors(content, key), key)[0]


def _with_tensors(content: object, key: str | None) -> dict[Path, dict]:
    """{path: dict} of all that hold tensors under names, but for those of optimizers that `key`
    does not lead to."""
    found: dict[Path, dict] = {}
    seen: Counter[int] = Counter()

    def visit(value: object, path: Path, above: tuple[int, ...]) -> None:
        if not isinstance(value, dict) or "param_groups" in value or id(value) in above:
            return
        if len(path) > MAX_DEPTH:
            return
        named = key is not None and f"{key}.".startswith(f"{_dotted(path)}.")
        if path and not named and NO_MODEL.search(path[-1]):
            return
        if seen[id(value)] == MAX_NAMES:
            return
        seen[id(value)] += 1
        if any(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items()):
            found[path] = value
        texts = Counter(str(name) for name, inner in value.items() if isinstance(inner, dict))
        if texts and (most := texts.most_common(1)[0])[1] > 1:
            raise ValueError(f"has two dicts under keys that read {_dotted((*path, most[0]))}")
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
        known = some_names(map(_dotted, everything))
        raise ValueError(f"has no state dict {key!r}; there are: {known}")
    models = _largest({path: _elements(state) for path, state in everything.items()})
    main = [path for path in models if path and all(part in MAIN for part in path)]
    for only in (models, main):
        if len(only) == 1:
            return only[0], [path for path in models if path != only[0]]
    raise ValueError(
        f"holds several models: {some_names(map(_dotted, models))}; choose one by its "
        f"key, such as {_dotted(models[0])}"
    )


def _largest(sizes: Mapping[Path, int]) -> list[Path]:
    """Of state dicts that are one within the other, that of the most elements: not the counter
    beside a model, nor the statistics of a layer. All if none has any."""
    most: Counter[Path] = Counter()  # of any at this path or below
    for path, size in sizes.items():
        for end in range(len(path) + 1):
            most[path[:end]] = max(most[path[:end]], size)
    found = [
        path
        for path, size in sizes.items()
        if size == most[path] > 0
        and all(sizes.get(path[:end], 0) <= size for end in range(len(path)))
    ]
    return found or list(sizes)


def _elements(state: Mapping) -> int:
    """Of all tensors with a dimension: counters and scores are no weights."""
    tensors = (value for value in state.values() if isinstance(value, torch.Tensor))
    return sum(tensor.numel() for tensor in tensors if tensor.dim() > 0)


def _dotted(path: Path) -> str:
    return ".".join(path) or "."  # the outermost dict


# --- plain values beside the tensors --------------------------------------------------------------


class NotPlain(ValueError):
    """A value of something else than `plain` copies, or of too much."""

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
    """A copy of `value`: of numbers, texts, None, lists, tuples and dicts. Raises NotPlain, also
    for what contains itself."""
    fields = itertools.count(1)

    def copy(value: Any, depth: int) -> Any:
        if next(fields) > MAX_FIELDS or depth > MAX_DEPTH:
            raise NotPlain
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) in (list, tuple):
            return type(value)(copy(each, depth + 1) for each in value)
        if type(value) in (dict, OrderedDict):
            return {copy(k, depth + 1): copy(v, depth + 1) for k, v in value.items()}
        raise NotPlain

    return copy(value, 0)


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
    if isinstance(value, list):
        return [from_json(each) for each in value]
    if not isinstance(value, dict):
        return value
    try:
        match value:
            case {"$tuple": list(items), **rest} if not rest:
                return tuple(from_json(each) for each in items)
            case {"$dict": list(items), **rest} if not rest:
                return {from_json(key): from_json(each) for key, each in items}
            case {"$float": "inf" | "-inf" | "nan" as text, **rest} if not rest:
                return float(text)
    except (TypeError, ValueError):  # keys that cannot be, or no pairs: not what to_json writes
        pass
    return {key: from_json(each) for key, each in value.items()}


class Renamed(TensorMap):
    """Tensors of `state` under these `names`, {name: name in `state`}, each read when asked for."""

    def __init__(self, state: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> None:
        self.state = state
        self.names = self._named = names

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.state[self.names[name]]
