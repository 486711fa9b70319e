"""Suites: tuning runs for all combinations of recipes, datasets and seeds. Finished runs are skipped."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smatcli.config import Loaded, load_recipe, value_text
from smatcli.config.tune import TuneRecipe
from smatcli.data.catalogue.suites import SUITES, TITLES, means, stores_of
from smatcli.data.stores.opening import store_files
from smatcli.engine.tune.weights import RESULT
from smatcli.errors import UserError, nearest
from smatcli.launch.batch import Batch
from smatcli.launch.dispatch import launch
from smatcli.launch.placement import Placement
from smatcli.launch.points import Point, file_text
from smatcli.runs.directory import FREE, RunDir, differing
from smatcli.runs.reporter import Reporter
from smatcli.safe.links import refuse_outside_links
from smatcli.safe.text import read_own_json


@dataclass
class Suite(Batch):
    """The runs of a suite. The `values` of a point are recipe, dataset and seed. The table has a row per finished run."""

    suite: str = ""
    datasets: list[str] = field(default_factory=list)

    @property
    def table(self) -> Path:
        return self.folder / "suite.csv"

    @property
    def title(self) -> str:
        """Title of the table."""
        return TITLES.get(self.suite, "tuning")

    def read_results(self) -> list[dict[str, str]]:
        rows = []
        for point in self.points:
            file = point.run / RESULT
            if file.is_file():
                result = read_own_json(file)
                rows.append({**point.values, "metric": result["metric"], "score": repr(result["score"]), "run": str(point.run)})
        return rows

    def columns(self) -> list[str]:
        """Return the columns of `lines`: the datasets, then the groups of datasets."""
        names = [name for _, _, values in self.lines() for name in values if name not in self.datasets]
        return [*self.datasets, *dict.fromkeys(names)]

    def lines(self) -> list[tuple[str, str, dict[str, float | None]]]:
        """Return a line per recipe: its name, the number of seeds, and the mean over seeds per dataset and group (None: not finished)."""
        lines = []
        for label in dict.fromkeys(row["recipe"] for row in self.rows):
            own = [row for row in self.rows if row["recipe"] == label]
            scores = {d: [float(row["score"]) for row in own if row["dataset"] == d] for d in self.datasets}
            seeds = sorted({len(values) for values in scores.values()})
            measured = {d: sum(values) / len(values) for d, values in scores.items() if values}
            complete = len(measured) == len(self.datasets) > 1
            groups = means(measured, self.suite) if self.suite or complete else {}
            lines.append((label, "-".join(map(str, seeds)), {d: measured.get(d) for d in self.datasets} | dict(groups)))
        names = list(dict.fromkeys(name for _, _, values in lines for name in values))
        return [(label, seeds, {name: values.get(name) for name in names}) for label, seeds, values in lines]


def run_suite(
    recipes: Sequence[str],
    overrides: Sequence[str],
    suite: str,
    seeds: Sequence[int],
    out: Path | None,
    placement: Placement,
    reporter: Reporter,
) -> Suite:
    """Run every recipe on every dataset of the suite with every seed.

    A failed run is recorded in `Suite.failed` and does not stop the others. Raises UserError for an invalid recipe, before anything is
    written, and `Interrupted` after a signal.
    """
    slots = placement.slots(overrides)
    result, missing = plan(recipes, overrides, suite, seeds, out)
    if (result.folder / "run.json").exists():
        raise UserError(f"{result.folder} is a run directory, and a suite needs a separate folder; choose another --out")
    refuse_outside_links(result.folder)
    for line in missing:
        reporter.line(line)
    reporter.line(f"{len(result.points)} runs in {result.folder}")
    todo = [point for point in result.points if not (point.run / RESULT).is_file()]
    if len(todo) < len(result.points):
        reporter.line(f"{len(result.points) - len(todo)} of them are already finished")
    for point in result.points:
        _check_recipe(point)
    launch(result, todo, placement, slots, reporter)
    return result


def plan(recipes: Sequence[str], overrides: Sequence[str], suite: str, seeds: Sequence[int], out: Path | None) -> tuple[Suite, list[str]]:
    """Return the suite with validated recipes, and a line per task without a store. Raises UserError if the suite cannot be run."""
    keys = [text.partition("=")[0].strip() for text in overrides]
    bases = [load_recipe(recipe, overrides, kind="tune") for recipe in recipes]
    first = _tune_recipe(bases[0])
    if suite and "data.dataset" in keys:
        raise UserError("data.dataset and --suite are both given; give one of them")
    if "run" in keys:
        raise UserError("run= is for a single run; give the folder of a suite with --out")
    datasets, missing = _datasets(suite, first) if suite else ([first.data.dataset], [])
    folder = out or Path(first.run).parent / f"{Path(first.run).name}-{suite if suite in SUITES else 'suite' if suite else 'seeds'}"
    points = []
    for base in bases:
        recipe = _tune_recipe(base)
        for dataset in datasets if suite else [recipe.data.dataset]:
            points += [_point(base, folder, overrides, dataset, seed) for seed in seeds or [recipe.seed]]
    names = [point.name for point in points]
    if twin := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise UserError(f"two recipes would share the run {twin}; give them different run: names")
    if not suite:
        datasets = list(dict.fromkeys(point.values["dataset"] for point in points))
    return Suite(folder, points, suite=suite if suite in SUITES else "", datasets=datasets), missing


def _point(base: Loaded, folder: Path, overrides: Sequence[str], dataset: str, seed: int) -> Point:
    label = Path(base.recipe.run).name
    name = f"{label}-{file_text(dataset)}-seed{seed}"
    own = (f"data.dataset={value_text(dataset)}", f"seed={seed}", f"run={value_text(str(folder / name))}")
    changes = (*overrides, *own)
    return Point(name, {"recipe": label, "dataset": dataset, "seed": str(seed)}, changes, load_recipe(base.path, changes, kind="tune"))


def _tune_recipe(loaded: Loaded) -> TuneRecipe:
    assert isinstance(loaded.recipe, TuneRecipe)
    return loaded.recipe


def _datasets(suite: str, recipe: TuneRecipe) -> tuple[list[str], list[str]]:
    root = recipe.data.root
    files = store_files(root)
    if suite in SUITES:
        present, missing = stores_of(suite, files)
        if not present:
            first = missing[0]
            raise UserError(
                f"{root}: contains no task of {suite}; prepare them first, e.g. `{first.command} --out {root}` ({first.origin})"
            )
        return list(present), [f"missing: {task.name} ({task.title}); {task.command} --out {root}" for task in missing]
    names = [name.strip() for name in suite.split(",")]
    for name in names:
        if name not in files:
            hint = nearest(name, [*SUITES, *files])
            raise UserError(f"--suite {suite}: {name!r} is neither vtab nor fgvc nor a dataset in {root}{hint}")
    return list(dict.fromkeys(names)), []


def _check_recipe(point: Point) -> None:
    """Raise UserError if the run directory exists and belongs to a different recipe."""
    if point.run.exists():
        keys = [k for k in differing(RunDir.open(point.run).recipe, point.loaded.recipe) if not k.startswith(FREE)]
        if keys:
            raise UserError(f"run {point.run} was started with another recipe (differs in {', '.join(keys[:5])}); choose another --out")
