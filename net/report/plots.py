"""One-page plots of the figures in the JSON files: nothing is drawn that they do not hold.

The only module that uses matplotlib, which is imported when the first page is drawn.  Figures are
made without pyplot: no display is needed and no state is shared.
"""

import importlib.util
import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import printable
from ..extras import needs
from ..files import atomic_write
from .tables import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"),
)
GREY = "#BBBBBB"
# Tol's muted scheme, unlike the colours of the parts.
LAYER_COLOURS = ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#AA4499")
WIDTH = 10.0  # inches, 1,000 pixels: a README shows about 900


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
    if kind == "png":
        image = with_palette(image)
    with atomic_write(path) as file:
        file.write(image.getvalue())


def with_palette(image: io.BytesIO) -> io.BytesIO:
    """A PNG in 256 colours: 40 % of the bytes, and no difference to be seen."""
    from PIL import Image  # matplotlib needs it too

    smaller = io.BytesIO()
    Image.open(image).convert("RGB").quantize(256).save(smaller, "png", optimize=True)
    return smaller


def note_missing(path: str | Path) -> None:
    """Say that a plot which nobody asked for is left out."""
    text = f"note: {path} is not drawn: matplotlib is not installed"
    print(printable(text), file=sys.stderr)


def bare(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)


# The sensitivity scan and the trade-off


def scan_page(figures: dict) -> "Figure":
    """Held-out error and loss against density, a line per layer (Han et al. 2015, figure 6)."""
    figure = new_figure(4.2)
    figures = drawable(figures)
    name = f"{figures['arch']} on {figures['dataset']}"
    figure.suptitle(f"{name}: each layer pruned alone, not retrained", fontweight="bold")
    layers, chosen = figures["layers"], figures["chosen"]
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("error_percent", "loss"),
        ("held-out error, percent", "held-out loss, nats"),
        strict=True,
    ):
        for i, layer in enumerate(layers):
            points = layer["points"]
            line = {"color": LAYER_COLOURS[i % 6], "linestyle": ("-", "--", ":", "-.")[i // 6 % 4]}
            densities = [100 * point["density"] for point in points]
            label_of = f"{shortened(layer['name'])}: {100 * chosen[layer['name']]:.3g} %"
            axes.plot(densities, [point[key] for point in points], label=label_of, **line)
            axes.axvline(100 * chosen[layer["name"]], alpha=0.5, linewidth=0.8, **line)
        axes.axhline(figures[key], color="0.6", linewidth=1, zorder=0)
        log_scale(axes.xaxis, axes.set_xscale)
        axes.invert_xaxis()
        axes.set_xlabel("density of the layer, percent (log scale)")
        axes.set_ylabel(f"{label} (log scale)")
        log_scale(axes.yaxis, axes.set_yscale)
        bare(axes)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title=f"chosen (thin lines) for {100 * figures['target']:g} % in total",
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    return figure


def log_scale(axis: "Axis", set_scale: Callable[[str], object]) -> None:
    """A log scale whose ticks are 1, 2, 5, 10, ... as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.set_minor_formatter(NullFormatter())


def reach(axes: "Axes", top: float) -> tuple[float, float]:
    """The ends of the x axis, with a margin, that show every point of the lines below `top`."""
    seen = [
        x
        for line in axes.lines
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        if y <= top
    ]
    transform = axes.xaxis.get_transform()
    low, high = transform.transform([min(seen), max(seen)])
    margin = 0.05 * (high - low) or 0.5
    return tuple(transform.inverted().transform([low - margin, high + margin]))


def tradeoff_page(figures: dict) -> "Figure":
    """Error against size for each method (the paper's figure 6); against bits for each
    initialisation of the shared values (figure 8)."""
    figure = new_figure(5.0)
    figure.suptitle(f"{figures['arch']} on {figures['dataset']}", fontweight="bold")
    methods, starts = figure.subplots(1, 2)
    dense = figures["dense_error_percent"]
    for i, (name, points) in enumerate(figures["methods"].items()):
        sizes = [100 * point["bytes"] / figures["original_bytes"] for point in points]
        errors = [point["error_percent"] for point in points]
        methods.plot(sizes, errors, "o-", color=LAYER_COLOURS[i], markersize=4, label=name)
    log_scale(methods.xaxis, methods.set_xscale)
    methods.set_xlabel("size, percent of dense float32 (log scale)")
    methods.set_title("Error against size")
    for i, (name, points) in enumerate(figures["initialisations"].items()):
        bits = [point["bits"] + 0.08 * (i - 1) for point in points]  # side by side, not upon
        for key, style in (("error_percent", "o-"), ("clustered_error_percent", "o--")):
            errors = [point[key] for point in points]
            label = name + (", fine-tuned" if style == "o-" else ", clustered alone")
            starts.plot(bits, errors, style, color=LAYER_COLOURS[i], markersize=4, label=label)
    starts.set_xlabel("bits per weight")
    starts.set_title("Initial centroids of weight sharing")
    for axes in (methods, starts):
        best = min(min(line.get_ydata()) for line in axes.lines)
        # What lies beyond is of no use, and would squeeze the rest.
        top = max(best, dense) + 4
        axes.set_ylim(max(0, min(best, dense) - 0.3), top)
        axes.set_xlim(*reach(axes, top))
        axes.axhline(dense, color="0.6", linewidth=1, zorder=0, label="dense model")
        axes.set_ylabel("test error, percent")
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        bare(axes)
    return figure


def curve_page(figures: dict) -> "Figure":
    """Error against bytes of encoded models, beside what others report."""
    figure = new_figure(4.5)
    axes = figure.subplots()
    axes.set_title(f"{figures['arch']} on {figures['dataset']}", fontweight="bold")
    points = figures["points"]
    curves = {"this suite, preset smallest": [(p["bytes"], p["error_percent"]) for p in points]}
    for i, (name, each) in enumerate((curves | figures["others"]).items()):
        style = "o" if i else "o-"  # the points of others are not of one curve
        axes.plot(*zip(*each, strict=True), style, color=LAYER_COLOURS[i], label=name)
    for p in points:
        text = f"{p['original_bytes'] / p['bytes']:.0f}x"
        at = (p["bytes"], p["error_percent"])
        axes.annotate(text, at, xytext=(4, 6), textcoords="offset points", color="0.4")
    dense = points[0]["dense_error_percent"]
    axes.axhline(dense, color="0.6", linewidth=1, zorder=0, label="dense model")
    axes.set_ylim(bottom=0)
    log_scale(axes.xaxis, axes.set_xscale)
    axes.set_xlabel("bytes of the encoded model (log scale)")
    axes.set_ylabel("test error, percent")
    axes.legend(frameon=False)
    bare(axes)
    return figure
