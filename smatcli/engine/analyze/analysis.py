"""Analyses of a trained run. Each is written to `RUN/analysis/<name>.h5`, with its tables as CSV beside it; `smat report` draws them."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from smatcli.config.schema import TrainRecipe
from smatcli.device import threads
from smatcli.engine.analyze.options import AnalysisOptions
from smatcli.engine.analyze.subject import AnalysisJob, Subject
from smatcli.engine.evaluate.episodes import choose_datasets, plan
from smatcli.errors import UserError, nearest
from smatcli.runs.analysis import FOLDER, write_analysis
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter, SilentReporter
from smatcli.runs.signals import StopRequest
from smatcli.safe.links import refuse_outside_links


@dataclass(frozen=True)
class Kind:
    """A kind of analysis: its module, and the methods that it applies to (empty: all methods)."""

    module: str
    methods: tuple[str, ...] = ()
    needs_experts: bool = False

    def refusal(self, recipe: TrainRecipe) -> str:
        """Return the reason why the analysis does not apply to a run of this recipe; empty if it applies."""
        name = recipe.method.name
        if self.methods and name not in self.methods:
            return f"needs a run of {' or '.join(self.methods)}, this is {name}"
        if self.needs_experts and getattr(recipe.method, "experts", None) is None:
            return f"needs a method with experts, this is {name}"
        if self.module == "gradients" and not recipe.data.train:
            return "needs training datasets (data.train)"
        return ""

    def jobs(self, subject: Subject) -> list[AnalysisJob]:
        """Return the analyses of this kind to compute. Raises UserError for invalid options."""
        jobs: list[AnalysisJob] = importlib.import_module(f"smatcli.engine.analyze.{self.module}").jobs(subject)
        return jobs


KINDS = {
    "masks": Kind("masks", methods=("smat",)),
    "gradients": Kind("gradients"),
    "predictions": Kind("predictions"),
    "flip": Kind("flip", needs_experts=True),
    "features": Kind("features"),
}


def analyze(run: Path | str, options: AnalysisOptions | None = None, reporter: Reporter | None = None) -> list[Path]:
    """Analyse a run and return the HDF5 files, including those that already existed with the same settings.

    Raises `UserError` for invalid options before anything is computed, `Interrupted` after SIGINT or SIGTERM.
    """
    from smatcli.engine.evaluate.evaluation import fingerprint
    from smatcli.engine.loop.loading import load_method

    options, reporter = options or AnalysisOptions(), reporter or SilentReporter()
    opened = RunDir.open(run)
    refuse_outside_links(run)
    if opened.recipe.kind == "tune":
        from smatcli.engine.analyze.tuned import analyze_tuned

        return analyze_tuned(Path(run), options, reporter)
    recipe = plan(run, options.adapts, None, options.overrides)
    datasets = choose_datasets(recipe, options.datasets)
    kinds = _choose(run, recipe, options, reporter)
    with threads(recipe.threads), StopRequest() as stop:
        method, _ = load_method(run, options.which, reporter, options.device)
        subject = Subject(Path(run), recipe, method, datasets, fingerprint(method), options, reporter, stop)
        jobs = [job for kind in kinds for job in kind.jobs(subject)]
        paths = [subject.run / FOLDER / f"{job.analysis.name}.h5" for job in jobs]
        due = [options.must_compute(path, job.analysis.settings, reporter) for path, job in zip(paths, jobs, strict=True)]
        for job, is_due in zip(jobs, due, strict=True):
            if is_due:
                _run(subject, job)
    return paths


def _choose(run: Path | str, recipe: TrainRecipe, options: AnalysisOptions, reporter: Reporter) -> list[Kind]:
    """Return the kinds in `options.only`, by default all that apply to the run."""
    for name in options.only:
        if name not in KINDS:
            raise UserError(f"--only {name}: no such analysis{nearest(name, list(KINDS))} (known: {', '.join(KINDS)})")
    kinds = []
    for name, kind in KINDS.items():
        refused = kind.refusal(recipe)
        if refused and name in options.only:
            raise UserError(f"{run}: --only {name} {refused}")
        if refused:
            reporter.line(f"{run}: {name} skipped: it {refused}")
        elif not options.only or name in options.only:
            kinds.append(kind)
    return kinds


def _run(subject: Subject, job: AnalysisJob) -> None:
    reporter, subject.done = subject.reporter, 0
    reporter.start(job.steps, job.analysis.name)
    try:
        job.fill()
    finally:
        reporter.finish()
    write_analysis(subject.run / FOLDER, job.analysis)
