"""Predictions of a classifier: probabilities, distances, and their table as CSV or JSON."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smatcli.safe.text import csv_cell

Label = str | int
TOP = 3
COLUMNS = (
    "file",
    "class",
    "probability",
    "distance",
    *(f"{what}{k}" for k in range(1, TOP + 1) for what in ("top", "probability")),
    "status",
)


@dataclass(frozen=True)
class Predictions:
    """Predictions for Q images: `probabilities` [Q, C] of `classes`, and cosine `distances` [Q] in [0, 2] to the nearest prototype."""

    classes: tuple[Label, ...]
    probabilities: np.ndarray
    distances: np.ndarray

    def __len__(self) -> int:
        return len(self.distances)

    @property
    def labels(self) -> list[Label]:
        """The most probable class of each image."""
        return [self.classes[int(i)] for i in self.probabilities.argmax(1)]

    def rejected(self, limit: float) -> np.ndarray:
        """Return a boolean array [Q]: whether the distance exceeds `limit`."""
        return self.distances > limit

    def top(self, row: int, count: int = TOP) -> list[tuple[Label, float]]:
        """Return the `count` most probable classes of an image with their probabilities, best first."""
        order = np.argsort(-self.probabilities[row], kind="stable")[:count]
        return [(self.classes[int(c)], float(self.probabilities[row, c])) for c in order]


@dataclass(frozen=True)
class PredictionRow:
    """A row of the table, for one image. If the image is unreadable, `problem` states why, and `top` and `distance` are empty."""

    file: str
    top: tuple[tuple[Label, float], ...] = ()
    distance: float | None = None
    rejected: bool = False
    problem: str = ""

    @property
    def label(self) -> Label | None:
        """The predicted class, or None for a rejected or unreadable image."""
        return self.top[0][0] if self.top and not self.rejected else None

    @property
    def status(self) -> str:
        return f"unreadable: {self.problem}" if self.problem else "rejected" if self.rejected else "ok"


@dataclass(frozen=True)
class PredictionTable:
    """Rows in the order of the files. `facts` has the model, adaptation, classes and rejection limit."""

    rows: tuple[PredictionRow, ...]
    facts: dict[str, Any]

    def csv(self) -> str:
        """Return CSV with the columns `COLUMNS`; the class of a rejected or unreadable image is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            pairs: list[str] = []
            for label, probability in row.top:
                pairs += [str(label), _digits(probability)]
            pairs += [""] * (2 * TOP - len(pairs))
            best = _digits(row.top[0][1]) if row.top else ""
            label = "" if row.label is None else str(row.label)
            cells = [row.file, label, best, "" if row.distance is None else _digits(row.distance), *pairs, row.status]
            writer.writerow([csv_cell(cell) for cell in cells])
        return text.getvalue()

    def json(self) -> str:
        """Return JSON with the facts and an object per row."""
        rows = [
            {
                "file": row.file,
                "class": row.label,
                "probability": round(row.top[0][1], 6) if row.top else None,
                "distance": None if row.distance is None else round(row.distance, 6),
                "top": [{"class": label, "probability": round(probability, 6)} for label, probability in row.top],
                "status": row.status,
            }
            for row in self.rows
        ]
        return json.dumps({**self.facts, "predictions": rows}, indent=1, ensure_ascii=False) + "\n"

    def counts(self) -> dict[str, int]:
        """Return the numbers of images that are ok, rejected and unreadable."""
        counts = {"ok": 0, "rejected": 0, "unreadable": 0}
        for row in self.rows:
            counts[row.status.partition(":")[0]] += 1
        return counts


def as_rows(names: Sequence[str], predictions: Predictions, limit: float | None) -> list[PredictionRow]:
    """Return a row per image. Images whose distance exceeds `limit` are rejected."""
    return [
        PredictionRow(name, tuple(predictions.top(i)), float(d := predictions.distances[i]), limit is not None and bool(d > limit))
        for i, name in enumerate(names)
    ]


def _digits(value: float) -> str:
    return f"{value:.6g}"
