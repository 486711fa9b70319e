"""The loop that `full`, `lora` and `joint` share: Adam on one flat vector, by the loss of an augmented support set (PMF's fine-tuning).

Each step embeds the support images and augmented copies of them in one forward pass. The former make the prototypes, with gradient, the
latter are classified by them. Nothing of the task or the model is written: the vector is a leaf of its own, and one `copy_` begins a task.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from smatcli.adaptation.diffaugment import diff_augment
from smatcli.adaptation.proto import Proto, PrototypeClassifier
from smatcli.config.finetune import FullConfig
from smatcli.errors import UserError
from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.seams import Classifier, Support, Task

Watch = Callable[[Classifier], None]
Config = TypeVar("Config", bound=FullConfig)


@dataclass(frozen=True)
class Tunable:
    """What is tuned: values [N] from `start`. `network(values)` is what `embed(images, network)` -> features needs (with graph), and
    `theta(values)` the task's parameters [P] that they stand for."""

    start: Tensor
    network: Callable[[Tensor], Any]
    embed: Callable[[Tensor, Any], Tensor]
    theta: Callable[[Tensor], Tensor]


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
    noisy = False  # does the network embed equal images differently while it trains?

    def __init__(self, config: Config) -> None:
        self.config, self.rate = config, config.lr
        self._leaf = Leaf()

    def at(self, rate: float) -> Self:
        """The same adaptation at another rate; both share their memory, so they are used one after the other."""
        other = copy.copy(self)
        other.rate = rate
        return other

    @abstractmethod
    def tunable(self, task: Task) -> Tunable:
        """What this adaptation tunes of a task; `UserError` when the task has no such thing."""

    def noise(self, task: Task) -> AbstractContextManager[object]:
        """Context of the training passes, for a network with noise of its own; global generators are afterwards as they were."""
        return nullcontext()

    def adapt(self, task: Task, support: Support, watch: Watch | None = None) -> PrototypeClassifier:
        """The prototype classifier of the tuned parameters.

        `info`: `passes`, `loss_start` and `loss` (of the support set as it is), `rate`, `steps` (0 where the rate is 0, and where a loss
        or parameter was not finite: then the result is that of before the first step), `trace` (loss of every step).
        `watch` is shown the classifier before the first step and after every one; it cannot tell the adaptation anything.
        Raises `UserError` without a rate.
        """
        if self.rate is None:
            raise UserError(f"{self.name} needs a learning rate: set adapt.{self.name}.lr, or let it be chosen by --search valid")
        start = Proto().adapt(task, support)
        loss = start.info["loss_start"]
        _show(watch, task, start.theta, start.centres)
        if not self.rate:
            start.info |= {"rate": 0.0, "steps": 0, "trace": []}
            return start
        with torch.inference_mode(False), torch.enable_grad(), self.noise(task):
            theta, trace = self._train(task, support, watch)
            found = Proto().adapt(replace(task, theta=theta), support)
        finite = bool(torch.isfinite(theta).all() & torch.isfinite(found.centres).all()) and found.info["loss"] < float("inf")
        kept = found if finite else start
        made = {"passes": len(trace) + 2, "loss_start": loss, "rate": self.rate, "steps": len(trace) if finite else 0, "trace": trace}
        kept.info |= made
        return kept

    def _train(self, task: Task, support: Support, watch: Watch | None) -> tuple[Tensor, list[float]]:
        # Clones, because tensors of an inference-mode context cannot be part of a graph.
        images, labels = support.images.clone(), support.labels.clone()
        tunable = self.tunable(task)
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
                self._watch(watch, task, tunable, values, Support(images, labels, support.ways))
        with torch.no_grad():
            theta = tunable.theta(values.detach())
        return (theta.clone() if theta.data_ptr() == values.data_ptr() else theta), torch.stack(losses).tolist()

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


def _show(watch: Watch | None, task: Task, theta: Tensor, centres: Tensor) -> None:
    if watch is not None:
        watch(PrototypeClassifier(task, theta, centres, {"passes": 0}))
