"""The gradient of a meta-batch: its tasks dealt to the processes, their losses and gradients joined as if one process had done them all."""

from collections.abc import Callable, Sequence

import torch

from smatcli.data.counted import counted_key
from smatcli.engine.loop.distributed import World
from smatcli.engine.loop.guard import Problem, bad_terms
from smatcli.errors import UserError
from smatcli.methods.base import FlatMethod
from smatcli.phases import phase
from smatcli.seams import Episode

DONE, BAD, NOT_DONE = 0.0, 1.0, 2.0


def noise_of(seed: int, index: int) -> int:
    """Seed of everything random in the training loss of episode `index`."""
    return counted_key("noise", seed, index) % 2**63


def check_deal(tasks: int, world: World) -> None:
    """UserError where some process would have nothing to do."""
    if tasks < world.size:
        raise UserError(
            f"train.meta_batch={tasks}: {world.size} processes need at least {world.size} tasks an update; start fewer processes"
        )


def dealt(steps: range, tasks: int, world: World) -> list[int]:
    """Indices of the episodes that this process learns from in these updates, in order."""
    return [step * tasks + k for step in steps for k in world.share(tasks)]


def gradients(
    method: FlatMethod,
    batch: Sequence[Episode],
    first: int,
    tasks: int,
    seed: int,
    world: World,
    named: Callable[[int], Episode],
    parameters: Sequence[torch.nn.Parameter],
) -> tuple[dict[str, float], Problem | None]:
    """Gradients of the mean loss over `tasks` tasks from episode `first` on, of which `batch` are this process's.

    Returns the means of what the tasks report, and the first task that cannot be used (`named` tells of episodes that are elsewhere): the
    same in every process. Without such a task `parameters` have the gradients of all tasks.
    """
    share = world.share(tasks)
    device = method.theta_pre.device
    noises = [torch.Generator(device).manual_seed(noise_of(seed, first + k)) for k in range(tasks)]
    method.skip_tasks(noises[: share.start])
    method.begin(batch, noises[share.start : share.stop])
    rows: list[list[float]] = []
    names: list[str] = []
    problem: Problem | None = None
    for episode, noise in zip(batch, noises[share.start : share.stop], strict=True):
        losses = method.loss(episode, noise)
        value = float(losses.total.detach())
        if bad := bad_terms(value, losses.terms):
            problem = Problem(bad, [episode])
            rows.append([BAD, value])
            break
        with phase("backward"):
            (losses.total / tasks).backward()
        numbers = {"loss": value, **losses.logs, **{f"loss_{name}": number for name, number in losses.terms.items()}}
        names = list(numbers)
        rows.append([DONE, *numbers.values()])
    if problem is None:
        with phase("backward"):
            method.end()
    method.skip_tasks(noises[share.stop :])
    rows += [[NOT_DONE]] * (len(share) - len(rows))
    with phase("all-reduce"):
        table = world.gather_rows(tasks, share, rows)
        place = next((k for k, row in enumerate(table) if row[0] == BAD), None)
        if place is not None:
            own = problem is not None and place in share
            return {}, problem if own else Problem(f"the loss is {table[place][1]}", [named(first + place)])
        world.sum_gradients(parameters)
    sums = dict.fromkeys(names, 0.0)
    for row in table:
        for name, number in zip(names, row[1:], strict=False):
            sums[name] += number / tasks
    return sums, None
