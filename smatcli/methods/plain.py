"""Reference implementation of SMAT's training loss: eager, tensor by tensor, eight forward passes. Tests compare the fast path with it."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from smatcli.config.methods import SmatConfig
from smatcli.experts.masks import HardConcrete
from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.methods.smat import Injected, SmatMethod
from smatcli.seams import Episode

Named = dict[str, Tensor]


def plain_loss(method: SmatMethod, episode: Episode, injected: Injected) -> Tensor:
    """Return the total loss (Algorithm 1 of Chen et al., ICML 2024) for given noise, with graph to the method's parameters.

    Supports learned element-wise masks of shared experts, no inner steps, and a teacher that recomputes prototypes. Like
    `SmatMethod.loss`, it resets multipliers and iterates the router's spectral norm.
    """
    config, net = method.config, method.backbone
    support, shape = episode.support, HardConcrete.of(config.masks)
    pre, delta = method.space.unflatten(method.theta_pre), method.space.unflatten(method.theta_delta)
    log_alpha = dict(zip(method.space.names, torch.split(method.log_alpha, method.space.sizes, -1), strict=True))
    noise = injected.masks
    u = None if noise is None else dict(zip(method.space.names, torch.split(noise, method.space.sizes, -1), strict=True))

    with torch.no_grad():
        frozen = embed(net, pre, support.images)
    logits = method.router(prototypes(frozen, support.labels, support.ways))
    scores = torch.sigmoid((logits + torch.logit(injected.router)) / method.router.temperature)
    alpha = scores / (scores.sum() + 1e-8)

    theta: Named = {}
    on, l0 = alpha.new_zeros(config.experts), alpha.new_zeros(config.experts)
    for name in method.space.names:
        z = shape.train_gate(log_alpha[name], None if u is None else u[name])
        theta[name] = pre[name] + delta[name] * torch.einsum("m,mp->p", alpha, z).view(pre[name].shape)
        on = on + (z.detach() > 0).to(alpha.dtype).sum(1)
        l0 = l0 + shape.expected_l0_element(log_alpha[name]).sum(1)
    on, l0 = on / method.space.size, l0 / method.space.size

    logits_q = classify(net, theta, episode, method.scale)
    ce = F.cross_entropy(logits_q, episode.query_labels)
    targets = [teacher(net, theta, episode, config, method.scale)] if config.teacher.steps and config.teacher.weight else []
    if targets and config.teacher.pretrained:
        with torch.no_grad():
            centres = prototypes(frozen, support.labels, support.ways)
            targets.append(cosine_logits(embed(net, pre, episode.query_images), centres, method.scale))
    kd = [divergence(logits_q, target, config) for target in targets]
    total = (1 - config.teacher.weight) * ce + config.teacher.weight * torch.stack(kd).mean() if kd else ce

    tau = config.sparsity.tau
    sparsity = 1 - (on if config.sparsity.measure == "counted" else l0.detach())
    method.sparsity.reset(sparsity)
    multipliers = method.sparsity.multipliers
    weight = alpha.detach() if config.sparsity.weighting == "alpha" else torch.ones_like(alpha)
    total = total + (weight * multipliers.detach().clone() * (tau - 1 + l0)).sum() + (weight * (sparsity - tau) * multipliers).sum()
    l2: Tensor = config.router.logit_l2 * logits.square().mean()
    return total + l2


def embed(net: nn.Module, theta: Named, images: Tensor) -> Tensor:
    """Return features [B, D]."""
    return functional_call(net, theta, (images,))  # type: ignore[no-any-return]


def classify(net: nn.Module, theta: Named, episode: Episode, scale: float) -> Tensor:
    """Return query logits [Q, C], with one forward pass each for support and query."""
    features = embed(net, theta, episode.support.images)
    centres = prototypes(features, episode.support.labels, episode.support.ways)
    return cosine_logits(embed(net, theta, episode.query_images), centres, scale)


def teacher(net: nn.Module, theta: Named, episode: Episode, config: SmatConfig, scale: float) -> Tensor:
    """Return query logits [Q, C] after the teacher's steps, which start from theta with their own forward pass."""
    theta = {name: value.detach().requires_grad_() for name, value in theta.items()}
    for _ in range(config.teacher.steps):
        ce = F.cross_entropy(classify(net, theta, episode, scale), episode.query_labels)
        # A tensor that the forward pass does not use (a head that prototypes replace) has no gradient.
        grads = torch.autograd.grad(ce, list(theta.values()), allow_unused=True)
        moved = zip(theta.items(), grads, strict=True)
        theta = {n: (t if g is None else t - config.teacher.lr * g).detach().requires_grad_() for (n, t), g in moved}
    return classify(net, theta, episode, scale).detach()


def divergence(student: Tensor, target: Tensor, config: SmatConfig) -> Tensor:
    """Return T^2 KL of softened predictions in the configured direction, batch mean, directly from the formula."""
    p, q = (F.softmax(t / config.teacher.temperature, -1) for t in (student, target))
    if config.teacher.direction == "forward":
        p, q = q, p
    return config.teacher.temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
