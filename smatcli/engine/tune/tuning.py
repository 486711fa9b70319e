"""Tuning of a pre-trained network on one dataset: search on the validation images, training, test."""

import csv
import io
import itertools
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from smatcli.config.tune import TuneRecipe
from smatcli.config.tuning import MlaeConfig
from smatcli.device import Precision, choose_device, choose_precision
from smatcli.engine.loop.session import Prepared, Session, Setup, run_session
from smatcli.engine.tune.fit import TuneLearner, make_optimizers
from smatcli.engine.tune.task import TuningTask, View, open_task, scores
from smatcli.engine.tune.weights import RESULT, changed, make_tuner
from smatcli.errors import UserError
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter
from smatcli.safe.files import atomic_path, atomic_write_text
from smatcli.safe.text import read_own_json
from smatcli.tuning import Tuner
from smatcli.tuning.layers import depth_of
from smatcli.tuning.patterns import experts_of, rates_of

if TYPE_CHECKING:
    from smatcli.config import Loaded

MERGED, SEARCH = "merged.safetensors", "search"
FORMAT = 1


@dataclass
class _TuneJob:
    """The objects that the search and the final training of a run share."""

    recipe: TuneRecipe
    session: Session
    task: TuningTask
    device: torch.device
    precision: Precision

    def learner(self, recipe: TuneRecipe, tuner: Tuner | None = None) -> TuneLearner:
        """Return the learner of `recipe` (the run's, or that of a trial), by default with a new tuner."""
        tuner = tuner or make_tuner(recipe, self.task.classes)
        return TuneLearner(recipe, self.task, tuner, self.device, self.precision)


def tune(loaded: "Loaded", reporter: Reporter, resume: bool = False) -> RunDir:
    """Tune as specified by the recipe; write tune.json (test scores), metrics and checkpoints of the trained parameters.

    All random numbers are derived from (seed, step), so a resumed run gives the same result. Raises UserError for errors in recipe or data
    before the run directory is created, SmatError after tune.spike.in_a_row skipped steps in a row, Interrupted on SIGINT, SIGTERM and
    SIGUSR1.
    """
    return run_session(loaded, TuneRecipe, reporter, resume, _prepare)


def _prepare(recipe: TuneRecipe, setup: Setup) -> Prepared:
    device = choose_device(recipe.device)
    task = open_task(recipe)
    tuner = make_tuner(recipe, task.classes)
    _check(recipe, tuner, _trials(recipe).values())
    precision = choose_precision(recipe.precision, device, _width(tuner))

    def work(session: Session) -> None:
        session.reporter.line(str(precision))
        job = _TuneJob(recipe, session, task, device, precision)
        values, score = _search(job)
        if values:
            _final(job, job.learner(changed(recipe, values)), values, score)
        else:
            _final(job, job.learner(recipe, tuner), values, score)

    return {"device": str(device), "precision": precision.name, "data": {task.store.name: task.store.content_hash}}, work


def _check(recipe: TuneRecipe, tuner: Tuner, trials: Iterable[TuneRecipe]) -> None:
    """Raise UserError for errors that would otherwise show late: a trial's pattern that matches nothing, a tuner that cannot be merged."""
    make_optimizers(recipe, tuner, 1)
    for trial in trials:
        if isinstance(trial.tuner, MlaeConfig):
            depth = depth_of(tuner.backbone)  # type: ignore[arg-type]
            experts_of(trial.tuner, depth)
            rates_of(trial.tuner, depth)
    if recipe.tune.merged and tuner.merge() is None:
        raise UserError(f"tune.merged: {recipe.tuner.name} cannot be merged into the network's weights; remove it")


def _trials(recipe: TuneRecipe) -> dict[str, TuneRecipe]:
    """Return the recipe of every combination of the search, by name."""
    axes = recipe.tune.search.axes
    trials = {}
    for combination in itertools.product(*axes.values()) if axes else ():
        values: dict[str, Any] = dict(zip(axes, combination, strict=True))
        name = ",".join(f"{key.rpartition('.')[2]}={value:g}" for key, value in values.items())
        fixed = {
            "data.fit": "train",
            "tune.select": "last",
            "tune.search": {},
            "tune.epochs": recipe.tune.search.epochs or recipe.tune.epochs,
        }
        trials[name] = changed(recipe, {**values, **fixed})
    return trials


def _search(job: _TuneJob) -> tuple[dict[str, float], float | None]:
    """Return the values with the best validation score (the first if scores are equal), and the score. Finished trials are not repeated."""
    axes, trials = job.recipe.tune.search.axes, _trials(job.recipe)
    if not trials:
        return {}, None
    session, metric = job.session, job.recipe.tune.metric
    file = session.run.path / SEARCH / "search.json"
    done: dict[str, float] = read_own_json(file) if file.exists() else {}
    for number, (name, recipe) in enumerate(trials.items(), 1):
        if name in done:
            continue
        learner = job.learner(recipe)
        learner.name = f"trial {number} of {len(trials)} ({name})"
        done[name] = float(session.trial(learner, session.run.path / SEARCH / name).score or 0.0)
        atomic_write_text(file, json.dumps(done, indent=1))
        session.reporter.line(f"trial {name}: {metric} of the validation images {done[name]:.4f}")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["trial", metric], *([n, f"{done[n]:.6f}"] for n in trials)])
    atomic_write_text(session.run.path / SEARCH / "search.csv", text.getvalue())
    best = max(trials, key=lambda name: done[name])
    combination = list(itertools.product(*axes.values()))[list(trials).index(best)]
    session.reporter.line(f"chosen on the validation images: {best}")
    return dict(zip(axes, combination, strict=True)), done[best]


def _final(job: _TuneJob, learner: TuneLearner, values: dict[str, float], searched: float | None) -> None:
    """Train with the chosen values, test, and write the results."""
    run, reporter, recipe, tuner, task = job.session.run, job.session.reporter, learner.recipe, learner.tuner, job.task
    counts = {name: sum(p.numel() for p in params) for name, params in tuner.trainable().items()}
    parts = ", ".join(f"{len(rows)} {part}" for part, rows in task.rows.items())
    reporter.line(
        f"{recipe.tuner.name} on {recipe.data.dataset}: {task.classes} classes, {parts} images, trained on {len(learner.train)}; "
        f"{counts['tuner']:,} parameters and a head of {counts['head']:,}; {learner.schedule.steps} steps"
    )
    end = job.session.train(learner)
    if recipe.tune.select == "best":
        learner.load(*job.session.weights(learner.best_name))
    merged = tuner.merge()
    if merged is not None:
        job.precision.apply(merged)
    began = time.monotonic()
    results = _test(job, learner, merged)
    seconds = time.monotonic() - began
    if recipe.tune.merged and merged is not None:
        _write_merged(run.path / MERGED, merged)
    result = {
        "format": FORMAT,
        "dataset": recipe.data.dataset,
        "tuner": recipe.tuner.model_dump(mode="json"),
        "metric": recipe.tune.metric,
        "score": results[recipe.tune.metric],
        "scores": {k: v if v == v else None for k, v in results.items()},
        "valid": end.score,
        "searched": values,
        "searched_score": searched,
        "parameters": counts,
        "images": {part: len(rows) for part, rows in task.rows.items()},
        "fitted": len(learner.train),
        "split": "store" if task.store.image_split is not None and recipe.data.split != "counted" else "counted",
        "classes": task.classes,
        "epochs": recipe.tune.epochs,
        "seed": recipe.seed,
        "content_hash": task.store.content_hash,
        "seconds": {"training": round(learner.seconds, 3), "test": round(seconds, 3)},
        "merged": merged is not None,
    }
    atomic_write_text(run.path / RESULT, json.dumps(result, indent=1))
    reporter.line(f"test: {', '.join(f'{key} {value:.4f}' for key, value in results.items())} ({len(task.rows['test'])} images)")


def _test(job: _TuneJob, learner: TuneLearner, merged: nn.Module | None) -> dict[str, float]:
    view = View(job.task, job.task.rows["test"], job.device, keep=False)
    with job.session.testing(len(view)) as progress:
        logits = learner.logits(learner.tuner if merged is None else merged, view, progress=progress)
    return scores(logits, view.labels.cpu().numpy())


def _write_merged(path: Path, merged: nn.Module) -> None:
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in merged.state_dict().items()}
    with atomic_path(path) as draft:
        save_file(tensors, draft)


def _width(tuner: Tuner) -> int:
    head = tuner.head
    return head.in_features if isinstance(head, nn.Linear) else 0
