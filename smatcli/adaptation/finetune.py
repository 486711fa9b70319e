"""The loop of `full`, `lora` and `joint`: Adam on one flat vector, with the loss of an augmented support set (PMF's fine-tuning).

Each step embeds the support images and augmented copies of them in one forward pass. Prototypes come from the images, with gradient; the
copies are classified by them. Neither task nor model is modified: the vector is a separate leaf, initialised by one `copy_` per task.
On CUDA, a step is captured once per shape and replayed (`steps.py`). Several tasks side by side: `grouped.py`.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smatcli.adaptation.diffaugment import diff_augment
from smatcli.adaptation.proto import Proto, PrototypeClassifier
from smatcli.adaptation.steps import Member, Pure, Steps, captured, take
from smatcli.backbones.lean import lean
from smatcli.config.finetune import FullConfig
from smatcli.errors import UserError
from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.seams import Classifier, Support, Task

Watch = Callable[[Classifier], None]
Config = TypeVar("Config", bound=FullConfig)
SHAPES = 4  # number of shapes whose static tensors are kept


@dataclass(frozen=True)
class Tunable:
    """The values [N] to tune, initially `start`, and the functions that use them.

    `embed(images, network(values))` are the features (with graph), and `theta(values)` the task's parameters [P].
    `pure(values, fixed, images)` are the same features as a function that depends on the task through `fixed` [F] only, so that all tasks
    of a network can share it (None: not available).
    """

    start: Tensor
    network: Callable[[Tensor], Any]
    embed: Callable[[Tensor, Any], Tensor]
    theta: Callable[[Tensor], Tensor]
    pure: Pure | None = None
    fixed: Tensor | None = None

    def member(self, support: Support, rate: float, seed: int) -> Member:
        """Return this task as a member of a group."""
        return Member(self.start, self.start[:0] if self.fixed is None else self.fixed, support, rate, seed)


class Leaf:
    """A leaf [N] with its Adam moments, whose memory is reused across tasks."""

    def __init__(self) -> None:
        self.values: Tensor | None = None

    def begin(self, start: Tensor, rate: float) -> tuple[Tensor, torch.optim.Adam]:
        """Return the leaf, set to `start` [N], and its reset optimizer with learning rate `rate`."""
        values = self.values
        if values is None or (values.shape, values.dtype, values.device) != (start.shape, start.dtype, start.device):
            self.values = values = torch.empty_like(start).requires_grad_()
            fused = start.is_floating_point() and start.device.type in ("cpu", "cuda")
            self.optimizer = torch.optim.Adam([values], fused=fused)
        with torch.no_grad():
            values.copy_(start)
        values.grad = None
        self.optimizer.param_groups[0]["lr"] = rate
        for moment in self.optimizer.state.get(values, {}).values():
            moment.zero_()
        return values, self.optimizer


class FineTune(ABC, Generic[Config]):
    """A fine-tuning adaptation with learning rate `config.lr`, or that of `at(rate)`."""

    name: str
    factor = 1.0
    groups = True  # whether several tasks can be tuned side by side
    noisy = False  # whether the network embeds equal images differently in training

    def __init__(self, config: Config) -> None:
        self.config, self.rate = config, config.lr
        self.graphs: bool | None = None  # whether to replay captured steps; None: on CUDA
        self._leaf = Leaf()
        self._lean: dict[bool, tuple[nn.Module, nn.Module]] = {}
        self._steps: dict[Hashable, Steps | None] = {}
        self._seen: set[Hashable] = set()

    def at(self, rate: float) -> Self:
        """Return the same adaptation with another learning rate. Both share memory, so use them one after the other."""
        other = copy.copy(self)
        other.rate = rate
        return other

    @abstractmethod
    def tunable(self, task: Task, several: bool = False) -> Tunable:
        """Return the tunable values of a task (`several`: as part of a group). Raises `UserError` if the task has none."""

    def noise(self, tasks: Sequence[Task]) -> AbstractContextManager[object]:
        """Return a context for training passes of a network with noise; it restores the global generators."""
        return nullcontext()

    def embedding(self, task: Task, several: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
        """Return `task.embed`, with only the CLS token in the last block if the task's network supports it."""
        module, run, space = task.module, task.run, task.space
        if module is None or run is None or space is None:
            return task.embed
        if self._lean.get(several, (None,))[0] is not module:
            self._lean[several] = (module, lean(module, several) or module)
        net = self._lean[several][1]
        return lambda images, theta: run(net, space.unflatten(theta), images)

    def adapt(self, task: Task, support: Support, watch: Watch | None = None) -> PrototypeClassifier:
        """Return the prototype classifier of the tuned parameters.

        `info`: `passes`, `loss_start` and `loss` (of the unaugmented support set), `rate`, `steps`, `trace` (loss of each step). With rate
        0, or if a loss or parameter is not finite, `steps` is 0 and the classifier is that from before the first step.
        `watch` is called with the classifier before the first step and after each step; its result is ignored.
        Raises `UserError` without a rate.
        """
        return self.tuned(task, support, self.before(task, support), watch)

    def before(self, task: Task, support: Support) -> PrototypeClassifier:
        """Return the classifier before the first step. Raises `UserError` without a rate."""
        if self.rate is None:
            raise UserError(f"{self.name} needs a learning rate: set adapt.{self.name}.lr, or use --search valid")
        return Proto().adapt(task, support)

    def tuned(self, task: Task, support: Support, start: PrototypeClassifier, watch: Watch | None = None) -> PrototypeClassifier:
        """Return the result of `adapt`, given `start` from `before` of the task (at any rate), which is not modified."""
        _show(watch, task, start.theta, start.centres)
        if not self.rate:
            return self.result(task, support, start, None, [])
        with torch.inference_mode(mode=False), torch.enable_grad():
            copied = Support(support.images.clone(), support.labels.clone(), support.ways)  # inference-mode tensors cannot join a graph
            tunable = self.tunable(task)
            steps = self.replayed(tunable, copied, task)
            with self.noise([task]):
                theta, trace = (
                    self._train(task, copied, tunable, watch) if steps is None else self._replay(task, copied, tunable, steps, watch)
                )
        return self.result(task, support, start, theta, trace)

    def result(
        self, task: Task, support: Support, start: PrototypeClassifier, theta: Tensor | None, trace: list[float]
    ) -> PrototypeClassifier:
        """Return the classifier of `theta` [P], or that of `start` if theta is None, or if theta or its features are not finite."""
        info = {"passes": len(trace) + 2, "loss_start": start.info["loss_start"], "rate": self.rate, "steps": len(trace), "trace": trace}
        kept = PrototypeClassifier(task, start.theta, start.centres, dict(start.info))
        if theta is None:
            kept.info |= {**info, "passes": start.info["passes"], "rate": 0.0}
            return kept
        with torch.inference_mode(mode=False), torch.no_grad():
            tuned = Proto().adapt(replace(task, theta=theta), support)
        finite = bool(torch.isfinite(theta).all() & torch.isfinite(tuned.centres).all()) and tuned.info["loss"] < float("inf")
        kept = tuned if finite else kept
        kept.info |= {**info, "steps": len(trace) if finite else 0}
        return kept

    def _train(self, task: Task, support: Support, tunable: Tunable, watch: Watch | None) -> tuple[Tensor, list[float]]:
        images, labels = support.images, support.labels
        values, optimizer = self._leaf.begin(tunable.start, self.rate * self.factor)  # type: ignore[operator]
        generator = torch.Generator().manual_seed(task.seed)
        losses = []
        for _ in range(self.config.steps):
            augmented = diff_augment(images, generator, self.config.probability, self.config.colour, self.config.translation)
            plain, copies = self._both(tunable, images, augmented, tunable.network(values))
            centres = prototypes(plain, labels, support.ways)
            loss = F.cross_entropy(cosine_logits(copies, centres, task.scale), labels)
            # Only the gradient of this leaf: the model's parameters must not accumulate any.
            (values.grad,) = torch.autograd.grad(loss, [values])
            optimizer.step()
            losses.append(loss.detach())
            if watch is not None:
                self._watch(watch, task, tunable, values, support)
        return theta_of(tunable, values), torch.stack(losses).tolist()

    def replayed(self, tunable: Tunable, support: Support, task: Task) -> Steps | None:
        """Return captured static steps if the task's shape was seen before (a capture costs as much as several steps), else None."""
        wanted = tunable.start.device.type == "cuda" if self.graphs is None else self.graphs
        if not wanted or tunable.pure is None or 2 * len(support.labels) > self.config.batch:
            return None
        return self.steps(tunable, tunable.member(support, 0.0, task.seed), task, count=1, shared=True)

    def steps(self, tunable: Tunable, like: Member, task: Task, count: int, shared: bool) -> Steps | None:
        """Return cached steps of `count` members of this shape, captured on CUDA; None for a single member that is not captured."""
        support, cache = like.support, self._steps
        tensors = tuple((t.shape, t.dtype, t.device) for t in (like.start, like.fixed, support.images, support.labels))
        key = (id(task.module), count, shared, support.ways, task.scale, *tensors)
        if key not in self._seen:
            self._seen.add(key)
            if count == 1:
                return None
        if key not in cache:
            while len(cache) >= SHAPES:
                del cache[next(iter(cache))]
            assert tunable.pure is not None
            capture = like.start.device.type == "cuda" and self.graphs is not False and (count == 1 or not self.noisy)
            cache[key] = captured(tunable.pure, task.scale, like, count, shared, self.noisy) if capture else None
            if cache[key] is None and count > 1:
                cache[key] = Steps(tunable.pure, task.scale, like, count, shared, noisy=self.noisy)
        return cache[key]

    def _replay(self, task: Task, support: Support, tunable: Tunable, steps: Steps, watch: Watch | None) -> tuple[Tensor, list[float]]:
        member = tunable.member(support, self.rate * self.factor, task.seed)  # type: ignore[operator]
        after = None if watch is None else lambda values: self._watch(watch, task, tunable, values[0], support)
        (trace,) = take(steps, [member], self.config, after)
        return theta_of(tunable, steps.values[0]), trace

    def _both(self, tunable: Tunable, images: Tensor, augmented: Tensor, network: Any) -> tuple[Tensor, Tensor]:
        """Return features of the images and of their augmented copies; if augmentation returned `images` itself, embed it once."""
        if augmented is images and not self.noisy:
            features = self._features(tunable, images, network)
            return features, features
        plain, copies = torch.split(self._features(tunable, torch.cat([images, augmented]), network), len(images))
        return plain, copies

    def _features(self, tunable: Tunable, images: Tensor, network: Any) -> Tensor:
        if len(images) <= self.config.batch:
            return tunable.embed(images, network)
        parts = torch.split(images, self.config.batch)
        return torch.cat([checkpoint(partial(tunable.embed, part), network, use_reentrant=False) for part in parts])

    @torch.no_grad()
    def _watch(self, watch: Watch, task: Task, tunable: Tunable, values: Tensor, support: Support) -> None:
        theta = tunable.theta(values.detach())
        features = task.embed(support.images, theta)
        _show(watch, task, theta, prototypes(features, support.labels, support.ways))


@torch.no_grad()
def theta_of(tunable: Tunable, values: Tensor) -> Tensor:
    """Return the parameters [P] of `values` [V], as a copy, because the next task overwrites the values."""
    values = values.detach()
    theta = tunable.theta(values)
    return theta.clone() if theta.data_ptr() == values.data_ptr() else theta


def _show(watch: Watch | None, task: Task, theta: Tensor, centres: Tensor) -> None:
    if watch is not None:
        watch(PrototypeClassifier(task, theta, centres, {"passes": 0}))
