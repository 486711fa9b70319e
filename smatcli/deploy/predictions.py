"""What a classifier says of images: probabilities, distances, and their table as CSV or JSON."""

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
    """Of Q images: `probabilities` [Q, C] over `classes`, and the cosine `distances` [Q] in [0, 2] to the nearest prototype."""

    classes: tuple[Label, ...]
    probabilities: np.ndarray
    distances: np.ndarray

    def __len__(self) -> int:
        return len(self.distances)

    @property
    def labels(self) -> list[Label]:
        """The most probable class of every image."""
        return [self.classes[int(i)] for i in self.probabilities.argmax(1)]

    def rejected(self, limit: float) -> np.ndarray:
        """Boolean [Q]: farther from every prototype than `limit`."""
        return self.distances > limit

    def top(self, row: int, count: int = TOP) -> list[tuple[Label, float]]:
        """The `count` most probable classes of an image with their probabilities, best first."""
        order = np.argsort(-self.probabilities[row], kind="stable")[:count]
        return [(self.classes[int(c)], float(self.probabilities[row, c])) for c in order]


@dataclass(frozen=True)
class Row:
    """One image of a table: `top` and `distance` are empty for one that could not be read (`problem`)."""

    file: str
    top: tuple[tuple[Label, float], ...] = ()
    distance: float | None = None
    rejected: bool = False
    problem: str = ""

    @property
    def label(self) -> Label | None:
        """The class, None for an image that was rejected or could not be read."""
        return self.top[0][0] if self.top and not self.rejected else None

    @property
    def status(self) -> str:
        return f"unreadable: {self.problem}" if self.problem else "rejected" if self.rejected else "ok"


@dataclass(frozen=True)
class Table:
    """Rows in the order of the files; `facts` say which model, adaptation, classes and limit made them."""

    rows: tuple[Row, ...]
    facts: dict[str, Any]

    def csv(self) -> str:
        """Columns `COLUMNS`: the class is empty where the image was rejected or not readable, whose nearest classes still follow."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            pairs: list[str] = []
            for label, probability in row.top:
                pairs += [str(label), _digits(probability)]
            pairs += [""] * (2 * TOP - len(pairs))
            known = _digits(row.top[0][1]) if row.top else ""
            label = "" if row.label is None else str(row.label)
            cells = [row.file, label, known, "" if row.distance is None else _digits(row.distance), *pairs, row.status]
            writer.writerow([csv_cell(cell) for cell in cells])
        return text.getvalue()

    def json(self) -> str:
        """The facts, and one object a row."""
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
        """How many images are ok, rejected, unreadable."""
        found = {"ok": 0, "rejected": 0, "unreadable": 0}
        for row in self.rows:
            found[row.status.partition(":")[0]] += 1
        return found


def as_rows(names: Sequence[str], predictions: Predictions, limit: float | None) -> list[Row]:
    """One row an image; `limit`: rejected beyond this distance."""
    return [
        Row(name, tuple(predictions.top(i)), float(d := predictions.distances[i]), limit is not None and bool(d > limit))
        for i, name in enumerate(names)
    ]


def _digits(value: float) -> str:
    return f"{value:.6g}"
