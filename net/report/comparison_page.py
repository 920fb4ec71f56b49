"""The page of the comparison: what compression did to a model, panel by panel."""

import math
from typing import TYPE_CHECKING

from .plots import (
    BLUE,
    GREEN,
    GREY,
    LAYER_COLOURS,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    bare,
    drawable,
    new_figure,
)
from .tables import shortened

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {
    "values": BLUE,
    "positions": ORANGE,
    "codebook": GREEN,
    "bias": PURPLE,
    "header": GREY,
}
MAX_PANELS = 6  # of layers, the largest ones
MAX_BARS = 12  # of layers; the others are summed


def comparison_page(figures: dict) -> "Figure":
    """What compression did to a model, from the dict that `comparison.compare` returns."""
    figures = drawable(figures)
    shown = largest(figures["distributions"], MAX_PANELS)
    columns = 3 if len(shown) != 4 else 2
    rows = max(1, math.ceil(len(shown) / columns))
    bars = min(len(figures["layers"]), MAX_BARS)
    heights = [3.1 + 0.12 * max(0, bars - 6), 2.5 * rows, 3.6]
    figure = new_figure(sum(heights))
    text = title(figures)
    figure.suptitle(text, fontsize=min(13, 1000 / len(text)), fontweight="bold")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=heights)
    stages, parts = top.subplots(1, 2)
    draw_stages(stages, figures)
    draw_parts(parts, figures)
    for axes, layer in zip(middle.subplots(rows, columns, squeeze=False).flat, shown, strict=False):
        draw_distribution(axes, layer)
    finish_distributions(middle, len(shown), len(figures["distributions"]))
    values, gaps, mask = bottom.subplots(1, 3)
    draw_codes(values, figures["layers"], "value_code", "Code words of the shared values")
    draw_codes(gaps, figures["layers"], "gap_codes", "Code words of the gaps")
    draw_mask(mask, figures["first_layer_mask"])
    return figure


def title(figures: dict) -> str:
    text = (figures["arch"] or "model") + (
        f" on {figures['dataset']}" if figures["dataset"] else ""
    )
    if figures["compression_ratio"]:
        text += f": {figures['compression_ratio']:.1f}x smaller on disk"
    errors = {row["stage"]: row["error_percent"] for row in figures["stages"]}
    if errors.get("initial") is not None and errors.get("decoded") is not None:
        text += f", test error {errors['initial']:.2f} % → {errors['decoded']:.2f} %"
    return text


def largest(layers: list[dict], count: int) -> list[dict]:
    """The `count` layers with the most weights before pruning, in the order of the model."""
    size = {id(layer): sum(layer["initial"] or layer["retrained"] or [0]) for layer in layers}
    kept = sorted(layers, key=lambda layer: -size[id(layer)])[:count]
    return [layer for layer in layers if any(layer is other for other in kept)]


def unavailable(axes: "Axes", reason: str) -> None:
    """A panel without data says why."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes, color="0.4")


def kilobytes(size: float) -> str:
    for unit, scale in (("MB", 1e6), ("KB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def stage_bars(figures: dict) -> list[tuple[str, float]]:
    """(label, bytes) of the dense parameters, of what each step leaves, and of the folder.

    The files of the stages are all alike, since a `.ptmodel` stores zeros as well.  So the bars of
    pruning and sharing are what the paper counts, 32-bit or shared values with relative indexes.
    """
    rows = [*figures["layers"], figures["other"]]
    return [
        ("dense float32", figures["original_bytes"]),
        ("pruned*", sum(row["bytes_pruned"] for row in rows)),
        ("+ weights shared*", sum(row["bytes_before_huffman"] for row in rows)),
        ("+ Huffman: encodings/", figures["encoded_bytes"]),
    ]


def draw_stages(axes: "Axes", figures: dict) -> None:
    axes.set_title("Size after each step")
    if figures["encoded_bytes"] is None:
        return unavailable(axes, "no encoded model")
    labels, sizes = zip(*stage_bars(figures), strict=True)
    axes.barh(labels, sizes, color=[GREY, SKY, BLUE, GREEN])
    for y, size in enumerate(sizes):
        text = f" {kilobytes(size)}  {sizes[0] / size:.1f}x" if y else f" {kilobytes(size)}"
        axes.text(size, y, text, va="center", fontweight="bold")
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 5, max(sizes) * 6)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda x, _: kilobytes(x))
    axes.set_xlabel("size (log scale; * computed, not a file)")
    bare(axes)
    return None


def part_bars(figures: dict) -> list[tuple[str, dict[str, float]]]:
    """(layer, {part: bytes}) per layer, the small ones of a deep network summed, and the rest."""
    layers = figures["layers"]
    kept = sorted(layers, key=lambda layer: -sum(layer["parts"].values()))[:MAX_BARS]
    bars = [(layer["name"], layer["parts"]) for layer in layers if layer in kept]
    small = [layer for layer in layers if layer not in kept]
    if small:
        summed = {part: sum(layer["parts"][part] for layer in small) for part in PARTS}
        bars.append((f"{len(small)} smaller layers", summed))
    beside = figures["other"]["bytes_beside_layers"]
    bars.append(("the rest", {part: beside * (part == "header") for part in PARTS}))
    return bars


def draw_parts(axes: "Axes", figures: dict) -> None:
    axes.set_title("Where the bytes are")
    if not figures["layers"]:
        return unavailable(axes, "no encoded model")
    bars = part_bars(figures)
    labels = [shortened(name) for name, _ in bars]
    left = [0.0] * len(bars)
    total = figures["encoded_bytes"]
    for part, colour in PARTS.items():
        sizes = [parts[part] for _, parts in bars]
        label = f"{part} {100 * sum(sizes) / total:.1f} %"
        axes.barh(labels, sizes, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    for y, size in enumerate(left):
        axes.text(size, y, f" {kilobytes(size)}", va="center")
    axes.set_xlim(0, 1.18 * max(left))
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda x, _: kilobytes(x))
    axes.set_xlabel("size in encodings/")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.22), ncols=3, frameon=False)
    bare(axes)
    return None


def draw_distribution(axes: "Axes", layer: dict) -> None:
    """Weights before pruning and after retraining as steps, shared values as stems."""
    low, high = layer["low"], layer["high"]
    axes.set_title(shortened(layer["name"]))
    for key, style in (
        ("initial", {"color": GREY, "fill": True}),
        ("retrained", {"color": BLUE, "linewidth": 1.2}),
    ):
        counts = layer[key]
        if counts and sum(counts):
            edges = [low + i * (high - low) / len(counts) for i in range(len(counts) + 1)]
            axes.stairs(counts, edges, **style)
    if layer["shared_values"]:
        axes.vlines(layer["shared_values"], 0.5, layer["shared_counts"], color=RED, linewidth=1)
        axes.plot(layer["shared_values"], layer["shared_counts"], ".", color=RED, markersize=4)
    elif layer["shared_values"] == [] or (layer["retrained"] and not sum(layer["retrained"])):
        axes.text(0.5, 0.5, "entirely pruned", ha="center", transform=axes.transAxes, color=RED)
    axes.set_yscale("log")
    axes.set_ylim(0.7, max(10, axes.get_ylim()[1]))  # one weight is a visible bar
    bare(axes)


def finish_distributions(figure: "Figure", shown: int, layers: int) -> None:
    """The legend of all panels, and none where there is no panel."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    for axes in figure.axes[shown:]:
        axes.set_axis_off()
    which = f"the {shown} largest of {layers} layers" if shown < layers else "each layer"
    figure.suptitle(f"Weights of {which} (number of weights, log scale)", fontsize=10)
    handles = [
        Patch(color=GREY, label="before pruning"),
        Line2D([], [], color=BLUE, label="after retraining, zeros left out"),
        Line2D([], [], color=RED, marker=".", label="after weight sharing: a shared value"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


def code_points(layers: list[dict], key: str) -> list[tuple[str, list[float], list[int]]]:
    """(layer, shares, bits) per layer: of each symbol its share of all, and its code's length.

    A layer has one code for its values and one per block of its matrix for its gaps.
    """
    points = []
    for layer in layers:
        codes = layer[key] if key == "gap_codes" else [layer[key]] if layer[key] else []
        shares, bits = [], []
        for code in codes:
            total = sum(code["frequencies"])
            for frequency, length in zip(code["frequencies"], code["bits"], strict=True):
                if frequency:
                    shares.append(frequency / total)
                    bits.append(length)
        if shares:
            points.append((layer["name"], shares, bits))
    return points


def draw_codes(axes: "Axes", layers: list[dict], key: str, heading: str) -> None:
    axes.set_title(heading)
    most = sorted(layers, key=lambda layer: -layer["parameters"])[: len(LAYER_COLOURS)]
    points = code_points([layer for layer in layers if layer in most], key)
    if not points:
        return unavailable(axes, "no encoded model" if not layers else "no Huffman codes")
    smallest = min(min(shares) for _, shares, _ in points)
    ideal = [smallest, 1.0]
    axes.plot(ideal, [-math.log2(p) for p in ideal], color="0.6", linewidth=1, label="−log₂ share")
    for i, (name, shares, bits) in enumerate(points):
        beside = [b + 0.14 * (i - (len(points) - 1) / 2) for b in bits]  # not upon each other
        # By its end, where the names of layers differ.
        label = name if len(name) <= 15 else f"…{name[-14:].lstrip('.')}"
        axes.plot(shares, beside, ".", color=LAYER_COLOURS[i], markersize=4, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("share of the symbol (log scale)")
    axes.set_ylabel("bits of its code word")
    axes.set_ylim(0, axes.get_ylim()[1] * (1 + 0.08 * max(0, len(points) - 3)))  # for the legend
    title = f"{len(most)} largest layers" if len(most) < len(layers) else None
    axes.legend(frameon=False, loc="upper right", title=title, fontsize="small")
    bare(axes)
    return None


def draw_mask(axes: "Axes", mask: dict | None) -> None:
    if mask is None:
        axes.set_title("What the first layer looks at")
        return unavailable(axes, "its input is no image")
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    image, counts = mask_image(mask), mask["counts"]
    unused = sum(count == 0 for count in counts)
    what = "pixels" if mask["kind"] == "pixels" else "kernel places"
    axes.set_title(f"{mask['layer']}: {len(counts) - unused} of {len(counts)} {what} used")
    # Grey where no weight is left, white between filters.
    shades = colormaps["viridis"].with_extremes(under="0.88", bad="white")
    colours = axes.imshow(image, cmap=shades, vmin=0.5, vmax=max(1.5, *counts))
    axes.spines[:].set_visible(False)
    if mask["most"] > 1:
        label = f"weights left of {mask['most']} (grey: none)"
        whole = MaxNLocator(integer=True)
        axes.figure.colorbar(colours, ax=axes, shrink=0.8, label=label, ticks=whole)
    axes.set_xticks([])
    axes.set_yticks([])
    return None


def mask_image(mask: dict) -> "np.ndarray":
    """The counts as an image; filters as tiles, with a line of NaN between them."""
    import numpy as np

    counts = np.array(mask["counts"], float).reshape(mask["shape"])
    if mask["kind"] == "pixels":
        return counts
    filters, height, width = counts.shape
    columns = math.ceil(math.sqrt(filters))
    rows = math.ceil(filters / columns)
    image = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for i, kernel in enumerate(counts):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        image[top : top + height, left : left + width] = kernel
    return image
