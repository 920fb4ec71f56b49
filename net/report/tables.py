"""Tables as text: of what single stages give, and of the comparison (comparison.py); its files."""

import csv
import io
import json
import math
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..codec.tensors import DTYPES, write_tensor
from ..encoding import Encoded
from ..errors import printable, some_names
from ..files import atomic_write
from ..plan import QUANTIZED
from ..shared_tensor import COUNTED, Clustering
from ..tensors import info_of
from ..training.log import finite
from ..treatments import Exact, Treatment, Unsigned, treated
from .names import csv_names, shorten

NOTED = 0.01  # of the encoded bytes: what is left as it is and takes more is named
PAPER = json.loads(Path(__file__).with_name("paper.json").read_text())["networks"]
LEGEND = """\
KL: of the outputs on the test images from the first stage's, in nats;
P pruning, Q weight sharing, H Huffman coding; bits of each weight that is stored:
with an index those that are not zero, without one all; 32 or 16 where no codebook pays;
rate: bytes in percent of dense float32 (the paper's compress rate);
the rest: biases, all other tensors, and the manifest"""
NAME_WIDTH = 24  # of layer names in tables: keeps a line within 100 columns


def table(
    head: list[str],
    rows: list[list],
    total: Sequence[list] = (),
    groups: Sequence[tuple[str, int, int]] = (),
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

    titles = ""
    for title, first, end in groups:
        start, stop = (sum(widths[:i]) + 2 * i for i in (first, end + 1))
        titles = titles.ljust(start) + title.rjust(stop - 2 - start)
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [titles] if groups else []
    lines += [line(head), rule, *map(line, body)]
    if last:
        lines += [rule, *map(line, last)]
    return "\n".join(lines)


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


def percent(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole else None


def ratio(whole: float, part: float) -> str:
    return f"{whole / part:.1f}x" if part else "-"


# --- of single stages -----------------------------------------------------------------------------


def pruning_table(state: Mapping[str, torch.Tensor]) -> str:
    """Per tensor: shape, non-zeros, all, density."""
    rows, nonzeros, parameters = [], 0, 0
    for name, tensor in state.items():
        n = int(tensor.count_nonzero())
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        rows.append([name, shape, n, tensor.numel(), percent(n, tensor.numel())])
        nonzeros, parameters = nonzeros + n, parameters + tensor.numel()
    total = ["total", "", nonzeros, parameters, percent(nonzeros, parameters)]
    return table(["tensor", "shape", "non-zeros", "parameters", "density %"], rows, [total])


def sharing_table(clusterings: Mapping[str, Clustering]) -> str:
    """Per shared tensor: survivors, distinct values, the noise, and about its bytes."""
    rows, nonzeros, size = [], 0, 0.0
    for name, c in clusterings.items():
        values = [c.values_before, c.values_after]
        rows.append([name, c.nonzero, *values, f"{100 * c.noise:.2f}", round(c.coded_bytes)])
        nonzeros, size = nonzeros + c.nonzero, size + c.coded_bytes
    head = ["tensor", "non-zeros", "values before", "after", "noise %", "about bytes"]
    return table(head, rows, [["total", nonzeros, None, None, None, round(size)]])


def plan_text(plan: Mapping[str, Treatment], state: Mapping[str, torch.Tensor]) -> str:
    """What becomes of what: per treatment how many tensors and elements, and some of the names."""
    groups: dict[str, list[str]] = {}
    for name, treatment in plan.items():
        groups.setdefault("tied to others" if treatment.tied else str(treatment), []).append(name)
    short = shorten(plan, NAME_WIDTH)
    rows: list[list] = []
    for text, names in groups.items():
        elements = sum(math.prod(info_of(state, name).shape) for name in names)
        more = ", ..." if len(names) > 2 else ""
        rows.append(
            [text, len(names), elements, ", ".join(short[name] for name in names[:2]) + more]
        )
    width = max((len(row[3]) for row in rows), default=0)  # flush left
    rows = [[*row[:3], row[3].ljust(width)] for row in rows]
    return table(["the plan", "tensors", "elements", "such as".ljust(width)], rows)


def sharing_notes(
    plan: Mapping[str, Treatment],
    clusterings: Mapping[str, Clustering],
    rounded: Mapping[str, float],
    state: Mapping[str, torch.Tensor],
) -> list[str]:
    """What a user may not expect: which tensors were rounded beside the weights, and by how much;
    which have lost their negative zeros; which are quantized already; and why others stay as they
    are that take over NOTED of the bytes. `rounded` is {name: relative change}.
    """
    notes = []
    if rounded:
        worst = max(rounded, key=lambda name: rounded[name])
        notes.append(
            f"rounded beside the weights: {len(rounded)} biases and parts of normalisation, by "
            f"{100 * rounded[worst]:.2g} % or less ({worst})"
        )
    if unsigned := treated(plan, Unsigned.how):
        notes.append(f"negative zeros became zeros: {some_names(unsigned)}; otherwise as they are")
    sizes: dict[str, float] = {}
    groups: dict[str, list[str]] = {}
    for name, treatment in plan.items():
        sizes[name] = 0 if treatment.tied else stored_bytes(name, state)
        if treatment.how == Exact.how:
            groups.setdefault(treatment.reason, []).append(name)
    shared = sum(each.coded_bytes for each in clusterings.values())
    total = shared + sum(size for name, size in sizes.items() if name not in clusterings)
    for reason, names in groups.items():
        size = sum(sizes[name] for name in names)
        if size > NOTED * total or reason == QUANTIZED:
            largest = some_names(sorted(names, key=lambda name: -sizes[name]))
            notes.append(
                f"left as they are ({reason}): {largest}; {percent(size, total) or 0:.2f} % of the "
                "bytes"
            )
    return notes


def stored_bytes(name: str, state: Mapping[str, torch.Tensor]) -> float:
    """About what a tensor takes that is neither shared nor rounded: floating-point numbers as they
    are, others, which may be masks or counters, as they are encoded."""
    dtype, shape = info = info_of(state, name)
    if dtype.is_floating_point or dtype not in DTYPES.values() or math.prod(shape) > COUNTED:
        return info.bytes
    return write_tensor(state[name]).length / 8


def encoding_text(encoded: Encoded) -> str:
    """Per tensor: bytes, and bits per weight and per index before and after Huffman coding; and
    notes on what a user may not expect."""
    tensors, size = encoded.tensors, encoded.bytes
    rows = []
    for t in tensors:
        rates = [ratio(t.dense_bytes, t.encoded_bytes), percent(t.encoded_bytes, t.dense_bytes)]
        bits = [
            f"{before:g} -> {after:.1f}" if after else "-"
            for before, after in (
                (t.weight_bits_before, t.weight_bits),
                (t.index_bits_before, t.index_bits),
            )
        ]
        rows.append([t.name, t.dense_bytes, t.encoded_bytes, *rates, *bits])
    dense, of_tensors = sum(t.dense_bytes for t in tensors), sum(t.encoded_bytes for t in tensors)
    if size > of_tensors:
        rows.append(["manifest", None, size - of_tensors, *[None] * 4])
    total = ["total", dense, size, ratio(dense, size), percent(size, dense), "", ""]
    head = ["tensor", "dense B", "encoded B", "ratio", "percent", "bits/weight", "bits/index"]
    lines = [table(head, rows, [total])]
    for t in tensors:
        for name in t.tied:
            lines.append(f"note: {shown(name)} is tied to {shown(t.name)}, and stored with it")
    whole = [t for t in tensors if t.kind == "raw" and t.encoded_bytes > NOTED * size]
    if whole:
        names = ", ".join(shown(t.name) for t in whole)
        share = percent(sum(t.encoded_bytes for t in whole), size)
        what = f"stored as they are, neither pruned nor shared: {names} ({share:.2f} %)"
        lines.append(f"note: {what}")
    signed = [t for t in tensors if t.negative_zeros > NOTED * t.parameters]
    if signed:
        lines.append(
            f"note: zeros of both signs, which take more bytes than one zero: "
            f"{some_names([t.name for t in signed])}; `weight + 0.0` leaves one"
        )
    return "\n".join(lines)


def scan_text(figures: dict) -> str:
    """Held-out error of each layer alone at each density, and the choice for the target."""
    layers, name = figures["layers"], f"{figures['arch']} on {figures['dataset']}"
    parts = [
        shown(f"{name}: held-out error in percent with one layer pruned, not retrained"),
        f"(no layer pruned: {figures['error_percent']:.2f})",
        "",
    ]
    short = shorten((layer["name"] for layer in layers), 12)
    # Side by side as many layers as 100 columns hold.
    for start in range(0, len(layers), 6):
        some = layers[start : start + 6]
        rows = [
            [f"{100 * points[0]['density']:.1f}", *(point["error_percent"] for point in points)]
            for points in zip(*(layer["points"] for layer in some), strict=True)
        ]
        head = ["density %", *(short[layer["name"]] for layer in some)]
        parts += [table(head, rows), ""]
    parts.append(
        f"for a density of {100 * figures['reached']:.3g} % in total, least loss added up:"
    )
    parts.append(f"--density '{shown(figures['density_option'])}'")
    return "\n".join(parts)


# --- of the comparison of all stages --------------------------------------------------------------


def comparison_text(figures: dict) -> str:
    parts = [headline(figures), "", stage_table(figures)]
    if figures["layers"]:
        parts += ["", layer_table(figures), LEGEND]
    if "latency" in figures:
        parts += ["", latency_text(figures["latency"])]
    if figures["decoded_equals_weight_shared"] is not None:
        text = "the decoded model equals the weight-shared one, bit for bit"
        if not figures["decoded_equals_weight_shared"]:
            text = (
                "the decoded model DIFFERS FROM the weight-shared one; where that was shared, or "
                "encoded, anew since, encode and decode it anew"
            )
        parts += ["", text]
    if figures["decoded_equals_encoded"] is False:
        parts.append("the decoded model is NOT WHAT IS ENCODED now; decode it anew")
    parts += [f"missing: {shown(line)}" for line in figures["missing"]]
    return "\n".join(parts)


def headline(figures: dict) -> str:
    """The result in a line: what it was compressed to, and at which error."""
    text = shown(figures["arch"] or "model")
    text += f" on {shown(figures['dataset'])}: " if figures["dataset"] else ": "
    if figures["encoded_bytes"] is None:
        return text + f"{figures['stages'][0]['parameters']:,} parameters"
    text += f"{figures['original_bytes']:,} -> {figures['encoded_bytes']:,} bytes, "
    return text + f"compression ratio {figures['compression_ratio']:.1f}x"


def stage_table(figures: dict) -> str:
    """One row per stage and for the encoded model, and the paper's figures below."""
    original, rows = figures["original_bytes"], []
    for stage in figures["stages"]:
        name = stage["stage"].replace("_", "-")
        rows.append([name, *stage_cells(stage), stage["bytes"], ratio(original, stage["bytes"])])
    if encoded := figures["encoded_bytes"]:
        # What is in the folder is the decoded model, so its error is known.
        same = [stage for stage in figures["stages"] if stage["stage"] == "decoded"]
        cells = stage_cells(same[0]) if figures["decoded_equals_encoded"] else [None] * 4
        rows.append(["encodings/", *cells, encoded, ratio(original, encoded)])
    beside: list[list] = []
    if network := paper_network(figures):
        before, after = network["reference_error"], network["compressed_error"]
        dense = [before, None, None, None, network["original_bytes"], "1.0x"]
        small = [after, f"{after - before:+.2f}", None, float(network["total"][2])]
        small += [network["compressed_bytes"], f"{network['ratio']:.1f}x"]
        beside = [[f"paper ({network['dataset']}), dense", *dense], ["paper, compressed", *small]]
    head = ["stage", "error %", "change", "KL", "density %", "bytes", "ratio"]
    return table(head, rows, beside)


def stage_cells(stage: dict) -> list:
    """The error, its change, the divergence of the outputs from the first stage's, the density."""
    change, divergence = stage["error_change"], stage["kl_divergence"]
    first = stage["stage"] == "initial"  # what both are measured from
    return [
        stage["error_percent"],
        None if change is None or first else f"{change:+.2f}",
        None if divergence is None or first else f"{divergence:.4f}",
        percent(stage["nonzero"], stage["parameters"]),
    ]


def layer_table(figures: dict) -> str:
    """One row per layer, in the form of the paper's tables 2 to 5, and the paper's row below."""
    network = paper_network(figures)
    layers, total, other = figures["layers"], figures["total"], figures["other"]
    beside = network["layers"] if network and len(network["layers"]) == len(layers) else []

    def rates(row: dict) -> list:
        keys = ("bytes_before_huffman", "encoded_bytes")
        return [percent(row[key], 4 * row["parameters"]) for key in keys]

    rows, short = [], shorten((layer["name"] for layer in layers), NAME_WIDTH)
    for i, layer in enumerate(layers):
        cells = bit_cells(layer) + rates(layer)
        rows.append([short[layer["name"]], *cells, layer["encoded_bytes"]])
        if beside:
            rows.append(paper_cells(beside[i]))
    blank = [None] * 5
    rows.append(["the rest", other["parameters"], *blank, *rates(other), other["encoded_bytes"]])
    before = sum(row["bytes_before_huffman"] for row in (*layers, other))
    sizes = before, total["encoded_bytes"]
    of_all = [percent(size, total["original_bytes"]) for size in sizes]
    totals = [["total", *bit_cells(total), *of_all, total["encoded_bytes"]]]
    if network and beside:
        totals.append(paper_cells(network["total"]))
    head = ["layer", "weights", "density %", *["P+Q", "P+Q+H"] * 3, "bytes"]
    groups = [("weight bits", 3, 4), ("index bits", 5, 6), ("rate %", 7, 8)]
    return table(head, rows, totals, groups)


def bit_cells(row: dict) -> list:
    """Weights, density, and the bits of each stored weight and index before and after Huffman."""
    bits = [row["weight_bits_before_huffman"], row["weight_bits"]]
    bits += [row["index_bits_before_huffman"], row["index_bits"]]
    density = percent(row["nonzero"], row["parameters"])
    # No bits per weight where no weight is left, and none per index where none is stored.
    texts = [f"{b:.1f}" if b and row["nonzero"] else None for b in bits]
    return [row["parameters"], density, *texts]


def paper_cells(layer: list) -> list:
    name, weights, density, *pairs, rate = layer
    bits = [f"{each:.1f}" for pair in pairs for each in pair]
    return [f" paper: {name}", weights, float(density), *bits, *rate, None]


def paper_network(figures: dict) -> dict | None:
    """The paper's figures for the architecture, whatever options it was built with."""
    return PAPER.get((figures["arch"] or "").partition("(")[0])


def latency_text(figures: dict) -> str:
    """Per batch size a table: each form of each layer, and the model with the fastest of each."""

    def spread(time: dict) -> str:
        return f"{time['median']:.1f} ±{(time['high'] - time['low']) / 2:.1f}"

    def gain(dense: dict, other: dict) -> str:
        return f"{dense['median'] / other['median']:.2f}x"

    parts = ["microseconds per call on one CPU thread: median ± half the spread of the middle half"]
    head = ["density %", "dense", "torch CSR", "scipy CSR", "taken", "gain"]
    for batch in figures["batches"]:
        rows, short = [], shorten((layer["name"] for layer in batch["layers"]), NAME_WIDTH)
        for layer in batch["layers"]:
            times, taken = layer["times"], layer["chosen"]
            forms = ("dense", "torch", "scipy")
            cells = [spread(times[form]) if form in times else None for form in forms]
            cells += [taken, gain(times["dense"], times[taken])]
            rows.append([short[layer["name"]], 100 * layer["density"], *cells])
        dense, mixed = batch["total"]["dense"], batch["total"]["sparse_model"]
        total = [None, spread(dense), None, None, spread(mixed), gain(dense, mixed)]
        parts.append(
            table([f"batch {batch['batch_size']}", *head], rows, [["whole model", *total]])
        )
        parts.append(f"largest difference of an output: {batch['largest_difference']:.1e}")
    if figures["dense_layers"]:
        parts.append(f"always dense, no sparse form: {shown(', '.join(figures['dense_layers']))}")
    return "\n".join(parts)


# --- files ----------------------------------------------------------------------------------------


def write_json(path: str | Path, figures: dict) -> None:
    text = json.dumps(finite(figures), indent=2)
    # A list of numbers on one line: a histogram is not worth a screen.
    text = re.sub(r"\[[^][{}\"]*\]", lambda match: " ".join(match[0].split()), text)
    with atomic_write(path) as file:
        file.write((text + "\n").encode())


def write_csv(path: str | Path, figures: dict) -> None:
    """Two tables, one head line each, into the files of `csv_names`."""
    stages = [*figures["stages"], {"stage": "encodings", "bytes": figures["encoded_bytes"]}]
    sums = [{"name": name, **figures[name]} for name in ("other", "total") if figures[name]]
    tables = [stages, [*figures["layers"], *sums]]
    for file_name, rows in zip(csv_names(path), tables, strict=True):
        first = rows[0] if rows else {"name": ""}  # no layers without an encoded model
        columns = [key for key, value in first.items() if not isinstance(value, dict | list)]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with atomic_write(file_name) as file:
            file.write(text.getvalue().encode(errors="backslashreplace"))
