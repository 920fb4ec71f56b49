"""Presets: named sets of options, each a JSON file; every option that the user gives overrides it.

    {"about": TEXT, "options": {NAME: VALUE}, "pruning": {...}, "sharing": {...}}

`options` are those of all stages, the other two those of one. General presets know no architecture;
those of records, in presets/records/, name theirs.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_file
from .fields import declared, reader, shown
from .options import ModelOptions, PruningOptions, SharingOptions, changed

GENERAL = ("paper", "trained", "smallest", "untrained")


@dataclasses.dataclass(frozen=True)
class Preset:
    """The options of all stages."""

    name: str = "paper"
    about: str = ""
    arch: str | None = None
    pruning: PruningOptions = dataclasses.field(default_factory=PruningOptions)
    sharing: SharingOptions = dataclasses.field(default_factory=SharingOptions)

    def with_options(self, given: Mapping[str, Any]) -> "Preset":
        """The same with some options changed, in the stages that have them."""
        pruning, sharing = changed(self.pruning, given), changed(self.sharing, given)
        return dataclasses.replace(self, pruning=pruning, sharing=sharing)


MAX_BYTES = 1 << 20  # of a file


def load(name: str) -> Preset:
    """The preset `name`, of a file in folder() or the path of another. Raises UserError."""
    if not isinstance(name, str):  # of a checkpoint, which may be anybody's
        raise UserError(f"no preset {name!r}; give --preset")
    known = {path.stem: path for path in sorted(folder().rglob("*.json"))}
    path = known.get(name, Path(name))
    if path.suffix != ".json":
        raise UserError(f"no preset {name!r}; there are {', '.join(known)}, and files .json")
    try:
        content = json.loads(read_file(path, MAX_BYTES))
        about, shared = str(content.pop("about", "")), dict(content.pop("options", {}))
        arch = shared.pop("arch", None)
        stages = {
            stage: _values(group, dict(shared), dict(content.pop(stage, {})))
            for stage, group in (("pruning", PruningOptions), ("sharing", SharingOptions))
        }
        unknown = [*content, *(k for k in shared if not any(k in each for each in stages.values()))]
        if unknown:
            raise ValueError(f"unknown {unknown[0]!r}")
        if arch is not None:
            arch = reader(ModelOptions, "arch")(arch)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give a preset that is there") from None
    except Exception as error:  # JSON of any other shape
        raise UserError(f"{path} is not a preset: {error}") from None
    pruning = PruningOptions(preset=path.stem, **stages["pruning"])
    sharing = SharingOptions(preset=path.stem, **stages["sharing"])
    return Preset(path.stem, about, arch, pruning, sharing)


def _values(group: type, shared: dict, own: dict) -> dict[str, Any]:
    """The values for a stage, each as the command line would take it."""
    known = declared(group)
    unknown = [name for name in own if name not in known]
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}")
    values = {name: value for name, value in shared.items() if name in known} | own
    return {name: reader(group, name)(shown(value)) for name, value in values.items()}


def folder() -> Path:
    """Where the general presets are: beside the package, or in it where it is installed."""
    package = Path(__file__).parents[1]
    inside = package / "presets"
    return inside if inside.is_dir() else package.parent / "presets"


general = functools.cache(load)  # for the help, which asks for each option


def defaults(name: str) -> str:
    """What holds where the option `name` is not given: "20; smallest: 12"."""
    texts = {}
    for preset in GENERAL:
        found = general(preset)
        stages = (found.pruning, found.sharing)
        values = [getattr(stage, name) for stage in stages if hasattr(stage, name)]
        texts[preset] = " and ".join(dict.fromkeys(map(shown, values)))
    first = texts["paper"]
    others = [f"{preset}: {text}" for preset, text in texts.items() if text != first]
    return "; ".join([first, *others])
