"""How the files of a model are laid out, so that they can be had back: `read` and `restore`.

A model is a file of torch.save or safetensors, or a folder of them and others, as Hugging Face's,
sentence-transformers', diffusers' and PEFT's; or one of torch.distributed.checkpoint, which comes
back as files of safetensors. docs/format.md has the fields of a layout.
"""

import json
import os
import re
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import checkpoint, container, dcp, formats, shards, state_dicts
from .encoding import AGAIN, Encoding, EncodingError
from .errors import UserError, some_names
from .files import atomic_folder, one_line
from .formats import CheckpointError
from .shards import METADATA, SUFFIX
from .state_dicts import from_json, plain, to_json
from .tensors import Info, TensorMap, info_of, tie_of

# Files of a folder that hold the weights in a form that torch does not load.
OTHER_FORMS = re.compile(
    r".*\.(onnx|onnx[._]data(_\d+)?|h5|keras|msgpack|ot|tflite|gguf)|(.*/)?openvino_[^/]*\.(bin|xml)"
    r"|(.*\.mlpackage|(.*/)?saved_model)/.*|.*\.ckpt\.(index|meta|data-.*)"
)
# STEM, VARIANT, of a shard its number, VARIANT, suffix
WEIGHTS = re.compile(
    r"(.+?)(\.(?:fp16|bf16|fp32|non_ema))?(-\d{5}-of-\d{5})?(\.(?:fp16|bf16|fp32|non_ema))?"
    rf"(?:{'|'.join(map(re.escape, formats.WEIGHTS))})"
)
# Folders in a folder that are not of its model
APART = re.compile(r"\..*|__pycache__|(checkpoint-\d+)")


class Tensors(TensorMap):
    """The tensors of several files, each read when it is asked for."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[Mapping[str, torch.Tensor], str]] = {}
        self._named = self._parts

    def add(self, prefix: str, state: Mapping[str, torch.Tensor]) -> str | None:
        """A name that was there already, if there is one."""
        for name in state:
            if prefix + name in self._parts:
                return name
            self._parts[prefix + name] = state, name
        return None

    def info(self, name: str) -> Info:
        """The type and shape of a tensor, without reading it where that can be had."""
        return info_of(*self._parts[name])

    def tie(self, name: str) -> Hashable:
        """Equal for the names of one tensor (net.tensors.tie_of)."""
        state, own = self._parts[name]
        return id(state), tie_of(state, own)

    def __getitem__(self, name: str) -> torch.Tensor:
        state, own = self._parts[name]
        return state[own]


class _Weights(NamedTuple):
    """One file of weights: its line in the layout, its tensors, and what a user should know."""

    line: dict[str, Any]
    state: Mapping[str, torch.Tensor]
    notes: list[str]


def read(
    path: str | Path, key: str | None = None
) -> tuple[Mapping[str, torch.Tensor], dict, dict[str, Path]]:
    """(the tensors, the layout, the other files) of a saved model: a file or a folder.

    Tensors are read when they are asked for where net.checkpoint.load does so; `key` is as there.
    Those of a folder's sub-folder have its name and a slash before their own, unless all are in
    one. Of weights in several forms that is taken which is read the fastest and most safely;
    layout["notes"] names the others, and what else a user should know. Raises UserError.
    """
    path = Path(path)
    is_folder = os.path.isdir(path)
    if not is_folder and not formats.is_index(path):
        # It comes back under any name, where files of a folder have to keep theirs.
        called = path.name, f"model{path.suffix}", "model.pth"
        name = next(each for each in called if not container.unsafe(each))
        found = _read_weights(path, name, key)
        tensors = Tensors()
        tensors.add("", found.state)
        layout = {"name": name, "weights": [found.line]}
        return tensors, layout | ({"notes": found.notes} if found.notes else {}), {}
    folder = path if is_folder else path.parent
    names, left_out = _listed(folder)
    if not is_folder:  # the index of one model among others
        own = {path.name, *(file.name for file in formats.weight_map(path).values())}
        names, left_out = [name for name in names if name in own], {}
    elif dcp.METADATA in names:
        return _read_saved(folder, names, left_out, key)
    return _read_folder(folder, names, left_out, key)


def _listed(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The files in a folder and below, and what is not taken, by the reason."""
    names: list[str] = []
    left_out: dict[str, list[str]] = {}

    def refuse(error: OSError) -> None:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror or error}")

    for where, below, files in os.walk(folder, onerror=refuse, followlinks=True):
        inside = Path(where).relative_to(folder)
        around = {os.path.realpath(folder / each) for each in (inside, *inside.parents)}
        for name in sorted(below):
            if match := APART.fullmatch(name):
                why = "a trainer's checkpoints" if match[1] else "hidden"
            elif os.path.realpath(Path(where) / name) in around:
                why = "a link to a folder that it is in"
            else:
                continue
            below.remove(name)
            left_out.setdefault(why, []).append((inside / name).as_posix())
        below.sort()
        for file in sorted(files):
            name, path = (inside / file).as_posix(), folder / inside / file
            if not os.path.isfile(path) or container.unsafe(name):
                left_out.setdefault("no files, or of names that not all systems have", []).append(
                    name
                )
            else:
                names.append(name)
    return names, left_out


def _read_folder(
    folder: Path, names: list[str], left_out: dict[str, list[str]], key: str | None
) -> tuple[Mapping[str, torch.Tensor], dict, dict[str, Path]]:
    wanted, others = _weights_of(folder, names)
    if not wanted:
        formats.weights_file(folder)  # raises, and says what there is instead
        raise CheckpointError(f"{folder} holds no weights; give the path of a saved model")
    found: dict[str, _Weights] = {}
    if key is not None and len(wanted) > 1:
        raise CheckpointError(f"{folder} has several files of weights; a key is for one")
    for name in wanted:
        try:
            found[name] = _read_weights(folder / name, name, key)
        except UserError:
            is_shard = (match := WEIGHTS.fullmatch(Path(name).name)) and match[3]
            if name.endswith(SUFFIX) or is_shard or (name == wanted[-1] and not found):
                raise  # what else is no state dict is one of the other files
    files = _kept(folder, names, found, others, left_out)
    tensors, lines, notes = Tensors(), [], []
    is_one_folder = len({name.rpartition("/")[0] for name in found}) == 1
    for name in sorted(found, key=lambda name: (name.count("/"), name)):
        line, state, own = found[name]
        prefix = "" if is_one_folder else name[: name.rfind("/") + 1]
        if double := tensors.add(prefix, state):
            raise CheckpointError(
                f"{folder} holds several weights, as {name}, which has {double} like another; "
                "give the path of one"
            )
        lines.append(line | ({"prefix": prefix} if prefix else {}))
        notes += own
    return tensors, _layout(folder, lines, notes, left_out), files


def _kept(
    folder: Path,
    names: list[str],
    found: Mapping[str, _Weights],
    others: Mapping[str, str],
    left_out: dict[str, list[str]],
) -> dict[str, Path]:
    """The files that are kept as they are, beside those of weights that are `found`. What is not
    kept is added to `left_out`, by the reason: that in `others`, {name: why}, or another."""
    files = {}
    for name in names:
        if name in found:
            continue
        if why := others.get(name):
            left_out.setdefault(why, []).append(name)
        elif name.endswith(container.SUFFIX) and formats.begins_as_encoded(folder / name):
            left_out.setdefault("encoded models", []).append(name)
        elif formats.is_index(Path(name)) and not _names_weights(folder, name, found):
            left_out.setdefault(DUPLICATE, []).append(name)
        elif (folder / name).stat().st_size > container.MAX_FILE_BYTES:
            left_out.setdefault("too large", []).append(name)
        else:
            files[name] = folder / name
    return files


def _layout(
    folder: Path, lines: list[dict], notes: list[str], left_out: Mapping[str, list[str]]
) -> dict:
    notes = notes + [f"left out, {why}: {some_names(some)}" for why, some in left_out.items()]
    layout = {"name": Path(os.path.realpath(folder)).name, "folder": True, "weights": lines}
    return layout | ({"notes": notes} if notes else {})


def _read_saved(
    folder: Path, names: list[str], left_out: dict[str, list[str]], key: str | None
) -> tuple[Mapping[str, torch.Tensor], dict, dict[str, Path]]:
    """A folder of torch.distributed.checkpoint: as many files of weights as its processes have
    written, each with about as many bytes of tensors that follow one another."""
    state, notes = dcp.read(folder, key)
    count, sizes = state.files, [state.info(name).bytes for name in state]
    middles = [end - size / 2 for end, size in zip(accumulate(sizes), sizes, strict=True)]
    # a tensor without elements, the last, has its middle at the very end
    files_of = [min(count - 1, int(count * m / max(1, sum(sizes)))) for m in middles]
    tensors, lines = Tensors(), []
    tensors.add("", state)
    numbers, suffix = sorted(set(files_of)), _suffix_for(state)
    for place, number in enumerate(numbers, 1):
        file = f"model-{place:05}-of-{len(numbers):05}{suffix}"
        lines.append(_plain_line(file, files_of.count(number)))
    rest = [name for name in names if name != dcp.METADATA and not name.endswith(dcp.SUFFIX)]
    others = {}
    for name in rest:  # an export, whose names are those that the files get here
        if WEIGHTS.fullmatch(name.rpartition("/")[2]):
            with suppress(UserError):
                _read_weights(folder / name, name, None)
                others[name] = BESIDE
    files = _kept(folder, rest, {}, others, left_out)
    return tensors, _layout(folder, lines, notes, left_out), files


def _suffix_for(state: Any) -> str:
    """Of files that these tensors can be in: safetensors has no complex128."""
    return SUFFIX if all(state.info(name).dtype in shards.NAMES for name in state) else ".pth"


BESIDE = "weights beside those of torch.distributed.checkpoint"
DUPLICATE = "the same weights in another form"


def _weights_of(folder: Path, names: list[str]) -> tuple[list[str], dict[str, str]]:
    """(the files of weights to read, {file to leave out: why}). Raises CheckpointError where shards
    are missing."""
    others = {name: DUPLICATE for name in names if OTHER_FORMS.fullmatch(name)}
    forms: dict[tuple[str, str], dict[tuple, list[str]]] = {}
    for name in names:
        where, _, file = name.rpartition("/")
        if name in others or not (match := WEIGHTS.fullmatch(file)):
            continue
        if formats.NO_WEIGHTS.fullmatch(file):
            others[name] = "of a trainer, not of the model"
            continue
        stem = match[1].replace("pytorch_model", "model")
        apart = re.fullmatch(r"consolidated(\.\d+)?", stem)  # as Meta and Mistral call their own
        form = not name.endswith(SUFFIX), match[2] or match[4] or "", bool(apart), not match[3]
        if apart:
            where, stem = where.removesuffix("original").rstrip("/"), "model"
        group = forms.setdefault((where, stem), {})
        group.setdefault(form, []).append(name)
    wanted = []
    for group in forms.values():
        best = min(group)
        _check_shards(folder, group[best])
        wanted += group.pop(best)
        others |= dict.fromkeys((name for some in group.values() for name in some), DUPLICATE)
    return wanted, others


def _check_shards(folder: Path, names: list[str]) -> None:
    """By the numbers in the names of one model's shards: an index may be missing with them."""
    shards = [match for name in names if (match := re.search(r"-\d{5}-of-(\d{5})", name))]
    for match in shards:
        if len(shards) < int(match[1]):
            raise CheckpointError(
                f"{folder / match.string} is one of {int(match[1])} files, of which "
                f"{len(shards)} {'are' if len(shards) > 1 else 'is'} there; fetch the others"
            )


def _names_weights(folder: Path, index: str, found: Mapping[str, _Weights]) -> bool:
    """Whether an index is of files that are read. Raises CheckpointError if one of them is not, or
    lacks a tensor."""
    where = index[: index.rfind("/") + 1]
    files = {
        tensor: where + file.name for tensor, file in formats.weight_map(folder / index).items()
    }
    if not found.keys() & set(files.values()):
        return False
    for tensor, file in files.items():
        if file not in found:
            raise CheckpointError(f"{folder / file} is missing; {formats.AGAIN}")
        if tensor not in found[file].state:
            raise CheckpointError(f"{folder / file} lacks {tensor}, which {index} names")
    return True


def _read_weights(file: Path, name: str, key: str | None) -> _Weights:
    if formats.is_safetensors(file):
        if key is not None:
            raise CheckpointError(f"{file} holds one model, which needs no key")
        state = shards.Shards(file)
        line: dict[str, Any] = {"path": name, "tensors": len(state)}
        line |= {"metadata": state.metadata} if state.metadata else {}
        header = _header(file)
        if header != shards.usual_header({n: state.info(n) for n in state}, state.metadata):
            line["header"] = header.decode("latin-1")
        return _Weights(line, state, [])
    content = checkpoint.load_dict(file)
    if content.get("format") == checkpoint.FORMAT:
        if key is not None:
            raise CheckpointError(f"{file} holds one model, which needs no key")
        key = "state_dict"
    try:
        tensors, extra, notes, path = state_dicts.find(content, key)
        at, versions = [], None
        inner: Any = content
        for part in path:
            keys = (each for each in inner if str(each) == part)
            at.append(next(each for each in keys if isinstance(inner[each], Mapping)))
            inner = inner[at[-1]]
        about = getattr(inner, "_metadata", None) if isinstance(inner, OrderedDict) else None
        if about is not None:
            try:
                versions = to_json(plain(dict(about)))
            except (TypeError, ValueError):
                notes.append("the versions of its modules (_metadata) are not kept")
    except ValueError as error:
        raise CheckpointError(f"{file} {error}") from None
    line = {"path": name, "tensors": len(tensors), "at": [to_json(each) for each in at]}
    line["content"] = to_json(_outline(content, extra, at))
    line |= {"versions": versions} if versions else {}
    mapped = checkpoint.MappedState([file], tensors) if checkpoint.is_mapped(file) else tensors
    return _Weights(line, mapped, [f"{name}: {note}" for note in notes])


def _outline(content: Mapping, extra: Mapping, at: list) -> dict:
    """`extra`, the plain values of `content`, in its order, with a dict in place of the tensors."""
    found = {}
    for name, value in content.items():
        if at and name == at[0]:
            found[name] = _outline(value, extra.get(name, {}), at[1:])
        elif name in extra:
            found[name] = extra[name]
    return found


def _header(file: Path) -> bytes:
    """Of a safetensors file that has been found whole."""
    with one_line(file, CheckpointError, formats.AGAIN), file.open("rb") as opened:
        return opened.read(int.from_bytes(opened.read(8), "little"))


# --- back again -----------------------------------------------------------------------------------


def restore(encoding: Encoding, target: str | Path) -> list[Path]:
    """Write the file or the folder that `encoding` was made of to `target`; return its files.

    Without a layout, a file of safetensors or of torch.save, as the name of `target` ends, or a
    folder with model.safetensors where there are other files. A folder gets its name when all of it
    is there; one that is not empty is left alone. Raises UserError.
    """
    target = Path(target)
    with one_line(encoding.path, EncodingError, AGAIN):
        layout = encoding.layout or _plain_layout(encoding, target)
        parts = _parts(encoding, layout["weights"])
        is_folder = layout.get("folder", False) or bool(encoding.files)
        if is_folder:
            weights = {line["path"]: 0 for line, _ in parts}
            if weights.keys() & encoding.files.keys():
                raise ValueError("a file of weights and another of the same name")
            container.check_names(weights | encoding.files)
        elif len(parts) != 1 or not isinstance(parts[0][0]["path"], str):
            raise ValueError("a layout of several files and no folder")
    if not is_folder:
        [(line, names)] = parts
        if (target.suffix == SUFFIX) != line["path"].endswith(SUFFIX):
            line = _plain_line(f"model{target.suffix}", len(names))
        _write(encoding, line, names, target)
        return [target]
    if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
        what = ", and not empty" if os.path.isdir(target) else ""
        raise EncodingError(f"{target} is there already{what}; give another path")
    with atomic_folder(target) as folder:
        for line, names in parts:
            _write(encoding, line, names, folder / line["path"])
        encoding.extract(folder)
    return [target / name for name in [*(line["path"] for line, _ in parts), *encoding.files]]


def _plain_layout(encoding: Encoding, target: Path) -> dict:
    suffix = _suffix_for(encoding) if encoding.files else target.suffix
    name = formats.SINGLE if suffix == SUFFIX else "model.pth"
    while name in encoding.files:
        name = f"_{name}"
    return {"weights": [_plain_line(name, len(encoding))]}


def _plain_line(name: str, count: int) -> dict:
    if name.endswith(SUFFIX):
        return {"path": name, "tensors": count, "metadata": {"format": "pt"}}
    return {"path": name, "tensors": count, "at": [], "content": {}}


def _parts(encoding: Encoding, lines: list[dict]) -> list[tuple[dict, dict[str, str]]]:
    """Of each file of weights its line, and {name in it: name in the encoding}."""
    names, found, start = list(encoding), [], 0
    for line in lines:
        prefix, count = line.get("prefix", ""), line["tensors"]
        if type(count) is not int or count < 0 or not isinstance(prefix, str):
            raise ValueError("a file of weights without a number of tensors")
        own = names[start : start + count]
        if len(own) != count or not all(name.startswith(prefix) for name in own):
            raise ValueError("a layout of other tensors")
        found.append((line, {name[len(prefix) :]: name for name in own}))
        start += count
    if start != len(names) or len({line["path"] for line in lines}) != len(lines):
        raise ValueError("a layout of other tensors")
    return found


def _write(encoding: Encoding, line: dict, names: Mapping[str, str], target: Path) -> None:
    if "content" in line:
        state = _tied(encoding, names)
        with one_line(encoding.path, EncodingError, AGAIN):
            content = _filled(line, state)
        checkpoint.save_dict(target, content)
        return
    with one_line(encoding.path, EncodingError, AGAIN):
        infos = {own: info_of(encoding, name) for own, name in names.items()}
        header, order = _header_of(line, infos)
    shards.write(
        target,
        {own: infos[own] for own in order},
        (encoding[names[own]] for own in order),
        header=header,
    )


def _header_of(line: dict, infos: dict[str, Info]) -> tuple[bytes, list[str]]:
    """The header of a safetensors file, and its tensors in the order of their elements."""
    if text := line.get("header"):
        data = text.encode("latin-1")
        fields = json.loads(data)
        fields.pop(METADATA, None)
        order = sorted(fields, key=lambda name: fields[name]["data_offsets"])
        if fields.keys() == infos.keys() and fields == shards.fields_of(
            {n: infos[n] for n in order}
        ):
            return data, order
    metadata = line.get("metadata", {})
    if not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("metadata that are no texts")
    return shards.usual_header(infos, metadata), list(infos)


def _filled(line: dict, state: dict[str, torch.Tensor]) -> dict:
    """What a file of torch.save holds: the tensors where they were."""
    content = from_json(line["content"])
    inner, above = content, None
    at = [from_json(each) for each in line.get("at", [])]
    for name in at:
        inner, above = inner[name], inner
    if (versions := from_json(line.get("versions"))) is not None:
        inner = OrderedDict(inner)
        inner._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
        if above is None:
            content = inner
        else:
            above[at[-1]] = inner
    inner |= state
    if not isinstance(content, dict):
        raise ValueError("tensors that belong to no dict")
    return content


def _tied(encoding: Encoding, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """All tensors of a file; what was one tensor is one."""
    found: dict[int, torch.Tensor] = {}
    state = {}
    for own, name in names.items():
        number = encoding.tie(name)
        if number not in found:
            found[number] = encoding[name]
        state[own] = found[number]
    return state
