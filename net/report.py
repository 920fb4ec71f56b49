"""Tables as text, JSON and plots of the figures that the stages and the comparison give."""

import json

from net.encoding import TensorInfo
from net.files import atomic_write

# Table 1 of the paper: errors in percent, bytes of the compressed model, compression ratio.
PAPER = {
    "lenet-300-100": {"reference": 1.64, "compressed": 1.58, "bytes": 27_000, "ratio": 40},
    "lenet-5": {"reference": 0.80, "compressed": 0.74, "bytes": 44_000, "ratio": 39},
    "alexnet": {"reference": 42.78, "compressed": 42.78, "bytes": 6_900_000, "ratio": 35},
    "vgg16": {"reference": 31.50, "compressed": 31.17, "bytes": 11_300_000, "ratio": 49},
}


def table(head: list[str], rows: list[list], total: list | None = None) -> str:
    """Columns two spaces apart, the first flush left, numbers flush right, a rule above totals."""
    body = [[cell(value) for value in row] for row in rows]
    last = [[cell(value) for value in total]] if total else []
    widths = [max(map(len, column)) for column in zip(head, *body, *last, strict=True)]

    def line(row):
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1])] + [text.rjust(width) for text, width in others]
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [line(head), rule, *map(line, body)]
    if last:
        lines += [rule, line(last[0])]
    return "\n".join(lines)


def cell(value) -> str:
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


def pruning_table(state: dict) -> str:
    """Per tensor: shape, non-zeros, all, density."""
    rows, nonzeros, parameters = [], 0, 0
    for name, tensor in state.items():
        n = int(tensor.count_nonzero())
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        rows.append([name, shape, n, tensor.numel(), percent(n, tensor.numel())])
        nonzeros, parameters = nonzeros + n, parameters + tensor.numel()
    total = ["total", "", nonzeros, parameters, percent(nonzeros, parameters)]
    return table(["tensor", "shape", "non-zeros", "parameters", "density"], rows, total)


def sharing_table(shared: dict) -> str:
    """Per shared tensor: survivors, distinct values before and after, mean squared error."""
    rows = [
        [
            name,
            len(weight.positions),
            weight.values_before,
            len(weight.stored_centroids().unique()),
            f"{weight.mean_squared_error:.2e}",
        ]
        for name, weight in shared.items()
    ]
    head = ["tensor", "non-zeros", "values before", "values after", "mean squared error"]
    return table(head, rows)


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
    return table(head, rows, total)


def arrow(before, after) -> str:
    """'5 -> 4.3': before and after Huffman coding; '-' for what the tensor does not have."""
    return "-" if not after else f"{before:g} -> {after:.1f}"


def show(figures: dict, args) -> None:
    """Print the comparison; write it where --json asks for it."""
    print(comparison_text(figures))
    if args.json:
        with atomic_write(args.json) as file:
            file.write((json.dumps(figures, indent=2) + "\n").encode())


def comparison_text(figures: dict) -> str:
    parts = [f"{figures['arch'] or 'model'} on {figures['dataset'] or 'no data set'}", ""]
    parts.append(stage_table(figures))
    if figures["layers"]:
        parts += ["", layer_table(figures)]
    if figures["decoded_equals_weight_shared"] is not None:
        equal = "equals" if figures["decoded_equals_weight_shared"] else "DIFFERS FROM"
        parts += ["", f"the decoded model {equal} the weight-shared one, bit for bit"]
    parts += [f"missing: {line}" for line in figures["missing"]]
    return "\n".join(parts)


def stage_table(figures: dict) -> str:
    original = figures["original_bytes"]
    rows = []
    for row in figures["stages"]:
        density = percent(row["nonzero"], row["parameters"])
        error = row["error_percent"]
        rows.append(
            [row["stage"].replace("_", "-"), error, row["parameters"], row["nonzero"], density]
            + [row["bytes"], ratio(original, row["bytes"])]
        )
    encoded = figures["encoded_bytes"]
    if encoded:
        rows.append(["encodings/", None, None, None, None, encoded, ratio(original, encoded)])
    paper = PAPER.get(figures["arch"])
    if paper:
        rows.append(
            ["paper (Table 1)", paper["compressed"], None, None, None]
            + [paper["bytes"], f"{paper['ratio']}x"]
        )
    head = ["stage", "error %", "parameters", "non-zeros", "density", "bytes", "ratio"]
    return table(head, rows)


def layer_table(figures: dict) -> str:
    """One row per layer, in the form of the paper's tables 2 to 5."""
    rows = [
        [
            layer["name"],
            layer["parameters"],
            percent(layer["nonzero"], layer["parameters"]),
            arrow(layer["weight_bits_before_huffman"], layer["weight_bits"]),
            arrow(layer["index_bits_before_huffman"], layer["index_bits"]),
            layer["encoded_bytes"],
            percent(layer["encoded_bytes"], 4 * layer["parameters"]),
        ]
        for layer in figures["layers"]
    ]
    head = ["layer", "weights", "density", "bits/weight", "bits/index", "bytes", "size"]
    return table(head, rows)
