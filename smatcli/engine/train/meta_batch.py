"""Gradients of a meta-batch whose tasks are shared among processes. They equal those of a single process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from smatcli.data.counted import counted_key
from smatcli.engine.loop.distributed import World
from smatcli.engine.loop.guard import Problem, nonfinite
from smatcli.errors import UserError
from smatcli.methods.base import FlatMethod
from smatcli.phases import phase
from smatcli.seams import Episode

DONE, BAD, NOT_DONE = 0.0, 1.0, 2.0


def noise_of(seed: int, index: int) -> int:
    """Return the seed of all random numbers in the training loss of episode `index`."""
    return counted_key("noise", seed, index) % 2**63


@dataclass(frozen=True)
class MetaBatches:
    """The meta-batches of a training: step k uses the episodes k * tasks ... (k + 1) * tasks - 1.

    `named(index)` returns an episode without its images, for messages about episodes of other processes.
    """

    method: FlatMethod
    tasks: int
    seed: int
    world: World
    named: Callable[[int], Episode]

    def __post_init__(self) -> None:
        if self.tasks < self.world.size:
            raise UserError(
                f"train.meta_batch={self.tasks}: {self.world.size} processes need at least {self.world.size} tasks per update; "
                "start fewer processes"
            )

    @property
    def share(self) -> range:
        """Positions of this process's tasks in a meta-batch."""
        return self.world.share(self.tasks)

    def indices(self, steps: range) -> list[int]:
        """Return the indices of this process's episodes in these steps, in order."""
        return [step * self.tasks + k for step in steps for k in self.share]

    def episodes(self, batch: Sequence[Episode], step: int) -> Sequence[Episode]:
        """Return all episodes of a step; `batch` is this process's share of them."""
        return batch if len(batch) == self.tasks else [self.named(step * self.tasks + k) for k in range(self.tasks)]

    def backward(self, batch: Sequence[Episode], step: int) -> dict[str, float] | Problem:
        """Compute this process's share of the gradients of the mean loss over the tasks of a step.

        Returns the means of the numbers that the tasks report, or the first task whose loss is not finite. All processes return the same.
        """
        first, share = step * self.tasks, self.share
        device = self.method.theta_pre.device
        noises = [torch.Generator(device).manual_seed(noise_of(self.seed, first + k)) for k in range(self.tasks)]
        self.method.skip_tasks(noises[: share.start])
        self.method.begin(batch, noises[share.start : share.stop])
        rows: list[list[float]] = []
        names: list[str] = []
        problem: Problem | None = None
        for episode, noise in zip(batch, noises[share.start : share.stop], strict=True):
            losses = self.method.loss(episode, noise)
            value = float(losses.total.detach())
            if bad := nonfinite(value, losses.terms):
                problem = Problem(bad, [episode])
                rows.append([BAD, value])
                break
            with phase("backward"):
                (losses.total / self.tasks).backward()
            numbers = {"loss": value, **losses.logs, **{f"loss_{name}": number for name, number in losses.terms.items()}}
            names = list(numbers)
            rows.append([DONE, *numbers.values()])
        if problem is None:
            with phase("backward"):
                self.method.end()
        self.method.skip_tasks(noises[share.stop :])
        rows += [[NOT_DONE]] * (len(share) - len(rows))
        with phase("all-reduce"):
            table = self.world.gather_rows(self.tasks, share, rows)
        place = next((k for k, row in enumerate(table) if row[0] == BAD), None)
        if place is not None:
            if problem is not None and place in share:
                return problem
            return Problem(f"the loss is {table[place][1]}", [self.named(first + place)])
        means = dict.fromkeys(names, 0.0)
        for row in table:
            for name, number in zip(names, row[1:], strict=False):
                means[name] += number / self.tasks
        return means
