"""Looks into a trained run; every analysis is a file `RUN/analysis/<name>.h5`, its tables CSV beside it, which `smat report` draws."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smatcli.config.schema import TrainRecipe
from smatcli.device import threads
from smatcli.engine.analyze.subject import Job, Subject
from smatcli.engine.evaluate.folder import differences
from smatcli.engine.evaluate.questions import choose_datasets, plan
from smatcli.errors import UserError, nearest
from smatcli.runs.analysis import FOLDER, known_settings, write_analysis
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter, SilentReporter
from smatcli.runs.signals import StopRequest


@dataclass(frozen=True)
class Kind:
    """An analysis: the module that makes it, and the methods that it is for (none: all; those with experts)."""

    module: str
    methods: tuple[str, ...] = ()
    needs_experts: bool = False

    def refusal(self, recipe: TrainRecipe) -> str:
        """Why a run of this recipe cannot be analysed so; empty if it can."""
        name = recipe.method.name
        if self.methods and name not in self.methods:
            return f"needs a run of {' or '.join(self.methods)}, this is {name}"
        if self.needs_experts and getattr(recipe.method, "experts", None) is None:
            return f"needs a method with experts, this is {name}"
        if self.module == "gradients" and not recipe.data.train:
            return "needs training datasets (data.train)"
        return ""

    def jobs(self, subject: Subject) -> list[Job]:
        """What there is to do; UserError for what can be refused before it is done."""
        found: list[Job] = importlib.import_module(f"smatcli.engine.analyze.{self.module}").jobs(subject)
        return found


KINDS = {
    "masks": Kind("masks", methods=("smat",)),
    "gradients": Kind("gradients"),
    "predictions": Kind("predictions"),
    "flip": Kind("flip", needs_experts=True),
    "features": Kind("features"),
}


def analyze(
    run: Path | str,
    only: Sequence[str] = (),
    adapts: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    episodes: int | None = None,
    index: int = 0,
    overrides: Sequence[str] = (),
    which: str = "best",
    replace: bool = False,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> list[Path]:
    """Analyse a run; the HDF5 files, those that were there with the same settings among them.

    `only`: names of `KINDS` (default: all that the method allows); `episodes` a dataset (default: each analysis' own number), `index` the
    episode of `features`; `adapts`, `datasets`, `overrides` as in `evaluate`. An analysis with other settings is replaced only with
    `replace`. Raises `UserError` before anything is computed for what can be refused, `Interrupted` after SIGINT or SIGTERM.
    """
    from smatcli.engine.evaluate.evaluation import fingerprint
    from smatcli.engine.train.trainer import load_method

    reporter = reporter or SilentReporter()
    if RunDir.open(run).recipe.kind == "tune":
        return _tuned(Path(run), only, adapts, datasets, episodes, index, overrides, which, replace, device, reporter)
    for name in only:
        if name not in KINDS:
            raise UserError(f"--only {name}: no such analysis{nearest(name, list(KINDS))} (known: {', '.join(KINDS)})")
    recipe = plan(run, adapts, None, overrides)
    chosen = choose_datasets(recipe, datasets)
    kinds = []
    for name, kind in KINDS.items():
        refused = kind.refusal(recipe)
        if refused and name in only:
            raise UserError(f"{run}: --only {name} {refused}")
        if refused:
            reporter.line(f"{run}: {name} is left out, it {refused}")
        elif not only or name in only:
            kinds.append(name)
    with threads(recipe.threads), StopRequest() as stop:
        method, _ = load_method(run, which, reporter, device)
        subject = Subject(
            Path(run), recipe, method, chosen, which, fingerprint(method), episodes, index, datasets is not None, reporter, stop
        )
        jobs = [job for name in kinds for job in KINDS[name].jobs(subject)]
        for job in [job for job in jobs if _wanted(subject, job, replace)]:
            _run(subject, job)
        return [subject.run / FOLDER / f"{job.found.name}.h5" for job in jobs]


def _tuned(
    run: Path, only: Sequence[str], adapts: Sequence[str] | None, datasets: Sequence[str] | None, episodes: int | None, index: int,
    overrides: Sequence[str], which: str, replace: bool, device: str | None, reporter: Reporter,
) -> list[Path]:  # fmt: skip
    from smatcli.engine.analyze.tuned import analyze_tuned

    given = {"--adapt": adapts, "--episodes": episodes, "--index": index or None, "recipe values": overrides or None}
    given["--which"] = None if which == "best" else which
    if unread := [name for name, value in given.items() if value is not None]:
        raise UserError(f"{run}: {unread[0]} is not read for a run of smat tune; leave it out")
    return analyze_tuned(run, only, datasets, replace, device, reporter)


def _wanted(subject: Subject, job: Job, replace: bool) -> bool:
    """Is this analysis still to be made? UserError where another one is in its place."""
    path = subject.run / FOLDER / f"{job.found.name}.h5"
    known = known_settings(path)
    if known is None or (replace and known != job.found.settings):
        return True
    if known != job.found.settings:
        raise UserError(f"{path} was made with other settings ({', '.join(differences(known, job.found.settings))}); give --replace")
    subject.reporter.line(f"{path}: is there already")
    return False


def _run(subject: Subject, job: Job) -> None:
    reporter, subject.done = subject.reporter, 0
    reporter.start(job.steps, job.found.name)
    try:
        job.fill()
    finally:
        reporter.finish()
    write_analysis(subject.run / FOLDER, job.found)
