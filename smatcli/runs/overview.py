"""Overview of runs, read from their files: state, step, best validation, time. Needs neither torch nor the recipe schema."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from smatcli.errors import UserError
from smatcli.safe.files import is_locked
from smatcli.safe.text import parse_json, read_object
from smatcli.safe.tree import differing_values

if TYPE_CHECKING:
    from smatcli.runs.results import SummaryRow

DEEP = 4  # levels of folders that are searched
MOST_RECIPE = 1_000_000


@dataclass(frozen=True)
class RunFacts:
    """State of a run; None if unknown. Accuracies are fractions; `seconds` is the time spent on the run so far."""

    path: Path
    kind: str
    method: str
    state: str
    step: int | None
    steps: int | None
    best: float | None
    best_step: int | None
    last: float | None
    seconds: float | None
    changed: float
    message: str
    info: dict[str, Any] = field(repr=False)
    recipe: dict[str, Any] = field(repr=False)


def find_runs(places: Sequence[Path]) -> list[Path]:
    """Return the run directories at or below `places`, sorted. Raises UserError for a place that does not exist."""
    paths: set[Path] = set()
    for place in places:
        if not place.exists():
            raise UserError(f"{place} does not exist; give a run, or a folder of runs")
        paths.update(_below(place, DEEP))
    return sorted(paths)


def _below(place: Path, deep: int) -> Iterator[Path]:
    if (place / "run.json").is_file():
        yield place
    elif deep and place.is_dir():
        try:
            inner = [p for p in place.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith(".")]
        except OSError:
            return
        for folder in inner:
            yield from _below(folder, deep - 1)


def facts(path: Path) -> RunFacts:
    """Read the state of a run from its files. Raises UserError if `path` is not a run."""
    info = read_object(path / "run.json")
    if info is None:
        raise UserError(f"{path} is not a run directory (it has no readable run.json)")
    recipe = read_recipe(path)
    kind = str(info.get("kind", "?"))
    rows = list(records(path))
    valid = [r for r in rows if r.get("kind") == "valid" and isinstance(r.get("mean"), int | float)]
    # Step 0 is the model before training: it counts only if there is no other validation.
    best = max([r for r in valid if r.get("step")] or valid, key=lambda r: r["mean"], default={})
    last = rows[-1] if rows else {}
    method = recipe.get("method") if isinstance(recipe.get("method"), dict) else {}
    steps = recipe.get("train", {}).get("steps") if isinstance(recipe.get("train"), dict) else None
    newest = max((file.stat().st_mtime for file in (path / "metrics.jsonl", path / "run.json") if file.exists()), default=0.0)
    return RunFacts(
        path=path,
        kind=kind,
        method=str((method or {}).get("name", "-" if kind != "train" else "?")),
        state=state(path, info),
        step=_number(last.get("step")),
        steps=_number(steps),
        best=best.get("mean"),
        best_step=_number(best.get("step")),
        last=valid[-1]["mean"] if valid else None,
        seconds=last.get("time") if rows else None,
        changed=newest,
        message=str(info.get("message", "")),
        info=info,
        recipe=recipe,
    )


def state(path: Path, info: dict[str, Any]) -> str:
    """Return the status in run.json, or `dead` if it is "running" although the process has ended."""
    status = str(info.get("status", "?"))
    if status != "running":
        return status
    if info.get("host") not in (None, socket.gethostname()):
        return status  # the process runs on another machine, where it cannot be checked
    try:
        os.kill(int(info["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError, TypeError):
        return "dead"
    except PermissionError:
        pass
    return "running" if is_locked(path / ".lock") else "dead"  # another process may have this id by now


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of metrics.jsonl; incomplete lines are skipped."""
    try:
        with (path / "metrics.jsonl").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if (record := _record(line)) is not None:
                    yield record
    except OSError:
        return


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the run's recipe as plain data; empty if it cannot be read."""
    file = path / "recipe.yaml"
    try:
        if file.stat().st_size > MOST_RECIPE:
            return {}
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}


def differing_settings(runs: Sequence[RunFacts]) -> dict[str, list[Any]]:
    """Return the recipe keys, except `run`, in which runs differ, with the value of each run (None if missing)."""
    values = differing_values([each.recipe for each in runs], missing=None)
    values.pop("run", None)
    return values


def tail(path: Path, count: int) -> list[dict[str, Any]]:
    """Return the last `count` records, read from the end of the file."""
    records = [_record(line) for line in last_lines(path / "metrics.jsonl", count + 1, 4096 * (count + 1))]
    return [record for record in records if record is not None][-count:]


def follow(path: Path, seconds: float = 1.0) -> Iterator[dict[str, Any]]:
    """Yield new records as they are written, until the run has ended and its last records were yielded."""
    file, place, rest = path / "metrics.jsonl", 0, ""
    place = file.stat().st_size if file.exists() else 0
    while True:
        ended = state(path, read_object(path / "run.json") or {}) != "running"
        if file.exists():
            size = file.stat().st_size
            if size < place:  # a resumed run has removed the records of the steps that it repeats
                place, rest = 0, ""
            with file.open(encoding="utf-8", errors="replace") as handle:
                handle.seek(place)
                text = rest + handle.read()
                place = handle.tell()
            *lines, rest = text.split("\n")
            yield from (record for record in map(_record, lines) if record is not None)
        if ended:
            return
        time.sleep(seconds)


def evaluations(path: Path) -> tuple[list["SummaryRow"], list[str]]:
    """Return the rows of a run's evaluations, and a line for each evaluation that is skipped or differs from its summary.csv."""
    from smatcli.runs.results import read_evaluations

    lines: list[str] = []
    rows = [row for results in read_evaluations(path, lines.append, lines.append) for row in results.rows]
    return rows, lines


def ago(when: float) -> str:
    """Return a time as HH:MM:SS if it is today, else as a date."""
    if not when:
        return "-"
    moment, now = datetime.fromtimestamp(when), datetime.now()
    return moment.strftime("%H:%M:%S" if moment.date() == now.date() else "%Y-%m-%d")


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def last_lines(path: Path, count: int = 1, most: int = 65536) -> list[str]:
    """Return the last non-empty lines of a log, without the prefix `smat: ` of an error."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - most))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [line.removeprefix("smat: ") for line in lines[-count:]]
