"""The task-specific dense teacher and knowledge distillation (Algorithm 1)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from smatcli.config.methods import TeacherConfig
from smatcli.methods.base import embed_both
from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.seams import Episode

Embed = Callable[[Tensor, Tensor], Tensor]


def distillation(student: Tensor, target: Tensor, temperature: float, direction: str) -> Tensor:
    """Return T^2 KL between softened predictions, batch mean: KL(target || student) if `forward`, KL(student || target) if `reverse`.

    Both arguments are logits [Q, C]; the target is a constant.
    """
    log_p = F.log_softmax(student / temperature, -1)
    log_t = F.log_softmax(target.detach() / temperature, -1)
    if direction == "reverse":
        log_p, log_t = log_t, log_p
    return temperature**2 * F.kl_div(log_p, log_t, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class Student:
    """The student on one task, with graph: parameters [P], query features [Q, D], prototypes [C, D], query logits, and their loss."""

    theta: Tensor
    query: Tensor
    centres: Tensor
    logits: Tensor
    ce: Tensor


def teacher_logits(student: Student, episode: Episode, config: TeacherConfig, embed: Embed, scale: float) -> Tensor:
    """Return query logits [Q, C] of theta_i after K SGD steps on the query cross-entropy, as a constant.

    The first step reuses the student's graph. `prototypes: student` treats the prototypes as a head that the steps train too, so that
    only the query is embedded; `recomputed` recomputes them from the support set and differentiates through them.
    """
    if config.prototypes == "student":
        return _with_head(student, episode, config, embed, scale)
    theta = student.theta
    grads = list(torch.autograd.grad(student.ce, theta, retain_graph=True))
    for step in range(config.steps):
        theta = _stepped(theta, grads.pop(), config.lr).requires_grad_(step < config.steps - 1)
        with torch.set_grad_enabled(theta.requires_grad):
            logits = _logits(theta, episode, embed, scale)
            if theta.requires_grad:
                grads = list(torch.autograd.grad(F.cross_entropy(logits, episode.query_labels), theta))
    return logits.detach()


def _stepped(tensor: Tensor, grad: Tensor, lr: float) -> Tensor:
    """Return tensor - lr grad, computed in the memory of `grad`, which is overwritten."""
    return torch.sub(tensor.detach(), grad.mul_(lr), out=grad)


def _logits(theta: Tensor, episode: Episode, embed: Embed, scale: float) -> Tensor:
    support = episode.support
    features, query = embed_both(embed, episode, theta)
    return cosine_logits(query, prototypes(features, support.labels, support.ways), scale)


def _with_head(student: Student, episode: Episode, config: TeacherConfig, embed: Embed, scale: float) -> Tensor:
    theta, head = student.theta, student.centres.detach().requires_grad_()
    ce = F.cross_entropy(cosine_logits(student.query, head, scale), episode.query_labels)
    for step in range(config.steps):
        grads = list(torch.autograd.grad(ce, (theta, head), retain_graph=step == 0))
        last = step == config.steps - 1
        theta, head = (_stepped(t, grads.pop(0), config.lr).requires_grad_(not last) for t in (theta, head))
        with torch.set_grad_enabled(not last):
            logits = cosine_logits(embed(episode.query_images, theta), head, scale)
            ce = F.cross_entropy(logits, episode.query_labels)
    return logits.detach()
