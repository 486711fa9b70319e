"""Average trainings that differ only in their seed into one column, with intervals over episodes and over seeds."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from smatcli.report.results.frame import EvaluationResult, Frame, Result
from smatcli.report.results.runs import Run
from smatcli.runs.statistics import Estimate, average, interval

# Settings that may differ between the seeds of a training: where it ran, and how it was evaluated.
_FREE = ("run", "seed", "device", "threads", "precision", "eval", "adapt")


def merge_seeds(frame: Frame) -> Frame:
    """Return the frame with the evaluations of several seeds replaced by their mean, in which they are the `members`."""
    families: dict[str, list[EvaluationResult]] = {}
    for evaluation in frame.evaluations:
        families.setdefault(_family(evaluation), []).append(evaluation)
    merged: dict[str, EvaluationResult] = {}
    taken = {run.name for run in frame.runs}
    joint_runs: dict[tuple[Path, ...], Run] = {}
    for key, members in families.items():
        if len({m.run.seed for m in members}) == len(members) > 1:
            paths = tuple(m.run.path for m in members)
            if paths not in joint_runs:
                joint_runs[paths] = _joined_run([m.run for m in members], taken)
                seeds = ", ".join(str(s) for s in joint_runs[paths].seeds)
                frame.lines.append(f"{joint_runs[paths].name}: mean over the seeds {seeds} ({', '.join(m.run.name for m in members)})")
            merged[key] = join(members, joint_runs[paths])
    kept, done = [], set()
    for evaluation in frame.evaluations:
        key = _family(evaluation)
        if key not in merged:
            kept.append(evaluation)
        elif key not in done:
            done.add(key)
            kept.append(merged[key])
    return replace(frame, evaluations=kept)


def _family(evaluation: EvaluationResult) -> str:
    """Return a key that trainings share if they differ only in their seed; it is unique for a run without a recipe."""
    run = evaluation.run
    if run.seed is None:
        return f"{run.path}/{evaluation.folder.name}/{evaluation.adapt}"
    recipe = {key: value for key, value in run.recipe.items() if key not in _FREE}
    asked = sorted((r.dataset, r.domain, r.protocol, r.episodes, r.list_hash) for r in evaluation.results)
    settings = {key: evaluation.settings.get(key) for key in ("episode", "seed", "adapt", "image_size")}
    return json.dumps([recipe, evaluation.adapt, settings, asked, _sweep(run)], sort_keys=True, default=str)


def _sweep(run: Run) -> str:
    """Return the sweep of a point with its coordinates, the seed excepted."""
    others = sorted((k, v) for k, v in run.coordinates.items() if k != "seed")
    return f"{run.sweep}: {others}" if others else ""


def _joined_run(runs: Sequence[Run], taken: set[str]) -> Run:
    first = runs[0]
    others = ",".join(f"{k}={v}" for k, v in first.coordinates.items() if k != "seed")
    if first.sweep is not None:
        path = first.sweep / others if others else first.sweep
    else:
        common = re.sub(r"[-_. ,]*(seed|s)?[-_. ]*$", "", _common_start([run.path.name for run in runs]))
        path = first.path.parent / (common or first.method or "runs")
    name = f"{path.parent.name}/{path.name}" if "=" in path.name else path.name
    name = name if name not in taken else f"{name} (mean over seeds)"
    taken.add(name)
    seeds = tuple(sorted(run.seed for run in runs if run.seed is not None))
    return replace(first, path=path, name=name, seeds=seeds, valid=[])


def _common_start(names: Sequence[str]) -> str:
    """Return the common prefix of names."""
    length = next((i for i, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), min(map(len, names)))
    return names[0][:length]


def join(members: Sequence[EvaluationResult], run: Run) -> EvaluationResult:
    """Average `members`, episode by episode if they all have the same episodes; intervals are over episodes."""
    first = members[0]
    tables = [member.accuracies for member in members]
    accuracies = {}
    for name in first.accuracies:
        own = [table[name] for table in tables if name in table]
        if len(own) == len(members) and all(np.array_equal(t[:, 0], own[0][:, 0]) for t in own):
            accuracies[name] = np.stack([own[0][:, 0], np.mean([t[:, 1] for t in own], axis=0)], axis=1)
    results = [_mean(result, members, accuracies.get(result.dataset)) for result in first.results]
    return EvaluationResult(run, first.adapt, first.folder, results, accuracies, first.settings, first.drawn, list(members))


def _mean(result: Result, members: Sequence[EvaluationResult], recorded: np.ndarray | None) -> Result:
    each = [r for m in members for r in m.results if (r.dataset, r.protocol) == (result.dataset, result.protocol)]
    searches = sorted({r.search for r in each})
    estimate = average([r.estimate for r in each]) if recorded is None else interval(recorded[:, 1])
    seconds = sum(r.seconds for r in each) / len(each)
    return replace(result, estimate=estimate, seconds=seconds, lr=None, search="+".join(filter(None, searches)))


def seed_means(evaluation: EvaluationResult, datasets: Sequence[tuple[str, str]]) -> list[float]:
    """Return the mean accuracy of each seed over (dataset, domain) pairs; empty if one is missing."""
    means = []
    for member in evaluation.members:
        own: list[Estimate] = [r.estimate for r in member.results if (r.dataset, r.domain) in datasets]
        if len(own) != len(datasets):
            return []
        means.append(average(own).mean)
    return means
