"""Numbers of papers, from `published/*.csv`: shown beside ours, marked, and never averaged, ranked or tested with them."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smatcli.errors import UserError, nearest
from smatcli.runs.statistics import UNKNOWN, Estimate, average
from smatcli.safe.text import refuse_special

FOLDER = Path(__file__).parents[1] / "published"
FAMILY = "Published"
COLUMNS = ("table", "label", "method", "adapt", "dataset", "domain", "mean", "half_width", "source")


@dataclass(frozen=True)
class Published:
    """One column of a paper's table: accuracies (shares) by dataset, and where they stand.

    `method` and `adapt` are ours where the column is the same method in our names, else empty.
    """

    paper: str
    table: str
    label: str
    source: str
    method: str = ""
    adapt: str = ""
    estimates: dict[str, Estimate] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """The column's head."""
        return f"{self.label} [{self.paper}]"

    @property
    def note(self) -> str:
        """The footnote of a table that shows it."""
        return f"[{self.paper}]: published, not measured here; {self.table}; {self.source}. Its episodes, images and training are its own."

    def average(self, datasets: Sequence[str]) -> Estimate:
        """Average over `datasets`; unknown unless the paper has each."""
        return average([self.estimates.get(name, UNKNOWN) for name in datasets])


def papers() -> list[str]:
    """Names that `--published` knows."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def choose(wanted: Sequence[str]) -> tuple[list[Published], list[str]]:
    """The columns of `PAPER`, `PAPER:LABEL` or `FILE.csv`, and lines on what is missing. UserError with the nearest name."""
    found: list[Published] = []
    lines: list[str] = []
    for text in wanted:
        paper, _, label = text.partition(":")
        own = Path(paper)
        path = own if own.suffix == ".csv" else FOLDER / f"{paper}.csv"
        if not path.is_file():
            raise UserError(f"--published {text}: no such paper; there are {', '.join(papers())}, or FILE.csv{nearest(paper, papers())}")
        columns, remarks = read_published(path)
        chosen = [c for c in columns if not label or c.label == label]
        if not columns:
            lines.append(f"--published {paper}: no numbers in {path.name} yet. {' '.join(remarks)}")
        elif not chosen:
            known = [c.label for c in columns]
            raise UserError(f"--published {text}: {path.name} has no column {label!r}; it has {', '.join(known)}{nearest(label, known)}")
        found += [c for c in chosen if c not in found]
    return found, lines


def read_published(path: Path) -> tuple[list[Published], list[str]]:
    """The columns of a CSV of published numbers (percent; lines that begin with # are remarks), and its remarks.

    Raises `UserError`, with the line, for a number that is none, an accuracy outside [0, 100], or a row without a source.
    """
    refuse_special(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    remarks = [line.lstrip("# ") for line in lines if line.startswith("#")]
    reader = csv.DictReader(line for line in lines if not line.startswith("#"))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
    if missing:
        raise UserError(f"{path}: is no list of published numbers; it lacks the columns {', '.join(missing)}")
    found: dict[tuple[str, str], Published] = {}
    for number, row in enumerate(reader, len(remarks) + 2):
        where = f"{path} line {number}"
        if not (row["source"] and row["table"] and row["label"] and row["dataset"]):
            raise UserError(f"{where}: each number needs table, label, dataset and source")
        place = (row["table"], row["label"])
        column = Published(path.stem, row["table"], row["label"], row["source"], row["method"] or "", row["adapt"] or "")
        estimates = found.setdefault(place, column).estimates
        if row["dataset"] in estimates:
            raise UserError(f"{where}: {row['label']} has {row['dataset']} twice")
        estimates[row["dataset"]] = Estimate(_share(where, row["mean"]), _share(where, row["half_width"] or "nan"))
    return list(found.values()), remarks


def _share(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{where}: {text!r} is no number in percent") from None
    if math.isfinite(value) and not 0 <= value <= 100:
        raise UserError(f"{where}: {text} is no accuracy in percent")
    return value / 100
