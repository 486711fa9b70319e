"""The results below a report's folders: `eval/*/results.h5`, `tune.json` and `segment/fold<k>.json` of its runs."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from smatcli.errors import UserError
from smatcli.report.results.runs import Run, read_run, run_folders, shortest_names
from smatcli.report.results.segment_runs import Segmented, read_segmented
from smatcli.report.results.tuning_runs import Tuned, read_tuned
from smatcli.runs.results import RESULTS, SummaryRow, read_evaluations, skipped
from smatcli.runs.statistics import Estimate

Finished = TypeVar("Finished", Tuned, Segmented)


@dataclass(frozen=True)
class Result:
    """One dataset of an evaluation; `domain` is ID or OOD, accuracies are fractions, `protocol` names how episodes were drawn.

    `list_hash` is equal for equal lists of episodes, empty if unknown; `search` names the data a learning rate was chosen on.
    """

    dataset: str
    domain: str
    estimate: Estimate
    episodes: int
    protocol: str
    seconds: float = math.nan
    list_hash: str = ""
    lr: float | None = None
    search: str = ""


@dataclass
class EvaluationResult:
    """The evaluation of a run with one adaptation, in `eval/<adapt>-<protocol>`.

    `accuracies` maps a dataset to [E, 2], episode number and accuracy; `settings` and `drawn` are those of `EvalResults`. For a mean over
    seeds, `members` are the evaluations of the seeds.
    """

    run: Run
    adapt: str
    folder: Path
    results: list[Result]
    accuracies: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    drawn: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    members: list["EvaluationResult"] = field(default_factory=list)

    @cached_property
    def by_dataset(self) -> dict[str, Result]:
        """Results by dataset."""
        return {result.dataset: result for result in self.results}

    def extra(self, *keys: str) -> dict[str, np.ndarray]:
        """Return the columns `keys` of results.h5, [E] over all datasets, without those that are missing; empty if it cannot be read."""
        from smatcli.safe import hdf5 as safe_hdf5

        columns: dict[str, list[np.ndarray]] = {}
        try:
            with safe_hdf5.opened(self.folder / RESULTS) as file:
                for _, group in safe_hdf5.groups(file):
                    for key in keys:
                        if key in group:
                            columns.setdefault(key, []).append(np.asarray(safe_hdf5.array(group, key), np.float64).reshape(-1))
        except safe_hdf5.WRONG:
            return {}
        return {key: np.concatenate(parts) for key, parts in columns.items()}


@dataclass
class Frame:
    """All results below some folders. `lines` name skipped results and the reasons; `skipped` counts invalid and duplicate results."""

    runs: list[Run]
    evaluations: list[EvaluationResult]
    lines: list[str]
    skipped: int = 0
    tuned: list[Tuned] = field(default_factory=list)
    segmented: list[Segmented] = field(default_factory=list)

    def skip(self, line: str) -> None:
        """Count a skipped result, with a line that names it."""
        self.lines.append(line)
        self.skipped += 1


def read(roots: Sequence[Path]) -> Frame:
    """Read all results below `roots`, each once, in path order. Invalid, unfinished and copied results are skipped with a line each.

    Raises `UserError` for a path that does not exist, and if there are no results.
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
    _drop_copies(frame)
    if not frame.evaluations and not frame.tuned and not frame.segmented:
        given = ", ".join(str(root) for root in roots[:3]) + (", ..." if len(roots) > 3 else "")
        if frame.skipped:
            named = next(
                line for line in frame.lines if ": skipped, " in line and "no run in it" not in line and "pre-training" not in line
            )
            raise UserError(f"no results below {given}; {frame.skipped} skipped, the first: {named}")
        trained = frame.runs[0].path if frame.runs else "RUN"
        raise UserError(f"no results below {given}; run `smat eval {trained} --adapt proto` first")
    if frame.skipped:
        frame.lines.append(f"{frame.skipped} skipped in total (in no table)")
    for run, name in zip(frame.runs, shortest_names([run.path for run in frame.runs]), strict=True):
        run.name = name
    return frame


def _add(path: Path, frame: Frame) -> None:
    try:
        run = read_run(path)
    except UserError as error:
        frame.skip(skipped(path, error))
        return
    if run.kind == "pretrain":
        frame.lines.append(f"{path}: skipped, a pre-training run")
        return
    if run.kind == "tune":
        _add_finished(run, frame.tuned, read_tuned, frame)
        return
    if run.kind == "segment":
        _add_finished(run, frame.segmented, read_segmented, frame)
        return
    before = frame.skipped
    evaluations = list(_evaluations(run, frame))
    if not evaluations and frame.skipped == before:
        frame.lines.append(f"{path}: no results yet (smat eval {path})")
    if evaluations or run.valid:
        frame.runs.append(run)
        frame.evaluations.extend(evaluations)


def _add_finished(run: Run, results: list[Finished], reader: Callable[[Run], Finished | None], frame: Frame) -> None:
    try:
        result = reader(run)
    except UserError as error:
        frame.skip(skipped(run.path, error))
        return
    if result is None:
        frame.lines.append(f"{run.path}: not finished yet (smat {run.kind} --resume)")
    else:
        results.append(result)


def _evaluations(run: Run, frame: Frame) -> Iterator[EvaluationResult]:
    for results in read_evaluations(run.path, frame.skip, frame.lines.append):
        first = results.rows[0]
        if run.method and first.method and run.method != first.method:
            where = f"its results are of a {first.method} run, but {run.path} is a {run.method} run"
            frame.skip(f"{results.path.parent}: skipped, {where}; move the folder back to its run")
            continue
        run.method = run.method or first.method
        run.tau = first.tau if run.tau is None else run.tau
        run.experts = first.experts if run.experts is None else run.experts
        rows = [_result(row) for row in results.rows]
        yield EvaluationResult(run, first.adapt, results.path.parent, rows, results.accuracies, results.settings, results.drawn)


def _result(row: SummaryRow) -> Result:
    estimate = Estimate(row.mean, row.half_width)
    return Result(row.dataset, row.domain, estimate, row.episodes, row.protocol, row.seconds, row.list_hash, row.lr, row.search)


def _drop_copies(frame: Frame) -> None:
    """Drop evaluations of the same weights on the same episodes with the same results, so that a copied run counts once."""
    first: dict[str, EvaluationResult] = {}
    kept = []
    for evaluation in frame.evaluations:
        if evaluation.settings.get("weights"):
            numbers = [(r.dataset, r.protocol, r.episodes, r.estimate.mean) for r in evaluation.results]
            key = json.dumps([evaluation.adapt, evaluation.settings, evaluation.drawn, numbers], sort_keys=True, default=str)
            original = first.setdefault(key, evaluation)
            if original is not evaluation:
                frame.skip(f"{evaluation.folder}: skipped, the same results as {original.folder}")
                continue
        kept.append(evaluation)
    frame.evaluations = kept
