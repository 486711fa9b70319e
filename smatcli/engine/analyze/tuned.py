"""Analyses of a run of `smat tune`. To add one, write a module with `settings(subject)` and `compute(subject)`, and list it in `TUNED`."""

import importlib
from pathlib import Path

from smatcli.config.tune import TuneRecipe
from smatcli.engine.analyze.options import AnalysisOptions
from smatcli.engine.analyze.tuned_subject import TunedSubject
from smatcli.engine.tune.task import TuningTask, open_task
from smatcli.engine.tune.weights import load_tuned
from smatcli.errors import UserError, nearest
from smatcli.runs.analysis import FOLDER, write_analysis
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import StopRequest

# name -> (module, tuners that it applies to)
TUNED: dict[str, tuple[str, tuple[str, ...]]] = {
    "paths": ("paths", ("pmoe",)),
    "similarity": ("similarity", ("mlae", "lora")),
    "expert-maps": ("expert_maps", ("mlae",)),
}


def analyze_tuned(run: Path, options: AnalysisOptions, reporter: Reporter) -> list[Path]:
    """Analyse a tuned run and return the HDF5 files; `options.datasets` are stores in data.root to analyse instead of the run's own.

    Raises UserError for an option that has no effect here, for an analysis that is unknown or does not apply to the tuner, and (without
    `replace`) for one that exists with other settings.
    """
    _check(run, options)
    with StopRequest() as stop:
        recipe, task, tuner, device = load_tuned(run, reporter, options.device)
        tasks = {task.store.name: task} if options.datasets is None else {name: _task(recipe, name) for name in options.datasets}
        subject = TunedSubject(run, recipe, tuner, tasks, device, reporter, stop)
        paths = []
        for name, (module_name, tuners) in TUNED.items():
            if tuners and recipe.tuner.name not in tuners:
                if name in options.only:
                    raise UserError(f"{run}: --only {name} needs a run of {' or '.join(tuners)}, this is {recipe.tuner.name}")
                continue
            if options.only and name not in options.only:
                continue
            module = importlib.import_module(f"smatcli.engine.analyze.{module_name}")
            path = run / FOLDER / f"{name}.h5"
            if options.must_compute(path, module.settings(subject), reporter):
                write_analysis(run / FOLDER, module.compute(subject))
            paths.append(path)
    if not paths:
        raise UserError(f"{run}: no analysis applies to a run of {recipe.tuner.name}")
    return paths


def _check(run: Path, options: AnalysisOptions) -> None:
    """Raise UserError for options that apply only to meta-trained runs, and for unknown analyses."""
    given = {
        "--adapt": options.adapts,
        "--episodes": options.episodes,
        "--index": options.index or None,
        "KEY=VALUE": options.overrides or None,
        "--which": None if options.which == "best" else options.which,
    }
    if unused := [name for name, value in given.items() if value is not None]:
        raise UserError(f"{run}: {unused[0]} has no effect on a run of smat tune; remove it")
    for name in options.only:
        if name not in TUNED:
            raise UserError(f"--only {name}: no such analysis of a tuned run{nearest(name, list(TUNED))} (known: {', '.join(TUNED)})")


def _task(recipe: TuneRecipe, dataset: str) -> TuningTask:
    data = recipe.data.model_copy(update={"dataset": dataset})
    return open_task(recipe.model_copy(update={"data": data}))
