"""What the runs of a report measured: `eval/*/summary.csv` (required) and `results.h5` (per episode, for paired intervals)."""

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
from smatcli.runs.results import SummaryRow, read_summary
from smatcli.runs.statistics import Estimate
from smatcli.safe.text import read_json

Finished = TypeVar("Finished", Tuned, Segmented)
FORMAT = 1  # of an evaluation's settings.json, as `smat eval` writes it


@dataclass(frozen=True)
class Result:
    """One dataset of one evaluation; `domain` is ID or OOD, accuracies are shares, `protocol` names how episodes were drawn.

    `list_hash` is equal for equal lists of episodes, empty if not recorded; `search` says on what a learning rate was chosen.
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
class Evaluation:
    """One adaptation of one run: the folder `eval/<adapt>-<protocol>`; `members` are those it is the mean of (one for each seed)."""

    run: Run
    adapt: str
    folder: Path
    results: list[Result]
    problems: list[str] = field(default_factory=list)
    members: list["Evaluation"] = field(default_factory=list)

    @cached_property
    def accuracies(self) -> dict[str, np.ndarray]:
        """[E, 2] of (episode number, accuracy) by dataset; empty where `results.h5` cannot be read (`problems` then says so)."""
        path = self.folder / "results.h5"
        from smatcli.safe import hdf5 as safe_hdf5

        try:
            with safe_hdf5.opened(path) as file:
                return {
                    name: np.stack([safe_hdf5.array(group, key) for key in ("index", "accuracy")], axis=1).astype(float)
                    for name, group in safe_hdf5.groups(file)
                }
        except safe_hdf5.WRONG as error:
            why = "missing" if not path.exists() else f"cannot be read ({safe_hdf5.reason(error)})"
            self.problems.append(f"{path}: {why}; differences with it are not paired")
            return {}

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What else draws the episodes: `settings.json` of the evaluation; empty if there is none."""
        try:
            found = read_json(self.folder / "settings.json")
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that hold for all its datasets: weights, precision, method, image size, episode, seed, adaptation."""
        found = self.origin.get("settings")
        return found if isinstance(found, dict) else {}

    @cached_property
    def by_dataset(self) -> dict[str, Result]:
        """Results by dataset."""
        return {result.dataset: result for result in self.results}

    def extra(self, *keys: str) -> dict[str, np.ndarray]:
        """Those of the per-episode columns `keys` that `results.h5` has, over all datasets, [E] each; empty where it cannot be read."""
        from smatcli.safe import hdf5 as safe_hdf5

        found: dict[str, list[np.ndarray]] = {}
        try:
            with safe_hdf5.opened(self.folder / "results.h5") as file:
                for _, group in safe_hdf5.groups(file):
                    for key in keys:
                        if key in group:
                            found.setdefault(key, []).append(np.asarray(safe_hdf5.array(group, key), np.float64).reshape(-1))
        except safe_hdf5.WRONG:
            return {}
        return {key: np.concatenate(parts) for key, parts in found.items()}


@dataclass
class Frame:
    """Everything below the given folders; `lines` tell the user what was left out and why, `skipped` counts damaged or double results."""

    runs: list[Run]
    evaluations: list[Evaluation]
    lines: list[str]
    skipped: int = 0
    tuned: list[Tuned] = field(default_factory=list)
    segmented: list[Segmented] = field(default_factory=list)

    def skip(self, line: str) -> None:
        """Leave a result out, by name."""
        self.lines.append(line)
        self.skipped += 1


def read(roots: Sequence[Path]) -> Frame:
    """All results below `roots`, each once, in path order; what is damaged, foreign, unfinished or a copy is left out and named.

    Raises `UserError` for a path that does not exist, and when nothing is left to report.
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
        frame.lines.append(f"skipped in all: {frame.skipped} (in no table)")
    for run, name in zip(frame.runs, shortest_names([run.path for run in frame.runs]), strict=True):
        run.name = name
    return frame


def _add(path: Path, frame: Frame) -> None:
    try:
        run = read_run(path)
    except UserError as error:
        frame.skip(_skipped(path, error))
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
    evaluations = list(_evaluations(path, run, frame))
    if not evaluations and frame.skipped == before:
        frame.lines.append(f"{path}: no results yet (smat eval {path})")
    if evaluations or run.valid:
        frame.runs.append(run)
        frame.evaluations.extend(evaluations)


def _add_finished(run: Run, results: list[Finished], reader: Callable[[Run], Finished | None], frame: Frame) -> None:
    try:
        found = reader(run)
    except UserError as error:
        frame.skip(_skipped(run.path, error))
        return
    if found is None:
        frame.lines.append(f"{run.path}: not finished yet (smat {run.kind} --resume)")
    else:
        results.append(found)


def _skipped(path: Path, error: Exception | str) -> str:
    """`path: skipped, why` with the path once."""
    return f"{path}: skipped, {str(error).removeprefix(f'{path}: ')}"


def _evaluations(path: Path, run: Run, frame: Frame) -> Iterator[Evaluation]:
    for folder in sorted(p for p in (path / "eval").glob("*") if p.is_dir()):
        summary = folder / "summary.csv"
        parts = len(list((folder / "parts").glob("*.h5")))
        if not summary.is_file():
            why = f"unfinished ({parts} parts)" if parts else "no summary.csv in it"
            frame.skip(f"{folder}: skipped, {why}; run smat eval {path} again")
            continue
        try:
            found = _read_summary(summary, run)
            for evaluation in found:
                _check(summary, evaluation, len(found) == 1)
        except UserError as error:
            frame.skip(_skipped(summary, error))
            continue
        if parts:
            frame.lines.append(f"{folder}: being extended ({parts} parts are not in its summary yet)")
        yield from found


def _read_summary(path: Path, run: Run) -> list[Evaluation]:
    """The evaluations of one `summary.csv`: one, unless the file holds several adaptations."""
    found: dict[str, Evaluation] = {}
    for row in read_summary(path):
        run.method = run.method or row.method
        run.tau = row.tau if run.tau is None else run.tau
        run.experts = row.experts if run.experts is None else run.experts
        evaluation = found.setdefault(row.adapt, Evaluation(run, row.adapt, path.parent, []))
        if any((r.dataset, r.protocol) == (row.dataset, row.protocol) for r in evaluation.results):
            raise UserError(f"{path}: {row.dataset} stands in it twice; move its folder away and evaluate again")
        evaluation.results.append(_result(path, row))
    if not found:
        raise UserError(f"{path}: is empty; move its folder away and evaluate again")
    return list(found.values())


def _result(path: Path, row: SummaryRow) -> Result:
    if row.domain not in ("ID", "OOD"):
        raise UserError(f"{path}: {row.dataset} has the domain {row.domain!r}, neither ID nor OOD; move its folder away and evaluate again")
    if not 0 <= row.mean <= 1 or not (math.isnan(row.half_width) or row.half_width >= 0) or not row.episodes >= 1:
        raise UserError(f"{path}: {row.dataset} has a mean of {row.mean} over {row.episodes} episodes, which is no share in [0, 1]")
    estimate = Estimate(row.mean, row.half_width)
    return Result(row.dataset, row.domain, estimate, row.episodes, row.protocol, row.seconds, row.list_hash, row.lr, row.search)


def _check(path: Path, evaluation: Evaluation, alone: bool) -> None:
    """UserError where the files of an evaluation contradict each other, or a later version wrote them."""
    version = evaluation.settings.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise UserError(f"{path}: its settings.json has format {version}, this smat reads {FORMAT}; update smat")
    for result in evaluation.results if alone else []:
        recorded = evaluation.accuracies.get(result.dataset)
        if recorded is None:
            continue
        values = recorded[:, 1]
        if len(values) != result.episodes or not abs(float(values.mean()) - result.estimate.mean) < 1e-6:
            raise UserError(
                f"{path}: says {result.estimate.mean:.4f} over {result.episodes} episodes of {result.dataset}, its results.h5 "
                f"{values.mean() if len(values) else math.nan:.4f} over {len(values)}; move the folder away and evaluate again"
            )


def _drop_copies(frame: Frame) -> None:
    """Leave out evaluations of the same weights on the same episodes with the same results: a run that was copied counts once."""
    first: dict[str, Evaluation] = {}
    kept = []
    for evaluation in frame.evaluations:
        if evaluation.settings.get("weights"):
            numbers = [(r.dataset, r.protocol, r.episodes, r.estimate.mean) for r in evaluation.results]
            key = json.dumps([evaluation.adapt, evaluation.origin, numbers], sort_keys=True, default=str)
            known = first.setdefault(key, evaluation)
            if known is not evaluation:
                frame.skip(f"{evaluation.folder}: skipped, the same results as {known.folder}")
                continue
        kept.append(evaluation)
    frame.evaluations = kept
