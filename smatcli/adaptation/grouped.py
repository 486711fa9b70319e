"""Several fine-tunings at once: episodes of equal shape, or the candidate rates of a search on one episode, and whether that pays.

Each one ends where it would alone, up to rounding. What was not finite alone is not finite here, and falls back to no step.
"""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal

import torch

from smatcli.adaptation.finetune import FineTune, theta_of
from smatcli.adaptation.proto import PrototypeClassifier
from smatcli.adaptation.steps import take
from smatcli.seams import Support, Task

log = logging.getLogger(__name__)
LARGEST = 1024  # images, augmented copies included, of a group: more fill a device one after the other as well
MOST = 16
PROBE = 4  # steps that are timed
MEASURED = ("cuda",)  # devices where grouping may pay


def adapt_many(
    adaptation: FineTune,
    tasks: Sequence[Task],
    supports: Sequence[Support],
    rates: Sequence[float],
    starts: Sequence[PrototypeClassifier] | None = None,
) -> list[PrototypeClassifier]:
    """The classifiers that `adaptation.at(rate).adapt(task, support)` gives for each task, support and rate, by steps side by side.

    The tasks are of one network and their supports of one shape (`alike`); `starts`: what `before` gave for each. A rate of 0 takes no
    steps; one that is left over is tuned alone. Raises `UserError` as `adapt` does.
    """
    ours = [adaptation.at(rate) for rate in rates]
    if starts is None:
        found: dict[tuple[int, int], PrototypeClassifier] = {}
        pairs = list(zip(tasks, supports, strict=True))
        for one, (task, support) in zip(ours, pairs, strict=True):
            if (id(task), id(support)) not in found:
                found[id(task), id(support)] = one.before(task, support)
        starts = [found[id(task), id(support)] for task, support in pairs]
    moving = [i for i, rate in enumerate(rates) if rate]
    ends: dict[int, PrototypeClassifier] = {}
    if len(moving) > 1:
        thetas, traces = _side_by_side(adaptation, [tasks[i] for i in moving], [supports[i] for i in moving], [rates[i] for i in moving])
        for i, theta, trace in zip(moving, thetas, traces, strict=True):
            ends[i] = ours[i].result(tasks[i], supports[i], starts[i], theta, trace)
    return [ends[i] if i in ends else one.tuned(tasks[i], supports[i], starts[i]) for i, one in enumerate(ours)]


def _side_by_side(
    adaptation: FineTune, tasks: Sequence[Task], supports: Sequence[Support], rates: Sequence[float]
) -> tuple[list[torch.Tensor], list[list[float]]]:
    """theta [P] and losses of each; nothing of tasks, supports or the network is written."""
    with torch.inference_mode(False), torch.enable_grad():
        # One copy of what several have in common, so that `take` knows it again; and not of inference mode: part of a graph.
        copies = {id(one): Support(one.images.clone(), one.labels.clone(), one.ways) for one in supports}
        known = {id(task): adaptation.tunable(task, several=True) for task in tasks}
        tunables = [known[id(task)] for task in tasks]
        members = [
            tunable.member(copies[id(support)], rate * adaptation.factor, task.seed)
            for tunable, support, rate, task in zip(tunables, supports, rates, tasks, strict=True)
        ]
        shared = len(known) == 1 or not members[0].fixed.numel()
        steps = adaptation.steps(tunables[0], members[0], tasks[0], len(members), shared)
        assert steps is not None
        with adaptation.noise(tasks):
            traces = take(steps, members, adaptation.config)
        return [theta_of(tunable, steps.values[i]) for i, tunable in enumerate(tunables)], traces


def alike(one: tuple[Task, Support], other: tuple[Task, Support]) -> bool:
    """May these two be tuned side by side?"""
    (task, support), (task_, support_) = one, other
    return (
        task.module is task_.module
        and task.scale == task_.scale
        and task.theta.shape == task_.theta.shape
        and support.ways == support_.ways
        and support.images.shape == support_.images.shape
        and support.images.dtype == support_.images.dtype
    )


def can_group(adaptation: object, task: Task) -> bool:
    """Is it a fine-tuning of a network that the task names, by values that say the same for every task?"""
    known = task.module is not None and task.run is not None and task.space is not None
    return known and isinstance(adaptation, FineTune) and adaptation.groups


class Grouping:
    """How many fine-tunings are run side by side: 1, a number (as far as `batch` allows), or "auto".

    auto: one after the other on a CPU, where batched products of small matrices are slower (a ViT of width 128, two side by side: 1.44
    times the time). On CUDA both ways are tried once for a shape, and the faster one is taken, with one line to `say`.
    """

    def __init__(self, setting: int | Literal["auto"] = "auto", say: Callable[[str], None] = log.info) -> None:
        self.setting, self.say = setting, say
        self._found: dict[tuple[object, ...], int] = {}

    def size(self, adaptation: object, task: Task, support: Support) -> int:
        """Members of a group of fine-tunings of this shape, at least 1."""
        if self.setting == 1 or not can_group(adaptation, task):
            return 1
        assert isinstance(adaptation, FineTune)
        images = 2 * len(support.labels)
        most = adaptation.config.batch // images
        if self.setting != "auto":
            return max(1, min(self.setting, most))
        count = min(MOST, LARGEST // images, most)
        if task.theta.device.type not in MEASURED or count < 2:
            return 1
        key = (adaptation.name, id(task.module), task.theta.shape, support.ways, *support.images.shape)
        if key not in self._found:
            ratio = measured(adaptation, task, support, count)
            self._found[key] = count if ratio < 1 else 1
            way = f"{count} side by side" if ratio < 1 else "one after the other"
            cost = f"{ratio:.2f} of the time" if ratio < float("inf") else "out of memory"
            self.say(f"{adaptation.name}: fine-tunings on {images // 2} images run {way} ({count} side by side: {cost})")
        return self._found[key]


def measured(adaptation: FineTune, task: Task, support: Support, count: int) -> float:
    """Seconds of `count` short fine-tunings side by side over those of one after the other; inf where memory does not suffice."""
    probe = copy.copy(adaptation)
    probe.config = adaptation.config.model_copy(update={"steps": PROBE})
    tasks = [replace(task, theta=task.theta.clone(), seed=i) for i in range(count)]
    with suppress(torch.OutOfMemoryError):
        alone = _seconds(lambda: [adapt_many(probe, [one], [support], [1e-6]) for one in tasks], task.theta.device)
        return _seconds(lambda: adapt_many(probe, tasks, [support] * count, [1e-6] * count), task.theta.device) / alone
    torch.cuda.empty_cache()
    return float("inf")


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of the third call: the first ones choose kernels and capture."""
    for last in (False, False, True):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if last:
            return time.perf_counter() - begun
    raise AssertionError
