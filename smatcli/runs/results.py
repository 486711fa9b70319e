"""The results of an evaluation on disk: results.h5, the source of truth, and summary.csv, an export of it."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.errors import UserError
from smatcli.runs.statistics import interval
from smatcli.safe.files import atomic_path, atomic_write_text
from smatcli.safe.seal import seal
from smatcli.safe.text import csv_cell, parse_json, refuse_special, write_csv

FORMAT = 1  # version of the layout of results.h5
RESULTS, SUMMARY = "results.h5", "summary.csv"
LANGUAGE_RESULTS = "results.json"  # of `smat llm eval`
MEASURED = ("peak_memory", "energy")
Records = dict[str, np.ndarray]
"""Per-episode columns, all of length n.

Always: `index`, `accuracy` (fraction), `ways`, `support`, `query`, `seconds`, `peak_memory` (bytes), `plan` (uint64 hash of the classes
and images of the episode). Where they apply: `energy` (J, from the GPU's counter), `passes`, `loss_start`, `loss`; for methods with
experts `alpha` [n, M] (the router's scores), `scores` [n, M] (the scores used) and `chosen` [n, M] (1 on, 0 off, -1 unchanged); for flip
`evaluations` and `accepted`; for exhaustive `loss_binary` (lowest loss of the binary states), `flip_loss`, `flip_gap` (flip_loss - loss)
and `flip_evaluations`; for adaptations with a learning rate `rate`, `steps` (0: not tuned) and optionally `trajectory` [n, 1 + steps]
(query accuracy)."""


@dataclass(frozen=True)
class SummaryRow:
    """One dataset of an evaluation, and one line of summary.csv.

    Accuracies are fractions in [0, 1]; `domain` is ID or OOD; `seconds` is the total of the dataset. Equal `list_hash`: equal episodes (see
    `smatcli.data.episodes.lists`). `lr` is the learning rate, None for an adaptation without one; `search` names the data it was chosen on
    (see `smatcli.runs.rates.Choice`), or is "given".
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


@dataclass(frozen=True)
class EvalResults:
    """The content of a results.h5, without the columns that only some readers need.

    `rows` has one entry per dataset, in the recipe's order. `accuracies` maps a dataset to [E, 2], episode number and accuracy (fraction).
    `settings` apply to all datasets; `drawn` maps a dataset to its other facts that determine the episodes (split, hash of the store, ...).
    """

    path: Path
    rows: list[SummaryRow]
    accuracies: dict[str, np.ndarray]
    settings: dict[str, Any]
    drawn: dict[str, dict[str, Any]]


def write_results(
    path: Path, groups: Mapping[str, Records], attributes: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any], settings: object
) -> None:
    """Write a results.h5 atomically, with the datasets in the order of `groups`.

    The `attributes` of a dataset are `domain`, `protocol`, `list_hash`, `lr`, `search` and others that determine its episodes; `facts` are
    `run`, `method`, `adapt`, `tau` and `experts`. None stands for an unknown value.
    """
    top = {"format": FORMAT, **_without_none(facts), "datasets": json.dumps(list(groups)), "settings": json.dumps(settings)}
    write_records(path, groups, {name: _without_none(values) for name, values in attributes.items()}, top)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def read_results(path: Path) -> EvalResults:
    """Read a results.h5. Raises UserError if it is missing, damaged, incomplete or of another version."""
    from smatcli.safe import hdf5 as safe_hdf5

    again = "move its folder away and evaluate again"
    try:
        with safe_hdf5.opened(path) as file:
            facts = safe_hdf5.attributes(file)
            if "format" not in facts:
                raise UserError(f"{path}: lacks the protocol and domains of its datasets; run `smat eval {path.parents[2]}` to add them")
            if int(facts["format"]) != FORMAT:
                raise UserError(f"{path}: has format {facts['format']}, this smat reads {FORMAT}; update smat")
            settings, order = parse_json(facts["settings"]), parse_json(facts["datasets"])
            if not isinstance(settings, dict) or not isinstance(order, list):
                raise ValueError("its settings are not a JSON object")
            groups = dict(safe_hdf5.groups(file))
            names = sorted(groups, key=lambda name: order.index(name) if name in order else len(order))
            attributes = {name: safe_hdf5.attributes(groups[name]) for name in names}
            columns = {name: _columns(groups[name]) for name in names}
        rows = [_row(name, facts, attributes[name], columns[name]) for name in names]
    except safe_hdf5.WRONG as error:
        why = "is missing" if not path.exists() else f"cannot be read ({safe_hdf5.reason(error)})"
        raise UserError(f"{path}: {why}; {again}") from None
    if not rows:
        raise UserError(f"{path}: is empty; {again}")
    accuracies = {name: np.stack([own["index"], own["accuracy"]], axis=1) for name, own in columns.items()}
    drawn = {name: {key: value for key, value in own.items() if key not in COLUMNS} for name, own in attributes.items()}
    return EvalResults(path, rows, accuracies, settings, drawn)


def _columns(group: Any) -> Records:
    from smatcli.safe import hdf5 as safe_hdf5

    keys = ["index", "accuracy", *(["seconds"] if "seconds" in group else [])]
    columns = {key: np.asarray(safe_hdf5.array(group, key), np.float64) for key in keys}
    accuracy = columns["accuracy"]
    if any(values.ndim != 1 or len(values) != len(accuracy) for values in columns.values()):
        raise ValueError("its columns have different lengths")
    if not len(accuracy) or not ((accuracy >= 0) & (accuracy <= 1)).all():
        raise ValueError("its accuracies are not fractions in [0, 1]")
    return columns


def _row(name: str, facts: Mapping[str, Any], own: Mapping[str, Any], columns: Records) -> SummaryRow:
    if own["domain"] not in ("ID", "OOD"):
        raise ValueError(f"{name} has the domain {own['domain']!r}, neither ID nor OOD")
    estimate = interval(columns["accuracy"])
    return SummaryRow(
        run=str(facts["run"]),
        method=str(facts["method"]),
        adapt=str(facts["adapt"]),
        dataset=name,
        domain=own["domain"],
        mean=estimate.mean,
        half_width=estimate.half_width,
        episodes=len(columns["accuracy"]),
        protocol=str(own["protocol"]),
        seconds=round(float(columns["seconds"].sum()), 3) if "seconds" in columns else math.nan,
        tau=float(facts["tau"]) if "tau" in facts else None,
        experts=int(facts["experts"]) if "experts" in facts else None,
        list_hash=str(own.get("list_hash", "")),
        lr=float(own["lr"]) if "lr" in own else None,
        search=str(own.get("search", "")),
    )


def read_evaluations(run: Path, skip: Callable[[str], None], note: Callable[[str], None]) -> Iterator[EvalResults]:
    """Read the evaluations of a run, in the order of their folders.

    `skip` receives a line for each evaluation without valid results, `note` a line for each one that is being extended or whose
    summary.csv contradicts its results.
    """
    for folder in sorted(path for path in (run / "eval").glob("*") if path.is_dir()):
        if (folder / LANGUAGE_RESULTS).exists():
            continue
        parts = len(list((folder / "parts").glob("*.h5")))
        if not (folder / RESULTS).exists():
            why = f"unfinished ({parts} parts)" if parts else f"no {RESULTS} in it"
            skip(f"{folder}: skipped, {why}; run `smat eval {run}` again")
            continue
        try:
            results = read_results(folder / RESULTS)
        except UserError as error:
            skip(skipped(folder / RESULTS, error))
            continue
        if parts:
            note(f"{folder}: being extended ({parts} parts are not in its results yet)")
        if line := contradiction(results):
            note(line)
        yield results


def result_files(run: Path) -> list[Path]:
    """Return the results.h5 of each evaluation of a run. Raises UserError for a summary.csv whose results.h5 is missing."""
    for summary in sorted(run.glob(f"eval/*/{SUMMARY}")):
        if not summary.with_name(RESULTS).exists():
            raise UserError(f"{summary.parent}: has a {SUMMARY} but no {RESULTS}; run `smat eval {run}` again")
    return sorted(run.glob(f"eval/*/{RESULTS}"))


def skipped(path: Path, error: Exception | str) -> str:
    """Return `path: skipped, why`, with the path once."""
    return f"{path}: skipped, {str(error).removeprefix(f'{path}: ')}"


def contradiction(results: EvalResults) -> str | None:
    """Return a line if the summary.csv beside `results` is unreadable or differs from them, None if it agrees or does not exist."""
    path = results.path.with_name(SUMMARY)
    if not path.exists():
        return None
    used = f"{RESULTS} is used; `smat eval {path.parents[2]}` exports it again"
    try:
        exported = read_summary(path)
    except UserError as error:
        return f"{error}; {used}"
    lines = [f"{len(exported)} rows instead of {len(results.rows)}"] if len(exported) != len(results.rows) else []
    expected = {csv_cell(row.dataset): row for row in results.rows}
    for row in exported:
        if row.dataset not in expected:
            lines.append(f"no dataset {row.dataset} in {RESULTS}")
            continue
        for column in COLUMNS:
            there, here = getattr(expected[row.dataset], column), getattr(row, column)
            there = csv_cell(there) if isinstance(there, str) else there
            if not _equal(here, there):
                lines.append(f"{column} of {row.dataset} is {here!r} instead of {there!r}")
    more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
    return f"{path}: contradicts {RESULTS} ({lines[0]}{more}); {used}" if lines else None


def _equal(first: object, second: object) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(first) and math.isnan(second))
    return first == second


def write_summary(path: Path, rows: Sequence[SummaryRow]) -> None:
    """Write summary.csv, with unknown numbers as empty cells."""
    cells = [["" if v is None or v != v else str(v) for v in asdict(row).values()] for row in rows]
    atomic_write_text(path, write_csv([COLUMNS, *cells]))


def read_summary(path: Path) -> list[SummaryRow]:
    """Read a summary.csv. Raises UserError if the file is not a summary."""
    refuse_special(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [SummaryRow(**{column: _value(column, line[column]) for column in COLUMNS}) for line in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: is not a summary of smat eval ({type(error).__name__}: {error})") from None


def _value(column: str, text: str) -> Any:
    kind = NUMBERS.get(column, str)
    if kind is str or text:
        return kind(text)
    return None if column in ("tau", "experts", "lr") else math.nan


def as_records(rows: Sequence[Mapping[str, Any]]) -> Records:
    """Convert per-episode records, all with the same keys, to columns."""
    return {key: np.asarray([row[key] for row in rows]) for key in rows[0]} if rows else {}


def joined(parts: Sequence[Records]) -> Records:
    """Join records in the order of `index`. If an episode occurs twice, its first record is kept."""
    if not parts:
        return {}
    # Columns that only some machines measure are NaN for the other episodes.
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
    """Write an HDF5 file atomically: one group per dataset, with its attributes, and the attributes `top` of the file."""
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
    """Read all columns of a results.h5 or of a part, by dataset. Raises UserError if it is damaged."""
    from smatcli.safe import hdf5 as safe_hdf5

    try:
        with safe_hdf5.opened(path) as file:
            groups = {name: safe_hdf5.arrays(group) for name, group in safe_hdf5.groups(file)}
        if any("index" not in records or len({values.shape[:1] for values in records.values()}) > 1 for records in groups.values()):
            raise ValueError("its columns have different lengths")
        return groups
    except safe_hdf5.WRONG as error:
        raise UserError(f"{path}: cannot be read ({safe_hdf5.reason(error)}); move it away and evaluate again") from None
