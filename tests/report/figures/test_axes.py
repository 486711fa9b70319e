"""Figures: files, fonts, distinct styles, and no overlapping text."""

import math
import re
import zlib
from pathlib import Path
from typing import Literal

import pytest
from matplotlib.text import Text

from smatcli.report.figures import axes as figures
from smatcli.report.figures import draw as fig_draw
from smatcli.report.figures import style
from smatcli.report.figures.curves import Curves, Gains, Series
from smatcli.runs.statistics import UNKNOWN, Estimate

LONG = "a rather long label of a run, M = 8 + flip"


def curves(labels: list[str], interval: Literal["bars", "band", "none"] = "bars") -> Curves:
    lines = [Series(n, [(0.5 + 0.1 * k, Estimate(0.5 + 0.01 * k + 0.005 * i, 0.01)) for k in range(5)]) for i, n in enumerate(labels)]
    panels = {"In-domain": [*lines, Series("reference $5_", reference=Estimate(0.5, 0.01))], "Out-of-domain": lines}
    return Curves("c", "C", "caption", "Sparsity target τ", "Accuracy (%)", panels, interval)


def gains(series: int, datasets: int) -> Gains:
    rows = [(f"dataset_{k}", False, [Estimate(0.01 * i - 0.02, 0.01) for i in range(series)]) for k in range(datasets)]
    rows.append(("In-domain average", True, [UNKNOWN, *[Estimate(0.01, math.nan)] * (series - 1)]))
    return Gains("g", "G", "caption", "Pre-trained", [f"{LONG} {i}" for i in range(series)], [("In-domain", rows), ("Out-of-domain", rows)])


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list:
    """Collect the figures that are drawn."""
    found: list = []
    save = figures.save

    def keep(figure, path):
        save(figure, path)
        found.append(figure)

    monkeypatch.setattr(figures, "save", keep)
    monkeypatch.setattr(fig_draw, "save", keep)
    return found


def overlaps(figure) -> list[tuple[str, str]]:
    """Return pairs of visible texts whose boxes intersect, and texts that leave the page."""
    figure.canvas.draw()
    hidden = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        hidden |= {label for t in axis.get_major_ticks() if not low <= t.get_loc() <= high for label in (t.label1, t.label2)}
    texts = figure.findobj(lambda a: isinstance(a, Text) and a.get_visible() and a.get_text() and a not in hidden)
    boxes = [(text.get_text(), text.get_window_extent()) for text in dict.fromkeys(texts)]
    pairs = [
        (a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[i + 1 :] if one.shrunk(0.98, 0.9).overlaps(two.shrunk(0.98, 0.9))
    ]
    page = figure.bbox.padded(1)
    return pairs + [(a, "page") for a, box in boxes if not (page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1))]


@pytest.mark.parametrize("count", [1, 4, 9])
@pytest.mark.parametrize("interval", ["bars", "band"])
def test_curves_are_readable(tmp_path: Path, kept: list, count: int, interval):
    with figures.only_png():
        figures.draw_curves(curves([f"{LONG} {i}" for i in range(count)], interval), tmp_path / "c")
    assert overlaps(kept[0]) == []
    legend = [t.get_text() for t in kept[0].legends[0].get_texts()]
    assert legend == [*(f"{LONG} {i}" for i in range(count)), "reference $5_"]


@pytest.mark.parametrize(("series", "datasets"), [(1, 2), (3, 8), (6, 12)])
def test_gains_are_readable(tmp_path: Path, kept: list, series: int, datasets: int):
    with figures.only_png():
        figures.draw_gains(gains(series, datasets), tmp_path / "g")
    assert overlaps(kept[0]) == []


def test_files_are_the_same_each_time_with_fonts_as_text(tmp_path: Path):
    for name in ("a", "b"):
        figures.draw_curves(curves(["x"]), tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]
    for end in ("pdf", "png"):
        assert (tmp_path / f"a.{end}").read_bytes() == (tmp_path / f"b.{end}").read_bytes()
    pdf = (tmp_path / "a.pdf").read_bytes()
    parts = [pdf, *(inflate(m) for m in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.S))]
    assert any(b"/FontFile2" in part for part in parts)
    assert not any(b"/Type3" in part for part in parts)


def inflate(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data)
    except zlib.error:
        return b""


def test_looks_differ_without_colour():
    looks = [style.look(i) for i in range(8)]
    assert len({(look.marker, str(look.dashes)) for look in looks}) == 8
    every = {(look.colour, look.marker, str(look.dashes)) for look in map(style.look, range(280))}
    assert len(every) == 280


def test_the_users_settings_are_left_alone(tmp_path: Path):
    import matplotlib

    matplotlib.rcParams["font.size"] = 31
    try:
        figures.draw_curves(curves(["x"]), tmp_path / "a")
        assert matplotlib.rcParams["font.size"] == 31
    finally:
        matplotlib.rcdefaults()
