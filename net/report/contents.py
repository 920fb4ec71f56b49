"""What is in an encoded model: what became of every tensor, its bits, its noise, and the bytes."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .. import encoding, layouts
from ..codec.forms import patterns
from ..container import is_encoded
from ..encoding import NOISE_PERCENT, TensorInfo
from ..errors import UserError
from ..modules import unwrapped
from ..parameters import is_weight
from ..tensors import fault
from ..threads import in_order
from . import plots
from .names import grouped, shorten
from .tables import cell, percent, ratio, shown, width_of
from .tables import table as text_table

Before = nn.Module | Mapping[str, torch.Tensor] | str | Path
WEIGHTS, VECTORS, OTHERS = "weights", "biases and norms", "other tensors"
FILES, HEADER = "files beside", "header"
DEFINITIONS = {
    "bits_per_weight": "all bytes of a tensor, in bits per element",
    "noise_percent": "root mean square of the change, in % of that of the tensor before",
}
SAMPLE = 1 << 18  # elements, or up to twice as many
CHUNK = 1 << 22  # elements in float64 at a time, or whose distinct values are counted: by a sort
FEWEST, MOST_STEPS = 5, 64  # values on a grid, of which fewer may be by chance; steps from 0
COARSE, FINE = 7, 15  # digits that rounding leaves at a noise of 0.2, and of 0.001
MOST_CLUSTERED = 1 << 10  # values: types of 16 bits have few themselves
FEW = 24  # tensors, of which each has a row
NAMES = 24  # columns that names get where others can do without
TIED = 5  # names that are listed
PANELS, BINS = 3, 80


@dataclass(frozen=True)
class Report:
    """What `net.report` gives: str() is the table, `figures` a dict for JSON."""

    figures: dict

    def __str__(self) -> str:
        return table(self.figures)

    def draw(self, png: str | Path) -> None:
        """Raises UserError without matplotlib."""
        draw(self.figures, png)


def figures(encoded: str | Path, before: Before | None = None) -> dict:
    """The contents of an encoded model (a folder, or one file) as a dict for JSON.

    `before` is the model as it was (a module, a state dict, or the path of either form), of which
    the noise is measured; without it, it is what the meta data recorded, or None. What became of a
    tensor is read off its values: "by rate" (shared, on a grid), "clustered", "rounded", "changed"
    in another way, or "exact", which without `before` is all the rest. Raises UserError for what
    cannot be read, and if `before` has none of the tensors.
    """
    model = encoding.open(encoded)
    source = None if before is None else _state(before)
    size = encoding.directory_bytes(encoded)
    recorded = model.meta.get(NOISE_PERCENT) if source is None else None
    if not isinstance(recorded, list) or len(recorded) != len(model):
        recorded = [None] * len(model)
    noises = dict(zip(model, recorded, strict=True))

    def described(name: str) -> dict:
        tensor, info = model.describe(name)
        row = _described(info, tensor, _counterpart(info, source))
        noise = noises.get(name)
        if isinstance(noise, int | float) and math.isfinite(noise):
            row["noise_percent"] = noise
        return row | {"share_percent": percent(info.encoded_bytes, size)}

    jobs = ((name,) for name in model if not model.info(name).same)
    tensors = list(in_order(described, jobs, lambda job: model.info(job[0]).bytes))
    if source is not None and tensors and all(row["noise_percent"] is None for row in tensors):
        raise UserError(f"no tensor of {encoded} is in the model before; is it of another one?")
    dense = sum(row["dense_bytes"] for row in tensors)
    found = {
        "path": str(encoded),
        "dense_bytes": dense,
        "bytes": size,
        "compression_ratio": dense / size,
        "definitions": DEFINITIONS,
        "groups": _groups(tensors, model.stored_files, size),
        "tensors": tensors,
        "files": [{"name": name, "bytes": each} for name, each in model.stored_files.items()],
        "histograms": [],
    }
    largest = sorted(rows_of(found), key=lambda row: -row["bytes"])
    for row in [row["members"][0] for row in largest if row["group"] == WEIGHTS][:PANELS]:
        tensor, info = model.describe(row["name"])
        histogram = _histogram(tensor, _counterpart(info, source))
        found["histograms"].append({"name": row["name"], **histogram})
    return found


def _state(before: Before) -> Mapping[str, torch.Tensor]:
    if isinstance(before, nn.Module):
        return unwrapped(before).state_dict()
    if isinstance(before, Mapping):
        return before
    path = Path(before)
    if is_encoded(path):
        return encoding.open(path)
    return layouts.read(path)[0]


def _counterpart(
    info: TensorInfo, source: Mapping[str, torch.Tensor] | None
) -> torch.Tensor | None:
    """The tensor before, on the CPU; None where there is no dense one of this name and shape."""
    for name in (info.name, *info.tied):
        old = source[name] if source is not None and name in source else None
        if old is not None and not fault(old) and tuple(old.shape) == info.shape:
            return old.detach().cpu()
    return None


def _described(info: TensorInfo, tensor: torch.Tensor, old: torch.Tensor | None) -> dict:
    values, noise = _distinct(info, tensor), None if old is None else _noise(old, tensor)
    group = OTHERS
    if tensor.is_floating_point():
        weight = tensor.dim() > 1 and is_weight(info.name, info.shape)
        group = WEIGHTS if weight else VECTORS if tensor.dim() == 1 else OTHERS
    changed = old is not None and noise != 0
    exact = not tensor.is_floating_point() or noise == 0 or (old is None and values == 1)
    how = "exact" if exact else _rule(info, tensor, values) or ("changed" if changed else "exact")
    return {
        "name": info.name,
        "tied": info.tied,
        "shape": list(info.shape),
        "dtype": info.dtype,
        "group": group,
        "treatment": how,
        "values": values,  # distinct, bit for bit
        "parameters": info.parameters,
        "zeros_percent": percent(info.parameters - info.nonzero, info.parameters),
        "bits_per_weight": 8 * info.encoded_bytes / info.parameters if info.parameters else None,
        "bytes": info.encoded_bytes,
        "dense_bytes": info.dense_bytes,
        "noise_percent": noise,
    }


def _distinct(info: TensorInfo, tensor: torch.Tensor) -> int | None:
    """None for complex numbers, and among too many values."""
    if info.shared_values and not tensor.is_complex():
        return info.shared_values + (info.kind == "sparse shared")
    counted = tensor.numel() <= CHUNK and not tensor.is_complex()
    return len(np.unique(patterns(tensor))) if counted else None


def _rule(info: TensorInfo, tensor: torch.Tensor, values: int | None) -> str:
    """What the values of a floating-point tensor say of their making; empty for nothing."""
    if tensor.dim() > 1 and _on_grid(tensor):
        return "by rate"
    used = int(np.bitwise_or.reduce(patterns(tensor), initial=0))
    zeros = (used & -used).bit_length() - 1  # the last bits of all values
    digits = round(-math.log2(torch.finfo(tensor.dtype).eps))
    few = values is not None and values <= min(MOST_CLUSTERED, info.parameters // 4)
    if few and (tensor.dim() > 1 or zeros < digits - COARSE):
        return "clustered"
    # By chance once in 2**16 times; and random initial values are multiples of 2**-24 at best.
    return "rounded" if zeros >= digits - FINE and zeros * info.parameters >= 16 else ""


def _on_grid(tensor: torch.Tensor) -> bool:
    """Whether the values are multiples of a step, to what float16 or their type leaves of that;
    those of more than MOST_STEPS are not looked at."""
    values = np.unique(np.abs(_sample(tensor)))
    values = values[values > 0]
    if len(values) < FEWEST:
        return False
    step = min(values[0], np.diff(values[:FEWEST]).min())
    multiples, weighted, squares = [0], 0.0, 0.0
    for value in values[values < MOST_STEPS * step]:
        multiples.append(round(value / step))
        if abs(value / step - multiples[-1]) > 0.2 or multiples[-1] == multiples[-2]:
            return False
        weighted, squares = weighted + multiples[-1] * value, squares + multiples[-1] ** 2
        step = weighted / squares  # better with every value
    return len(multiples) > FEWEST and 1 in np.diff(multiples[1:])


def _sample(tensor: torch.Tensor) -> np.ndarray:
    """Finite values from all of the tensor, float64 [n]."""
    flat = tensor.detach().flatten()
    values = flat[:: max(1, flat.numel() // SAMPLE)].double().numpy()
    return values[np.isfinite(values)]


def _noise(before: torch.Tensor, after: torch.Tensor) -> float | None:
    """In percent, of the values that are finite; None where all of these were 0, and changed."""
    if before.dtype == after.dtype and np.array_equal(patterns(before), patterns(after)):
        return 0.0
    change = power = 0.0
    number = torch.complex128 if before.is_complex() or after.is_complex() else torch.float64
    pairs = zip(before.flatten().split(CHUNK), after.flatten().split(CHUNK), strict=True)
    for pair in pairs:
        old, new = (part.to(number) for part in pair)
        finite = old.isfinite() & new.isfinite()
        change += float((old - new)[finite].abs().square().sum())
        power += float(old[finite].abs().square().sum())
    return 100 * math.sqrt(change / power) if power else None


def _groups(tensors: Sequence[dict], files: Mapping[str, int], size: int) -> list[dict]:
    """Per group how many tensors or files, and their bytes; what is empty is left out."""
    rows: list[dict] = []
    for group in (WEIGHTS, VECTORS, OTHERS):
        own = [row for row in tensors if row["group"] == group]
        sums = {key: sum(r[key] for r in own) for key in ("bytes", "parameters", "dense_bytes")}
        rows.append({"group": group, "count": len(own), **sums})
    rows.append({"group": FILES, "count": len(files), "bytes": sum(files.values())})
    rows.append({"group": HEADER, "count": 1, "bytes": size - sum(row["bytes"] for row in rows)})
    return [row | {"share_percent": percent(row["bytes"], size)} for row in rows if row["count"]]


def _histogram(tensor: torch.Tensor, old: torch.Tensor | None) -> dict:
    """Between the percentiles plots.INSIDE: percent of the weights in each of BINS bins, before and
    encoded; where there are few values here, percent of each."""
    after, before = _sample(tensor), None if old is None else _sample(old)
    reference = after if before is None else before
    low, high = np.percentile(reference, plots.INSIDE) if len(reference) else (0.0, 0.0)
    if low == high:
        low, high = low - 1, high + 1

    def binned(sample: np.ndarray) -> list[float]:
        return (100 * np.histogram(sample, BINS, (low, high))[0] / max(1, len(sample))).tolist()

    values, counts = np.unique(after, return_counts=True)
    inside = (values >= low) & (values <= high)
    few = inside.sum() <= 4 * BINS
    return {
        "low": float(low),
        "high": float(high),
        "before": None if before is None else binned(before),
        "encoded": None if few else binned(after),
        "values": values[inside].tolist() if few else None,
        "percents": (100 * counts[inside] / max(1, len(after))).tolist() if few else None,
    }


def rows_of(figures: dict) -> list[dict]:
    """The rows of table and picture: a tensor each, or those of a repeated block together, vectors
    of whatever lengths."""
    by_name = {row["name"]: row for row in figures["tensors"]}
    keys = {
        name: (row["group"], row["dtype"], row["treatment"], len(row["shape"]))
        + (() if row["group"] == VECTORS else tuple(row["shape"]))
        for name, row in by_name.items()
    }
    alone = len(keys) <= FEW
    rows = []
    for name, names in ({name: [name] for name in keys} if alone else grouped(keys)).items():
        members = [by_name[each] for each in names]
        size, count = (sum(row[key] for row in members) for key in ("bytes", "parameters"))
        row = {key: members[0][key] for key in ("group", "treatment", "dtype")}
        rows.append(row | {"name": name, "members": members, "bytes": size, "parameters": count})
    return rows


def table(figures: dict, width: int = 100) -> str:
    """The figures as a table of at most `width` columns (80 or more).

    Tensors of a repeated block are one row, with the least and the greatest of their figures.
    """
    rows, size, tensors = rows_of(figures), figures["bytes"], figures["tensors"]
    dense: Counter[str] = Counter()
    for row in tensors:
        dense[row["dtype"]] += row["dense_bytes"]
    usual = dense.most_common(1)[0][0] if dense else ""
    totals = [*figures["groups"], {"group": "total", "bytes": size, "share_percent": 100.0}]
    shapes = [_shape(row) + (f" {row['dtype']}" * (row["dtype"] != usual)) for row in rows]
    blank = [""] * len(totals)
    body = {
        "shape": [*shapes, *map(_count, totals)],
        "treatment": [*(row["treatment"] for row in rows), *blank],
        "values": [*(_range(row, "values", ",d") for row in rows), *blank],
        "zeros %": [*(_range(row, "zeros_percent", ".0f") for row in rows), *blank],
        "bits": [*map(_bits, rows), *map(_bits, totals)],
        "bytes": [row["bytes"] for row in (*rows, *totals)],
        "share %": [f"{100 * row['bytes'] / size:.1f}" for row in (*rows, *totals)],
        "noise %": [*(_range(row, "noise_percent", ".2g") for row in rows), *blank],
    }
    if not any(row["zeros_percent"] for row in tensors):
        del body["zeros %"]
    if all(row["noise_percent"] is None for row in tensors):
        del body["noise %"]
    widths = {key: 2 + max(map(width_of, (key, *map(cell, body[key])))) for key in body}
    longest = max((width_of(shown(row["name"])) for row in rows), default=0)
    for optional in ("values", "zeros %"):
        if width - sum(widths[key] for key in body) < min(longest, NAMES):
            body.pop(optional, None)
    left = width - sum(widths[key] for key in body)
    short = shorten([row["name"] for row in rows], max(left, 12))
    names = [*(short[row["name"]] for row in rows), *(row["group"] for row in totals)]
    lines = [[name, *each] for name, *each in zip(names, *body.values(), strict=True)]
    parts = [
        f"{shown(Path(figures['path']).name)}: {len(tensors)} tensors"
        + f", {usual} where no type is named" * bool(tensors),
        f"{figures['dense_bytes']:,} -> {size:,} bytes, "
        f"compression ratio {ratio(figures['dense_bytes'], size)}",
        *("", text_table(["tensor", *body], lines[: len(rows)], lines[len(rows) :]), ""),
        f"bits: {DEFINITIONS['bits_per_weight']}",
        *[f"noise: {DEFINITIONS['noise_percent']}"] * ("noise %" in body),
    ]
    tied = [(name, row["name"]) for row in tensors for name in row["tied"]]
    parts += [f"{shown(name)} is tied to {shown(first)}" for name, first in tied[:TIED]]
    return "\n".join(parts + [f"and {len(tied) - TIED} others are tied"] * (len(tied) > TIED))


def _count(row: dict) -> str:
    if row["group"] in (HEADER, "total"):
        return ""
    return (
        f"{row['count']} {'file' if row['group'] == FILES else 'tensor'}{'s'[: row['count'] > 1]}"
    )


def _bits(row: dict) -> str:
    return f"{8 * row['bytes'] / row['parameters']:.3g}" if row.get("parameters") else ""


def _range(row: dict, key: str, form: str) -> str | None:
    """Example: "29-32"."""
    found = [each[key] for each in row["members"] if each[key] is not None]
    ends = [format(end, form) for end in (min(found), max(found))] if found else []
    return "-".join(dict.fromkeys(ends)) or None


def _shape(row: dict) -> str:
    shapes = sorted(each["shape"] for each in row["members"])
    if shapes[0] != shapes[-1]:  # of vectors
        return f"{shapes[0][0]}-{shapes[-1][0]}"
    return "x".join(map(str, shapes[0])) or "scalar"


def draw(figures: dict, png: str | Path) -> None:
    """A picture of the figures. Raises UserError without matplotlib."""
    from .contents_page import contents_page

    plots.save(contents_page(figures, rows_of(figures)), png)
