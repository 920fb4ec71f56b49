"""The figures of the comparison (comparison.py) as tables of text, and as CSV."""

import csv
import io
from pathlib import Path

from ..files import atomic_write
from . import paper
from .tables import percent_of, ratio, shortened, shown, table


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
    parts += [f"missing: {shown(line)}" for line in figures["missing"]]
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
        parts.append(f"always dense, no sparse form: {shown(', '.join(figures['dense_layers']))}")
    return "\n".join(parts)


def spread(time: dict) -> str:
    return f"{time['median']:.1f} ±{(time['high'] - time['low']) / 2:.1f}"


def gain_of(dense: dict, other: dict) -> str:
    return f"{dense['median'] / other['median']:.2f}x"


def headline(figures: dict) -> str:
    """The result in a line: what it was compressed to, and at which error."""
    parameters = figures["stages"][0]["parameters"]
    text = shown(figures["arch"] or "model")
    text += f" on {shown(figures['dataset'])}: " if figures["dataset"] else ": "
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
            file.write(text.getvalue().encode(errors="backslashreplace"))
