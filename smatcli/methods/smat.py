"""Sparse MetA-Tuning (Chen et al., ICML 2024): M sparse interpolated experts, merged for every task (Algorithm 1)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smatcli.config.methods import SmatConfig
from smatcli.config.schema import GroupConfig
from smatcli.experts.compress import CompressedExperts, Merger
from smatcli.experts.masks import HardConcrete, counted_sparsity, expected_l0, initial_log_alpha
from smatcli.experts.merge import Merged, Noise, merge, normalise
from smatcli.experts.router import Router
from smatcli.experts.sparsity import SparsityController
from smatcli.methods.base import FlatMethod
from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.methods.teacher import Student, distillation, teacher_logits
from smatcli.seams import Episode, Losses, Support, Task

TOLERANCE = 0.02


class Injected(NamedTuple):
    """Noise given instead of drawn, to reproduce a task: masks' u [M, P] (None: 0.5) and router's u [M]."""

    masks: Tensor | None
    router: Tensor


class SmatMethod(FlatMethod):
    """theta_i = theta_pre + theta_delta * sum_m alpha_im z_m.

    `dense`: name prefixes of parameters whose mask is always 1 (the release's head); their log_alpha still counts in E[L0], as there.
    The backbone runs in eval mode in training too: its dropout would be noise outside of the episode's generator.
    """

    dense: Tensor | None

    def __init__(self, config: SmatConfig, backbone: nn.Module, dense: tuple[str, ...] = ()) -> None:
        super().__init__(backbone, config.scale)
        self.config = config
        self.shape = HardConcrete.of(config.masks)
        self.theta_delta = nn.Parameter(torch.zeros_like(self.theta_pre))
        self.log_alpha = nn.Parameter(initial_log_alpha(config.experts, self.space.size, config.masks).to(self.theta_pre))
        self.router = Router(config.router, int(backbone.num_features), config.experts)  # type: ignore[arg-type]
        self.sparsity = SparsityController(config.sparsity, config.experts)
        self.register_buffer("dense", self.space.where(dense) if dense else None, persistent=False)
        self._compressed: tuple[tuple[int, int], CompressedExperts] | None = None

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """`delta`, `masks`, `router`, `multipliers`: every trainable parameter once."""
        return {
            "delta": [self.theta_delta],
            "masks": [self.log_alpha],
            "router": list(self.router.parameters()),
            "multipliers": [self.sparsity.multipliers],
        }

    def default_groups(self) -> dict[str, GroupConfig]:
        """Adam on the experts (a mask's gradient is some 1e-6 of a weight's, so SGD would need a rate of 1e6); ascent by plain SGD."""
        return {
            "delta": GroupConfig(optimizer="adam", lr=1e-3),
            "masks": GroupConfig(optimizer="adam", lr=0.02),
            "router": GroupConfig(optimizer="adamw", lr=1e-3, weight_decay=0.01, clip=1.0),
            "multipliers": GroupConfig(optimizer="sgd", lr=self.config.sparsity.lr, schedule="constant", warmup=0.0),
        }

    def loss(self, episode: Episode, generator: torch.Generator, injected: Injected | None = None) -> Losses:
        """Training loss of one episode: (1 - w) CE + w KD + sparsity penalty + multiplier ascent (+ router l2)."""
        config, teacher = self.config, self.config.teacher
        with torch.autocast(self.theta_pre.device.type, enabled=False):
            router_logits, frozen_logits = self._frozen(episode)
            alpha = normalise(self.router.scores(router_logits, generator, injected.router if injected else None))
            noise = injected.masks if injected else self._noise(generator)
            merged = self.merge(alpha, training=True, noise=noise)
            student = self.student(merged.theta, episode)

            terms = {"ce": student.ce}
            logs = {"accuracy": _share_right(student.logits, episode)}
            if teacher.steps and teacher.weight:
                target = teacher_logits(student, episode, teacher, self.embed, self.scale)
                targets = [target] if frozen_logits is None else [target, frozen_logits]
                kd = [distillation(student.logits, t, teacher.temperature, teacher.direction) for t in targets]
                terms = {"ce": (1 - teacher.weight) * student.ce, "kd": teacher.weight * torch.stack(kd).mean()}
                logs["teacher_accuracy"] = _share_right(target, episode)

            measured = self.sparsity.measured(merged.expected_l0, self.measured_sparsity(merged.nonzeros))
            self.sparsity.reset(measured)
            terms["sparsity"], terms["lagrangian"] = self.sparsity.terms(merged.expected_l0, measured, alpha)
            if config.router.logit_l2:
                terms["l2"] = config.router.logit_l2 * router_logits.square().mean()
            logs["sparsity"] = measured.mean()
            logs["multiplier"] = self.sparsity.multipliers.detach().mean()
            logs["alpha_entropy"] = -torch.xlogy(alpha.detach(), alpha.detach()).sum()
            return Losses(torch.stack(list(terms.values())).sum(), _numbers(terms), _numbers(logs))

    def merge(self, alpha: Tensor, *, training: bool, noise: Noise = None) -> Merged:
        """theta [P] for merging scores alpha [M], with graph; the non-zeros and E[L0] of each mask [M]."""
        return merge(self.theta_pre, self.theta_delta, self.log_alpha, alpha, self.shape, training=training, noise=noise, dense=self.dense)

    def measured_sparsity(self, nonzeros: Tensor) -> Tensor:
        """Counted sparsity [M] of the masks in use, from their numbers of non-zeros [M]."""
        return 1 - nonzeros / self.space.size

    def _noise(self, generator: torch.Generator) -> Noise:
        if self.config.masks.noise == "deterministic":
            return None
        return int(torch.randint(2**62, (), device=generator.device, generator=generator))

    def _frozen(self, episode: Episode) -> tuple[Tensor, Tensor | None]:
        """Router logits [M] (with graph), and the pre-trained model's query logits where they are distilled from."""
        support, wanted = episode.support, self.config.teacher.pretrained
        images = torch.cat([support.images, episode.query_images]) if wanted else support.images
        with torch.no_grad():
            features = self.embed(images, self.theta_pre)
        centres = prototypes(features[: len(support.images)], support.labels, support.ways)
        return self.router(centres), cosine_logits(features[len(support.images) :], centres, self.scale) if wanted else None

    def student(self, theta: Tensor, episode: Episode) -> Student:
        """The query under theta_i, support and query in one forward; or after `inner_steps` first-order steps on the support loss."""
        support = episode.support
        if self.config.inner_steps:
            theta, query, centres = self._adapted(theta, episode)
        else:
            features = self.embed(torch.cat([support.images, episode.query_images]), theta)
            known, query = features.split([len(support.images), len(episode.query_images)])
            centres = prototypes(known, support.labels, support.ways)
        logits = cosine_logits(query, centres, self.scale)
        return Student(theta, query, centres, logits, F.cross_entropy(logits, episode.query_labels))

    def _adapted(self, theta: Tensor, episode: Episode) -> tuple[Tensor, Tensor, Tensor]:
        """(theta, query features, head) after the release's inner loop: prototypes are a head made once, and moved with theta."""
        support = episode.support
        known = self.embed(support.images, theta)
        head = prototypes(known, support.labels, support.ways)
        for step in range(self.config.inner_steps):
            if step:
                known = self.embed(support.images, theta)
            leaf = head.detach().requires_grad_()
            ce = F.cross_entropy(cosine_logits(known, leaf, self.scale), support.labels)
            grads = torch.autograd.grad(ce, (theta, leaf), retain_graph=True)
            theta, head = theta - self.config.inner_lr * grads[0], head - self.config.inner_lr * grads[1]
        return theta, self.embed(episode.query_images, theta), head

    @torch.no_grad()
    def task(self, support: Support) -> Task:
        """theta_i with inference masks and noise-free scores.

        `merge(scores)` normalises scores of any scale itself; all zero is theta_pre. `delta` is the same merge: it remembers the last
        binary state, and touches only the non-zeros of the experts that differ from it, whatever `alpha_from` says.
        """
        with torch.autocast(self.theta_pre.device.type, enabled=False):
            centres = prototypes(self.embed(support.images, self.theta_pre), support.labels, support.ways)
            alpha = normalise(self.router.scores(self.router(centres)))
        merger = Merger(self.theta_pre, self.theta_delta.detach(), self.compressed())
        return Task(
            theta=merger(alpha),
            embed=self.embed,
            scale=self.scale,
            alpha=alpha,
            merge=merger,
            delta=lambda alpha_from, alpha_to, theta: merger(alpha_to),
        )

    def compressed(self) -> CompressedExperts:
        """The inference masks in compressed form, made again when log_alpha has changed."""
        key = (self.log_alpha.data_ptr(), self.log_alpha._version)
        if self._compressed is None or self._compressed[0] != key:
            self._compressed = (key, CompressedExperts.of_log_alpha(self.log_alpha, self.shape, self.dense))
        return self._compressed[1]

    @torch.no_grad()
    def after_step(self, tasks_done: int) -> None:
        """Clamps log_alpha, keeps multipliers at or above 0, lowers the router's temperature."""
        self._compressed = None
        self.log_alpha.clamp_(-self.config.masks.clamp, self.config.masks.clamp)
        self.sparsity.project()
        self.router.anneal(tasks_done)

    @torch.no_grad()
    def statistics(self) -> dict[str, float]:
        """Sparsity over experts (expected; counted by the training and the inference gate), multipliers, temperature."""
        expected = 1 - expected_l0(self.log_alpha, self.shape)
        values = {"expected": expected, "counted": self._counted(True), "inference": self._counted(False)}
        found = {f"sparsity_{name}": share.mean() for name, share in values.items()}
        found |= {"sparsity_min": expected.min(), "sparsity_max": expected.max()}
        found |= {"multiplier_mean": self.sparsity.multipliers.mean(), "multiplier_max": self.sparsity.multipliers.max()}
        return _numbers(found | {"temperature": self.router.temperature})

    def _counted(self, training: bool) -> Tensor:
        return counted_sparsity(self.log_alpha, self.shape, training)

    def feasible(self) -> bool:
        """Whether every expert's sparsity is at most 0.02 below tau."""
        expected = 1 - expected_l0(self.log_alpha.detach(), self.shape)
        counted = self._counted(True) if self.config.sparsity.measure == "counted" else expected
        return bool(self.sparsity.measured(1 - expected, counted).min() >= self.config.sparsity.tau - TOLERANCE)


def _share_right(logits: Tensor, episode: Episode) -> Tensor:
    return (logits.detach().argmax(-1) == episode.query_labels).float().mean()


def _numbers(tensors: dict[str, Tensor]) -> dict[str, float]:
    """All scalars in one transfer from the device."""
    values = torch.stack([t.detach().double().cpu() if t.device.type == "mps" else t.detach().double() for t in tensors.values()])
    return dict(zip(tensors, values.tolist(), strict=True))
