"""Looks into a run of `smat tune`; a new analysis is one file with `make(subject) -> Analysis` and one line in `TUNED`."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from smatcli.config.tune import TuneRecipe
from smatcli.engine.analyze.tuned_subject import TunedSubject
from smatcli.engine.evaluate.folder import differences
from smatcli.engine.tune.fit import load_tuned
from smatcli.engine.tune.task import Task, open_task
from smatcli.errors import UserError, nearest
from smatcli.runs.analysis import FOLDER, known_settings, write_analysis
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import StopRequest

# name -> (module, tuners that it is for)
TUNED: dict[str, tuple[str, tuple[str, ...]]] = {
    "paths": ("paths", ("pmoe",)),
    "similarity": ("similarity", ("mlae", "lora")),
    "expert-maps": ("expert_maps", ("mlae",)),
}


def analyze_tuned(
    run: Path, only: Sequence[str], datasets: Sequence[str] | None, replace: bool, device: str | None, reporter: Reporter
) -> list[Path]:
    """The analyses of a tuned run, all that its tuner allows unless named; `datasets`: other stores of data.root to look at instead.

    UserError for an analysis that is unknown, or not for this tuner, and for one that is there with other settings, without `replace`.
    """
    for name in only:
        if name not in TUNED:
            raise UserError(f"--only {name}: no such analysis of a tuned run{nearest(name, list(TUNED))} (known: {', '.join(TUNED)})")
    with StopRequest() as stop:
        recipe, task, tuner, where = load_tuned(run, reporter, device)
        tasks = {task.store.name: task} if datasets is None else {name: _task(recipe, name) for name in datasets}
        subject = TunedSubject(run, recipe, tuner, tasks, where, reporter, stop)
        made = []
        for name, (module, tuners) in TUNED.items():
            if tuners and recipe.tuner.name not in tuners:
                if name in only:
                    raise UserError(f"{run}: --only {name} needs a run of {' or '.join(tuners)}, this is {recipe.tuner.name}")
                continue
            if only and name not in only:
                continue
            found = importlib.import_module(f"smatcli.engine.analyze.{module}")
            path, wanted = run / FOLDER / f"{name}.h5", found.settings(subject)
            known = known_settings(path)
            if known == wanted:
                reporter.line(f"{path}: is there already")
            elif known is not None and not replace:
                raise UserError(f"{path} was made with other settings ({', '.join(differences(known, wanted))}); give --replace")
            else:
                write_analysis(run / FOLDER, found.make(subject))
            made.append(path)
    if not made:
        raise UserError(f"{run}: there is no analysis for a run of {recipe.tuner.name}")
    return made


def _task(recipe: TuneRecipe, dataset: str) -> Task:
    data = recipe.data.model_copy(update={"dataset": dataset})
    return open_task(recipe.model_copy(update={"data": data}))
