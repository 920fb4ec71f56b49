"""Tables as text of what the stages give, and what all tables share."""

import json
import math
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..codec.tensors import DTYPES, write_tensor
from ..encoding import Encoded, TensorInfo
from ..errors import printable
from ..files import atomic_write
from ..plan import QUANTIZED
from ..shards import info_of
from ..shared_tensor import COUNTED, Clustering
from ..treatments import Treatment

NOTED = 0.01  # of the encoded bytes: what is left as it is and takes more is named
NAMED = 5  # tensors of one kind in a note
Group = tuple[str, int, int]  # title, first column, last column
NAME_WIDTH = 24  # of layer names in tables: keeps a line within 100 columns


def table(
    head: list[str],
    rows: list[list],
    total: Sequence[list] = (),
    groups: Sequence[Group] = (),
) -> str:
    """Columns two spaces apart, the first flush left, numbers flush right, a rule above totals.

    `groups` are (title, first column, last column): a line above the head.
    """
    head = [shown(title) for title in head]
    body, last = ([[cell(value) for value in row] for row in part] for part in (rows, total))
    widths = [max(map(width_of, column)) for column in zip(head, *body, *last, strict=True)]
    for title, first, end in groups:  # a title that is wider than its columns widens the last
        width = sum(widths[first : end + 1]) + 2 * (end - first)
        widths[end] += max(0, len(title) - width)

    def line(row: list[str]) -> str:
        blanks = [" " * (width - width_of(text)) for text, width in zip(row, widths, strict=True)]
        others = [blank + text for text, blank in zip(row[1:], blanks[1:], strict=True)]
        return "  ".join([row[0] + blanks[0], *others]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [line(head), rule, *map(line, body)]
    if groups:
        lines.insert(0, group_line(groups, widths))
    if last:
        lines += [rule, *map(line, last)]
    return "\n".join(lines)


def group_line(groups: Sequence[Group], widths: list[int]) -> str:
    text = ""
    for title, first, end in groups:
        start = sum(widths[:first]) + 2 * first
        stop = sum(widths[: end + 1]) + 2 * end
        text = text.ljust(start) + title.rjust(stop - start)
    return text


def cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return shown(value)


def shown(name: object) -> str:
    """A name as it will stand on the terminal: of a known width, and on one line."""
    return printable(str(name), getattr(sys.stdout, "encoding", None))


def width_of(text: str) -> int:
    """The columns that `text` takes: two for each character of East Asian scripts."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"


def percent_of(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole else None


def ratio(whole: float, part: float) -> str:
    return f"{whole / part:.1f}x" if part else "-"


def pruning_table(state: Mapping[str, torch.Tensor]) -> str:
    """Per tensor: shape, non-zeros, all, density."""
    rows, nonzeros, parameters = [], 0, 0
    for name, tensor in state.items():
        n = int(tensor.count_nonzero())
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        rows.append([name, shape, n, tensor.numel(), percent(n, tensor.numel())])
        nonzeros, parameters = nonzeros + n, parameters + tensor.numel()
    total = ["total", "", nonzeros, parameters, percent(nonzeros, parameters)]
    return table(["tensor", "shape", "non-zeros", "parameters", "density"], rows, [total])


def sharing_table(clusterings: Mapping[str, Clustering]) -> str:
    """Per shared tensor: survivors, distinct values, the noise, and about its bytes."""
    rows = [
        [name, c.nonzero, c.values_before, c.values_after, f"{100 * c.noise:.2f}"]
        + [round(c.coded_bytes)]
        for name, c in clusterings.items()
    ]
    each = list(clusterings.values())
    total = [
        sum(c.nonzero for c in each),
        None,
        None,
        None,
        round(sum(c.coded_bytes for c in each)),
    ]
    head = ["tensor", "non-zeros", "values before", "after", "noise %", "about bytes"]
    return table(head, rows, [["total", *total]])


def plan_text(plan: Mapping[str, Treatment], state: Mapping[str, torch.Tensor]) -> str:
    """What becomes of what: per treatment how many tensors and elements, and some of the names."""
    groups: dict[str, list[str]] = {}
    for name, treatment in plan.items():
        groups.setdefault("tied to others" if treatment.tied else str(treatment), []).append(name)
    rows: list[list] = []
    for text, names in groups.items():
        elements = sum(math.prod(info_of(state, name).shape) for name in names)
        more = ", ..." if len(names) > 2 else ""
        rows.append([text, len(names), elements, ", ".join(map(shortened, names[:2])) + more])
    width = max((len(row[3]) for row in rows), default=0)
    for row in rows:
        row[3] = row[3].ljust(width)
    return table(["the plan", "tensors", "elements", "such as".ljust(width)], rows)


def sharing_notes(
    plan: Mapping[str, Treatment],
    clusterings: Mapping[str, Clustering],
    rounded: Mapping[str, float],
    state: Mapping[str, torch.Tensor],
) -> list[str]:
    """What a user may not expect: which tensors were rounded beside the weights, and by how much;
    which are quantized already; and why others stay as they are that take over NOTED of the bytes.
    `rounded` is {name: relative change}.
    """
    notes = []
    if rounded:
        worst = max(rounded, key=lambda name: rounded[name])
        notes.append(
            f"rounded beside the weights: {len(rounded)} biases and parts of normalisation, by "
            f"{100 * rounded[worst]:.2g} % or less ({worst})"
        )
    sizes: dict[str, float] = {}
    groups: dict[str, list[str]] = {}
    for name, treatment in plan.items():
        sizes[name] = 0 if treatment.tied else stored_bytes(name, state)
        if treatment.how == "exact":
            groups.setdefault(treatment.reason, []).append(name)
    shared = sum(each.coded_bytes for each in clusterings.values())
    total = shared + sum(size for name, size in sizes.items() if name not in clusterings)
    for reason, names in groups.items():
        size = sum(sizes[name] for name in names)
        if size > NOTED * total or reason == QUANTIZED:
            shown = ", ".join(sorted(names, key=lambda name: -sizes[name])[:NAMED])
            more = f" and {len(names) - NAMED} others" if len(names) > NAMED else ""
            notes.append(f"left as they are ({reason}): {shown}{more}; {percent(size, total)}")
    return notes


def stored_bytes(name: str, state: Mapping[str, torch.Tensor]) -> float:
    """About what a tensor takes that is neither shared nor rounded: floating-point numbers as they
    are, others, which may be masks or counters, as they are encoded."""
    dtype, shape = info_of(state, name)
    if dtype.is_floating_point or dtype not in DTYPES.values() or math.prod(shape) > COUNTED:
        return dtype.itemsize * math.prod(shape)
    return write_tensor(state[name]).length / 8


def encoding_table(tensors: list[TensorInfo], directory_bytes: int) -> str:
    """Per tensor: bytes, and bits per weight and per index before and after Huffman coding."""
    rows = [
        [
            t.name,
            t.dense_bytes,
            t.encoded_bytes,
            ratio(t.dense_bytes, t.encoded_bytes),
            percent(t.encoded_bytes, t.dense_bytes),
            arrow(t.weight_bits_before, t.weight_bits),
            arrow(t.index_bits_before, t.index_bits),
        ]
        for t in tensors
    ]
    dense, encoded = sum(t.dense_bytes for t in tensors), sum(t.encoded_bytes for t in tensors)
    if directory_bytes > encoded:
        rows.append(["manifest", None, directory_bytes - encoded, *[None] * 4])
    total = [
        *("total", dense, directory_bytes),
        *(ratio(dense, directory_bytes), percent(directory_bytes, dense), "", ""),
    ]
    head = ["tensor", "dense B", "encoded B", "ratio", "percent", "bits/weight", "bits/index"]
    return table(head, rows, [total])


def encoding_text(encoded: Encoded) -> str:
    """The table of what was encoded, and notes on what a user may not expect."""
    tensors, size = encoded.tensors, encoded.bytes
    lines = [encoding_table(tensors, size)]
    for tensor in tensors:
        for name in tensor.tied:
            lines.append(f"note: {shown(name)} is tied to {shown(tensor.name)}, and stored with it")
    whole = [t for t in tensors if is_whole(t) and t.encoded_bytes > NOTED * size]
    if whole:
        names = ", ".join(shown(tensor.name) for tensor in whole)
        share = percent(sum(tensor.encoded_bytes for tensor in whole), size)
        lines.append(f"note: stored as they are, neither pruned nor shared: {names} ({share})")
    return "\n".join(lines)


def is_whole(tensor: TensorInfo) -> bool:
    """Whether a tensor has not been compressed but by the codec."""
    return tensor.kind == "raw"


def arrow(before: float, after: float) -> str:
    """'5 -> 4.3': before and after Huffman coding; '-' for what the tensor does not have."""
    return "-" if not after else f"{before:g} -> {after:.1f}"


def write_json(path: str | Path, figures: dict) -> None:
    text = json.dumps(figures, indent=2)
    # A list of numbers on one line: a histogram is not worth a screen.
    text = re.sub(r"\[[^][{}\"]*\]", lambda match: " ".join(match[0].split()), text)
    with atomic_write(path) as file:
        file.write((text + "\n").encode())


def shortened(name: str, width: int = NAME_WIDTH) -> str:
    """A long name by its ends, which tell layers apart: "layer4.1.do..conv"."""
    name = printable(name)
    return name if len(name) <= width else f"{name[: width - 6]}..{name[-4:]}"


# The sensitivity scan


def scan_text(figures: dict) -> str:
    """Held-out error of each layer alone at each density, and the choice for the target."""
    layers = figures["layers"]
    densities = [point["density"] for point in layers[0]["points"]]
    rows = []
    for i, density in enumerate(densities):
        points = [layer["points"][i] for layer in layers]
        rows.append([f"{100 * density:.1f}", *(point["error_percent"] for point in points)])
    parts = [
        shown(
            f"{figures['arch']} on {figures['dataset']}: held-out error in percent with one layer "
            "pruned, not retrained"
        ),
        f"(no layer pruned: {figures['error_percent']:.2f})",
        "",
    ]
    # Side by side as many layers as 100 columns hold.
    for start in range(0, len(layers), 6):
        names = [shortened(layer["name"], 12) for layer in layers[start : start + 6]]
        body = [[row[0], *row[1 + start : 7 + start]] for row in rows]
        parts += [table(["density %", *names], body), ""]
    parts.append(f"for a density of {100 * figures['target']:g} % in total, least loss added up:")
    parts.append(f"--density '{shown(figures['density_option'])}'")
    return "\n".join(parts)
