"""Meta-training: meta-batches of counted tasks, optimizer groups, validation on fixed episodes, checkpoints, exact resume."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from smatcli.backbones import create_backbone
from smatcli.config import Loaded
from smatcli.config.schema import TrainRecipe
from smatcli.data.episodes import EpisodeSampler, counted_key
from smatcli.data.loader import EpisodeLoader
from smatcli.data.store import Store, open_stores
from smatcli.device import choose_device, choose_precision, threads
from smatcli.engine.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from smatcli.engine.optim import NonFinite, Optimizers, build_optimizers
from smatcli.engine.reporter import Reporter
from smatcli.engine.run import RunDir
from smatcli.engine.signals import StopRequest
from smatcli.engine.validate import Validation, Validator, validation_names
from smatcli.errors import SmatError, UserError
from smatcli.methods import build_method
from smatcli.methods.base import FlatMethod
from smatcli.seams import Episode


def train(loaded: Loaded, reporter: Reporter, resume: bool = False) -> RunDir:
    """Meta-train as the recipe says; the run directory holds everything.

    Everything that can be refused is refused before the run directory is made. Raises `SmatError` on a loss that is not finite
    (naming the episode; the checkpoints before it are kept) and `Interrupted` after SIGINT or SIGTERM (checkpoint written).
    """
    recipe = loaded.recipe
    if not isinstance(recipe, TrainRecipe):
        raise UserError(f"{loaded.path}: is a {recipe.kind} recipe; use `smat {recipe.kind}`")
    run = RunDir.reserve(loaded, reporter, resume)
    if run is not None and run.finished:
        return run
    with threads(recipe.threads):
        # A run that has a checkpoint needs its first weights no more: they may be gone.
        begun = run is not None and has_checkpoint(run.checkpoints / "last")
        trainer = Trainer(recipe, reporter, "none" if begun else recipe.backbone.weights)
        run = run or RunDir.create(recipe.run, recipe, loaded.origins)
        with run.active(), StopRequest() as stop:
            run.note(device=str(trainer.device), precision=str(trainer.method.precision))
            trainer.fit(run, stop)
    return run


def prepare_method(recipe: TrainRecipe, weights: str) -> FlatMethod:
    """The recipe's method over a backbone with `weights`, on the recipe's device, in its precision."""
    device = choose_device(recipe.device)
    torch.manual_seed(counted_key("initialisation", recipe.seed) % 2**63)
    backbone = create_backbone(recipe.backbone.model_copy(update={"weights": weights}))
    precision = choose_precision(recipe.precision, device, int(backbone.num_features))  # type: ignore[arg-type]
    method = build_method(recipe.method, precision.apply(backbone)).to(device)
    method.backbone.to(device)
    method.precision = precision
    return method


def load_method(
    run: Path | str, which: str = "best", reporter: Reporter | None = None, device: str | None = None
) -> tuple[FlatMethod, TrainRecipe]:
    """A trained run's method, ready for inference, and its recipe; `which` is 'best' (the default; 'last' if there is none) or 'last'.

    Raises `UserError` when the run has no checkpoint.
    """
    opened = RunDir.open(run)
    recipe = opened.recipe
    if not isinstance(recipe, TrainRecipe):
        raise UserError(f"{run}: is a {recipe.kind} run; meta-test one of `smat train` (method 'pretrained' takes a backbone as it is)")
    folder = opened.checkpoints / which
    if which == "best" and not has_checkpoint(folder):
        folder = opened.checkpoints / "last"
    if not has_checkpoint(folder):
        raise UserError(f"{run}: has no checkpoint yet; finish it with `smat train {run}/recipe.yaml --resume`")
    if device is not None:
        recipe = recipe.model_copy(update={"device": device})
    method = prepare_method(recipe, "none")
    restore(method, load_checkpoint(folder, reporter).model, folder)
    return method.eval(), recipe


def restore(method: FlatMethod, tensors: dict[str, torch.Tensor], where: Path) -> None:
    """Load a method's tensors, all of them and no others; `UserError` names the first that does not fit."""
    try:
        method.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(f"{where}: the checkpoint does not fit the recipe: {' '.join(str(error).split())[:300]}") from None


@dataclass
class Best:
    """The best validation so far."""

    mean: float = -1.0
    step: int = -1


class Trainer:
    """One meta-training: built and checked first, then `fit`."""

    def __init__(self, recipe: TrainRecipe, reporter: Reporter, weights: str):
        self.recipe, self.reporter = recipe, reporter
        names = dict.fromkeys([*recipe.data.train, *(recipe.data.valid or [])])
        stores = open_stores(Path(recipe.data.root), list(names))
        self.validator = Validator({n: stores[n] for n in validation_names(recipe, stores)}, recipe, choose_device(recipe.device))
        self.sampler = EpisodeSampler({n: stores[n] for n in recipe.data.train}, "train", recipe.episode, recipe.seed)
        self.method = prepare_method(recipe, weights)
        self.device = self.method.theta_pre.device
        self.optimizers = self._optimizers()
        self.best = Best()
        self.step = 0
        self._describe(stores)

    def _optimizers(self) -> Optimizers:
        groups, t = self.method.groups(), self.recipe.train
        if t.steps and not groups:
            raise UserError(f"method.name: {self.recipe.method.name!r} has nothing to train; set train.steps=0")
        return build_optimizers(groups, t.groups, max(1, t.steps), self.method.default_groups())

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
        loader = EpisodeLoader(
            self.sampler, range(self.step * every, t.steps * every), self.device, t.augment, self.recipe.backbone.image_size
        )
        self.reporter.start(t.steps * every, "meta-training", done=self.step * every, unit="episodes")
        batch: list[Episode] = []
        try:
            for episode in loader:
                batch.append(episode)
                if len(batch) < every:
                    continue
                self._update(run, batch)
                batch = []
                self._pause(run, stop)
        finally:
            self.reporter.finish()
        self._save(run, "last")

    def _update(self, run: RunDir, batch: list[Episode]) -> None:
        self.method.train()
        self.optimizers.zero_grad()
        sums: dict[str, float] = defaultdict(float)
        for k, episode in enumerate(batch):
            noise = torch.Generator(self.device)
            noise.manual_seed(counted_key("noise", self.recipe.seed, self.step * len(batch) + k) % 2**63)
            losses = self.method.loss(episode, noise)
            value = float(losses.total.detach())
            if value != value or abs(value) == float("inf"):
                raise SmatError(self._broken(f"the loss is {value}", [episode]))
            (losses.total / len(batch)).backward()
            for name, number in {"loss": value, **losses.logs, **{f"loss_{k}": v for k, v in losses.terms.items()}}.items():
                sums[name] += number / len(batch)
        try:
            norms = self.optimizers.step()
        except NonFinite as error:
            raise SmatError(self._broken(str(error), batch)) from None
        self.step += 1
        self.method.after_step(self.step * len(batch))
        record = {**sums, **{f"norm_{name}": norm for name, norm in norms.items()}}
        run.log({"step": self.step, "kind": "train", "tasks": self.step * len(batch), **record})
        shown = {k: v for k, v in sums.items() if k in ("loss", "accuracy", "sparsity", "multiplier")}
        self.reporter.update(self.step * len(batch), **shown)

    def _broken(self, what: str, batch: list[Episode]) -> str:
        names = ", ".join(map(str, batch))
        return f"{what} at step {self.step + 1}, {names}; the last good checkpoint is kept: lower the learning rates and start another run"

    def _pause(self, run: RunDir, stop: StopRequest) -> None:
        """What happens between two updates: validation, checkpoints, stopping in good order."""
        t = self.recipe.train
        if self.step % t.valid_every == 0 or self.step == t.steps:
            self._validate(run)
        if stop:
            self._save(run, "last")
            raise stop.interrupted(f"step {self.step} of {t.steps}")
        if self.step % t.checkpoint_every == 0 and self.step < t.steps:
            self._save(run, "last")

    def _validate(self, run: RunDir) -> None:
        self.method.eval()
        found: Validation = self.validator.run(self.method)
        statistics = self.method.statistics()
        tasks = self.step * self.recipe.train.meta_batch
        run.log({"step": self.step, "kind": "valid", "tasks": tasks, **found.record(), **statistics})
        extra = "".join(f", {name} {value:.3g}" for name, value in statistics.items())
        self.reporter.line(f"step {self.step}: validation {100 * found.mean:.2f} +- {100 * found.half_width:.2f} %{extra}")
        if found.mean > self.best.mean and self.step > 0 and self.method.feasible():
            self.best = Best(found.mean, self.step)
            self._save(run, "best")

    def _save(self, run: RunDir, name: str) -> None:
        tensors, plain = self.optimizers.state_dict()
        state = {"step": self.step, "best": vars(self.best), "optimizers": plain}
        whole = name == "last"
        save_checkpoint(run.checkpoints / name, self.method.state_dict(), state, tensors if whole else None)

    def _continue(self, run: RunDir) -> None:
        """Take up the run's last checkpoint, if there is one."""
        folder = run.checkpoints / "last"
        if not has_checkpoint(folder):
            run.truncate(-1)
            return
        found = load_checkpoint(folder, self.reporter)
        restore(self.method, found.model, folder)
        self.optimizers.load_state_dict(found.optim, found.state["optimizers"])
        self.step, self.best = int(found.state["step"]), Best(**found.state["best"])
        run.truncate(self.step)
        self.reporter.line(f"continuing {run.path} at step {self.step}")
