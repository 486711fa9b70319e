"""Steps around the loop that all kinds of training share: reserve the run, check everything, then train in the run directory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from smatcli.config.loader import verb
from smatcli.device import threads
from smatcli.engine.loop.determinism import deterministic
from smatcli.engine.loop.distributed import ALONE, WatchedRun, World, create, reserve, world
from smatcli.engine.loop.learner import Learner, TrainingProgress
from smatcli.engine.loop.loop import Loop
from smatcli.errors import UserError
from smatcli.runs.checkpoint import has_checkpoint, kept_checkpoints, load_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import StopRequest

if TYPE_CHECKING:
    from smatcli.config import Loaded
    from smatcli.config.schema import RunRecipe

AnyRecipe = TypeVar("AnyRecipe", bound="RunRecipe")


@dataclass(frozen=True)
class Setup:
    """Facts that are known before the run directory exists. `resumed`: the weights come from the run's own checkpoint."""

    reporter: Reporter
    world: World
    resumed: bool


@dataclass(frozen=True)
class Session:
    """An active run: its directory, the reporter, and the processes that take part."""

    run: RunDir
    reporter: Reporter
    world: World
    stop: StopRequest

    def train(self, learner: Learner[Any], **options: Any) -> TrainingProgress:
        """Train `learner` with the loop; `options` are further fields of `Loop`."""
        return Loop(learner, self.run, self.reporter, self.stop, self.world, **options).train()

    def trial(self, learner: Learner[Any], folder: Path) -> TrainingProgress:
        """Train `learner` as a trial of a search, with checkpoints in `folder` and without records."""
        return Loop(learner, _TrialRun(folder, self.run), self.reporter, self.stop, self.world).train()

    def weights(self, name: str) -> tuple[dict[str, Tensor], Path]:
        """Return the tensors that were saved as `name` (e.g. a learner's `best_name`), and the folder that they were read from."""
        saved = load_checkpoint(self.run.checkpoints / name, self.reporter)
        return saved.model, saved.path

    @contextmanager
    def testing(self, images: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of a test. The block calls the yielded function with the number of images done; a signal ends the test."""

        def done(count: int) -> None:
            self.reporter.update(count)
            if self.stop:
                raise self.stop.interrupted(f"test image {count} of {images}")

        self.reporter.start(images, "testing", unit="images")
        try:
            yield done
        finally:
            self.reporter.finish()


class _TrialRun(WatchedRun):
    """A view of a run that writes no records and has its checkpoints in `folder`."""

    def __init__(self, folder: Path, run: RunDir) -> None:
        super().__init__(run.path, run.recipe, run.info)
        self.folder = folder

    @property
    def checkpoints(self) -> Path:
        return self.folder


Prepared = tuple[dict[str, Any], Callable[[Session], None]]


def run_session(
    loaded: "Loaded",
    kind: type[AnyRecipe],
    reporter: Reporter,
    resume: bool,
    prepare: Callable[[AnyRecipe, Setup], Prepared],
    distributed: bool = False,
) -> RunDir:
    """Create or resume the run of a recipe of type `kind`, and return it. A finished run is returned unchanged.

    `prepare` builds everything, and raises UserError for errors in recipe or data, before the run directory is created. It returns facts
    for run.json and the function that does the work. Only a `distributed` kind joins the other processes that torchrun started.
    """
    recipe = loaded.recipe
    if not isinstance(recipe, kind):
        raise UserError(f"{loaded.path}: is a {recipe.kind} recipe; use `smat {verb(recipe.kind)}`")
    here = world(recipe.device) if distributed else ALONE
    reporter = here.reporter(reporter)
    run = reserve(loaded, reporter, resume, here)
    if run is not None and run.finished:
        return run
    with threads(recipe.threads), deterministic(recipe.deterministic):
        resumed = run is not None and bool(has_checkpoint(run.checkpoints / "last") or kept_checkpoints(run.checkpoints))
        with here.fail_together():
            facts, work = prepare(recipe, Setup(reporter, here, resumed))
        run = run or create(loaded, here)
        with run.active(), StopRequest() as stop:
            run.note(**facts)
            work(Session(run, reporter, here, stop))
    return run
