"""The loop that `full`, `lora` and `joint` share: Adam on one flat vector, by the loss of an augmented support set (PMF's fine-tuning).

Each step embeds the support images and augmented copies of them in one forward pass. The former make the prototypes, with gradient, the
latter are classified by them. Nothing of the task or the model is written: the vector is a leaf of its own, and one `copy_` begins a task.
On CUDA a step is captured once for a shape and replayed (`steps.py`); several tasks side by side are `grouped.py`.
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
SHAPES = 4  # whose static tensors are kept


@dataclass(frozen=True)
class Tunable:
    """What is tuned: values [N] from `start`. `network(values)` is what `embed(images, network)` -> features needs (with graph), and
    `theta(values)` the task's parameters [P] that they stand for. `pure(values, fixed, images)` -> features says the same without
    anything of the task but `fixed` [F]: it serves all tasks of a network (None: each task has its own)."""

    start: Tensor
    network: Callable[[Tensor], Any]
    embed: Callable[[Tensor, Any], Tensor]
    theta: Callable[[Tensor], Tensor]
    pure: Pure | None = None
    fixed: Tensor | None = None

    def member(self, support: Support, rate: float, seed: int) -> Member:
        """This task among others."""
        return Member(self.start, self.start[:0] if self.fixed is None else self.fixed, support, rate, seed)


class Leaf:
    """A leaf [N] with its Adam moments, kept from task to task."""

    def __init__(self) -> None:
        self.values: Tensor | None = None

    def begin(self, start: Tensor, rate: float) -> tuple[Tensor, torch.optim.Adam]:
        """The leaf at `start` [N], and its optimizer as if it were new, at `rate`."""
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
    """A fine-tuning adaptation at a rate: `config.lr`, or that of `at(rate)`."""

    name: str
    factor = 1.0
    groups = True  # may several tasks be tuned side by side?
    noisy = False  # does the network embed equal images differently while it trains?

    def __init__(self, config: Config) -> None:
        self.config, self.rate = config, config.lr
        self.graphs: bool | None = None  # replay captured steps? None: on CUDA
        self._leaf = Leaf()
        self._lean: dict[bool, tuple[nn.Module, nn.Module]] = {}
        self._steps: dict[Hashable, Steps | None] = {}
        self._met: set[Hashable] = set()

    def at(self, rate: float) -> Self:
        """The same adaptation at another rate; both share their memory, so they are used one after the other."""
        other = copy.copy(self)
        other.rate = rate
        return other

    @abstractmethod
    def tunable(self, task: Task, several: bool = False) -> Tunable:
        """What this adaptation tunes of a task (`several`: beside others); `UserError` when the task has no such thing."""

    def noise(self, tasks: Sequence[Task]) -> AbstractContextManager[object]:
        """Context of the training passes, for a network with noise of its own; global generators are afterwards as they were."""
        return nullcontext()

    def embedding(self, task: Task, several: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
        """`task.embed(images, theta)`, by a network that leaves out what the features do not depend on, where the task names its own."""
        module, run, space = task.module, task.run, task.space
        if module is None or run is None or space is None:
            return task.embed
        if self._lean.get(several, (None,))[0] is not module:
            self._lean[several] = (module, lean(module, several) or module)
        net = self._lean[several][1]
        return lambda images, theta: run(net, space.unflatten(theta), images)

    def adapt(self, task: Task, support: Support, watch: Watch | None = None) -> PrototypeClassifier:
        """The prototype classifier of the tuned parameters.

        `info`: `passes`, `loss_start` and `loss` (of the support set as it is), `rate`, `steps` (0 where the rate is 0, and where a loss
        or parameter was not finite: then the result is that of before the first step), `trace` (loss of every step).
        `watch` is shown the classifier before the first step and after every one; it cannot tell the adaptation anything.
        Raises `UserError` without a rate.
        """
        return self.tuned(task, support, self.before(task, support), watch)

    def before(self, task: Task, support: Support) -> PrototypeClassifier:
        """The classifier before the first step; `UserError` without a rate."""
        if self.rate is None:
            raise UserError(f"{self.name} needs a learning rate: set adapt.{self.name}.lr, or let it be chosen by --search valid")
        return Proto().adapt(task, support)

    def tuned(self, task: Task, support: Support, start: PrototypeClassifier, watch: Watch | None = None) -> PrototypeClassifier:
        """`adapt`, from what `before` gave for the task at whatever rate; `start` itself stays as it is."""
        _show(watch, task, start.theta, start.centres)
        if not self.rate:
            return self.result(task, support, start, None, [])
        with torch.inference_mode(False), torch.enable_grad():
            known = Support(support.images.clone(), support.labels.clone(), support.ways)  # not of inference mode: part of a graph
            tunable = self.tunable(task)
            steps = self.replayed(tunable, known, task)
            with self.noise([task]):
                theta, trace = (
                    self._train(task, known, tunable, watch) if steps is None else self._replay(task, known, tunable, steps, watch)
                )
        return self.result(task, support, start, theta, trace)

    def result(
        self, task: Task, support: Support, start: PrototypeClassifier, theta: Tensor | None, trace: list[float]
    ) -> PrototypeClassifier:
        """The classifier of `theta` [P]; that of `start` where it is None, or where it or its features are not finite."""
        made = {"passes": len(trace) + 2, "loss_start": start.info["loss_start"], "rate": self.rate, "steps": len(trace), "trace": trace}
        kept = PrototypeClassifier(task, start.theta, start.centres, dict(start.info))
        if theta is None:
            kept.info |= {**made, "passes": start.info["passes"], "rate": 0.0}
            return kept
        with torch.inference_mode(False), torch.no_grad():
            found = Proto().adapt(replace(task, theta=theta), support)
        finite = bool(torch.isfinite(theta).all() & torch.isfinite(found.centres).all()) and found.info["loss"] < float("inf")
        kept = found if finite else kept
        kept.info |= {**made, "steps": len(trace) if finite else 0}
        return kept

    def _train(self, task: Task, support: Support, tunable: Tunable, watch: Watch | None) -> tuple[Tensor, list[float]]:
        images, labels = support.images, support.labels
        values, optimizer = self._leaf.begin(tunable.start, self.rate * self.factor)  # type: ignore[operator]
        generator = torch.Generator().manual_seed(task.seed)
        losses = []
        for _ in range(self.config.steps):
            augmented = diff_augment(images, generator, self.config.probability, self.config.colour, self.config.translation)
            known, asked = self._both(tunable, images, augmented, tunable.network(values))
            centres = prototypes(known, labels, support.ways)
            loss = F.cross_entropy(cosine_logits(asked, centres, task.scale), labels)
            # only of this leaf: the parameters of a model must not collect gradients
            (values.grad,) = torch.autograd.grad(loss, [values])
            optimizer.step()
            losses.append(loss.detach())
            if watch is not None:
                self._watch(watch, task, tunable, values, support)
        return theta_of(tunable, values), torch.stack(losses).tolist()

    def replayed(self, tunable: Tunable, support: Support, task: Task) -> Steps | None:
        """Captured static steps for this task, where its shape has come before (a capture costs as much as several steps)."""
        wanted = tunable.start.device.type == "cuda" if self.graphs is None else self.graphs
        if not wanted or tunable.pure is None or 2 * len(support.labels) > self.config.batch:
            return None
        return self.steps(tunable, tunable.member(support, 0.0, task.seed), task, 1, True)

    def steps(self, tunable: Tunable, like: Member, task: Task, count: int, shared: bool) -> Steps | None:
        """Steps of `count` members like this one, kept for the shape; on CUDA captured. None: not captured, and a single member."""
        support, found = like.support, self._steps
        tensors = tuple((t.shape, t.dtype, t.device) for t in (like.start, like.fixed, support.images, support.labels))
        key = (id(task.module), count, shared, support.ways, task.scale, *tensors)
        if key not in self._met:
            self._met.add(key)
            if count == 1:
                return None
        if key not in found:
            while len(found) >= SHAPES:
                del found[next(iter(found))]
            assert tunable.pure is not None
            capture = like.start.device.type == "cuda" and self.graphs is not False and (count == 1 or not self.noisy)
            found[key] = captured(tunable.pure, task.scale, like, count, shared, self.noisy) if capture else None
            if found[key] is None and count > 1:
                found[key] = Steps(tunable.pure, task.scale, like, count, shared, noisy=self.noisy)
        return found[key]

    def _replay(self, task: Task, support: Support, tunable: Tunable, steps: Steps, watch: Watch | None) -> tuple[Tensor, list[float]]:
        member = tunable.member(support, self.rate * self.factor, task.seed)  # type: ignore[operator]
        after = None if watch is None else lambda values: self._watch(watch, task, tunable, values[0], support)
        (trace,) = take(steps, [member], self.config, after)
        return theta_of(tunable, steps.values[0]), trace

    def _both(self, tunable: Tunable, images: Tensor, augmented: Tensor, network: Any) -> tuple[Tensor, Tensor]:
        """Features of the images and of their augmented copies; a batch that was left as it is is embedded once."""
        if augmented is images and not self.noisy:
            features = self._features(tunable, images, network)
            return features, features
        known, asked = self._features(tunable, torch.cat([images, augmented]), network).split(len(images))
        return known, asked

    def _features(self, tunable: Tunable, images: Tensor, network: Any) -> Tensor:
        if len(images) <= self.config.batch:
            return tunable.embed(images, network)
        parts = images.split(self.config.batch)
        return torch.cat([checkpoint(partial(tunable.embed, part), network, use_reentrant=False) for part in parts])  # type: ignore[misc]

    @torch.no_grad()
    def _watch(self, watch: Watch, task: Task, tunable: Tunable, values: Tensor, support: Support) -> None:
        theta = tunable.theta(values.detach())
        features = task.embed(support.images, theta)
        _show(watch, task, theta, prototypes(features, support.labels, support.ways))


@torch.no_grad()
def theta_of(tunable: Tunable, values: Tensor) -> Tensor:
    """The parameters [P] of `values` [V], which are written again by the next task."""
    values = values.detach()
    theta = tunable.theta(values)
    return theta.clone() if theta.data_ptr() == values.data_ptr() else theta


def _show(watch: Watch | None, task: Task, theta: Tensor, centres: Tensor) -> None:
    if watch is not None:
        watch(PrototypeClassifier(task, theta, centres, {"passes": 0}))
