"""Presets: named sets of options, each a JSON file; every option that the user gives overrides it.

    {"about": TEXT, "options": {NAME: VALUE}, "pruning": {...}, "sharing": {...}}

`options` are those of all stages, the other two those of one. General presets know no architecture;
those of records, in presets/records/, name theirs.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_file
from .fields import declared, reader, shown
from .options import ModelOptions, Options, PruningOptions, SharingOptions

GENERAL = ("paper", "trained", "smallest", "untrained")
MAX_BYTES = 1 << 20  # of a file


@dataclass(frozen=True)
class Preset:
    """The options of all stages."""

    name: str = "paper"
    about: str = ""
    arch: str | None = None
    pruning: PruningOptions = field(default_factory=PruningOptions)
    sharing: SharingOptions = field(default_factory=SharingOptions)

    def with_options(self, given: Mapping[str, Any]) -> "Preset":
        """The same with some options changed, in the stages that have them."""

        if "sensitivity" in given:  # in place of a density that is the preset's
            given = {"density": None, **given}

        def changed(stage: Options) -> Options:
            own = {k: v for k, v in given.items() if k in declared(type(stage))}
            return replace(stage, **own)

        return replace(self, pruning=changed(self.pruning), sharing=changed(self.sharing))


def load(name: str) -> Preset:
    """The preset `name`, of a file in folder() or the path of another. Raises UserError."""
    if not isinstance(name, str):  # of a checkpoint, which may be anybody's
        raise UserError(f"no preset {name!r}; give --preset")
    known = {path.stem: path for path in sorted(folder().rglob("*.json"))}
    path = known.get(name, Path(name))
    if path.suffix != ".json":
        raise UserError(f"no preset {name!r}; there are {', '.join(known)}, and files .json")
    try:
        is_known = path.stem in known and path.samefile(known[path.stem])
        # What is recorded is what a later stage can be given.
        return _read(path, path.stem if is_known else str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give a preset that is there") from None
    except Exception as error:  # JSON of any other shape
        raise UserError(f"{path} is not a preset: {error}") from None


def _read(path: Path, called: str) -> Preset:
    content = json.loads(read_file(path, MAX_BYTES))
    about, shared = str(content.pop("about", "")), dict(content.pop("options", {}))
    arch = shared.pop("arch", None)
    stages: dict[str, Any] = {}
    unknown = list(shared)
    for stage, group in (("pruning", PruningOptions), ("sharing", SharingOptions)):
        own, known = dict(content.pop(stage, {})), declared(group)
        for name in own:
            if name not in known:
                raise ValueError(f"unknown option {name!r}")
        unknown = [name for name in unknown if name not in known]
        values = {name: value for name, value in shared.items() if name in known} | own
        for name in values.keys() & {"include", "exclude"}:
            if values[name] in (None, []):  # no patterns, as by default
                del values[name]
            elif isinstance(values[name], list):
                values[name] = tuple(values[name])
        # As the command line would take them.
        values = {name: reader(group, name)(shown(value)) for name, value in values.items()}
        stages[stage] = group(preset=called, **values)
    for name in (*content, *unknown):
        raise ValueError(f"unknown {name!r}")
    if arch is not None:
        arch = reader(ModelOptions, "arch")(arch)
    return Preset(called, about, arch, **stages)


def folder() -> Path:
    """Where the general presets are: beside the package, or in it where it is installed."""
    package = Path(__file__).parents[1]
    inside = package / "presets"
    return inside if inside.is_dir() else package.parent / "presets"


general = functools.cache(load)  # for the help, which asks for each option


def defaults(name: str) -> str:
    """What holds where the option `name` is not given: "20; smallest: 12"."""
    texts = {}
    for preset in map(general, GENERAL):
        stages = (preset.pruning, preset.sharing)
        values = [getattr(stage, name) for stage in stages if hasattr(stage, name)]
        texts[preset.name] = " and ".join(dict.fromkeys(map(shown, values)))
    first = texts["paper"]
    others = [f"{preset}: {text}" for preset, text in texts.items() if text != first]
    return "; ".join([first, *others])
