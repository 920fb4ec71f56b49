"""Tables as text, JSON and plots of the figures that the stages and the comparison give."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..clustering import Clustering
from ..encoding import Encoded, TensorInfo
from ..files import atomic_write
from . import paper

NOTED = 0.01  # of the encoded bytes: what is left as it is and takes more is named
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
    body, last = ([[cell(value) for value in row] for row in part] for part in (rows, total))
    widths = [max(map(len, column)) for column in zip(head, *body, *last, strict=True)]
    for title, first, end in groups:  # a title that is wider than its columns widens the last
        width = sum(widths[first : end + 1]) + 2 * (end - first)
        widths[end] += max(0, len(title) - width)

    def line(row: list[str]) -> str:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1])] + [text.rjust(width) for text, width in others]
        return "  ".join(cells).rstrip()

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
    return str(value)


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"


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
            lines.append(f"note: {name} is tied to {tensor.name}, and stored with it")
    whole = [t for t in tensors if is_whole(t) and t.encoded_bytes > NOTED * size]
    if whole:
        names = ", ".join(tensor.name for tensor in whole)
        share = percent(sum(tensor.encoded_bytes for tensor in whole), size)
        lines.append(f"note: stored as they are, neither pruned nor shared: {names} ({share})")
    return "\n".join(lines)


def is_whole(tensor: TensorInfo) -> bool:
    """Whether a tensor of floating-point numbers has not been compressed but by the codec."""
    return tensor.kind == "raw" and "float" in tensor.dtype


def arrow(before: float, after: float) -> str:
    """'5 -> 4.3': before and after Huffman coding; '-' for what the tensor does not have."""
    return "-" if not after else f"{before:g} -> {after:.1f}"


# The comparison of the stages


def write_json(path: str | Path, figures: dict) -> None:
    text = json.dumps(figures, indent=2)
    # A list of numbers on one line: a histogram is not worth a screen.
    text = re.sub(r"\[[^][{}\"]*\]", lambda match: " ".join(match[0].split()), text)
    with atomic_write(path) as file:
        file.write((text + "\n").encode())


def write_csv(path: str | Path, figures: dict) -> None:
    """NAME.csv gives NAME-stages.csv and NAME-layers.csv: a table each, one head line."""
    path = Path(path)
    stage_rows = [*figures["stages"], {"stage": "encodings", "bytes": figures["encoded_bytes"]}]
    layer_rows = list(figures["layers"])
    for name in ("other", "total"):
        if figures[name]:
            layer_rows.append({"name": name, **figures[name]})
    for kind, rows in (("stages", stage_rows), ("layers", layer_rows)):
        columns = [key for key, value in rows[0].items() if not isinstance(value, dict | list)]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with atomic_write(path.with_name(f"{path.stem}-{kind}{path.suffix}")) as file:
            file.write(text.getvalue().encode())


def comparison_text(figures: dict) -> str:
    parts = [headline(figures), "", stage_table(figures)]
    if figures["layers"]:
        parts += ["", layer_table(figures)]
        parts.append("KL: of the outputs on the test images from the first stage's, in nats;")
        parts.append("P pruning, Q weight sharing, H Huffman coding; bits per non-zero weight;")
        parts.append("rate: bytes in percent of dense float32 (the paper's compress rate);")
        parts.append("the rest: biases, all other tensors, and the manifest")
    if "latency" in figures:
        parts += ["", latency_text(figures["latency"])]
    if figures["decoded_equals_weight_shared"] is not None:
        equal = "equals" if figures["decoded_equals_weight_shared"] else "DIFFERS FROM"
        parts += ["", f"the decoded model {equal} the weight-shared one, bit for bit"]
    parts += [f"missing: {line}" for line in figures["missing"]]
    return "\n".join(parts)


def latency_text(figures: dict) -> str:
    """Per batch size a table: each form of each layer, and the model with the fastest of each."""
    parts = ["microseconds per call on one CPU thread: median ± half the spread of the middle half"]
    head = ["density %", "dense", "torch CSR", "scipy CSR", "taken", "gain"]
    for batch in figures["batches"]:
        rows = []
        for layer in batch["layers"]:
            times, chosen = layer["times"], layer["chosen"]
            forms = [spread(times[form]) for form in ("dense", "torch", "scipy")]
            gain = gain_of(times["dense"], times[chosen])
            rows.append([shortened(layer["name"]), 100 * layer["density"], *forms, chosen, gain])
        dense, mixed = batch["total"]["dense"], batch["total"]["sparse_model"]
        total = ["whole model", None, spread(dense), None, None]
        total += [spread(mixed), gain_of(dense, mixed)]
        parts.append(table([f"batch {batch['batch_size']}", *head], rows, [total]))
        parts.append(f"largest difference of an output: {batch['largest_difference']:.1e}")
    if figures["dense_layers"]:
        parts.append(f"always dense, no sparse form: {', '.join(figures['dense_layers'])}")
    return "\n".join(parts)


def spread(time: dict) -> str:
    return f"{time['median']:.1f} ±{(time['high'] - time['low']) / 2:.1f}"


def gain_of(dense: dict, other: dict) -> str:
    return f"{dense['median'] / other['median']:.2f}x"


def headline(figures: dict) -> str:
    """The result in a line: what it was compressed to, and at which error."""
    parameters = figures["stages"][0]["parameters"]
    text = figures["arch"] or "model"
    text += f" on {figures['dataset']}: " if figures["dataset"] else ": "
    if figures["encoded_bytes"] is None:
        return text + f"{parameters:,} parameters"
    text += f"{figures['original_bytes']:,} -> {figures['encoded_bytes']:,} bytes, "
    return text + f"compression ratio {figures['compression_ratio']:.1f}x"


def stage_table(figures: dict) -> str:
    original = figures["original_bytes"]
    rows = [
        [row["stage"].replace("_", "-"), *error_cells(row)]
        + [percent_of(row["nonzero"], row["parameters"]), row["bytes"]]
        + [ratio(original, row["bytes"])]
        for row in figures["stages"]
    ]
    encoded = figures["encoded_bytes"]
    if encoded:
        # What is in the folder is the decoded model, so its error is known.
        decoded = next((row for row in figures["stages"] if row["stage"] == "decoded"), None)
        row = decoded if figures["decoded_equals_encoded"] else None
        density = percent_of(row["nonzero"], row["parameters"]) if row else None
        rows.append(["encodings/", *error_cells(row), density, encoded, ratio(original, encoded)])
    network = paper_network(figures)
    beside = []
    if network:
        change = network.compressed_error - network.reference_error
        beside = [
            [f"paper ({network.dataset}), dense", network.reference_error, None, None, None]
            + [network.original_bytes, "1.0x"],
            ["paper, compressed", network.compressed_error, f"{change:+.2f}", None]
            + [float(network.total.density), network.compressed_bytes, f"{network.ratio:.1f}x"],
        ]
    head = ["stage", "error %", "change", "KL", "density %", "bytes", "ratio"]
    return table(head, rows, beside)


def error_cells(row: dict | None) -> list:
    """The error, its change, and the divergence of the outputs from the first stage's."""
    if row is None:
        return [None, None, None]
    change, divergence = row["error_change"], row["kl_divergence"]
    first = row["stage"] == "initial"  # what both are measured from
    return [
        row["error_percent"],
        None if change is None or first else f"{change:+.2f}",
        None if divergence is None or first else f"{divergence:.4f}",
    ]


def percent_of(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole else None


def layer_table(figures: dict) -> str:
    """One row per layer, in the form of the paper's tables 2 to 5, and the paper's row below."""
    network = paper_network(figures)
    layers, total, other = figures["layers"], figures["total"], figures["other"]
    beside = network.layers if network and len(network.layers) == len(layers) else ()
    rows = []
    for i, layer in enumerate(layers):
        rates = [
            percent_of(layer[key], 4 * layer["parameters"])
            for key in ("bytes_before_huffman", "encoded_bytes")
        ]
        rows.append([shortened(layer["name"]), *bit_cells(layer), *rates, layer["encoded_bytes"]])
        if beside:
            rows.append(paper_cells(beside[i]))
    rates = [
        percent_of(other[key], 4 * other["parameters"])
        for key in ("bytes_before_huffman", "encoded_bytes")
    ]
    blank = [None] * 5
    rows.append(["the rest", other["parameters"], *blank, *rates, other["encoded_bytes"]])
    before = sum(row["bytes_before_huffman"] for row in (*layers, other))
    rates = [percent_of(size, total["original_bytes"]) for size in (before, total["encoded_bytes"])]
    totals = [["total", *bit_cells(total), *rates, total["encoded_bytes"]]]
    if network and beside:
        totals.append(paper_cells(network.total))
    head = ["layer", "weights", "density %", *["P+Q", "P+Q+H"] * 3, "bytes"]
    groups = [("weight bits", 3, 4), ("index bits", 5, 6), ("rate %", 7, 8)]
    return table(head, rows, totals, groups)


def bit_cells(row: dict) -> list:
    """Weights, density, and the bits per non-zero weight and index before and after Huffman."""
    bits = [row["weight_bits_before_huffman"], row["weight_bits"]]
    bits += [row["index_bits_before_huffman"], row["index_bits"]]
    density = percent_of(row["nonzero"], row["parameters"])
    # No bits per weight where no weight is left, and none per index where none is stored.
    texts = [f"{b:.1f}" if b and row["nonzero"] else None for b in bits]
    return [row["parameters"], density, *texts]


def paper_cells(layer: paper.Layer) -> list:
    bits = [f"{b:.1f}" for b in (*layer.weight_bits, *layer.index_bits)]
    return [f" paper: {layer.name}", layer.weights, float(layer.density), *bits, *layer.rate, None]


def paper_network(figures: dict) -> paper.Network | None:
    """The paper's figures for the architecture, whatever options it was built with."""
    return paper.NETWORKS.get((figures["arch"] or "").partition("(")[0])


def shortened(name: str, width: int = NAME_WIDTH) -> str:
    """A long name by its ends, which tell layers apart: "layer4.1.do..conv"."""
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
        f"{figures['arch']} on {figures['dataset']}: held-out error in percent with one layer "
        "pruned, not retrained",
        f"(no layer pruned: {figures['error_percent']:.2f})",
        "",
    ]
    # Side by side as many layers as 100 columns hold.
    for start in range(0, len(layers), 6):
        names = [shortened(layer["name"], 12) for layer in layers[start : start + 6]]
        body = [[row[0], *row[1 + start : 7 + start]] for row in rows]
        parts += [table(["density %", *names], body), ""]
    parts.append(f"for a density of {100 * figures['target']:g} % in total, least loss added up:")
    parts.append(f"--density '{figures['density_option']}'")
    return "\n".join(parts)
