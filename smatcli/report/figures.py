"""Draws the figures: PNG and vector PDF, without a display, the same bytes for the same data."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smatcli.files import atomic_path
from smatcli.report import style
from smatcli.report.curves import Curves, Gains, Series
from smatcli.report.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_curves(curves: Curves, path: Path) -> None:
    """Write `path`.png and `path`.pdf: one panel a domain, one legend above them."""
    with style.applied():
        wide = len(curves.panels) > 1
        labels = list(dict.fromkeys(s.label for series in curves.panels.values() for s in series))
        figure = _figure(style.TWO_COLUMNS if wide else style.ONE_COLUMN * 1.25, 2.4 + 0.16 * _legend_rows(labels, wide))
        axes = figure.subplots(1, len(curves.panels), squeeze=False)[0]
        handles: dict[str, Any] = {}
        for ax, (title, series) in zip(axes, curves.panels.items(), strict=True):
            ax.set_title(title)
            ax.set_xlabel(curves.x_label)
            for one in series:
                handles.setdefault(one.label, _line(ax, one, style.look(labels.index(one.label)), curves.interval))
        axes[0].set_ylabel(curves.y_label)
        _legend(figure, handles, wide)
        _save(figure, path)


def _line(ax: "Axes", series: Series, look: style.Look, interval: str) -> Any:
    if series.reference is not None:
        mean, spread = _percent(series.reference)
        ax.axhspan(mean - spread, mean + spread, color=look.colour, alpha=0.12, linewidth=0)
        return ax.axhline(mean, color=look.colour, linestyle=look.dashes, linewidth=1.0, label=series.label)
    x = [p[0] for p in series.points]
    y, spread = np.array([_percent(e) for _, e in series.points]).T
    drawn: dict[str, Any] = {"marker": look.marker, "markersize": 4, "color": look.colour, "linestyle": look.dashes, "label": series.label}
    if interval == "bars":
        return ax.errorbar(x, y, yerr=spread, elinewidth=0.9, **drawn)
    if interval == "band":
        ax.fill_between(x, y - spread, y + spread, color=look.colour, alpha=0.12, linewidth=0)
    return ax.plot(x, y, markevery=max(1, len(x) // 8), **drawn)[0]


def draw_gains(gains: Gains, path: Path) -> None:
    """Write `path`.png and `path`.pdf: a dot with its interval for every dataset and column, averages set apart."""
    with style.applied():
        slots = max(1.0, 0.28 * len(gains.series))
        rows = [(label, average, estimates) for _, block in gains.blocks for label, average, estimates in block]
        rows_of_legend = _legend_rows(gains.series, False)
        figure = _figure(style.TWO_COLUMNS * 0.75, 0.8 + 0.17 * slots * (len(rows) + len(gains.blocks)) + 0.16 * rows_of_legend)
        ax = figure.subplots()
        handles: dict[str, Any] = {}
        place, ticks, names = 0.0, [], []
        for title, block in gains.blocks:
            ax.text(-0.01, place, title, transform=ax.get_yaxis_transform(), ha="right", va="center", fontweight="bold", fontsize=7.5)
            place += 1
            for label, average, estimates in block:
                if average:
                    ax.axhspan(place - 0.5, place + 0.5, color="#EEEEEE", linewidth=0, zorder=0)
                _dots(ax, place, gains.series, estimates, handles)
                ticks.append(place)
                names.append(label)
                place += 1
            place += 0.3
        ax.axvline(0, color="#444444", linewidth=0.9, zorder=1)
        ax.set_yticks(ticks, names)
        ax.set_ylim(place - 0.8, -0.6)
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(f"Gain over {gains.baseline} (points of accuracy)")
        _legend(figure, handles, False)
        _save(figure, path)


def _dots(ax: "Axes", place: float, series: Sequence[str], estimates: Sequence[Estimate], handles: dict[str, Any]) -> None:
    step = 0.7 / max(len(series), 1)
    for i, (name, estimate) in enumerate(zip(series, estimates, strict=True)):
        if estimate.known:
            mean, spread = _percent(estimate)
            y, look = place + (i - (len(series) - 1) / 2) * step, style.look(i)
            shape: dict[str, Any] = {"fmt": look.marker, "color": look.colour, "markersize": 3.6, "elinewidth": 0.9, "capsize": 0}
            handles.setdefault(name, ax.errorbar([mean], [y], xerr=[spread], label=name, **shape))


def _percent(estimate: Estimate) -> tuple[float, float]:
    """Mean and half-width in percent; no interval is drawn as one of width zero."""
    return 100 * estimate.mean, 100 * estimate.half_width if math.isfinite(estimate.half_width) else 0.0


def _legend_columns(labels: Sequence[str], wide: bool) -> int:
    """As many columns as the longest label leaves room for."""
    room = 105 if wide else 68
    return max(1, min(len(labels), room // (max(map(len, labels), default=1) + 7)))


def _legend_rows(labels: Sequence[str], wide: bool) -> int:
    return math.ceil(len(labels) / _legend_columns(labels, wide))


def _legend(figure: "Figure", handles: dict[str, Any], wide: bool) -> None:
    columns = _legend_columns(list(handles), wide)
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=columns, handlelength=2.6)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: Path) -> None:
    import warnings

    for end, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Producer": None, "Creator": None})):
        with atomic_path(path.with_name(f"{path.name}.{end}")) as draft, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box; the CSV has the name
            figure.savefig(draft, format=end, metadata=metadata)
        figure.set_layout_engine("none")  # both files share the first one's layout
