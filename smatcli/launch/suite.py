"""Many tunings at once: recipes x datasets x seeds, each in a run directory of its own; what is done is skipped."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smatcli.config import load_recipe, value_text
from smatcli.config.tune import TuneRecipe
from smatcli.data.catalogue.suites import SUITES, TITLES, means, stores_of
from smatcli.data.stores.opening import store_files
from smatcli.engine.tune.fit import RESULT
from smatcli.errors import SmatError, UserError, nearest
from smatcli.launch.grid import Point, file_text
from smatcli.launch.points import AGAIN, Sweep, fail, slots_of, visible_devices
from smatcli.launch.state import job_files
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import Interrupted
from smatcli.safe.files import atomic_write_text
from smatcli.safe.text import read_own_json


@dataclass
class Suite(Sweep):
    """What a suite came to. `values` of its points: recipe, dataset, seed; `rows` are those that are finished."""

    suite: str = ""
    datasets: list[str] = field(default_factory=list)

    @property
    def table(self) -> Path:
        """The CSV file: one row a finished run."""
        return self.folder / "suite.csv"

    @property
    def title(self) -> str:
        """What its table is called."""
        return TITLES.get(self.suite, "tuning")

    def collect(self) -> None:
        """Read the scores of what is finished and write the table, if there is anything."""
        self.rows = []
        for point in self.points:
            file = point.run / RESULT
            if file.is_file():
                found = read_own_json(file)
                self.rows.append({**point.values, "metric": found["metric"], "score": repr(found["score"]), "run": str(point.run)})
        if self.rows:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            atomic_write_text(self.table, text.getvalue())

    def columns(self) -> list[str]:
        """Datasets, then means."""
        names = [name for _, _, values in self.lines() for name in values if name not in self.datasets]
        return [*self.datasets, *dict.fromkeys(names)]

    def lines(self) -> list[tuple[str, str, dict[str, float | None]]]:
        """Recipe, how many seeds, and the means over them by dataset and group (None: not finished)."""
        found = []
        for label in dict.fromkeys(row["recipe"] for row in self.rows):
            own = [row for row in self.rows if row["recipe"] == label]
            by_dataset = {d: [float(row["score"]) for row in own if row["dataset"] == d] for d in self.datasets}
            seeds = sorted({len(values) for values in by_dataset.values()})
            known = {d: sum(values) / len(values) for d, values in by_dataset.items() if values}
            mean = means(known, self.suite) if self.suite or len(known) == len(self.datasets) > 1 else {}
            whole: dict[str, float | None] = {d: known.get(d) for d in self.datasets}
            found.append((label, "-".join(map(str, seeds)), whole | dict(mean)))
        names = list(dict.fromkeys(name for _, _, values in found for name in values))
        return [(label, seeds, {name: values.get(name) for name in names}) for label, seeds, values in found]


def numbers(text: str, overrides: Sequence[str]) -> list[int]:
    """The seeds of `--seeds` (none: an empty list); UserError unless they are different whole numbers, and the only ones given."""
    if not text:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise UserError(f"--seeds {text}: give different whole numbers with commas between them, such as 0,1,2")
    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise UserError("--seeds and seed=... contradict each other; leave one out")
    return [int(part) for part in parts]


def plan(recipes: Sequence[str], overrides: Sequence[str], suite: str, seeds: Sequence[int], out: Path | None) -> tuple[Suite, list[str]]:
    """Every run of a suite with its recipe validated, and lines on tasks without a store. UserError for what cannot be run at all."""
    given = [text.partition("=")[0].strip() for text in overrides]
    bases = [load_recipe(recipe, overrides, kind="tune") for recipe in recipes]
    first = bases[0].recipe
    assert isinstance(first, TuneRecipe)
    if suite and "data.dataset" in given:
        raise UserError("data.dataset and --suite are both given; give one of them")
    if "run" in given:
        raise UserError("run= is for one run; give the folder of a suite with --out")
    datasets, lines = _datasets(suite, first) if suite else ([first.data.dataset], [])
    folder = out or Path(first.run).parent / f"{Path(first.run).name}-{suite if suite in SUITES else 'suite' if suite else 'seeds'}"
    points = []
    for base in bases:
        label = Path(str(base.recipe.run)).name
        own = base.recipe.data.dataset if isinstance(base.recipe, TuneRecipe) else ""
        for dataset in datasets if suite else [own]:
            for seed in seeds or [base.recipe.seed]:
                name = f"{label}-{file_text(dataset)}-seed{seed}"
                extra = (f"data.dataset={value_text(dataset)}", f"seed={seed}", f"run={value_text(str(folder / name))}")
                changes = (*overrides, *extra)
                values = {"recipe": label, "dataset": dataset, "seed": str(seed)}
                points.append(Point(name, values, changes, load_recipe(base.path, changes, kind="tune")))
    names = [point.name for point in points]
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise UserError(f"two recipes would share the run {twice}; give them different run: names")
    if not suite:
        datasets = list(dict.fromkeys(point.values["dataset"] for point in points))
    return Suite(folder, points, suite=suite if suite in SUITES else "", datasets=datasets), lines


def _datasets(suite: str, recipe: TuneRecipe) -> tuple[list[str], list[str]]:
    files = store_files(recipe.data.root)
    if suite in SUITES:
        found, missing = stores_of(suite, files)
        if not found:
            first = missing[0]
            raise UserError(
                f"{recipe.data.root}: holds no task of {suite}; prepare them first, e.g. `{first.command} --out {recipe.data.root}` "
                f"({first.origin})"
            )
        return list(found), [f"missing: {task.name} ({task.title}); {task.command} --out {recipe.data.root}" for task in missing]
    names = [name.strip() for name in suite.split(",")]
    for name in names:
        if name not in files:
            known = [*SUITES, *files]
            raise UserError(f"--suite {suite}: {name!r} is neither vtab nor fgvc nor a dataset in {recipe.data.root}{nearest(name, known)}")
    return list(dict.fromkeys(names)), []


def run_suite(
    recipes: Sequence[str], overrides: Sequence[str], suite: str, seeds: Sequence[int], out: Path | None, devices: Sequence[str],
    jobs: int | None, launcher: str | None, slurm: Mapping[str, str], reporter: Reporter,
) -> Suite:  # fmt: skip
    """Run every recipe on every dataset of the suite with every seed; a run that fails is noted in `Suite.failed` and the others go on.

    One after the other in this process, or side by side (`devices`, `jobs`), or as Slurm jobs that are not waited for. UserError, before
    anything is made, for a recipe that is not valid; Interrupted after a signal.
    """
    if devices and any(text.partition("=")[0].strip() == "device" for text in overrides):
        raise UserError("device= and --devices are both given; give one of them")
    if launcher == "local" and not devices:
        devices = visible_devices()
    if launcher == "slurm" and (devices or jobs):
        raise UserError("--devices and --jobs belong to the local launcher; Slurm gives each job its device (--slurm-gpus)")
    slots = slots_of(devices, jobs)
    result, lines = plan(recipes, overrides, suite, seeds, out)
    if (result.folder / "run.json").exists():
        raise UserError(f"{result.folder} is a run; a suite needs a folder of its own, choose another --out")
    for line in lines:
        reporter.line(line)
    reporter.line(f"{len(result.points)} runs in {result.folder}")
    todo = [point for point in result.points if not (point.run / RESULT).is_file()]
    if len(todo) < len(result.points):
        reporter.line(f"{len(result.points) - len(todo)} of them are finished already")
    for point in result.points:
        _same(point)
    if launcher == "slurm":
        _send(result, todo, slurm, reporter)
    elif todo and (launcher == "local" or (len(slots) > 1 and len(todo) > 1)):
        from smatcli.launch.local import run_side_by_side

        run_side_by_side(result, "", slots, reporter, todo)
    else:
        _one_by_one(result, todo, slots[0], reporter)
    result.collect()
    return result


def _same(point: Point) -> None:
    """UserError where a run of that name belongs to another recipe."""
    from smatcli.runs.directory import FREE, RunDir, differing

    if point.run.exists():
        keys = [k for k in differing(RunDir.open(point.run).recipe, point.loaded.recipe) if not k.startswith(FREE)]
        if keys:
            raise UserError(f"run {point.run} was started with another recipe (differs in {', '.join(keys[:5])}); choose another --out")


def _send(result: Suite, todo: list[Point], options: Mapping[str, str], reporter: Reporter) -> None:
    from smatcli.launch.slurm import submit

    files = [job_files(result.folder, point.name) for point in todo]
    for one, point in zip(files, todo, strict=True):
        one.forget_state()
        one.write_spec(point.loaded, evaluate=False)
    for point, number in zip(todo, submit(files, options, result.folder / ".sweep" / "slurm"), strict=True):
        result.sent[point.name] = number
        reporter.line(f"{point.name}: Slurm job {number}")


def _one_by_one(result: Suite, todo: list[Point], device: str | None, reporter: Reporter) -> None:
    from smatcli.engine.tune.tuning import tune

    for i, point in enumerate(todo, 1):
        reporter.line(f"[{i}/{len(todo)}] {point.name}")
        files = job_files(result.folder, point.name)
        files.forget_state()
        files.note_sent("local", str(os.getpid()), None)
        files.note_state("running")
        try:
            loaded = load_recipe(point.loaded.path, (*point.overrides, *([f"device={device}"] if device else [])), kind="tune")
            tune(loaded, reporter, resume=point.run.exists())
            files.note_state("done")
        except Interrupted as error:
            files.note_state("interrupted", str(error))
            raise Interrupted(error.signum, f"stopped at {point.name}; {AGAIN}") from None
        except SmatError as error:
            fail(result, point, str(error), reporter)
        except Exception as error:  # one broken run must not take the others with it
            fail(result, point, f"{type(error).__name__}: {error}", reporter)
        result.collect()
