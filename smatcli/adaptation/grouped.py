"""Several fine-tunings side by side: episodes of equal shape, or the candidate rates of a search on one episode.

Each result equals that of a separate fine-tuning, up to rounding. A fine-tuning that would diverge alone diverges here too, and falls back
to zero steps.

Undecided until measured on a GPU: whether groups are faster. On a CPU they are 1.35 to 1.5 times slower.
"""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import torch

from smatcli.adaptation.finetune import FineTune, theta_of
from smatcli.adaptation.proto import PrototypeClassifier
from smatcli.adaptation.steps import take
from smatcli.seams import Support, Task

log = logging.getLogger(__name__)
LARGEST = 1024  # images of a group, including augmented copies; more images fill a device without grouping
MOST = 16
PROBE = 4  # timed steps
MEASURED = ("cuda",)  # devices on which grouping is tried
AnyFineTune = FineTune[Any]


def adapt_many(
    adaptation: AnyFineTune,
    tasks: Sequence[Task],
    supports: Sequence[Support],
    rates: Sequence[float],
    starts: Sequence[PrototypeClassifier] | None = None,
) -> list[PrototypeClassifier]:
    """Return the classifier of `adaptation.at(rate).adapt(task, support)` for each task, support and rate, with steps side by side.

    All tasks must have the same network and supports of one shape (`alike`). `starts` are the results of `before`. A rate of 0 takes no
    steps; a single remaining task is tuned alone. Raises `UserError` as `adapt` does.
    """
    ours = [adaptation.at(rate) for rate in rates]
    if starts is None:
        before: dict[tuple[int, int], PrototypeClassifier] = {}
        pairs = list(zip(tasks, supports, strict=True))
        for own, (task, support) in zip(ours, pairs, strict=True):
            if (id(task), id(support)) not in before:
                before[id(task), id(support)] = own.before(task, support)
        starts = [before[id(task), id(support)] for task, support in pairs]
    moving = [i for i, rate in enumerate(rates) if rate]
    ends: dict[int, PrototypeClassifier] = {}
    if len(moving) > 1:
        thetas, traces = _side_by_side(adaptation, [tasks[i] for i in moving], [supports[i] for i in moving], [rates[i] for i in moving])
        for i, theta, trace in zip(moving, thetas, traces, strict=True):
            ends[i] = ours[i].result(tasks[i], supports[i], starts[i], theta, trace)
    return [ends[i] if i in ends else own.tuned(tasks[i], supports[i], starts[i]) for i, own in enumerate(ours)]


def _side_by_side(
    adaptation: AnyFineTune, tasks: Sequence[Task], supports: Sequence[Support], rates: Sequence[float]
) -> tuple[list[torch.Tensor], list[list[float]]]:
    """Return theta [P] and losses of each task; tasks, supports and the network are not modified."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        # Copies, because inference-mode tensors cannot join a graph; one per support, so that `take` recognises shared ones.
        copies = {id(s): Support(s.images.clone(), s.labels.clone(), s.ways) for s in supports}
        by_task = {id(task): adaptation.tunable(task, several=True) for task in tasks}
        tunables = [by_task[id(task)] for task in tasks]
        members = [
            tunable.member(copies[id(support)], rate * adaptation.factor, task.seed)
            for tunable, support, rate, task in zip(tunables, supports, rates, tasks, strict=True)
        ]
        shared = len(by_task) == 1 or not members[0].fixed.numel()
        steps = adaptation.steps(tunables[0], members[0], tasks[0], len(members), shared)
        assert steps is not None
        with adaptation.noise(tasks):
            traces = take(steps, members, adaptation.config)
        return [theta_of(tunable, steps.values[i]) for i, tunable in enumerate(tunables)], traces


def alike(pair: tuple[Task, Support], other: tuple[Task, Support]) -> bool:
    """Whether two tasks with their supports can be tuned side by side."""
    (task, support), (task_, support_) = pair, other
    return (
        task.module is task_.module
        and task.scale == task_.scale
        and task.theta.shape == task_.theta.shape
        and support.ways == support_.ways
        and support.images.shape == support_.images.shape
        and support.images.dtype == support_.images.dtype
    )


def can_group(adaptation: object, task: Task) -> bool:
    """Whether `adaptation` is a fine-tuning that supports groups, and the task's network can be called with any parameters."""
    callable_network = task.module is not None and task.run is not None and task.space is not None
    return callable_network and isinstance(adaptation, FineTune) and adaptation.groups


class Grouping:
    """The number of fine-tunings to run side by side: 1, a number (limited by `batch`), or "auto".

    "auto" runs them one after the other on a CPU, where batched products of small matrices are slower (two side by side on a ViT of width
    128 take 1.44 times as long). On CUDA, both ways are timed once per shape, and one line about the choice is passed to `report`.
    """

    def __init__(self, setting: int | Literal["auto"] = "auto", report: Callable[[str], None] = log.info) -> None:
        self.setting, self.report = setting, report
        self._sizes: dict[tuple[object, ...], int] = {}

    def size(self, adaptation: object, task: Task, support: Support) -> int:
        """Return the size of a group of fine-tunings of this shape, at least 1."""
        if self.setting == 1 or not can_group(adaptation, task):
            return 1
        assert isinstance(adaptation, FineTune)
        images = 2 * len(support.labels)
        most = int(adaptation.config.batch // images)
        if self.setting != "auto":
            return max(1, min(self.setting, most))
        count = min(MOST, LARGEST // images, most)
        if task.theta.device.type not in MEASURED or count < 2:
            return 1
        key = (adaptation.name, id(task.module), task.theta.shape, support.ways, *support.images.shape)
        if key not in self._sizes:
            ratio = measured(adaptation, task, support, count)
            self._sizes[key] = count if ratio < 1 else 1
            way = f"{count} side by side" if ratio < 1 else "one after the other"
            cost = f"{ratio:.2f} of the time" if ratio < float("inf") else "out of memory"
            self.report(f"{adaptation.name}: fine-tunings on {images // 2} images run {way} ({count} side by side: {cost})")
        return self._sizes[key]


def measured(adaptation: AnyFineTune, task: Task, support: Support, count: int) -> float:
    """Return the ratio of the time of `count` short fine-tunings side by side to one after the other; inf if out of memory."""
    probe = copy.copy(adaptation)
    probe.config = adaptation.config.model_copy(update={"steps": PROBE})
    tasks = [replace(task, theta=task.theta.clone(), seed=i) for i in range(count)]
    with suppress(torch.OutOfMemoryError):
        alone = _seconds(lambda: [adapt_many(probe, [single], [support], [1e-6]) for single in tasks], task.theta.device)
        return _seconds(lambda: adapt_many(probe, tasks, [support] * count, [1e-6] * count), task.theta.device) / alone
    torch.cuda.empty_cache()
    return float("inf")


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the duration of the third call in seconds; the first two select kernels and capture graphs."""
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
