"""Data of bar charts, heat maps, scatter plots and image pairs, without matplotlib; each is also written as CSV."""

from dataclasses import dataclass, field

import numpy as np

from smatcli.report.figures.curves import Curves, Gains
from smatcli.runs.statistics import Estimate
from smatcli.safe.text import csv_number, write_csv


@dataclass(frozen=True)
class Bars:
    """A bar chart: one bar per category and series, with its spread; values are multiplied by `scale`."""

    stem: str
    heading: str
    caption: str
    y_label: str
    categories: list[str]
    series: list[tuple[str, list[Estimate]]]
    scale: float = 100.0
    x_label: str = ""

    def csv(self) -> str:
        """Return category, series, value and spread as drawn."""
        lines = [["category", "series", "value", "spread"]]
        for i, category in enumerate(self.categories):
            for name, values in self.series:
                numbers = (self.scale * values[i].mean, self.scale * values[i].half_width)
                lines.append([category, name, *(csv_number(v, 6) for v in numbers)])
        return write_csv(lines)


Tree = list[tuple[list[float], list[float]]]
"""Brackets of a dendrogram: positions among the rows (0, 1, ...), and distances."""


@dataclass(frozen=True)
class HeatMap:
    """A matrix `values` [rows, columns], multiplied by `scale`; `tree` is the dendrogram of the rows, which are sorted by it."""

    stem: str
    heading: str
    caption: str
    rows: list[str]
    columns: list[str]
    values: np.ndarray
    x_label: str = ""
    y_label: str = ""
    scale: float = 1.0
    digits: int = 2
    tree: Tree = field(default_factory=list)

    def csv(self) -> str:
        """Return the matrix as drawn, with the names of rows and columns."""
        body = [
            [row, *(csv_number(self.scale * float(v), self.digits + 2) for v in line)]
            for row, line in zip(self.rows, self.values, strict=True)
        ]
        return write_csv([[self.y_label, *self.columns], *body])


@dataclass(frozen=True)
class Scatter:
    """Points of one episode in panels (title -> coordinates [n, 2]); `label` [n] indexes `classes`, `is_query` is [n] bool."""

    stem: str
    heading: str
    caption: str
    classes: list[str]
    panels: dict[str, np.ndarray]
    label: np.ndarray
    is_query: np.ndarray

    def csv(self) -> str:
        """Return panel, class, part (support or query) and the two coordinates."""
        lines = [["panel", "class", "part", "x", "y"]]
        for panel, points in self.panels.items():
            for (x, y), label, is_query in zip(points, self.label, self.is_query, strict=True):
                part = "query" if is_query else "support"
                lines.append([panel, self.classes[label], part, csv_number(float(x), 5), csv_number(float(y), 5)])
        return write_csv(lines)


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes confused in `count` of `asked` queries; `pixels` [2, S, S, 3] uint8 is an image of each."""

    dataset: str
    first: str
    second: str
    count: int
    asked: int
    pixels: np.ndarray


@dataclass(frozen=True)
class ConfusedClasses:
    """Pairs of confused classes side by side."""

    stem: str
    heading: str
    caption: str
    pairs: list[ConfusedPair]

    def csv(self) -> str:
        """Return dataset, the two classes, confused queries, all queries."""
        body = [[p.dataset, p.first, p.second, str(p.count), str(p.asked)] for p in self.pairs]
        return write_csv([["dataset", "first", "second", "confused", "asked"], *body])


Figure = Curves | Gains | Bars | HeatMap | Scatter | ConfusedClasses
