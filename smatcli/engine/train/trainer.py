"""Meta-training: meta-batches of episodes, the method's loss, and validation on fixed episodes."""

from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from smatcli.config import Loaded
from smatcli.config.schema import TrainRecipe
from smatcli.data.episodes.loader import EpisodeLoader
from smatcli.data.episodes.sampler import EpisodeSampler
from smatcli.data.stores.opening import open_stores
from smatcli.data.stores.overlap import contents, copies
from smatcli.engine.loop.distributed import ALONE, World
from smatcli.engine.loop.guard import Problem
from smatcli.engine.loop.learner import Learner, Schedule, Score, TrainingProgress
from smatcli.engine.loop.loading import prepare_method
from smatcli.engine.loop.optimizers import build_optimizers
from smatcli.engine.loop.session import Prepared, Session, Setup, run_session
from smatcli.engine.loop.speed import speed_statistics, speed_up
from smatcli.engine.train.meta_batch import MetaBatches, noise_of
from smatcli.engine.train.profile import StepProfile
from smatcli.engine.train.validation import Validator, validation_names
from smatcli.errors import UserError
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter
from smatcli.seams import Episode, Support

__all__ = ["MetaLearner", "train"]
SHOWN = ("loss", "accuracy", "sparsity", "multiplier")


def train(loaded: Loaded, reporter: Reporter, resume: bool = False, profile: bool = False) -> RunDir:
    """Meta-train as specified by the recipe, and return the run directory. `profile` measures some updates by phase (RUN/profile).

    Raises UserError for errors in recipe or data before the run directory is created, SmatError after train.spike.in_a_row skipped updates
    in a row (naming the episodes; earlier checkpoints are kept), Interrupted after SIGINT, SIGTERM or SIGUSR1 (with a checkpoint).
    """

    def prepare(recipe: TrainRecipe, setup: Setup) -> Prepared:
        weights = "none" if setup.resumed else recipe.backbone.weights  # the initial weights may not exist any more
        learner = MetaLearner(recipe, setup.reporter, weights, setup.world)

        def work(session: Session) -> None:
            if not (profile and session.world.is_main):
                session.train(learner)
                return
            with closing(StepProfile(session.run.path / "profile", learner.device, session.reporter)) as measured:
                session.train(learner, after_update=measured.after_update)

        return {"device": str(learner.device), "precision": str(learner.method.precision)}, work

    return run_session(loaded, TrainRecipe, reporter, resume, prepare, distributed=True)


class MetaLearner(Learner[list[Episode]]):
    """Learner of a recipe's method over a backbone with `weights`. Raises UserError for errors in recipe or data."""

    name, unit = "meta-training", "episodes"

    def __init__(self, recipe: TrainRecipe, reporter: Reporter, weights: str, world: World = ALONE) -> None:
        self.recipe, t = recipe, recipe.train
        stores = open_stores(Path(recipe.data.root), list(dict.fromkeys([*recipe.data.train, *(recipe.data.valid or [])])), reporter.line)
        self.data = {name: store.content_hash for name, store in stores.items()}
        data = recipe.data
        trained = {name: self.data[name] for name in data.train}
        copies(trained, contents(data.root, data.id), contents(data.root, data.ood), data.allow_overlap)
        self.sampler = EpisodeSampler({n: stores[n] for n in recipe.data.train}, "train", recipe.episode, recipe.seed)
        names = validation_names(recipe, stores)
        self.model = self.method = prepare_method(recipe, weights)
        speed_up(self.method, t, reporter)
        self.device = self.method.theta_pre.device
        self.validator = Validator({n: stores[n] for n in names}, recipe, self.device, world)
        self.batched = MetaBatches(self.method, t.meta_batch, recipe.seed, world, self._named)
        self.per_step = t.meta_batch
        self.schedule = Schedule(t.steps, t.valid_every, t.checkpoint_every, t.spike, t.keep_every, valid_first=True)
        groups = self.method.groups()
        if t.steps and not groups:
            raise UserError(f"method.name: {recipe.method.name!r} has nothing to train; set train.steps=0")
        shards = world if t.shard_optimizer else ALONE
        self.optimizers = build_optimizers(groups, t.groups, max(1, t.steps), self.method.default_groups(), world=shards)
        classes = ", ".join(f"{n} {len(stores[n].classes('train'))}" for n in recipe.data.train)
        reporter.line(str(self.method.precision))
        reporter.line(f"method {recipe.method.name}, {self.method.space.size:,} backbone parameters; training classes: {classes}")
        for note in self.sampler.notes:
            reporter.line(note)

    def noise(self, step: int) -> int:
        """Return the seed of a step. Each episode has its own noise besides (see `noise_of`)."""
        return noise_of(self.recipe.seed, step * self.per_step)

    def batches(self, step: int) -> Generator[list[Episode], None, None]:
        """Yield this process's episodes of each meta-batch, augmented."""
        indices = self.batched.indices(range(step, self.schedule.steps))
        episodes = iter(EpisodeLoader(self.sampler, indices, self.device, self.recipe.train.augment, self.recipe.backbone.image_size))
        while batch := list(islice(episodes, len(self.batched.share))):
            yield batch

    def backward(self, batch: list[Episode], step: int) -> dict[str, float] | Problem:
        """Compute the gradients of the mean loss of the meta-batch."""
        return self.batched.backward(batch, step)

    def episodes(self, batch: list[Episode], step: int) -> Sequence[Episode]:
        """Return all episodes of the meta-batch."""
        return self.batched.episodes(batch, step)

    def after_step(self, step: int) -> None:
        """Advance the schedules of the method (temperature)."""
        self.method.after_step(step * self.per_step)

    def validate(self, step: int) -> Score:
        """Measure the accuracy with prototypes on the fixed validation episodes."""
        result = self.validator.run(self.method)
        statistics = self.method.statistics() | speed_statistics(self.method)
        extra = "".join(f", {name} {value:.3g}" for name, value in statistics.items())
        line = f"step {step}: validation {100 * result.mean:.2f} +- {100 * result.half_width:.2f} %{extra}"
        return Score(result.mean, {**result.record(), **statistics}, line)

    def feasible(self) -> bool:
        """Return whether the method's constraint (if it has one) is satisfied."""
        return self.method.feasible()

    def position(self, step: int) -> dict[str, Any]:
        """Return the number of tasks seen."""
        return {"tasks": step * self.per_step}

    def train_record(self, means: dict[str, float], norms: dict[str, float], rates: dict[str, float]) -> dict[str, Any]:
        """Return the means over the tasks, and the gradient norm of each group."""
        return {**means, **{f"norm_{name}": norm for name, norm in norms.items()}}

    def shown(self, numbers: dict[str, float], progress: TrainingProgress) -> dict[str, float | int]:
        """Return the numbers worth watching."""
        return {name: value for name, value in numbers.items() if name in SHOWN}

    def advice(self, problem: Problem | None) -> str:
        """Suggest lower learning rates, and looking at the terms of the first episode's loss."""
        hint = ""
        if problem is not None and problem.episodes:
            first = problem.episodes[0]
            hint = f" (the terms of the loss: `smat train {self.recipe.run}/recipe.yaml --debug-episode {first.dataset}:{first.index}`)"
        return f"lower the learning rates in a new run{hint}"

    def _named(self, index: int) -> Episode:
        plan, nothing = self.sampler.plan(index), torch.empty(0)
        return Episode(Support(nothing, nothing, len(plan.classes)), nothing, nothing, plan.dataset, plan.index, self.sampler.seed)
