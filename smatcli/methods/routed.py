"""Base class of methods with experts: merging scores from a router, and the loss of Algorithm 1."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from smatcli.config.methods import TeacherConfig
from smatcli.experts.merge import normalise
from smatcli.experts.router import Router
from smatcli.methods.base import FlatMethod, embed_both, pooled
from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.methods.running.feature_cache import FeatureCache
from smatcli.methods.teacher import Student, distillation, teacher_logits
from smatcli.phases import phase
from smatcli.seams import Episode, Losses, Parts, Support


class Injected(NamedTuple):
    """Prescribed noise, to reproduce a task: u [M, G] of the masks (None: 0.5) and u [M] of the router."""

    masks: Tensor | None
    router: Tensor


class Mixture(NamedTuple):
    """theta [P] of a task with its graph, further loss terms, and numbers to log."""

    theta: Tensor
    terms: dict[str, Tensor]
    logs: dict[str, Tensor]


class TaskStart(NamedTuple):
    """First results of a task: router logits and scores alpha [M] with graph, and the pre-trained model's query logits if needed."""

    router_logits: Tensor
    alpha: Tensor
    frozen_logits: Tensor | None


class RoutedMethod(FlatMethod):
    """Methods whose theta_i depends on merging scores alpha_i [M], which a router computes from the support set.

    `teacher`: None trains with the query loss alone. `inner`: number and learning rate of steps on the support loss. `query_split`: False
    pools the episode. The backbone runs in eval mode even in training, because its dropout would not draw from the episode's generator.
    """

    router: Router

    def __init__(
        self,
        backbone: nn.Module,
        scale: float,
        teacher: TeacherConfig | None,
        inner: tuple[int, float] = (0, 0.0),
        query_split: bool = True,
    ) -> None:
        super().__init__(backbone, scale)
        self.teacher, self.inner, self.query_split = teacher, inner, query_split
        self.frozen_cache: FeatureCache | None = None
        # Tasks that `begin` started: the episode, its first results, and a function that returns the mixture for its loss.
        self._begun: dict[int, tuple[Episode, TaskStart, Callable[[], Mixture]]] = {}

    @abstractmethod
    def mixture(self, alpha: Tensor, generator: torch.Generator, injected: Injected | None) -> Mixture:
        """Return theta [P] for scores alpha [M] in training."""

    def loss(self, episode: Episode, generator: torch.Generator, injected: Injected | None = None) -> Losses:
        """Return the training loss of one episode: (1 - w) CE + w KD + the terms of the mixture (+ router l2)."""
        teacher = self.teacher
        with torch.autocast(self.theta_pre.device.type, enabled=False):
            begun = self._begun.pop(id(episode), None) if injected is None else None
            if begun is None:
                start = self._start(episode, generator, injected)
                with phase("merge"):
                    mixture = self.mixture(start.alpha, generator, injected)
            else:
                start, mixture = begun[1], begun[2]()
            if not self.query_split:
                episode = pooled(episode)
            with phase("student"):
                student = self.student(mixture.theta, episode)

            terms = {"ce": student.ce}
            logs = {"accuracy": _accuracy(student.logits, episode)}
            if teacher is not None and teacher.steps and teacher.weight:
                with phase("teacher"):
                    target = teacher_logits(student, episode, teacher, self.embed, self.scale)
                targets = [target] if start.frozen_logits is None else [target, start.frozen_logits]
                kd = [distillation(student.logits, t, teacher.temperature, teacher.direction) for t in targets]
                terms = {"ce": (1 - teacher.weight) * student.ce, "kd": teacher.weight * torch.stack(kd).mean()}
                logs["teacher_accuracy"] = _accuracy(target, episode)

            terms |= mixture.terms
            if self.router.config.logit_l2:
                terms["l2"] = self.router.config.logit_l2 * start.router_logits.square().mean()
            logs |= mixture.logs
            logs["alpha_entropy"] = -torch.xlogy(start.alpha.detach(), start.alpha.detach()).sum()
            return Losses(torch.stack(list(terms.values())).sum(), numbers(terms), numbers(logs))

    def skip_tasks(self, generators: Sequence[torch.Generator]) -> None:
        """Run the router's power iterations for these tasks."""
        for _ in generators:
            self.router.skip_task()

    def _start(self, episode: Episode, generator: torch.Generator, injected: Injected | None = None) -> TaskStart:
        with phase("router"):
            router_logits, frozen_logits = self._frozen(episode if self.query_split else pooled(episode))
            alpha = normalise(self.router.scores(router_logits, generator, injected.router if injected else None))
        return TaskStart(router_logits, alpha, frozen_logits)

    def _frozen(self, episode: Episode) -> tuple[Tensor, Tensor | None]:
        """Return router logits [M] (with graph), and the pre-trained model's query logits if it is a teacher."""
        support, needs_query = episode.support, self.teacher is not None and self.teacher.pretrained
        with torch.no_grad():
            features, query = self._frozen_features(episode, needs_query)
        centres = prototypes(features, support.labels, support.ways)
        return self.router(centres), None if query is None else cosine_logits(query, centres, self.scale)

    def _frozen_features(self, episode: Episode, needs_query: bool) -> tuple[Tensor, Tensor | None]:
        """Return features under theta_pre of the support and, if needed, of the query."""
        support, rows = episode.support, episode.rows
        if self.frozen_cache is not None and rows is not None and self.query_split:
            images = torch.cat([support.images, episode.query_images]) if needs_query else support.images

            def compute(positions: Tensor) -> Tensor:
                return self.embed(images[positions.to(images.device)], self.theta_pre)

            features = self.frozen_cache.get(episode.dataset, rows[: len(images)], compute)
            count = len(support.images)
            return features[:count], features[count:] if needs_query else None
        if needs_query:
            return embed_both(self.embed, episode, self.theta_pre)
        return self.embed(support.images, self.theta_pre), None

    def student(self, theta: Tensor, episode: Episode) -> Student:
        """Return the student's results under theta_i, from one forward pass, or after `inner` first-order steps on the support loss."""
        support = episode.support
        if self.inner[0]:
            theta, query, centres = self._adapted(theta, episode)
        else:
            features, query = embed_both(self.embed, episode, theta)
            centres = prototypes(features, support.labels, support.ways)
        logits = cosine_logits(query, centres, self.scale)
        return Student(theta, query, centres, logits, F.cross_entropy(logits, episode.query_labels))

    def _adapted(self, theta: Tensor, episode: Episode) -> tuple[Tensor, Tensor, Tensor]:
        """Return (theta, query features, head) after the release's inner loop: the first prototypes are a head, tuned with theta."""
        support, (steps, lr) = episode.support, self.inner
        features = self.embed(support.images, theta)
        head = prototypes(features, support.labels, support.ways)
        for step in range(steps):
            if step:
                features = self.embed(support.images, theta)
            leaf = head.detach().requires_grad_()
            ce = F.cross_entropy(cosine_logits(features, leaf, self.scale), support.labels)
            grads = torch.autograd.grad(ce, (theta, leaf), retain_graph=True)
            theta, head = theta - lr * grads[0], head - lr * grads[1]
        return theta, self.embed(episode.query_images, theta), head

    @abstractmethod
    def part_tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors that are mixed at inference, by name, without those of the router and of constraints."""

    @abstractmethod
    def compose(self, tensors: Mapping[str, Tensor], alpha: Tensor) -> Tensor:
        """Return theta [P] at inference, with graph, from tensors by name and normalised scores alpha [M]."""

    def parts_of(self, support: Support) -> Parts:
        """Return the parts of theta_i: copies of the mixed tensors and of the router's (`router.*`)."""
        support = replace(support, images=support.images.clone(), labels=support.labels.clone())
        with torch.no_grad():
            centres = prototypes(self.embed(support.images, self.theta_pre), support.labels, support.ways)
        router = {f"router.{name}": p for name, p in self.router.named_parameters()}
        buffers = {name: b.detach().clone() for name, b in self.router.named_buffers()}

        def compose(tensors: Mapping[str, Tensor]) -> Tensor:
            own = {name.removeprefix("router."): t for name, t in tensors.items() if name.startswith("router.")}
            with torch.autocast(self.theta_pre.device.type, enabled=False):
                logits = functional_call(self.router, {**buffers, **own}, (centres,))
                return self.compose(tensors, normalise(self.router.scores(logits)))

        return Parts({name: t.detach().clone() for name, t in {**self.part_tensors(), **router}.items()}, compose)

    def inference_scores(self, support: Support) -> Tensor:
        """Return noise-free scores alpha [M] of a support set."""
        with torch.autocast(self.theta_pre.device.type, enabled=False):
            centres = prototypes(self.embed(support.images, self.theta_pre), support.labels, support.ways)
            return normalise(self.router.scores(self.router(centres)))


def _accuracy(logits: Tensor, episode: Episode) -> Tensor:
    return (logits.detach().argmax(-1) == episode.query_labels).float().mean()


def numbers(tensors: dict[str, Tensor]) -> dict[str, float]:
    """Convert scalar tensors to floats, with one transfer from the device."""
    values = torch.stack([t.detach().double().cpu() if t.device.type == "mps" else t.detach().double() for t in tensors.values()])
    return dict(zip(tensors, values.tolist(), strict=True))
