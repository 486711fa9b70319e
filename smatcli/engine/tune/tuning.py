"""`smat tune`: one pre-trained network, one tuner, one dataset: search on validation images, training, test."""

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
from smatcli.device import Precision, choose_device, choose_precision, threads
from smatcli.engine.loop.speed import deterministic
from smatcli.engine.tune.fit import RESULT, SEARCH, Fit, changed, make_optimizers, make_tuner
from smatcli.engine.tune.task import Task, View, open_task, scores
from smatcli.errors import UserError
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import StopRequest
from smatcli.safe.files import atomic_path, atomic_write_text
from smatcli.safe.text import read_own_json
from smatcli.tuning import Tuner
from smatcli.tuning.layers import depth_of
from smatcli.tuning.patterns import experts_of, rates_of

if TYPE_CHECKING:
    from smatcli.config import Loaded

MERGED = "merged.safetensors"
FORMAT = 1


@dataclass
class _Job:
    recipe: TuneRecipe
    run: RunDir
    reporter: Reporter
    task: Task
    device: torch.device
    precision: Precision
    stop: StopRequest


def tune(loaded: "Loaded", reporter: Reporter, resume: bool = False) -> RunDir:
    """Tune as the recipe says; the run directory gets tune.json (test scores), metrics and checkpoints of what was trained.

    What can be refused is refused before the run directory is made. Each random number is counted by (seed, step), so a resumed run
    continues exactly. SmatError when too many steps in a row had to be left out, Interrupted on SIGINT, SIGTERM and SIGUSR1.
    """
    recipe = loaded.recipe
    if not isinstance(recipe, TuneRecipe):
        raise UserError(f"{loaded.path}: kind is {recipe.kind!r}; `smat tune` needs a recipe of kind 'tune'")
    run = RunDir.reserve(loaded, reporter, resume)
    if run is not None and run.finished:
        return run
    with threads(recipe.threads), deterministic(recipe.deterministic):
        device = choose_device(recipe.device)
        task = open_task(recipe)
        tuner = make_tuner(recipe, task.classes)
        _check(recipe, tuner, _trials(recipe).values())
        precision = choose_precision(recipe.precision, device, _width(tuner))
        run = run or RunDir.create(recipe.run, recipe, loaded.origins)
        with run.active(), StopRequest() as stop:
            run.note(device=str(device), precision=precision.name, data={task.store.name: task.store.content_hash})
            reporter.line(str(precision))
            job = _Job(recipe, run, reporter, task, device, precision, stop)
            values, score = _search(job)
            if values:
                recipe = changed(recipe, values)
                tuner = make_tuner(recipe, task.classes)
            _final(job, recipe, tuner, values, score)
    return run


def _check(recipe: TuneRecipe, tuner: Tuner, trials: Iterable[TuneRecipe]) -> None:
    """UserError for what would only be found at the end: a trial's pattern that does not fit, a tuner that cannot be merged."""
    make_optimizers(recipe, tuner, 1)
    for trial in trials:
        if isinstance(trial.tuner, MlaeConfig):
            depth = depth_of(tuner.backbone)  # type: ignore[arg-type]
            experts_of(trial.tuner, depth)
            rates_of(trial.tuner, depth)
    if recipe.tune.merged and tuner.merge() is None:
        raise UserError(f"tune.merged: {recipe.tuner.name} cannot be merged into the network's weights; remove it")


def _trials(recipe: TuneRecipe) -> dict[str, TuneRecipe]:
    """Name -> recipe of every combination that is searched."""
    axes = recipe.tune.search.axes
    found = {}
    for combination in itertools.product(*axes.values()) if axes else ():
        values: dict[str, Any] = dict(zip(axes, combination, strict=True))
        name = ",".join(f"{key.rpartition('.')[2]}={value:g}" for key, value in values.items())
        fixed = {
            "data.fit": "train",
            "tune.select": "last",
            "tune.search": {},
            "tune.epochs": recipe.tune.search.epochs or recipe.tune.epochs,
        }
        found[name] = changed(recipe, {**values, **fixed})
    return found


def _search(job: _Job) -> tuple[dict[str, float], float | None]:
    """The best values on the validation images (the first of equals) and their score; what is done is not repeated."""
    axes, trials = job.recipe.tune.search.axes, _trials(job.recipe)
    if not trials:
        return {}, None
    file = job.run.path / SEARCH / "search.json"
    done: dict[str, float] = read_own_json(file) if file.exists() else {}
    for number, (name, recipe) in enumerate(trials.items(), 1):
        if name in done:
            continue
        folder = job.run.path / SEARCH / name
        fit = Fit(recipe, job.task, make_tuner(recipe, job.task.classes), job.device, job.precision, folder, job.reporter, lambda r: None,
                  f"trial {number} of {len(trials)} ({name})")  # fmt: skip
        fit.restore()
        fit.run(job.stop)
        done[name] = float(fit.done.score or 0.0)
        atomic_write_text(file, json.dumps(done, indent=1))
        job.reporter.line(f"trial {name}: {job.recipe.tune.metric} of the validation images {done[name]:.4f}")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["trial", job.recipe.tune.metric], *([n, f"{done[n]:.6f}"] for n in trials)])
    atomic_write_text(job.run.path / SEARCH / "search.csv", text.getvalue())
    best = max(trials, key=lambda name: done[name])
    combination = list(itertools.product(*axes.values()))[list(trials).index(best)]
    job.reporter.line(f"chosen on the validation images: {best}")
    return dict(zip(axes, combination, strict=True)), done[best]


def _final(job: _Job, recipe: TuneRecipe, tuner: Tuner, values: dict[str, float], searched: float | None) -> None:
    run, reporter = job.run, job.reporter
    counts = {name: sum(p.numel() for p in params) for name, params in tuner.trainable().items()}
    fit = Fit(recipe, job.task, tuner, job.device, job.precision, run.checkpoints, reporter, run.log)
    parts = ", ".join(f"{len(rows)} {part}" for part, rows in job.task.rows.items())
    reporter.line(
        f"{recipe.tuner.name} on {recipe.data.dataset}: {job.task.classes} classes, {parts} images, trained on {len(fit.train)}; "
        f"{counts['tuner']:,} parameters and a head of {counts['head']:,}; {fit.steps} steps"
    )
    run.truncate(fit.restore())
    fit.run(job.stop)
    fit.chosen()
    merged = tuner.merge()
    if merged is not None:
        job.precision.apply(merged)
    began = time.monotonic()
    found = _test(job, fit, merged)
    seconds = time.monotonic() - began
    if recipe.tune.merged and merged is not None:
        _write_merged(run.path / MERGED, merged)
    result = {
        "format": FORMAT,
        "dataset": recipe.data.dataset,
        "tuner": recipe.tuner.model_dump(mode="json"),
        "metric": recipe.tune.metric,
        "score": found[recipe.tune.metric],
        "scores": {k: v if v == v else None for k, v in found.items()},
        "valid": fit.done.score,
        "searched": values,
        "searched_score": searched,
        "parameters": counts,
        "images": {part: len(rows) for part, rows in job.task.rows.items()},
        "fitted": len(fit.train),
        "split": "store" if job.task.store.image_split is not None and recipe.data.split != "counted" else "counted",
        "classes": job.task.classes,
        "epochs": recipe.tune.epochs,
        "seed": recipe.seed,
        "content_hash": job.task.store.content_hash,
        "seconds": {"training": round(fit.done.seconds, 3), "test": round(seconds, 3)},
        "merged": merged is not None,
    }
    atomic_write_text(run.path / RESULT, json.dumps(result, indent=1))
    reporter.line(f"test: {', '.join(f'{key} {value:.4f}' for key, value in found.items())} ({len(job.task.rows['test'])} images)")


def _test(job: _Job, fit: Fit, merged: nn.Module | None) -> dict[str, float]:
    rows = job.task.rows["test"]
    view = View(job.task, rows, job.device, keep=False)

    def tick(count: int) -> None:
        job.reporter.update(count)
        if job.stop:
            raise job.stop.interrupted(f"test image {count} of {len(rows)}")

    job.reporter.start(len(rows), "testing", unit="images")
    try:
        logits = fit.logits(merged if merged is not None else fit.tuner, view, tick=tick)
    finally:
        job.reporter.finish()
    return scores(logits, view.labels.cpu().numpy())


def _write_merged(path: Path, merged: nn.Module) -> None:
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in merged.state_dict().items()}
    with atomic_path(path) as draft:
        save_file(tensors, draft)


def _width(tuner: Tuner) -> int:
    head = tuner.head
    return head.in_features if isinstance(head, nn.Linear) else 0
