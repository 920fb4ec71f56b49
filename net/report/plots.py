"""One-page plots of the figures in the JSON files: nothing is drawn that they do not hold.

The only module that uses matplotlib, which is imported when the first page is drawn.  Figures are
made without pyplot: no display is needed and no state is shared.
"""

import importlib.util
import io
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import printable
from ..extras import needs
from ..files import atomic_write
from .names import shorten
from .tables import NAME_WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, GREY = "#56B4E9", "#D55E00", "#BBBBBB"
# Tol's muted scheme, unlike the colours of the parts.
LAYER_COLOURS = ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#AA4499")
# Of the bytes of a layer.
PARTS = {"values": BLUE, "positions": ORANGE, "codebook": GREEN, "bias": PURPLE, "header": GREY}
WIDTH = 10.0  # inches, 1,000 pixels: a README shows about 900
MAX_PANELS = 6  # of layers, the largest ones
MAX_BARS = 12  # of layers; the others are summed
CODE_WIDTH = 22  # of names in a legend
INSIDE = (0.1, 99.9)  # percentiles of the weights, between which a histogram with outliers lies


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def require() -> None:
    """Raise UserError without matplotlib: called before the work whose result is to be drawn."""
    needs("matplotlib", "a plot")


def new_figure(height: float) -> "Figure":
    """An empty page of WIDTH x `height` inches."""
    require()
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    # Same figures, same bytes: no random ids.
    rcParams.update({"svg.hashsalt": "deep compression", "font.size": 9, "axes.titlesize": 10})
    return Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")


def drawable(figures: Any) -> Any:
    """`figures` with all names in it as matplotlib can draw them, which takes $ for mathematics."""
    if isinstance(figures, str):
        return printable(figures).replace("$", r"\$")
    if isinstance(figures, dict):
        return {drawable(key): drawable(value) for key, value in figures.items()}
    if isinstance(figures, list):
        return [drawable(value) for value in figures]
    return figures


def save(figure: "Figure", path: str | Path) -> None:
    """Write the page in the format that the name ends in; without a date, so that same figures
    give the same bytes."""
    kind = str(path).rsplit(".", 1)[-1].lower()
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    image = io.BytesIO()
    with warnings.catch_warnings():  # of characters that the font does not have: shown as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(image, format=kind, metadata=dates.get(kind))
    if kind == "png":  # in 256 colours: 40 % of the bytes, and no difference to be seen
        from PIL import Image  # matplotlib needs it too

        whole, image = Image.open(image), io.BytesIO()
        whole.convert("RGB").quantize(256).save(image, "png", optimize=True)
    with atomic_write(path) as file:
        file.write(image.getvalue())


def bare(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)


def log_scale(axis: "Axis", set_scale: Callable[[str], object]) -> None:
    """A log scale whose ticks are 1, 2, 5, 10, ... as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.set_minor_formatter(NullFormatter())


def unavailable(axes: "Axes", reason: str) -> None:
    """A panel without data says why."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes, color="0.4")


def kilobytes(size: float) -> str:
    for unit, scale in (("MB", 1e6), ("KB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def legend(text: str) -> str:
    """A label that matplotlib shows, whatever it begins with."""
    return f" {text}" if text.startswith("_") else text


# --- the sensitivity scan -------------------------------------------------------------------------


def scan_page(figures: dict) -> "Figure":
    """Held-out error and loss against density, a line per layer (Han et al. 2015, figure 6)."""
    figures = drawable(figures)
    figure = new_figure(4.2 + 0.18 * max(0, len(figures["layers"]) / 4 - 4))  # of its legend
    name = f"{figures['arch']} on {figures['dataset']}"
    figure.suptitle(f"{name}: each layer pruned alone, not retrained", fontweight="bold")
    layers, chosen = figures["layers"], figures["chosen"]
    short = shorten((layer["name"] for layer in layers), NAME_WIDTH)
    panels = {"error_percent": "held-out error, percent", "loss": "held-out loss, nats"}
    for axes, (key, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for i, layer in enumerate(layers):
            points, density = layer["points"], 100 * chosen[layer["name"]]
            line = {"color": LAYER_COLOURS[i % 6], "linestyle": ("-", "--", ":", "-.")[i // 6 % 4]}
            axes.plot(
                [100 * point["density"] for point in points],
                [point[key] for point in points],
                label=legend(f"{short[layer['name']]}: {density:.3g} %"),
                **line,
            )
            axes.axvline(density, alpha=0.5, linewidth=0.8, **line)
        axes.axhline(figures[key], color="0.6", linewidth=1, zorder=0)
        log_scale(axes.xaxis, axes.set_xscale)
        axes.invert_xaxis()
        axes.set_xlabel("density of the layer, percent (log scale)")
        axes.set_ylabel(label)
        if all(point[key] > 0 for layer in layers for point in layer["points"]):  # no 0 % error
            axes.set_ylabel(f"{label} (log scale)")
            log_scale(axes.yaxis, axes.set_yscale)
        bare(axes)
    title = f"chosen (thin lines) for {100 * figures['reached']:.3g} % in total"
    lines = axes.get_legend_handles_labels()
    figure.legend(*lines, title=title, loc="outside lower center", ncols=4, frameon=False)
    return figure


# --- the comparison of all stages -----------------------------------------------------------------


def comparison_page(figures: dict) -> "Figure":
    """What compression did to a model, from the dict that `comparison.compare` returns."""
    figures = drawable(figures)
    layers, weights = figures["layers"], figures["distributions"]
    panels = largest(weights, MAX_PANELS)
    columns = 3 if len(panels) != 4 else 2
    rows = max(1, math.ceil(len(panels) / columns))
    heights = [3.1 + 0.12 * max(0, min(len(layers), MAX_BARS) - 6), 2.5 * rows, 3.6]
    figure = new_figure(sum(heights))
    text = title(figures)
    figure.suptitle(text, fontsize=min(13, 1000 / len(text)), fontweight="bold")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=heights)
    short = shorten((layer["name"] for layer in (*layers, *weights)), NAME_WIDTH)
    stages, parts = top.subplots(1, 2)
    draw_stages(stages, figures)
    draw_parts(parts, figures, short)
    places = middle.subplots(rows, columns, squeeze=False).flat
    for axes, layer in zip(places, panels, strict=False):
        draw_distribution(axes, layer, short)
    finish_distributions(middle, panels, len(weights))
    codes = {"value_code": "Code words of the shared values", "gap_codes": "Code words of the gaps"}
    most = sorted(layers, key=lambda layer: -layer["parameters"])[: len(LAYER_COLOURS)]
    coded = [layer for layer in layers if layer in most]
    wanted = [key for key in codes if key == "value_code" or code_points(coded, key)]
    mask = figures["first_layer_mask"]
    beside = bottom.subplots(1, len(wanted) + (mask is not None), squeeze=False)[0]
    for axes, key in zip(beside, wanted, strict=False):
        draw_codes(axes, coded, key, codes[key], len(layers))
    if mask is not None:
        draw_mask(beside[-1], mask)
    return figure


def title(figures: dict) -> str:
    text = figures["arch"] or "model"
    if figures["dataset"]:
        text += f" on {figures['dataset']}"
    if figures["compression_ratio"]:
        text += f": {figures['compression_ratio']:.1f}x smaller on disk"
    errors = {row["stage"]: row["error_percent"] for row in figures["stages"]}
    stale = figures["decoded_equals_encoded"] is False  # an error of another model than is encoded
    if errors.get("initial") is not None and errors.get("decoded") is not None and not stale:
        text += f", test error {errors['initial']:.2f} % → {errors['decoded']:.2f} %"
    return text


def largest(layers: list[dict], count: int) -> list[dict]:
    """The `count` layers with the most weights, in the order of the model."""
    kept = sorted(range(len(layers)), key=lambda i: -layers[i]["parameters"])[:count]
    return [layers[i] for i in sorted(kept)]


def stage_bars(figures: dict) -> list[tuple[str, float]]:
    """(label, bytes) of the dense parameters, of what each step leaves, and of the folder.

    The files of the stages are all alike, since a `.ptmodel` stores zeros as well.  So the bars of
    pruning and sharing are what the paper counts, 32-bit or shared values with relative indexes.
    """
    rows = [*figures["layers"], figures["other"]]
    bars = [("dense float32", figures["original_bytes"])]
    if any(row["stage"] == "retrained" for row in figures["stages"]):
        bars.append(("pruned*", sum(row["bytes_pruned"] for row in rows)))
    plus = "+ " if len(bars) > 1 else ""
    bars.append((f"{plus}weights shared*", sum(row["bytes_before_huffman"] for row in rows)))
    return [*bars, ("+ Huffman: encodings/", figures["encoded_bytes"])]


def draw_stages(axes: "Axes", figures: dict) -> None:
    from matplotlib.ticker import NullFormatter

    axes.set_title("Size after each step")
    if figures["encoded_bytes"] is None:
        return unavailable(axes, "no encoded model")
    labels, sizes = zip(*stage_bars(figures), strict=True)
    axes.barh(labels, sizes, color=[GREY, *[SKY, BLUE, GREEN][1 - len(sizes) :]])
    for y, size in enumerate(sizes):
        times = f"  {sizes[0] / size:.1f}x" if y and size else ""
        text = f" {kilobytes(size)}{times}"
        axes.text(max(1.0, size), y, text, va="center", fontweight="bold")
    axes.set_xscale("log")
    axes.set_xlim(max(1.0, min(sizes)) / 5, max(sizes) * 6)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda x, _: kilobytes(x))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("size (log scale; * computed, not a file)")
    bare(axes)


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


def draw_parts(axes: "Axes", figures: dict, short: Mapping[str, str]) -> None:
    axes.set_title("Where the bytes are")
    if not figures["layers"]:
        return unavailable(axes, "no encoded model")
    bars = part_bars(figures)
    labels = [short.get(name, name) for name, _ in bars]
    left = np.zeros(len(bars))
    for part, colour in PARTS.items():
        sizes = np.array([parts[part] for _, parts in bars])
        label = f"{part} {100 * sizes.sum() / figures['encoded_bytes']:.1f} %"
        axes.barh(labels, sizes, left=left, color=colour, label=label)
        left += sizes
    for y, size in enumerate(left):
        axes.text(size, y, f" {kilobytes(size)}", va="center")
    axes.set_xlim(0, 1.18 * max(left))
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda x, _: kilobytes(x))
    axes.set_xlabel("size in encodings/")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.22), ncols=3, frameon=False)
    bare(axes)


def draw_distribution(axes: "Axes", layer: dict, short: Mapping[str, str]) -> None:
    """Weights before pruning and after retraining as steps, shared values as stems."""
    axes.set_title(short[layer["name"]])
    filled, line = {"color": GREY, "fill": True}, {"color": BLUE, "linewidth": 1.2}
    for counts, style in ((layer["initial"], filled), (layer["retrained"], line)):
        if counts and sum(counts):
            edges = np.linspace(layer["low"], layer["high"], len(counts) + 1)
            axes.stairs(counts, edges, **style)
    if layer["shared_values"]:
        axes.vlines(layer["shared_values"], 0.5, layer["shared_counts"], color=RED, linewidth=1)
        axes.plot(layer["shared_values"], layer["shared_counts"], ".", color=RED, markersize=4)
    elif layer["shared_values"] == [] or (layer["retrained"] and not sum(layer["retrained"])):
        axes.text(0.5, 0.5, "entirely pruned", ha="center", transform=axes.transAxes, color=RED)
    if layer["beyond"]:
        axes.set_xlim(layer["low"], layer["high"])
    axes.set_yscale("log")
    axes.set_ylim(0.7, max(10, axes.get_ylim()[1]))  # one weight is a visible bar
    bare(axes)


def finish_distributions(figure: "Figure", panels: list[dict], layers: int) -> None:
    """The legend of all panels; nothing where there is no panel."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    count = len(panels)
    for axes in figure.axes[count:]:
        axes.set_axis_off()
    which = f"the {count} largest of {layers} layers" if count < layers else "each layer"
    text = f"Weights of {which} (number of weights, log scale)"
    if any(layer["beyond"] for layer in panels):
        text += f", between percentiles {INSIDE[0]} and {INSIDE[1]}"
    figure.suptitle(text, fontsize=10)
    kinds = {
        "initial": Patch(color=GREY, label="before"),
        "retrained": Line2D([], [], color=BLUE, label="after retraining, zeros left out"),
        "shared_values": Line2D(
            [], [], color=RED, marker=".", label="after weight sharing: a shared value"
        ),
    }
    handles = [kinds[key] for key in kinds if any(layer[key] is not None for layer in panels)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


def code_points(layers: list[dict], key: str) -> list[tuple[str, list[float], list[int]]]:
    """(layer, shares, bits) per layer: of each symbol its share of all, and its code's length.

    A layer has one code for its values and one per block of its matrix for its gaps.
    """
    points = []
    for layer in layers:
        shares, bits = [], []
        codes = layer[key] or []
        for code in codes if isinstance(codes, list) else [codes]:
            total = sum(code["frequencies"])
            for frequency, length in zip(code["frequencies"], code["bits"], strict=True):
                if frequency:
                    shares.append(frequency / total)
                    bits.append(length)
        if shares:
            points.append((layer["name"], shares, bits))
    return points


def draw_codes(axes: "Axes", layers: list[dict], key: str, heading: str, of: int) -> None:
    axes.set_title(heading)
    points = code_points(layers, key)
    if not points:
        return unavailable(axes, "no encoded model" if not layers else "no Huffman codes")
    ideal = [min(min(shares) for _, shares, _ in points), 1.0]
    axes.plot(ideal, [-math.log2(p) for p in ideal], color="0.6", linewidth=1, label="−log₂ share")
    short = shorten((layer["name"] for layer in layers), CODE_WIDTH)
    for i, (name, shares, bits) in enumerate(points):
        beside = [b + 0.14 * (i - (len(points) - 1) / 2) for b in bits]  # not upon each other
        axes.plot(
            shares, beside, ".", color=LAYER_COLOURS[i], markersize=4, label=legend(short[name])
        )
    axes.set_xscale("log")
    axes.set_xlabel("share of the symbol (log scale)")
    axes.set_ylabel("bits of its code word")
    axes.set_ylim(0, axes.get_ylim()[1] * (1 + 0.08 * max(0, len(points) - 3)))  # for the legend
    which = f"{len(layers)} largest layers" if len(layers) < of else None
    axes.legend(frameon=False, loc="upper right", title=which, fontsize="small")
    bare(axes)


def draw_mask(axes: "Axes", mask: dict) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    counts = mask["counts"]
    used = sum(count > 0 for count in counts)
    what = "pixels" if mask["kind"] == "pixels" else "kernel places"
    layer = shorten([mask["layer"]], NAME_WIDTH)[mask["layer"]]
    axes.set_title(f"{layer}: {used} of {len(counts)} {what} used")
    # Grey where no weight is left, white between filters.
    shades = colormaps["viridis"].with_extremes(under="0.88", bad="white")
    colours = axes.imshow(mask_image(mask), cmap=shades, vmin=0.5, vmax=max(1.5, *counts))
    axes.spines[:].set_visible(False)
    if mask["most"] > 1:
        label = f"weights left of {mask['most']} (grey: none)"
        whole = MaxNLocator(integer=True)
        axes.figure.colorbar(colours, ax=axes, shrink=0.8, label=label, ticks=whole)
    axes.set_xticks([])
    axes.set_yticks([])


def mask_image(mask: dict) -> np.ndarray:
    """The counts as an image; filters as tiles, with a line of NaN between them."""
    counts = np.array(mask["counts"], float).reshape(mask["shape"])
    if mask["kind"] == "pixels":
        return counts
    filters, height, width = counts.shape
    columns = math.ceil(math.sqrt(filters))
    rows = math.ceil(filters / columns)
    tiles = np.full((rows * columns, height + 1, width + 1), np.nan)
    tiles[:filters, :height, :width] = counts
    tiles = tiles.reshape(rows, columns, height + 1, width + 1).swapaxes(1, 2)
    return tiles.reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]
