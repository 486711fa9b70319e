"""What the runs of a report measured: `eval/*/summary.csv` (required) and `results.h5` (per episode, for paired intervals)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.engine.results import SummaryRow, read_summary
from smatcli.errors import UserError
from smatcli.report.runs import Run, read_run, run_folders, shortest_names
from smatcli.report.statistics import Estimate


@dataclass(frozen=True)
class Result:
    """One dataset of one evaluation; `domain` is ID or OOD, accuracies are shares, `protocol` names how episodes were drawn."""

    dataset: str
    domain: str
    estimate: Estimate
    episodes: int
    protocol: str


@dataclass
class Evaluation:
    """One adaptation of one run: the folder `eval/<adapt>-<protocol>`."""

    run: Run
    adapt: str
    folder: Path
    results: list[Result]
    problems: list[str] = field(default_factory=list)

    @cached_property
    def accuracies(self) -> dict[str, np.ndarray]:
        """[E, 2] of (episode number, accuracy) by dataset; empty where `results.h5` cannot be read (`problems` then says so)."""
        path = self.folder / "results.h5"
        import h5py

        try:
            with h5py.File(path, "r") as file:
                return {name: np.stack([group["index"][()], group["accuracy"][()]], axis=1).astype(float) for name, group in file.items()}
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            why = "missing" if not path.exists() else f"cannot be read ({str(error).splitlines()[0]})"
            self.problems.append(f"{path}: {why}; differences with it are not paired")
            return {}

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What else draws the episodes: `settings.json` of the evaluation; empty if there is none."""
        try:
            found = json.loads((self.folder / "settings.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


@dataclass
class Frame:
    """Everything below the given folders; `lines` tell the user what was left out and why."""

    runs: list[Run]
    evaluations: list[Evaluation]
    lines: list[str]


def read(roots: Sequence[Path]) -> Frame:
    """All results below `roots`, each once, in path order.

    Raises `UserError` for a path that does not exist, for a malformed summary, and when nothing was evaluated.
    """
    frame, seen = Frame([], [], []), set()
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; give run directories, or folders of them (runs/*)")
        folders = list(run_folders(root))
        if not folders:
            frame.lines.append(f"{root}: skipped, no run in it")
        for path in folders:
            if path.resolve() not in seen:
                seen.add(path.resolve())
                _add(path, frame)
    if not frame.evaluations:
        given = ", ".join(str(root) for root in roots[:3]) + (", ..." if len(roots) > 3 else "")
        trained = frame.runs[0].path if frame.runs else "RUN"
        raise UserError(f"no results below {given}; run `smat eval {trained} --adapt proto` first")
    for run, name in zip(frame.runs, shortest_names([run.path for run in frame.runs]), strict=True):
        run.name = name
    return frame


def _add(path: Path, frame: Frame) -> None:
    run = read_run(path)
    if run.kind == "pretrain":
        frame.lines.append(f"{path}: skipped, a pre-training run")
        return
    summaries = sorted((path / "eval").glob("*/summary.csv"))
    evaluations = [evaluation for summary in summaries for evaluation in _read_summary(summary, run)]
    if not evaluations:
        frame.lines.append(f"{path}: no results yet (smat eval {path})")
    if evaluations or run.valid:
        frame.runs.append(run)
        frame.evaluations.extend(evaluations)


def _read_summary(path: Path, run: Run) -> list[Evaluation]:
    """The evaluations of one `summary.csv`: one, unless the file holds several adaptations."""
    found: dict[str, Evaluation] = {}
    for row in read_summary(path):
        run.method = run.method or row.method
        run.tau = row.tau if run.tau is None else run.tau
        run.experts = row.experts if run.experts is None else run.experts
        found.setdefault(row.adapt, Evaluation(run, row.adapt, path.parent, [])).results.append(_result(path, row))
    return list(found.values())


def _result(path: Path, row: SummaryRow) -> Result:
    if row.domain not in ("ID", "OOD"):
        raise UserError(f"{path}: {row.dataset} has the domain {row.domain!r}, neither ID nor OOD; move its folder away and evaluate again")
    return Result(row.dataset, row.domain, Estimate(row.mean, row.half_width), row.episodes, row.protocol)
