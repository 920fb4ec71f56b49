"""The page of an encoded model: where its bytes are, its bits and noise, its largest weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .names import shorten
from .plots import (
    BLUE,
    GREEN,
    GREY,
    INSIDE,
    ORANGE,
    PURPLE,
    RED,
    bare,
    drawable,
    kilobytes,
    log_scale,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REST = "the rest"
COLOURS = {
    **{"by rate": BLUE, "clustered": GREEN, "rounded": ORANGE, "changed": PURPLE, "exact": GREY},
    REST: "0.4",
}
SPREADS = {
    "bits_per_weight": "bits per element,\nall bytes of a tensor counted",
    "noise_percent": "noise, %: root mean square of\nthe change, of that before",
}
BARS, NAMES = 16, 32
COUNTED, STRETCH = 0.01, 2.5  # what takes less of the bytes stretches an axis no further


def contents_page(figures: dict, rows: Sequence[dict]) -> "Figure":
    """From the dict of `contents.figures`, and the rows of its table."""
    bars, histograms = _bars(figures, rows), figures["histograms"]
    spreads = {
        key: label for key, label in SPREADS.items() if any(row[key] for row in figures["tensors"])
    }
    heights = [1.3 + 0.22 * len(bars), *[2.4] * bool(histograms)]
    figure = new_figure(sum(heights))
    text = f"{figures['dense_bytes']:,} → {figures['bytes']:,} bytes"
    name = drawable(Path(figures["path"]).name)
    text = f"{name}: {text}, {figures['compression_ratio']:.1f}x smaller"
    figure.suptitle(text, fontsize=min(13, 1000 / len(text)), fontweight="bold")
    top, *bottom = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    ratios = [1.3, *[1] * len(spreads)]
    panels = top.subplots(1, len(ratios), sharey=True, squeeze=False, width_ratios=ratios)
    first, *others = panels[0]
    # As many names as in the table, so that none here could be one that is left out.
    names = [row["name"] for row in (*rows, *bars, *histograms)]
    short = {name: drawable(text) for name, text in shorten(names, NAMES).items()}
    first.set_yticks(range(len(bars)), [short[bar["name"]] for bar in bars])
    _draw_bytes(first, bars, figures["bytes"])
    for axes, (key, label) in zip(others, spreads.items(), strict=True):
        _draw_spread(axes, bars, key, label)
    labels = {top: first}
    if bottom:
        first, *others = bottom[0].subplots(1, len(histograms), squeeze=False)[0]
        for axes, each in zip((first, *others), histograms, strict=True):
            _draw_histogram(axes, each, short[each["name"]])
        first.set_ylabel("% of the weights (log scale)")
        labels[bottom[0]] = first
    for part, axes in labels.items():
        handles = axes.get_legend_handles_labels()
        part.legend(*handles, loc="outside lower center", ncols=6, frameon=False)
    return figure


def _bars(figures: dict, rows: Sequence[dict]) -> list[dict]:
    """The rows that take most, in their order, the others summed, and what is no tensor."""
    most = {row["name"] for row in sorted(rows, key=lambda row: -row["bytes"])[:BARS]}
    bars = [row for row in rows if row["name"] in most]
    small = [row for row in rows if row["name"] not in most]
    if small:
        members = [each for row in small for each in row["members"]]
        size = sum(row["bytes"] for row in small)
        name = f"{len(members)} smaller tensors"
        bars.append({"name": name, "members": members, "bytes": size, "treatment": REST})
    for row in figures["groups"]:
        if "parameters" not in row:  # files, header
            blank: dict = {"members": [], "treatment": REST}
            bars.append({"name": row["group"], "bytes": row["bytes"], **blank})
    return bars


def _draw_bytes(axes: "Axes", bars: Sequence[dict], total: int) -> None:
    for treatment, colour in COLOURS.items():
        own = [y for y, bar in enumerate(bars) if bar["treatment"] == treatment]
        if own:
            axes.barh(own, [bars[y]["bytes"] for y in own], color=colour, label=treatment)
    for y, bar in enumerate(bars):
        text = f" {kilobytes(bar['bytes'])}, {100 * bar['bytes'] / total:.1f} %"
        axes.text(bar["bytes"], y, text, va="center", fontsize="small")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * max(bar["bytes"] for bar in bars))
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda x, _: kilobytes(x))
    axes.set_xlabel("size")
    bare(axes)


def _draw_spread(axes: "Axes", bars: Sequence[dict], key: str, label: str) -> None:
    """A dot for each tensor; those of small bars may lie beyond the axis, which then says so."""
    points = [
        (each[key], y, bar)
        for y, bar in enumerate(bars)
        for each in bar["members"]
        if each[key] is not None
    ]
    least = COUNTED * sum(bar["bytes"] for bar in bars)
    large = [x for x, _, bar in points if bar["bytes"] >= least and bar["treatment"] != REST]
    end = max(x for x, *_ in points)
    end = 1.05 * min(end, STRETCH * max(large, default=end) or end)
    colours = [COLOURS[bar["treatment"]] for *_, bar in points]
    axes.scatter([x for x, *_ in points], [y for _, y, _ in points], s=14, c=colours, alpha=0.6)
    beyond = sum(x > end for x, *_ in points)
    axes.set_xlim(-0.03 * end, end)
    axes.set_xlabel(label + (f"\n(beyond the axis: {beyond})" if beyond else ""))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="0.92", zorder=0)
    axes.set_axisbelow(True)
    bare(axes)


def _draw_histogram(axes: "Axes", each: dict, name: str) -> None:
    axes.set_title(name)
    for key, style in (
        ("before", {"color": GREY, "fill": True}),
        ("encoded", {"color": BLUE, "linewidth": 1.2}),
    ):
        if each[key]:
            step = (each["high"] - each["low"]) / len(each[key])
            edges = [each["low"] + i * step for i in range(len(each[key]) + 1)]
            axes.stairs(each[key], edges, label=key, **style)
    if each["values"]:
        axes.vlines(each["values"], 0, each["percents"], color=RED, linewidth=1)
        style = {"color": RED, "markersize": 4, "label": "encoded: a value"}
        axes.plot(each["values"], each["percents"], ".", **style)
    log_scale(axes.yaxis, axes.set_yscale)
    axes.set_xlim(each["low"], each["high"])
    axes.set_xlabel(f"the middle {INSIDE[1] - INSIDE[0]:g} % of the weights")
    bare(axes)
