"""The training loop of `smat train`, `pretrain`, `tune` and `segment`. Data, loss and score come from a `Learner` (learner.py).

A step is: batch -> gradients -> guard -> update -> record -> validation -> checkpoint -> stop, if a signal arrived. In RUN/checkpoints:

    last      all that is needed to resume the training and get the same bits as without a stop (`last.old`: the previous one)
    step-N    the same, never deleted (Schedule.keep_every)
    best      the weights with the best validation score
    failed    the weights at which too many updates in a row had to be skipped
"""

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic

import torch

from smatcli.device import give_back_memory
from smatcli.engine.loop.distributed import ALONE, World
from smatcli.engine.loop.guard import Guard, Problem
from smatcli.engine.loop.learner import Batch, Learner, TrainingProgress
from smatcli.engine.loop.optimizers import NonFinite
from smatcli.errors import SmatError
from smatcli.phases import phase
from smatcli.runs.checkpoint import has_checkpoint, kept_checkpoints, load_checkpoint, save_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import StopRequest


@dataclass
class Loop(Generic[Batch]):
    """A training, from the last checkpoint (if there is one) to the last step. All processes of `world` run it in lockstep."""

    learner: Learner[Batch]
    run: RunDir
    reporter: Reporter
    stop: StopRequest
    world: World = ALONE
    first_step: int = 0  # fields that identify this training in metrics.jsonl, which may contain several (folds)
    after_update: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.schedule, self.optimizers, self.guard = self.learner.schedule, self.learner.optimizers, Guard(self.learner.schedule.spike)
        self.progress, self._saved = TrainingProgress(), -1  # step of `last`

    def train(self) -> TrainingProgress:
        """Run the training. Raises SmatError after too many skipped updates in a row, Interrupted on a signal (after saving)."""
        self._resume()
        learner, progress, schedule = self.learner, self.progress, self.schedule
        if progress.step == 0 and schedule.valid_first:
            self._validate()
        self.reporter.start(schedule.steps * learner.per_step, learner.name, done=progress.step * learner.per_step, unit=learner.unit)
        try:
            with closing(learner.batches(progress.step)) as batches:
                for _, batch in zip(range(progress.step, schedule.steps), batches, strict=False):
                    self._step(batch)
                    self.after_update()
                    self._between_steps()
        finally:
            self.reporter.finish()
        if self._saved != progress.step:
            self._save("last")
        if self.world.is_main:
            shutil.rmtree(self.run.checkpoints / "failed", ignore_errors=True)  # left by an earlier attempt
        if self.guard.skipped:
            self.reporter.line(f"{self.guard.skipped} of {schedule.steps} updates were skipped")
        return progress

    def _step(self, batch: Batch) -> None:
        """Make one update, or skip it."""
        learner, progress, rates = self.learner, self.progress, self.optimizers.rates()
        torch.manual_seed(learner.noise(progress.step))
        self.guard.keep_buffers(learner.model)
        learner.model.train()
        self.optimizers.zero_grad()
        outcome = self._update(batch)
        progress.step += 1
        norms: dict[str, float] = {}
        shown: dict[str, float | int] = {}
        if isinstance(outcome, Problem):
            self._skip(outcome)
        else:
            numbers, norms = outcome
            self.guard.accept(numbers["loss"])
            progress.add(numbers)
            shown = learner.shown(numbers, progress)
        learner.after_step(progress.step)
        if progress.summed and (progress.step % self.schedule.log_every == 0 or progress.step == self.schedule.steps):
            self._log("train", **learner.train_record(progress.means(), norms, rates))
        self.reporter.update(progress.step * learner.per_step, **shown)

    def _update(self, batch: Batch) -> tuple[dict[str, float], dict[str, float]] | Problem:
        """Update the parameters. Return the learner's numbers and the gradient norms, or the reason why nothing was changed."""
        learner, step = self.learner, self.progress.step
        numbers = learner.backward(batch, step)
        if isinstance(numbers, Problem):
            return numbers
        if spike := self.guard.spike(numbers["loss"]):
            return Problem(spike, learner.episodes(batch, step))
        with phase("all-reduce"):
            self.world.sum_gradients([parameter for group in self.optimizers.groups.values() for parameter in group])
        try:
            with phase("optimizer"):
                return numbers, self.optimizers.step()
        except NonFinite as error:
            return Problem(str(error), learner.episodes(batch, step))

    def _skip(self, problem: Problem) -> None:
        """Undo and count the update. After too many in a row, stop."""
        self.optimizers.zero_grad()
        self.guard.restore_buffers()
        if self.guard.skip():
            self.progress.step -= 1
            self._save("failed")
            self._log("failed", **problem.record())
            row = f"; {self.guard.in_a_row} updates in a row were skipped" if self.guard.in_a_row > 1 else ""
            raise self._failure(self.progress.step + 1, f"{problem}{row}", problem)
        self.optimizers.set_step(self.progress.step)
        self._log("skip", skipped=self.guard.skipped, **problem.record())
        self.reporter.line(f"step {self.progress.step} is skipped: {problem}; {self.guard.skipped} so far")

    def _between_steps(self) -> None:
        """Validate, save or stop if it is due."""
        step, schedule = self.progress.step, self.schedule
        if step % schedule.valid_every == 0 or step == schedule.steps:
            self._validate()
        good = self.guard.in_a_row == 0  # after a skipped update, the weights may be diverging
        if good and schedule.keep_every and step % schedule.keep_every == 0:
            self._save(f"step-{step}")
        stopping = self.stop.agreed(self.world.all_max(self.stop.signum or 0))
        if stopping or (good and (step % schedule.checkpoint_every == 0 or step == schedule.steps)):
            self._save("last")
        if stopping:
            raise self.stop.interrupted(f"step {step} of {schedule.steps}")

    def _validate(self) -> None:
        """Validate, and save the weights if they are the best so far."""
        progress = self.progress
        self.optimizers.zero_grad()
        give_back_memory()  # gradients would occupy memory during inference
        self.learner.model.eval()
        score = self.learner.validate(progress.step)
        if score is None:
            return
        progress.score = score.value
        self._log("valid", **score.record)
        if score.line:
            self.reporter.line(score.line)
        if score.value > progress.best and progress.step > 0 and self.learner.feasible():
            progress.best, progress.best_step = score.value, progress.step
            self._save(self.learner.best_name)

    def _save(self, name: str) -> None:
        """Write a checkpoint: the whole training state as `last` and `step-N`, only the weights under other names."""
        if name != "failed" and (broken := self.optimizers.broken()):
            raise self._failure(self.progress.step, broken)
        tensors, groups = self.optimizers.state_dict()
        state = {**self.progress.state(), "first_step": self.first_step, "optimizers": groups, "guard": self.guard.state()}
        state |= {"data": self.learner.data, **self.learner.state()}
        folder, whole = self.run.checkpoints, name == "last" or name.startswith("step-")
        with self.world.fail_together():
            if self.world.is_main:
                self.run.sync()
                save_checkpoint(folder / name, self.learner.tensors(), state, tensors if whole else None, keep_before=name == "last")
                if name == "last":
                    self.learner.export(self.progress)
        self._saved = self.progress.step if name == "last" else self._saved

    def _resume(self) -> None:
        """Load the last checkpoint of this training, if there is one, and drop the records after it."""
        last, others = self.run.checkpoints / "last", kept_checkpoints(self.run.checkpoints)
        saved = load_checkpoint(last, self.reporter, others=others) if has_checkpoint(last) or others else None
        if saved is not None:
            self.learner.check_data(saved.state, self.run.path)
        if saved is None or saved.state.get("first_step", 0) != self.first_step:  # there is none, or it belongs to the previous fold
            self.run.truncate(self.first_step or -1)
            self.learner.start()
            return
        self.learner.load_state(saved.state)
        self.learner.load(saved.model, saved.path)
        self.optimizers.load_state_dict(saved.optim, saved.state["optimizers"])
        self.guard.restore(saved.state["guard"])
        self.progress = TrainingProgress.of(saved.state)
        self._saved = self.progress.step
        self.world.check_equal(self.learner.tensors().values(), f"checkpoints of {self.run.path}")
        self.run.truncate(self.first_step + self.progress.step)
        self.reporter.line(f"continuing {self.run.path} at step {self.progress.step} of {self.schedule.steps}")

    def _failure(self, step: int, what: str, problem: Problem | None = None) -> SmatError:
        """Return the error to raise if training cannot continue. It says what happened, where, what is kept, and what to do."""
        last = self.run.checkpoints / "last"
        kept = f"the last good checkpoint is kept in {last}" if has_checkpoint(last) else "no checkpoint was written yet"
        return SmatError(f"{self.learner.name} step {step}: {what}; {kept}; {self.learner.advice(problem)}")

    def _log(self, kind: str, **fields: Any) -> None:
        position = self.learner.position(self.progress.step)
        self.run.log({"step": self.first_step + self.progress.step, "kind": kind, **position, **fields})
