"""Data of the figures that are no curves, free of matplotlib: bars, heat maps, clouds of points, pairs of pictures. Each is also CSV."""

from dataclasses import dataclass, field

import numpy as np

from smatcli.report.figures.curves import Curves, Gains
from smatcli.runs.statistics import Estimate
from smatcli.safe.text import csv_number, write_csv


@dataclass(frozen=True)
class Bars:
    """One bar a series in each category, with its spread; values are drawn times `scale`."""

    stem: str
    heading: str
    caption: str
    y_label: str
    categories: list[str]
    series: list[tuple[str, list[Estimate]]]
    scale: float = 100.0
    x_label: str = ""

    def csv(self) -> str:
        """category, series, value and spread as they are drawn."""
        lines = [["category", "series", "value", "spread"]]
        for i, category in enumerate(self.categories):
            for name, values in self.series:
                numbers = (self.scale * values[i].mean, self.scale * values[i].half_width)
                lines.append([category, name, *(csv_number(v, 6) for v in numbers)])
        return write_csv(lines)


Tree = list[tuple[list[float], list[float]]]
"""Brackets of a dendrogram: places among the rows (0, 1, ...), and distances."""


@dataclass(frozen=True)
class Heat:
    """A matrix `values` [rows, columns], drawn times `scale`; `tree` groups the rows, which are in its order already."""

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
        """The matrix with its names, as it is drawn."""
        body = [
            [row, *(csv_number(self.scale * float(v), self.digits + 2) for v in line)]
            for row, line in zip(self.rows, self.values, strict=True)
        ]
        return write_csv([[self.y_label, *self.columns], *body])


@dataclass(frozen=True)
class Clouds:
    """Points of one episode in panels (title -> coordinates [n, 2]); `label` [n] counts `classes`, `is_query` [n] bool."""

    stem: str
    heading: str
    caption: str
    classes: list[str]
    panels: dict[str, np.ndarray]
    label: np.ndarray
    is_query: np.ndarray

    def csv(self) -> str:
        """panel, class, part, and the two coordinates."""
        lines = [["panel", "class", "part", "x", "y"]]
        for panel, points in self.panels.items():
            for (x, y), label, asked in zip(points, self.label, self.is_query, strict=True):
                part = "query" if asked else "support"
                lines.append([panel, self.classes[label], part, csv_number(float(x), 5), csv_number(float(y), 5)])
        return write_csv(lines)


@dataclass(frozen=True)
class Pair:
    """Two classes that are taken for each other: `pixels` [2, S, S, 3] uint8, and how often of how many."""

    dataset: str
    first: str
    second: str
    count: int
    asked: int
    pixels: np.ndarray


@dataclass(frozen=True)
class Pictures:
    """Pairs of classes side by side."""

    stem: str
    heading: str
    caption: str
    pairs: list[Pair]

    def csv(self) -> str:
        """dataset, the two classes, queries that were confused, queries asked."""
        body = [[p.dataset, p.first, p.second, str(p.count), str(p.asked)] for p in self.pairs]
        return write_csv([["dataset", "first", "second", "confused", "asked"], *body])


Figure = Curves | Gains | Bars | Heat | Clouds | Pictures
