"""Meta-training: meta-batches of counted tasks, optimizer groups, validation on fixed episodes, checkpoints, exact resume."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from smatcli.config import Loaded
from smatcli.config.schema import TrainRecipe
from smatcli.data.episodes.loader import EpisodeLoader
from smatcli.data.episodes.sampler import EpisodeSampler
from smatcli.data.stores.opening import open_stores
from smatcli.data.stores.store import Store
from smatcli.device import choose_device, give_back_memory, threads
from smatcli.engine.loop.distributed import ALONE, World, create, reserve, world
from smatcli.engine.loop.guard import Guard, Problem
from smatcli.engine.loop.loading import load_method, prepare_method, restore
from smatcli.engine.loop.optimizers import NonFinite, Optimizers, build_optimizers
from smatcli.engine.loop.speed import deterministic, speed_statistics, speed_up
from smatcli.engine.train.meta_batch import check_deal, dealt, gradients, noise_of
from smatcli.engine.train.profile import StepProfile
from smatcli.engine.train.validation import Validation, Validator, validation_names
from smatcli.errors import SmatError, UserError
from smatcli.phases import phase
from smatcli.runs.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import StopRequest
from smatcli.seams import Episode, Support

__all__ = ["Trainer", "load_method", "noise_of", "prepare_method", "restore", "train"]


def train(loaded: Loaded, reporter: Reporter, resume: bool = False, profile: bool = False) -> RunDir:
    """Meta-train as the recipe says; the run directory holds everything. `profile` measures some updates by phase (`RUN/profile`).

    Everything that can be refused is refused before the run directory is made. Raises `SmatError` when train.spike.in_a_row updates had to
    be left out (naming the episodes; the checkpoints before are kept) and `Interrupted` after SIGINT, SIGTERM or SIGUSR1 (checkpointed).
    """
    recipe = loaded.recipe
    if not isinstance(recipe, TrainRecipe):
        raise UserError(f"{loaded.path}: is a {recipe.kind} recipe; use `smat {recipe.kind}`")
    here = world(recipe.device)
    reporter = here.reporter(reporter)
    run = reserve(loaded, reporter, resume, here)
    if run is not None and run.finished:
        return run
    with threads(recipe.threads), deterministic(recipe.deterministic):
        # A run that has a checkpoint needs its first weights no more: they may be gone.
        begun = run is not None and bool(has_checkpoint(run.checkpoints / "last") or kept(run))
        with here.fail_together():
            trainer = Trainer(recipe, reporter, "none" if begun else recipe.backbone.weights, here)
        run = run or create(loaded, here)
        with run.active(), StopRequest() as stop:
            run.note(device=str(trainer.device), precision=str(trainer.method.precision))
            if profile and here.is_main:
                trainer.profile = StepProfile(run.path / "profile", trainer.device, reporter)
            trainer.fit(run, stop)
    return run


@dataclass
class Best:
    """The best validation so far."""

    mean: float = -1.0
    step: int = -1


class Trainer:
    """One meta-training: built and checked first, then `fit`."""

    def __init__(self, recipe: TrainRecipe, reporter: Reporter, weights: str, here: World = ALONE):
        self.recipe, self.reporter, self.world = recipe, reporter, here
        check_deal(recipe.train.meta_batch, here)
        names = dict.fromkeys([*recipe.data.train, *(recipe.data.valid or [])])
        stores = open_stores(Path(recipe.data.root), list(names), reporter.line)
        self.validator = Validator({n: stores[n] for n in validation_names(recipe, stores)}, recipe, choose_device(recipe.device), here)
        self.sampler = EpisodeSampler({n: stores[n] for n in recipe.data.train}, "train", recipe.episode, recipe.seed)
        self.method = prepare_method(recipe, weights)
        speed_up(self.method, recipe.train, reporter)
        self.device = self.method.theta_pre.device
        self.optimizers = self._optimizers()
        self.best = Best()
        self.guard = Guard(recipe.train.spike)
        self.profile: StepProfile | None = None
        self.step = 0
        self.data = {name: store.content_hash for name, store in stores.items()}
        self._describe(stores)

    def _optimizers(self) -> Optimizers:
        groups, t = self.method.groups(), self.recipe.train
        if t.steps and not groups:
            raise UserError(f"method.name: {self.recipe.method.name!r} has nothing to train; set train.steps=0")
        return build_optimizers(
            groups, t.groups, max(1, t.steps), self.method.default_groups(), world=self.world if t.shard_optimizer else ALONE
        )

    def _describe(self, stores: dict[str, Store]) -> None:
        say = self.reporter.line
        say(str(self.method.precision))
        classes = ", ".join(f"{n} {len(stores[n].classes('train'))}" for n in self.recipe.data.train)
        say(f"method {self.recipe.method.name}, {self.method.space.size:,} backbone parameters; training classes: {classes}")
        for note in self.sampler.notes:
            say(note)

    def fit(self, run: RunDir, stop: StopRequest) -> None:
        """Train from where the run stands to its last step."""
        t = self.recipe.train
        self._continue(run)
        if self.step == 0:
            self._validate(run)
        every = t.meta_batch
        indices = dealt(range(self.step, t.steps), every, self.world)
        loader = EpisodeLoader(self.sampler, indices, self.device, t.augment, self.recipe.backbone.image_size)
        self.reporter.start(t.steps * every, "meta-training", done=self.step * every, unit="episodes")
        batch: list[Episode] = []
        try:
            for episode in loader:
                batch.append(episode)
                if len(batch) < len(self.world.share(every)):
                    continue
                self._update(run, batch)
                if self.profile is not None:
                    self.profile.after_update()
                batch = []
                self._pause(run, stop)
        finally:
            self.reporter.finish()
            if self.profile is not None:
                self.profile.close()
        self._save(run, "last")
        if self.world.is_main:
            shutil.rmtree(run.checkpoints / "failed", ignore_errors=True)  # of an attempt that stopped because of its loss
        if self.guard.skipped:
            self.reporter.line(f"{self.guard.skipped} of {t.steps} updates were left out; {run.metrics} says which and why")

    def _update(self, run: RunDir, batch: Sequence[Episode]) -> None:
        """One optimizer update, or none where loss or gradient say so."""
        # Noise is counted by episode; what reads the global generator all the same (a plugin) is counted by update.
        tasks = self.recipe.train.meta_batch
        torch.manual_seed(noise_of(self.recipe.seed, self.step * tasks))
        self.method.train()
        self.guard.remember(self.method)
        self.optimizers.zero_grad()
        sums, problem = self._backward(batch)
        if problem is None and (spike := self.guard.spike(sums["loss"])):
            problem = Problem(spike, self._whole(batch))
        if problem is None:
            try:
                with phase("optimizer"):
                    norms = self.optimizers.step()
            except NonFinite as error:
                problem = Problem(str(error), self._whole(batch))
        self.step += 1
        if problem is not None:
            self._leave_out(run, problem, tasks)
            return
        self.guard.made(sums["loss"])
        self.method.after_step(self.step * tasks)
        record = {**sums, **{f"norm_{name}": norm for name, norm in norms.items()}}
        run.log({"step": self.step, "kind": "train", "tasks": self.step * tasks, **record})
        shown = {k: v for k, v in sums.items() if k in ("loss", "accuracy", "sparsity", "multiplier")}
        self.reporter.update(self.step * tasks, **shown)

    def _backward(self, batch: Sequence[Episode]) -> tuple[dict[str, float], Problem | None]:
        """Gradients of the mean loss of a meta-batch; the means of what its tasks report, and the first task that cannot be used."""
        tasks = self.recipe.train.meta_batch
        parameters = [p for group in self.method.groups().values() for p in group]
        return gradients(self.method, batch, self.step * tasks, tasks, self.recipe.seed, self.world, self._named, parameters)

    def _whole(self, batch: Sequence[Episode]) -> Sequence[Episode]:
        """The meta-batch that is being worked on, of which `batch` is this process's part."""
        tasks = self.recipe.train.meta_batch
        return batch if len(batch) == tasks else [self._named(self.step * tasks + k) for k in range(tasks)]

    def _named(self, index: int) -> Episode:
        """An episode without its images: what messages need of one that another process has."""
        plan, nothing = self.sampler.plan(index), torch.empty(0)
        return Episode(Support(nothing, nothing, len(plan.classes)), nothing, nothing, plan.dataset, plan.index, self.sampler.seed)

    def _leave_out(self, run: RunDir, problem: Problem, tasks: int) -> None:
        """Undo and count an update that is not made; after too many in a row, stop."""
        self.optimizers.zero_grad()
        self.guard.forget()
        stopping = self.guard.left_out()
        if stopping:
            self.step -= 1
            self._save(run, "failed")
            run.log({"step": self.step, "kind": "failed", "tasks": self.step * tasks, **problem.record()})
            raise SmatError(self._broken(run, problem))
        self.optimizers.set_step(self.step)
        self.method.after_step(self.step * tasks)
        run.log({"step": self.step, "kind": "skip", "tasks": self.step * tasks, "skipped": self.guard.skipped, **problem.record()})
        self.reporter.line(f"step {self.step} is left out: {problem}; {self.guard.skipped} so far")

    def _broken(self, run: RunDir, problem: Problem) -> str:
        first, names = problem.episodes[0], ", ".join(map(str, problem.episodes))
        row = f" (update {self.guard.row} in a row that had to be left out)" if self.guard.row > 1 else ""
        return (
            f"{problem.what} at step {self.step + 1}, {names}{row}; the last good checkpoint is kept: lower the learning rates and start "
            f"another run (the loss in parts: `smat train {run.path}/recipe.yaml --debug-episode {first.dataset}:{first.index}`)"
        )

    def _pause(self, run: RunDir, stop: StopRequest) -> None:
        """What happens between two updates: validation, checkpoints, stopping in good order."""
        t = self.recipe.train
        if self.step % t.valid_every == 0 or self.step == t.steps:
            self._validate(run)
        sound = self.guard.row == 0  # after an update that was left out, the checkpoint of before may be the last good one
        if sound and t.keep_every and self.step % t.keep_every == 0:
            self._save(run, f"step-{self.step}")
        if stop.agreed(self.world.all_max(stop.signum or 0)):
            self._save(run, "last")
            raise stop.interrupted(f"step {self.step} of {t.steps}")
        if sound and self.step % t.checkpoint_every == 0 and self.step < t.steps:
            self._save(run, "last")

    def _validate(self, run: RunDir) -> None:
        self.optimizers.zero_grad()
        give_back_memory()  # what training holds between two updates would come on top of the masks of inference
        self.method.eval()
        found: Validation = self.validator.run(self.method)
        statistics = self.method.statistics() | speed_statistics(self.method)
        tasks = self.step * self.recipe.train.meta_batch
        run.log({"step": self.step, "kind": "valid", "tasks": tasks, **found.record(), **statistics})
        extra = "".join(f", {name} {value:.3g}" for name, value in statistics.items())
        self.reporter.line(f"step {self.step}: validation {100 * found.mean:.2f} +- {100 * found.half_width:.2f} %{extra}")
        if found.mean > self.best.mean and self.step > 0 and self.method.feasible():
            self.best = Best(found.mean, self.step)
            self._save(run, "best")

    def _save(self, run: RunDir, name: str) -> None:
        """Write a checkpoint: `last` and `step-N` with what training needs to go on, the others with the weights alone."""
        broken = self.optimizers.broken()
        if broken and name != "failed":
            raise SmatError(
                f"{broken} after step {self.step}; the last good checkpoint is kept: lower the learning rates and start another run"
            )
        tensors, plain = self.optimizers.state_dict()
        state = {"step": self.step, "best": vars(self.best), "optimizers": plain, "guard": self.guard.state(), "data": self.data}
        light = name in ("best", "failed")
        with self.world.fail_together():
            if self.world.is_main:
                run.sync()
                method = self.method.state_dict()
                save_checkpoint(run.checkpoints / name, method, state, None if light else tensors, keep_before=name == "last")

    def _continue(self, run: RunDir) -> None:
        """Take up the run's last checkpoint, if there is one."""
        folder = run.checkpoints / "last"
        if not has_checkpoint(folder) and not kept(run):
            run.truncate(-1)
            return
        found = load_checkpoint(folder, self.reporter, others=kept(run))
        same_data(run, found.state.get("data", self.data), self.data)
        restore(self.method, found.model, found.path)
        self.optimizers.load_state_dict(found.optim, found.state["optimizers"])
        self.step, self.best = int(found.state["step"]), Best(**found.state["best"])
        if "guard" in found.state:
            self.guard.restore(found.state["guard"])
        self.world.check_equal(self.method.state_dict().values(), f"checkpoints of {run.path}")
        run.truncate(self.step)
        self.reporter.line(f"continuing {run.path} at step {self.step}")


def kept(run: RunDir) -> list[Path]:
    """The checkpoints of train.keep_every, newest first."""
    found = {int(p.name[5:]): p for p in run.checkpoints.glob("step-*") if p.name[5:].isdecimal()}
    return [found[step] for step in sorted(found, reverse=True)]


def same_data(run: RunDir, before: dict[str, str], now: dict[str, str]) -> None:
    """UserError when the stores are not those that the run began with."""
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        raise UserError(f"the stores {', '.join(changed)} changed since run {run.path} began; choose another run=")
