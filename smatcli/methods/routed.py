"""What the methods with experts share: a router's scores for every task, and the loss of Algorithm 1 around whatever they mix."""

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
from smatcli.methods.running.frozen import FeatureCache
from smatcli.methods.teacher import Student, distillation, teacher_logits
from smatcli.phases import phase
from smatcli.seams import Episode, Losses, Parts, Support


class Injected(NamedTuple):
    """Noise given instead of drawn, to reproduce a task: masks' u [M, G] (None: 0.5) and router's u [M]."""

    masks: Tensor | None
    router: Tensor


class Mixture(NamedTuple):
    """theta [P] of a task with its graph, loss terms of its own, and numbers to log."""

    theta: Tensor
    terms: dict[str, Tensor]
    logs: dict[str, Tensor]


class Opening(NamedTuple):
    """What a task begins with: router logits and scores alpha [M] with graph, the pre-trained model's query logits if wanted."""

    router_logits: Tensor
    alpha: Tensor
    frozen_logits: Tensor | None


class RoutedMethod(FlatMethod):
    """theta_i from merging scores alpha_i [M] that a router reads from the support set.

    `teacher`: None for the query loss alone; `inner`: steps on the support loss and their rate; `query_split`: False pools the episode.
    The backbone runs in eval mode in training too: its dropout would be noise outside of the episode's generator.
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
        # Of the tasks that `begin` opened: the episode itself, its opening, and what makes the mixture when its loss is computed.
        self._begun: dict[int, tuple[Episode, Opening, Callable[[], Mixture]]] = {}

    @abstractmethod
    def mixture(self, alpha: Tensor, generator: torch.Generator, injected: Injected | None) -> Mixture:
        """theta [P] for scores alpha [M] in training."""

    def loss(self, episode: Episode, generator: torch.Generator, injected: Injected | None = None) -> Losses:
        """Training loss of one episode: (1 - w) CE + w KD + the mixture's own terms (+ router l2)."""
        teacher = self.teacher
        with torch.autocast(self.theta_pre.device.type, enabled=False):
            begun = self._begun.pop(id(episode), None) if injected is None else None
            if begun is None:
                opening = self._open(episode, generator, injected)
                with phase("merge"):
                    mixture = self.mixture(opening.alpha, generator, injected)
            else:
                opening, mixture = begun[1], begun[2]()
            if not self.query_split:
                episode = pooled(episode)
            with phase("student"):
                student = self.student(mixture.theta, episode)

            terms = {"ce": student.ce}
            logs = {"accuracy": _share_right(student.logits, episode)}
            if teacher is not None and teacher.steps and teacher.weight:
                with phase("teacher"):
                    target = teacher_logits(student, episode, teacher, self.embed, self.scale)
                targets = [target] if opening.frozen_logits is None else [target, opening.frozen_logits]
                kd = [distillation(student.logits, t, teacher.temperature, teacher.direction) for t in targets]
                terms = {"ce": (1 - teacher.weight) * student.ce, "kd": teacher.weight * torch.stack(kd).mean()}
                logs["teacher_accuracy"] = _share_right(target, episode)

            terms |= mixture.terms
            if self.router.config.logit_l2:
                terms["l2"] = self.router.config.logit_l2 * opening.router_logits.square().mean()
            logs |= mixture.logs
            logs["alpha_entropy"] = -torch.xlogy(opening.alpha.detach(), opening.alpha.detach()).sum()
            return Losses(torch.stack(list(terms.values())).sum(), numbers(terms), numbers(logs))

    def skip_tasks(self, generators: Sequence[torch.Generator]) -> None:
        """Run the router's power iterations of these tasks."""
        for _ in generators:
            self.router.skip_task()

    def _open(self, episode: Episode, generator: torch.Generator, injected: Injected | None = None) -> Opening:
        with phase("router"):
            router_logits, frozen_logits = self._frozen(episode if self.query_split else pooled(episode))
            alpha = normalise(self.router.scores(router_logits, generator, injected.router if injected else None))
        return Opening(router_logits, alpha, frozen_logits)

    def _frozen(self, episode: Episode) -> tuple[Tensor, Tensor | None]:
        """Router logits [M] (with graph), and the pre-trained model's query logits where they are distilled from."""
        support, wanted = episode.support, self.teacher is not None and self.teacher.pretrained
        with torch.no_grad():
            known, query = self._frozen_features(episode, wanted)
        centres = prototypes(known, support.labels, support.ways)
        return self.router(centres), None if query is None else cosine_logits(query, centres, self.scale)

    def _frozen_features(self, episode: Episode, wanted: bool) -> tuple[Tensor, Tensor | None]:
        """Features of the support and, if wanted, of the query under theta_pre."""
        support, rows = episode.support, episode.rows
        if self.frozen_cache is not None and rows is not None and self.query_split:
            images = torch.cat([support.images, episode.query_images]) if wanted else support.images

            def compute(places: Tensor) -> Tensor:
                return self.embed(images[places.to(images.device)], self.theta_pre)

            found = self.frozen_cache.get(episode.dataset, rows[: len(images)], compute)
            cut = len(support.images)
            return found[:cut], found[cut:] if wanted else None
        if wanted:
            return embed_both(self.embed, episode, self.theta_pre)
        return self.embed(support.images, self.theta_pre), None

    def student(self, theta: Tensor, episode: Episode) -> Student:
        """The query under theta_i, support and query in one forward; or after `inner` first-order steps on the support loss."""
        support = episode.support
        if self.inner[0]:
            theta, query, centres = self._adapted(theta, episode)
        else:
            known, query = embed_both(self.embed, episode, theta)
            centres = prototypes(known, support.labels, support.ways)
        logits = cosine_logits(query, centres, self.scale)
        return Student(theta, query, centres, logits, F.cross_entropy(logits, episode.query_labels))

    def _adapted(self, theta: Tensor, episode: Episode) -> tuple[Tensor, Tensor, Tensor]:
        """(theta, query features, head) after the release's inner loop: prototypes are a head made once, and moved with theta."""
        support, (steps, lr) = episode.support, self.inner
        known = self.embed(support.images, theta)
        head = prototypes(known, support.labels, support.ways)
        for step in range(steps):
            if step:
                known = self.embed(support.images, theta)
            leaf = head.detach().requires_grad_()
            ce = F.cross_entropy(cosine_logits(known, leaf, self.scale), support.labels)
            grads = torch.autograd.grad(ce, (theta, leaf), retain_graph=True)
            theta, head = theta - lr * grads[0], head - lr * grads[1]
        return theta, self.embed(episode.query_images, theta), head

    @abstractmethod
    def part_tensors(self) -> dict[str, Tensor]:
        """The trained tensors that are mixed at inference, by name (those of the router and of constraints are not among them)."""

    @abstractmethod
    def compose(self, tensors: Mapping[str, Tensor], alpha: Tensor) -> Tensor:
        """theta [P] at inference, with graph, of such tensors for normalised scores alpha [M]."""

    def parts_of(self, support: Support) -> Parts:
        """What theta_i is made of: copies of the mixed tensors and of the router's (`router.*`)."""
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
        """Noise-free alpha [M] of a support set."""
        with torch.autocast(self.theta_pre.device.type, enabled=False):
            centres = prototypes(self.embed(support.images, self.theta_pre), support.labels, support.ways)
            return normalise(self.router.scores(self.router(centres)))


def _share_right(logits: Tensor, episode: Episode) -> Tensor:
    return (logits.detach().argmax(-1) == episode.query_labels).float().mean()


def numbers(tensors: dict[str, Tensor]) -> dict[str, float]:
    """All scalars in one transfer from the device."""
    values = torch.stack([t.detach().double().cpu() if t.device.type == "mps" else t.detach().double() for t in tensors.values()])
    return dict(zip(tensors, values.tolist(), strict=True))
