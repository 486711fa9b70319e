"""One training of a tuner on one task: steps, validations, checkpoints of what is trained, and the test."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smatcli.backbones import create_backbone
from smatcli.config.schema import AugmentConfig
from smatcli.config.tune import TuneRecipe, groups_of
from smatcli.data.counted import counted_key
from smatcli.device import Precision, choose_device
from smatcli.engine.loop.guard import Guard, bad_terms
from smatcli.engine.loop.optimizers import NonFinite, Optimizers, build_optimizers
from smatcli.engine.tune.task import GIB, Task, View, in_order, open_task, scores, seen, shuffled
from smatcli.errors import SmatError, UserError
from smatcli.runs.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import StopRequest
from smatcli.safe.text import read_own_json
from smatcli.tuning import Tuner, build_tuner

if TYPE_CHECKING:
    pass

LOG_EVERY = 50  # steps between training records
PROBE = 4  # images whose frozen prefix tells its size


@dataclass
class Progress:
    """Where a training stands; plain data that goes into the checkpoint."""

    step: int = 0
    sums: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "accuracy": 0.0, "steps": 0})
    score: float | None = None  # of the last validation
    best: float = -1.0
    best_step: int = 0
    seconds: float = 0.0  # of training alone


def make_tuner(recipe: TuneRecipe, classes: int) -> Tuner:
    """The tuner of a recipe over its backbones; new parameters (and the weights of backbones without any) are counted by the seed."""
    configs = [recipe.backbone, *getattr(recipe.tuner, "experts", [])]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted_key("tune-backbone", recipe.seed) % 2**63)
        backbones = [create_backbone(config) for config in configs]
        torch.manual_seed(counted_key("tune-model", recipe.seed) % 2**63)
        return build_tuner(recipe.tuner, backbones, classes)


def trained(tuner: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds: parameters that are trained, and buffers."""
    return {n: p for n, p in tuner.named_parameters() if p.requires_grad} | dict(tuner.named_buffers())


def frozen_digest(tuner: nn.Module) -> str:
    """SHA-256 of what is not trained: a checkpoint goes with these weights alone."""
    digest = hashlib.sha256()
    for name, parameter in sorted(tuner.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_trained(tuner: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Put the tensors of a checkpoint in their places; SmatError where they are others."""
    own = trained(tuner)
    if own.keys() != tensors.keys() or any(own[n].shape != t.shape for n, t in tensors.items()):
        raise SmatError(f"{where}: holds other parameters than the recipe's tuner; choose another run=")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


class Fit:
    """One training: `folder` holds its checkpoints, `log` gets its records, `score` is the last validation's."""

    def __init__(
        self, recipe: TuneRecipe, task: Task, tuner: Tuner, device: torch.device, precision: Precision, folder: Path,
        reporter: Reporter, log: Callable[[dict[str, Any]], None], what: str = "tuning",
    ) -> None:  # fmt: skip
        self.recipe, self.task, self.device, self.precision = recipe, task, device, precision
        self.folder, self.reporter, self.log, self.what = folder, reporter, log, what
        self.tuner = tuner.to(device)
        precision.apply(tuner)
        rows = task.fitted(recipe)
        keep = len(rows) * task.store.image_size**2 * 3 <= recipe.tune.memory * GIB
        self.train = View(task, rows, device, keep)
        checked = task.rows["valid"] if recipe.data.fit == "train" else rows[:0]
        self.valid = View(task, checked, device, keep) if len(checked) else None
        batch = recipe.tune.batch_size
        self.per_epoch = len(shuffled(len(rows), batch, 0, 0))
        self.steps = max(1, round(recipe.tune.epochs * self.per_epoch))
        self.every = recipe.tune.valid_every * self.per_epoch
        self.optimizers = make_optimizers(recipe, tuner, self.steps)
        self.guard, self.done = Guard(recipe.tune.spike), Progress()
        self.frozen = frozen_digest(tuner)
        self._prefixes: dict[int, Tensor] = {}

    def restore(self) -> int:
        """Continue where the last checkpoint stands, if there is one; the step."""
        last = self.folder / "last"
        if not has_checkpoint(last):
            return -1
        saved = load_checkpoint(last, self.reporter)
        if saved.state["data"] != self.task.store.content_hash:
            raise UserError(f"the store {self.task.store.path} changed since the run at {self.folder.parent} began; choose another run=")
        if saved.state["frozen"] != self.frozen:
            raise UserError(f"backbone.weights: others than those that the run at {self.folder.parent} began with; choose another run=")
        load_trained(self.tuner, saved.model, saved.path)
        self.optimizers.load_state_dict(saved.optim, saved.state["optim"])
        self.done = Progress(**saved.state["progress"])
        self.guard.restore(saved.state["guard"])
        if self.done.step:
            self.reporter.line(f"continuing {self.folder.parent} at step {self.done.step} of {self.steps}")
        return self.done.step

    def save(self, best: bool = False) -> None:
        """Write `last` (and `best`)."""
        if broken := self.optimizers.broken():
            raise SmatError(self._diverged(broken))
        tensors, optim = self.optimizers.state_dict()
        state = {"progress": asdict(self.done), "optim": optim, "guard": self.guard.state(), "frozen": self.frozen}
        state["data"] = self.task.store.content_hash
        if best:
            save_checkpoint(self.folder / "best", trained(self.tuner), state)
        save_checkpoint(self.folder / "last", trained(self.tuner), state, tensors, keep_before=True)

    def run(self, stop: StopRequest) -> None:
        """Train to the end; Interrupted on a signal, with a checkpoint."""
        self.reporter.start(self.steps, self.what, done=self.done.step)
        cached = self._prefix(self.train)
        began, before = time.monotonic(), self.done.seconds
        try:
            while self.done.step < self.steps:
                epoch, start = divmod(self.done.step, self.per_epoch)
                chunks = shuffled(len(self.train), self.recipe.tune.batch_size, self.recipe.seed, epoch)[start:]
                source = self._of(cached, chunks) if cached is not None else self.train.batches(chunks)
                for chosen, given in source:
                    self._step(chosen, given, epoch, cached is not None)
                    self.done.seconds = before + time.monotonic() - began
                    if self.done.step % self.every == 0 or self.done.step == self.steps:
                        self._validate()
                    if stop:
                        self.save()
                        raise stop.interrupted(f"step {self.done.step} of {self.steps}")
                    if self.done.step == self.steps:
                        break
        finally:
            self.reporter.finish()

    def _of(self, cached: Tensor, chunks: list[np.ndarray]):  # type: ignore[no-untyped-def]
        for chunk in chunks:
            chosen = torch.from_numpy(chunk).to(self.device)
            yield chosen, cached[chosen]

    @torch.no_grad()
    def _prefix(self, view: View) -> Tensor | None:
        """The frozen prefix of all images of a view, or None: not with augmentation, where there is none, or more than fits."""
        if self.recipe.tune.augment != AugmentConfig() or not len(view):
            return None
        if id(view) in self._prefixes:
            return self._prefixes[id(view)]
        self.tuner.eval()
        found: list[Tensor] = []
        for _, raw in view.batches([np.arange(min(PROBE, len(view))), *in_order(len(view))]):
            with self.precision.autocast():
                prefix = self.tuner.frozen_prefix(seen(raw, self.recipe))
            if prefix is None or (not found and prefix[0].nbytes * len(view) > self.recipe.tune.memory * GIB):
                return None
            found.append(prefix)
        self._prefixes[id(view)] = torch.cat(found[1:])
        return self._prefixes[id(view)]

    def _step(self, chosen: Tensor, given: Tensor, epoch: int, ready: bool) -> None:
        done, rates = self.done, self.optimizers.rates()
        self.guard.remember(self.tuner)
        loss, accuracy, problem = self._update(chosen, given, ready)
        done.step += 1
        if problem is not None:
            self._leave_out(problem)
        else:
            self.guard.made(loss)
            sums = done.sums
            done.sums = {"loss": sums["loss"] + loss, "accuracy": sums["accuracy"] + accuracy, "steps": sums["steps"] + 1}
        shown = {} if done.score is None else {"valid": done.score}
        self.reporter.update(done.step, epoch=epoch + 1, loss=loss, **shown)
        if done.step % LOG_EVERY == 0 or done.step == self.steps:
            means = {k: done.sums[k] / max(1.0, done.sums["steps"]) for k in ("loss", "accuracy")}
            self.log({"kind": "train", "step": done.step, "epoch": done.step / self.per_epoch, **means, "lr": max(rates.values())})
            done.sums = dict.fromkeys(done.sums, 0.0)

    def _update(self, chosen: Tensor, given: Tensor, ready: bool) -> tuple[float, float, str | None]:
        """One update of a batch (raw images, or their prefixes where `ready`): loss, accuracy, and why it was not made, if so."""
        noise = counted_key("tune", self.recipe.seed, self.done.step) % 2**63
        torch.manual_seed(noise)  # masks and dropout read the global generator
        labels = self.train.labels[chosen]
        self.tuner.train()
        images = given if ready else seen(given, self.recipe, torch.Generator().manual_seed(noise))
        with self.precision.autocast():
            logits = self.tuner.from_prefix(images) if ready else self.tuner(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.tune.label_smoothing)
        right = (logits.argmax(1) == labels).float().mean()
        value, accuracy = torch.stack([loss.detach(), right]).tolist()
        if problem := bad_terms(value, {}) or self.guard.spike(value):
            return value, accuracy, problem
        self.optimizers.zero_grad()
        loss.backward()
        try:
            self.optimizers.step()
        except NonFinite as error:
            return value, accuracy, str(error)
        return value, accuracy, None

    def _leave_out(self, problem: str) -> None:
        self.guard.forget()
        self.optimizers.set_step(self.done.step)
        if self.guard.left_out():
            self.done.step -= 1
            raise SmatError(self._diverged(problem))
        self.log({"kind": "skip", "step": self.done.step, "reason": problem, "skipped": self.guard.skipped})
        self.reporter.line(f"step {self.done.step} is left out: {problem}; {self.guard.skipped} so far")

    def _diverged(self, what: str) -> str:
        last = self.folder / "last"
        kept = f"the last good checkpoint is kept in {last}" if has_checkpoint(last) else "no checkpoint was written yet"
        return f"tuning step {self.done.step}: {what}; {kept}; lower tune.lr or set tune.clip in a new run"

    def _validate(self) -> None:
        better, done = False, self.done
        if self.valid is not None:
            found = scores(self.logits(self.tuner, self.valid, cached=True), self.valid.labels.cpu().numpy())
            done.score = found[self.recipe.tune.metric]
            better = done.score > done.best
            if better:
                done.best, done.best_step = done.score, done.step
            names = {key.replace("-", "_"): value for key, value in found.items()}
            self.log({"kind": "valid", "step": done.step, "epoch": done.step / self.per_epoch, "mean": done.score, **names})
        self.save(better)

    @torch.no_grad()
    def logits(self, net: nn.Module, view: View, cached: bool = False, tick: Callable[[int], None] | None = None) -> np.ndarray:
        """Logits [n, C] of a view's images by a network of the tuner's inputs; `tick` hears how many are done."""
        net.eval()
        prefix = self._prefix(view) if cached else None
        found = []
        chunks = in_order(len(view))
        for chosen, given in self._of(prefix, chunks) if prefix is not None else view.batches(chunks):
            with self.precision.autocast():
                out = self.tuner.from_prefix(given) if prefix is not None else net(seen(given, self.recipe))
            found.append(out.float().cpu())
            if tick is not None:
                tick(int(chosen[-1]) + 1)
        return torch.cat(found).numpy()

    def chosen(self) -> None:
        """Load the weights that are tested: the last ones, or the best of the validations."""
        if self.recipe.tune.select == "best":
            saved = load_checkpoint(self.folder / "best", self.reporter)
            load_trained(self.tuner, saved.model, saved.path)


def make_optimizers(recipe: TuneRecipe, tuner: Tuner, steps: int) -> Optimizers:
    """AdamW by default; numbers, biases and norms have no weight decay."""
    bare = [p for p in tuner.parameters() if p.ndim <= 1]
    groups = {name: params for name, params in tuner.trainable().items() if params}
    configs = {name: config for name, config in groups_of(recipe).items() if name in groups}
    return build_optimizers(groups, configs, steps, no_decay=bare, where="tune")


RESULT, SEARCH = "tune.json", "search"


def changed(recipe: TuneRecipe, values: dict[str, Any]) -> TuneRecipe:
    """The recipe with other values by dotted key."""
    data = recipe.model_dump(mode="json")
    for key, value in values.items():
        *parents, last = key.split(".")
        place = data
        for step in parents:
            place = place[step]
        place[last] = value
    return TuneRecipe.model_validate_json(json.dumps(data))


def load_tuned(
    folder: Path | str, reporter: Reporter | None = None, device: str | None = None
) -> tuple[TuneRecipe, Task, Tuner, torch.device]:
    """Recipe (with the searched values), task and trained tuner of a finished run; UserError for another one."""
    from smatcli.runs.checkpoint import load_checkpoint

    run = RunDir.open(folder)
    if not isinstance(run.recipe, TuneRecipe):
        raise UserError(f"{folder}: is no run of smat tune, but of smat {run.recipe.kind}")
    if not (run.path / RESULT).is_file():
        raise UserError(f"{folder}: is not finished; `smat tune --resume` continues it")
    recipe = changed(run.recipe, read_own_json(run.path / RESULT)["searched"])
    where = choose_device(device or recipe.device)
    task = open_task(recipe)
    tuner = make_tuner(recipe, task.classes)
    saved = load_checkpoint(run.checkpoints / recipe.tune.select, reporter)
    load_trained(tuner, saved.model, saved.path)
    return recipe, task, tuner.to(where).eval(), where
