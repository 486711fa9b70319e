"""Meta-test results on disk: per-episode records in HDF5, one summary line a dataset in CSV, and their statistics."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.errors import UserError
from smatcli.safe.files import atomic_path
from smatcli.safe.seal import seal

MEASURED = ("peak_memory", "energy")
Records = dict[str, np.ndarray]
"""Columns of per-episode records, all of length n: `index`, `accuracy` (share), `ways`, `support`, `query`, `loss_start`, `loss`,
`seconds`, `peak_memory` (bytes), `energy` (J; where a GPU tells), `passes`, `plan` (uint64 hash of what the episode asks); for methods
with experts `alpha` [n, M] (the router's scores), `scores` [n, M] (those used) and `chosen` [n, M]
(1 on, 0 off, -1: the router's scores were kept as they are); from flip `evaluations` and `accepted`; from
exhaustive `loss_binary` (lowest loss of the binary states), `flip_loss`, `flip_gap` (flip_loss - loss) and `flip_evaluations`; from
adaptations with a learning rate `rate`, `steps` (0: nothing was tuned) and, if asked for, `trajectory` [n, 1 + steps] (query accuracy)."""


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and 95 % half-width 1.96 s / sqrt(n) (s with n - 1) of `values`; the half-width of a single value is NaN."""
    found = np.asarray(values, np.float64)
    if not len(found):
        return math.nan, math.nan
    return float(found.mean()), 1.96 * float(found.std(ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else math.nan


def average(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean over datasets of (mean, half-width) pairs; their episodes are independent, so the half-width is sqrt(sum h^2) / D."""
    if not pairs:
        return math.nan, math.nan
    return math.fsum(m for m, _ in pairs) / len(pairs), math.sqrt(math.fsum(h * h for _, h in pairs)) / len(pairs)


@dataclass(frozen=True)
class SummaryRow:
    """One line of summary.csv. Accuracies are shares in [0, 1]; `domain` is ID or OOD; `seconds` is the whole dataset's.

    `list_hash` is the hash of the list of episodes: equal hash, equal questions (see `smatcli.data.episodes.lists`).
    `lr` is the rate of an adaptation that has one, `search` on what it was chosen (see `smatcli.runs.rates.Choice`), or given.
    """

    run: str
    method: str
    adapt: str
    dataset: str
    domain: str
    mean: float
    half_width: float
    episodes: int
    protocol: str
    seconds: float
    tau: float | None = None
    experts: int | None = None
    list_hash: str = ""
    lr: float | None = None
    search: str = ""


COLUMNS = tuple(f.name for f in fields(SummaryRow))
NUMBERS = {"mean": float, "half_width": float, "seconds": float, "tau": float, "lr": float, "episodes": int, "experts": int}


def write_summary(path: Path, rows: Sequence[SummaryRow]) -> None:
    """Write summary.csv; numbers that are not known are empty."""
    with atomic_path(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if v is None or v != v else v for k, v in asdict(row).items()})


def read_summary(path: Path) -> list[SummaryRow]:
    """The lines of a summary.csv; UserError when it is none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [{"list_hash": "", "lr": "", "search": "", **line} for line in csv.DictReader(file)]  # older summaries have none
            return [SummaryRow(**{k: _value(k, line[k]) for k in COLUMNS}) for line in lines]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a summary of smat eval ({type(error).__name__}: {error})") from None


def _value(column: str, text: str) -> Any:
    kind = NUMBERS.get(column, str)
    if kind is str or text:
        return kind(text)
    return None if column in ("tau", "experts", "lr") else math.nan


def as_records(rows: Sequence[Mapping[str, Any]]) -> Records:
    """Columns of a list of per-episode records with the same keys."""
    return {key: np.asarray([row[key] for row in rows]) for key in rows[0]} if rows else {}


def joined(parts: Sequence[Records]) -> Records:
    """All records in the order of `index`, each episode once (the first that has it)."""
    if not parts:
        return {}
    # Columns that came later, or that only some machines have, are NaN where they were not recorded.
    measured = [key for key in MEASURED if any(key in part for part in parts)]
    parts = [{**{key: np.full(len(part["index"]), np.nan) for key in measured}, **part} for part in parts]
    keys = set(parts[0])
    if any(set(part) != keys for part in parts):
        raise UserError(
            "the stored episodes have different columns; they come from different versions: move the folder away and evaluate again"
        )
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    _, first = np.unique(columns["index"], return_index=True)
    return {key: values[first] for key, values in columns.items()}


def write_records(path: Path, groups: Mapping[str, Records], attributes: Mapping[str, Mapping[str, Any]], top: Mapping[str, Any]) -> None:
    """Write one HDF5 group a dataset, with attributes of each group and of the file (`top`); atomic."""
    import h5py

    with atomic_path(path) as draft, h5py.File(draft, "w") as file:
        file.attrs.update(top)
        for name, records in groups.items():
            group = file.create_group(name)
            group.attrs.update(attributes.get(name, {}))
            for key, values in records.items():
                group.create_dataset(key, data=values)
        file.close()
        seal(draft)


def read_records(path: Path) -> dict[str, Records]:
    """The groups of such a file by name; UserError when it is damaged."""
    from smatcli.safe import hdf5 as safe_hdf5

    try:
        with safe_hdf5.opened(path) as file:
            found = {name: safe_hdf5.arrays(group) for name, group in safe_hdf5.groups(file)}
        if any("index" not in records or len({values.shape[:1] for values in records.values()}) > 1 for records in found.values()):
            raise ValueError("its columns do not fit together")
        return found
    except safe_hdf5.WRONG as error:
        raise UserError(f"{path}: cannot be read ({safe_hdf5.reason(error)}); move it away and evaluate again") from None
