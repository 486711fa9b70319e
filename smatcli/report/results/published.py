"""Published numbers, from `published/*.csv`: shown beside ours and marked, but never averaged, ranked or tested with them."""

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
    """A column of a paper's table: accuracies (fractions) by dataset, and their source.

    `method` and `adapt` are the names of the same method in smat, empty if it has none.
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
        """The heading of the column."""
        return f"{self.label} [{self.paper}]"

    @property
    def note(self) -> str:
        """The footnote of a table with this column."""
        source = f"{self.table}; {self.source}"
        return f"[{self.paper}]: published, not measured here; {source}. Its episodes, images and training differ from ours."

    def average(self, datasets: Sequence[str]) -> Estimate:
        """Average over `datasets`; unknown if the paper lacks one."""
        return average([self.estimates.get(name, UNKNOWN) for name in datasets])


def papers() -> list[str]:
    """Return the names that `--published` accepts."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def choose(wanted: Sequence[str]) -> tuple[list[Published], list[str]]:
    """Return the columns of `PAPER`, `PAPER:LABEL` or `FILE.csv`, and lines on missing numbers.

    Raises UserError, with the nearest valid name, for an unknown paper or column.
    """
    selected: list[Published] = []
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
            labels = [c.label for c in columns]
            raise UserError(f"--published {text}: {path.name} has no column {label!r}; it has {', '.join(labels)}{nearest(label, labels)}")
        selected += [c for c in chosen if c not in selected]
    return selected, lines


def read_published(path: Path) -> tuple[list[Published], list[str]]:
    """Read the columns of a CSV of published numbers (percent; lines that start with # are remarks), and its remarks.

    Raises `UserError`, with the line, for an invalid number, an accuracy outside [0, 100], or a row without a source.
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
        raise UserError(f"{path}: is not a list of published numbers; it lacks the columns {', '.join(missing)}")
    by_label: dict[tuple[str, str], Published] = {}
    for number, row in enumerate(reader, len(remarks) + 2):
        where = f"{path} line {number}"
        if not (row["source"] and row["table"] and row["label"] and row["dataset"]):
            raise UserError(f"{where}: each number needs table, label, dataset and source")
        place = (row["table"], row["label"])
        column = Published(path.stem, row["table"], row["label"], row["source"], row["method"] or "", row["adapt"] or "")
        estimates = by_label.setdefault(place, column).estimates
        if row["dataset"] in estimates:
            raise UserError(f"{where}: {row['label']} has {row['dataset']} twice")
        estimates[row["dataset"]] = Estimate(_share(where, row["mean"]), _share(where, row["half_width"] or "nan"))
    return list(by_label.values()), remarks


def _share(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{where}: {text!r} is not a number in percent") from None
    if math.isfinite(value) and not 0 <= value <= 100:
        raise UserError(f"{where}: {text} is not an accuracy in percent")
    return value / 100
