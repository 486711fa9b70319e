"""Draw any figure as PNG and PDF; curves and gains are drawn in `axes`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smatcli.report.figures import style
from smatcli.report.figures.axes import draw_curves, draw_gains, legend, new_figure, save, scaled
from smatcli.report.figures.curves import Curves, Gains
from smatcli.report.figures.types import Bars, ConfusedClasses, Figure, HeatMap, Scatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "oo")
COLUMNS = 3  # pairs of images per row
MOST_NAMED = 10  # most classes in a legend


def draw(figure: Figure, path: Path) -> None:
    """Write `path`.png and `path`.pdf."""
    if isinstance(figure, Curves):
        draw_curves(figure, path)
    elif isinstance(figure, Gains):
        draw_gains(figure, path)
    else:
        with style.applied():
            if isinstance(figure, Bars):
                _bars(figure, path)
            elif isinstance(figure, HeatMap):
                _heat(figure, path)
            elif isinstance(figure, Scatter):
                _scatter(figure, path)
            else:
                _confused(figure, path)


def _bars(bars: Bars, path: Path) -> None:
    count, series = len(bars.categories), len(bars.series)
    width = min(style.TWO_COLUMNS, max(style.ONE_COLUMN, 0.9 + 0.13 * count * (series + 1)))
    longest = max(map(len, bars.categories))
    upright = longest * 0.05 * count > width - 0.9
    figure = new_figure(width, 2.3 + 0.16 * math.ceil(series / 2) + (0.055 * min(longest, 40) if upright else 0))
    ax = figure.subplots()
    handles: dict[str, Any] = {}
    step = 0.8 / series
    for i, (name, estimates) in enumerate(bars.series):
        values = [scaled(e, bars.scale) if e.known else (math.nan, 0.0) for e in estimates]
        places = np.arange(count) + (i - (series - 1) / 2) * step
        shape: dict[str, Any] = {"color": style.look(i).colour, "hatch": HATCHES[i % len(HATCHES)], "edgecolor": "white", "linewidth": 0}
        handles[name] = ax.bar(places, [v for v, _ in values], step * 0.92, label=name, **shape)
        spreads = [s if s > 0 else math.nan for _, s in values]
        ax.errorbar(places, [v for v, _ in values], yerr=spreads, fmt="none", ecolor="#333333", elinewidth=0.8, capsize=1.5)
    ax.set_xticks(range(count), [_shortened(c, 40) for c in bars.categories], rotation=90 if upright else 0)
    ax.grid(axis="x", visible=False)
    ax.axhline(0, color="#444444", linewidth=0.8)
    ax.set_ylabel(bars.y_label)
    ax.set_xlabel(bars.x_label)
    if series > 1:
        legend(figure, handles, width > 5)
    save(figure, path)


def _heat(heat: HeatMap, path: Path) -> None:
    from matplotlib import colormaps

    rows, columns = heat.values.shape
    values = heat.scale * heat.values
    longest = max(map(len, heat.columns), default=1)
    upright = longest > 4
    cell = 0.42 if heat.digits > 1 or np.nanmax(np.abs(values), initial=0) >= 100 else 0.34
    names = 0.062 * min(max(map(len, heat.rows), default=1), 32)
    width = names + cell * columns + (1.0 if heat.tree else 0.0) + 0.9
    figure = new_figure(max(width, style.ONE_COLUMN * 0.8), 0.19 * rows + 0.7 + (0.062 * min(longest, 32) if upright else 0))
    ratios = [0.9, cell * columns] if heat.tree else [1]
    axes = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
    ax = axes[-1]
    finite = values[np.isfinite(values)]
    low, high = (min(0.0, float(finite.min())), float(finite.max())) if len(finite) else (0.0, 1.0)
    high = high if high > low else low + 1
    colours = colormaps["Blues"]
    ax.imshow(np.ma.masked_invalid(values), aspect="auto", cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    for i in range(rows):
        for j in range(columns):
            if math.isfinite(values[i, j]):
                red, green, blue, _ = colours((values[i, j] - low) / (high - low))
                ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "black"
                text = ax.text(j, i, f"{values[i, j] + 0.0:.{heat.digits}f}", ha="center", va="center", fontsize=6, color=ink)
                text.set_in_layout(in_layout=False)  # within its cell, where the layout can ignore it: hundreds of texts would slow it down
    ax.set_xticks(range(columns), [_shortened(c, 32) for c in heat.columns], rotation=90 if upright else 0)
    ax.set_yticks(range(rows), [_shortened(r, 32) for r in heat.rows])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.set_xlabel(heat.x_label)
    ax.set_ylabel(heat.y_label)
    for side in ax.spines.values():
        side.set_visible(b=False)
    if heat.tree:
        _tree(axes[0], heat)
    save(figure, path)


def _tree(ax: "Axes", heat: HeatMap) -> None:
    for places, distances in heat.tree:
        ax.plot(distances, places, color="#444444", linewidth=0.9)
    ax.set_ylim(len(heat.rows) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.invert_xaxis()
    ax.set_yticks([])
    ax.locator_params(axis="x", nbins=3)
    ax.grid(visible=False)
    ax.set_xlabel("Distance")
    ax.spines["left"].set_visible(b=False)


def _scatter(scatter: Scatter, path: Path) -> None:
    classes, panels = len(scatter.classes), len(scatter.panels)
    named = classes <= MOST_NAMED
    labels = [_shortened(name, 24) for name in scatter.classes] if named else []
    labels = [f"{name} ({i + 1})" if labels.count(name) > 1 else name for i, name in enumerate(labels)]
    width = style.TWO_COLUMNS if panels > 1 else style.ONE_COLUMN * 1.1
    figure = new_figure(width, (width / panels) * 0.95 + 0.3 + 0.16 * math.ceil((len(labels) + 2) / 3))
    handles: dict[str, Any] = {}
    for ax, (title, points) in zip(figure.subplots(1, panels, squeeze=False)[0], scatter.panels.items(), strict=True):
        for c in range(classes):
            look = style.look(c)
            own = scatter.label == c
            query, support = points[own & scatter.is_query], points[own & ~scatter.is_query]
            ax.scatter(query[:, 0], query[:, 1], s=13, marker=look.marker, facecolors="none", edgecolors=look.colour, linewidths=0.8)
            drawn = ax.scatter(
                support[:, 0], support[:, 1], s=30, marker=look.marker, color=look.colour, edgecolors="black", linewidths=0.5
            )
            if named:
                handles[labels[c]] = drawn
        ax.set_title(title)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_aspect("equal", adjustable="datalim")
        for side in ax.spines.values():
            side.set_visible(b=True)
            side.set_color("#BBBBBB")
    if handles:
        legend(figure, handles, panels > 1)
    save(figure, path)


def _confused(confused: ConfusedClasses, path: Path) -> None:
    rows = math.ceil(len(confused.pairs) / COLUMNS)
    figure = new_figure(style.TWO_COLUMNS, 1.62 * rows)
    grid = figure.subplots(rows, 2 * COLUMNS, squeeze=False)
    for place in range(rows * COLUMNS):
        pair = confused.pairs[place] if place < len(confused.pairs) else None
        row, column = divmod(place, COLUMNS)
        for side, ax in enumerate(grid[row][2 * column : 2 * column + 2]):
            ax.set_axis_off()
            ax.set_xticks([])
            ax.set_yticks([])
            if pair is None:
                continue
            ax.imshow(pair.pixels[side], interpolation="nearest")
            ax.set_title(_wrapped(pair.first if side == 0 else pair.second, 15), fontsize=6)
            if side == 0:
                about = f"{_shortened(pair.dataset, 22)}: {pair.count} of {pair.asked}"
                ax.text(0.0, -0.08, about, transform=ax.transAxes, fontsize=6.5, va="top")
    save(figure, path)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _wrapped(text: str, width: int) -> str:
    """Break `text` into at most two lines of `width` characters."""
    if len(text) <= width:
        return text
    return text[:width] + "\n" + _shortened(text[width:], width)
