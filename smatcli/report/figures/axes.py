"""Draw curves and gains as PNG and vector PDF, without a display; the same data give the same bytes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smatcli.report.figures import style
from smatcli.report.figures.curves import Curves, Gains, Series
from smatcli.runs.statistics import Estimate
from smatcli.safe.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_FORMATS: ContextVar[tuple[str, ...]] = ContextVar("formats", default=("png", "pdf"))


@contextmanager
def only_png() -> Iterator[None]:
    """Write only PNG files, no PDF, within the context: this halves the time."""
    before = _FORMATS.set(("png",))
    try:
        yield
    finally:
        _FORMATS.reset(before)


def draw_curves(curves: Curves, path: Path) -> None:
    """Write `path`.png and `path`.pdf: panels side by side, one legend above them."""
    with style.applied():
        wide = len(curves.panels) > 1
        labels = list(dict.fromkeys(s.label for series in curves.panels.values() for s in series))
        figure = new_figure(style.TWO_COLUMNS if wide else style.ONE_COLUMN * 1.25, 2.4 + 0.16 * _legend_rows(labels, wide))
        axes = figure.subplots(1, len(curves.panels), squeeze=False)[0]
        handles: dict[str, Any] = {}
        for ax, (title, series) in zip(axes, curves.panels.items(), strict=True):
            ax.set_title(title)
            ax.set_xlabel(curves.x_label)
            for line in series:
                handles.setdefault(line.label, _line(ax, line, style.look(labels.index(line.label)), curves.interval, curves.scale))
            if curves.log_x:
                _log(ax)
            elif all(x == int(x) for line in series for x, _ in line.points):
                ax.xaxis.get_major_locator().set_params(integer=True)
            if title in curves.y_labels:
                ax.set_ylabel(curves.y_labels[title])
        if not curves.y_labels:
            axes[0].set_ylabel(curves.y_label)
        legend(figure, handles, wide)
        save(figure, path)


def _log(ax: "Axes") -> None:
    """Make the x axis logarithmic, with plain numbers as labels: text in reports is never parsed as a formula."""
    from matplotlib.ticker import LogLocator, NullLocator

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high <= 100 * low else (1,)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")


def _line(ax: "Axes", series: Series, look: style.Look, interval: str, scale: float) -> Any:
    if series.reference is not None:
        mean, spread = scaled(series.reference, scale)
        ax.axhspan(mean - spread, mean + spread, color=look.colour, alpha=0.12, linewidth=0)
        return ax.axhline(mean, color=look.colour, linestyle=look.dashes, linewidth=1.0, label=series.label)
    x = [p[0] for p in series.points]
    if series.guide:
        ends = [scaled(e, scale)[0] for _, e in series.points]
        return ax.plot(x, ends, color="#777777", linestyle=(0, (1, 1.5)), linewidth=0.9, label=series.label, zorder=1)[0]
    y, spread = np.array([scaled(e, scale) for _, e in series.points]).T
    drawn: dict[str, Any] = {"marker": look.marker, "markersize": 4, "color": look.colour, "linestyle": look.dashes, "label": series.label}
    if interval == "bars":
        return ax.errorbar(x, y, yerr=spread, elinewidth=0.9, **drawn)
    if interval == "band":
        ax.fill_between(x, y - spread, y + spread, color=look.colour, alpha=0.12, linewidth=0)
    return ax.plot(x, y, markevery=max(1, len(x) // 8), **drawn)[0]


def draw_gains(gains: Gains, path: Path) -> None:
    """Write `path`.png and `path`.pdf: a dot with its interval for each dataset and column, averages on grey."""
    with style.applied():
        slots = max(1.0, 0.28 * len(gains.series))
        rows = [(label, average, estimates) for _, block in gains.blocks for label, average, estimates in block]
        rows_of_legend = _legend_rows(gains.series, wide=False)
        figure = new_figure(style.TWO_COLUMNS * 0.75, 0.8 + 0.17 * slots * (len(rows) + len(gains.blocks)) + 0.16 * rows_of_legend)
        ax = figure.subplots()
        handles: dict[str, Any] = {}
        place, ticks, names = 0.0, [], []
        placed: list[tuple[float, list[Estimate]]] = []
        for title, block in gains.blocks:
            ax.text(-0.01, place, title, transform=ax.get_yaxis_transform(), ha="right", va="center", fontweight="bold", fontsize=7.5)
            place += 1
            for label, average, estimates in block:
                if average:
                    ax.axhspan(place - 0.5, place + 0.5, color="#EEEEEE", linewidth=0, zorder=0)
                placed.append((place, estimates))
                ticks.append(place)
                names.append(label)
                place += 1
            place += 0.3
        _dots(ax, placed, gains.series, handles)
        ax.axvline(0, color="#444444", linewidth=0.9, zorder=1)
        ax.set_yticks(ticks, names)
        ax.set_ylim(place - 0.8, -0.6)
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(f"Gain over {gains.baseline} (points of accuracy)")
        legend(figure, handles, wide=False)
        save(figure, path)


def _dots(ax: "Axes", rows: Sequence[tuple[float, Sequence[Estimate]]], series: Sequence[str], handles: dict[str, Any]) -> None:
    """Draw all dots of a series at once: with one artist per dot, a report would spend most of its time here."""
    step = 0.7 / max(len(series), 1)
    for i, name in enumerate(series):
        own = [(place + (i - (len(series) - 1) / 2) * step, *scaled(e[i], 100.0)) for place, e in rows if e[i].known]
        if own:
            y, mean, spread = zip(*own, strict=True)
            look = style.look(i)
            shape: dict[str, Any] = {"fmt": look.marker, "color": look.colour, "markersize": 3.6, "elinewidth": 0.9, "capsize": 0}
            handles[name] = ax.errorbar(mean, y, xerr=spread, label=name, **shape)


def scaled(estimate: Estimate, scale: float) -> tuple[float, float]:
    """Return mean and half-width as drawn, where an unknown half-width is zero."""
    return scale * estimate.mean, scale * estimate.half_width if math.isfinite(estimate.half_width) else 0.0


def _legend_columns(labels: Sequence[str], wide: bool) -> int:
    """Return the number of legend columns for which the longest label fits."""
    room = 105 if wide else 68
    return max(1, min(len(labels), room // (max(map(len, labels), default=1) + 7)))


def _legend_rows(labels: Sequence[str], wide: bool) -> int:
    return math.ceil(len(labels) / _legend_columns(labels, wide))


def legend(figure: "Figure", handles: dict[str, Any], wide: bool) -> None:
    """Add one legend above the panels."""
    columns = _legend_columns(list(handles), wide)
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=columns, handlelength=2.6)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure that needs no display; sizes are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write `path`.png and, except within `only_png`, `path`.pdf."""
    import warnings

    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box; the CSV has the character
        # The canvases' own methods draw once. savefig draws twice, which would take a third of a report's time.
        figure.set_dpi(rcParams["savefig.dpi"])
        with atomic_path(path.with_name(f"{path.name}.png")) as draft:
            FigureCanvasAgg(figure).print_png(draft, metadata={"Software": None})
        if "pdf" not in _FORMATS.get():
            return
        figure.set_layout_engine("none")  # use the layout of the PNG
        with atomic_path(path.with_name(f"{path.name}.pdf")) as draft:
            FigureCanvasPdf(figure).print_pdf(draft, metadata={"CreationDate": None, "Producer": None, "Creator": None})
