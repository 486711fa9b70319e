"""DIPA: scale-and-shift of the last blocks' features, tuned by a proxy-anchor loss (Perera & Halgamuge, CVPR 2024, arXiv 2403.04492).

Three parts, each as in the authors' code (github.com/rashindrie/DIPA, commit 4bfd3f1):

1. In the last `blocks` blocks, the outputs y of both norms, of qkv and proj, and of fc1 and fc2 become s * y + t, per feature (SSF: Lian et
   al., NeurIPS 2022). The weights are frozen; s = 1 and t = 0 at the start. Because every y is affine in its layer's parameters,
   s * (W x + b) + t = (s W) x + (s b + t), the tuned model is the same network with another theta.
2. The feature is the concatenation of the class tokens of the last `fuse` blocks, each through the final norm, scaled to length 1.
3. The loss is Proxy-Anchor (Kim et al., CVPR 2020): with anchors p, positives X+ of p's class, negatives X- and cosines c(x, p),

       mean_p log(1 + sum_{x in X+} exp(-a (c(x, p) - d))) + mean_p log(1 + sum_{x in X-} exp(a (c(x, p) + d)))

   with margin d = 0.1 and sharpness a = 32. Anchors are learned together with s and t. NAdam takes 80 steps over the whole support set,
   without augmentation.

Queries are classified by cosine similarity to the class means of the tuned features; the anchors are then discarded. By default, the
authors start anchors at random values; here they start at the class means, which their code supports too (at their learning rate of 5, a
step moves each coordinate by about 5, while the coordinates of a class mean are below 1). Their depth is 7 of 12 blocks on training
domains, 9 on others.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from smatcli.adaptation.finetune import Watch
from smatcli.adaptation.proto import Proto, PrototypeClassifier
from smatcli.backbones.layers import LastBlocks
from smatcli.config.schema import DipaConfig
from smatcli.errors import UserError
from smatcli.experts.space import ParameterSpace
from smatcli.methods.prototypes import EPS, prototypes
from smatcli.seams import Support, Task

_SITE = re.compile(r"(?:^|\.)blocks\.(\d+)\.(?:norm1|norm2|attn\.(?:qkv|proj)|mlp\.(?:fc1|fc2))$")


@dataclass(frozen=True)
class Sites:
    """Layers whose outputs are scaled and shifted: module names, and their numbers of features (K in total)."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, space: ParameterSpace, blocks: int) -> "Sites":
        """Return the layers of the last `blocks` blocks (or of all, if there are fewer). Raises `UserError` if there are none."""
        layers = []
        for name, shape in zip(space.names, space.shapes, strict=True):
            layer, _, kind = name.rpartition(".")
            site = _SITE.search(layer)
            if site and kind == "weight":
                layers.append((int(site.group(1)), layer, shape[0]))
        if not layers:
            raise UserError("dipa needs a timm ViT: this backbone has no blocks with norm1, attn.qkv, ... to scale and shift")
        first = max(depth for depth, _, _ in layers) + 1 - blocks
        kept = [(layer, size) for depth, layer, size in layers if depth >= first]
        return cls(tuple(layer for layer, _ in kept), tuple(size for _, size in kept))

    def merged(self, tensors: Mapping[str, Tensor], scale: Tensor, shift: Tensor) -> dict[str, Tensor]:
        """Return `tensors` with scale [K] and shift [K] merged into the layers. A layer without a bias is only scaled."""
        changed = dict(tensors)
        sizes = list(self.sizes)
        for layer, s, t in zip(self.names, torch.split(scale, sizes), torch.split(shift, sizes), strict=True):
            weight = tensors[f"{layer}.weight"]
            changed[f"{layer}.weight"] = weight * s.view(-1, *[1] * (weight.ndim - 1))
            if f"{layer}.bias" in tensors:
                changed[f"{layer}.bias"] = torch.addcmul(t, tensors[f"{layer}.bias"], s)
        return changed


def proxy_anchor(features: Tensor, labels: Tensor, anchors: Tensor, margin: float = 0.1, sharpness: float = 32.0) -> Tensor:
    """Return the Proxy-Anchor loss of features [S, D] with labels [S] and anchors [C, D]; every class must occur."""
    cosines = F.normalize(features, dim=1, eps=EPS) @ F.normalize(anchors, dim=1, eps=EPS).T
    own = F.one_hot(labels, len(anchors)).bool()
    excluded, zero = cosines.new_tensor(float("-inf")), cosines.new_zeros(1, len(anchors))
    pull = torch.where(own, -sharpness * (cosines - margin), excluded)
    push = torch.where(own, excluded, sharpness * (cosines + margin))
    return torch.cat([zero, pull]).logsumexp(0).mean() + torch.cat([zero, push]).logsumexp(0).mean()


class Fused:
    """The feature of DIPA: class tokens of the last `fuse` blocks of a task's network, concatenated and scaled to length 1.

    With a graph, more than `batch` images are embedded in checkpointed parts.
    """

    def __init__(self, task: Task, fuse: int, batch: int):
        if task.module is None or task.run is None or task.space is None:
            raise UserError("dipa needs a task whose network can be called block by block")
        self.module, self.run, self.space, self.batch = LastBlocks(task.module, fuse), task.run, task.space, batch

    def named(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return features [B, fuse * D] (fp32) under parameters by name."""
        named = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
        if torch.is_grad_enabled() and len(images) > self.batch:
            parts = torch.split(images, self.batch)
            return torch.cat([checkpoint(self._embedded, part, named, use_reentrant=False) for part in parts])
        return self._embedded(images, named)

    def _embedded(self, images: Tensor, named: Mapping[str, Tensor]) -> Tensor:
        return F.normalize(torch.cat(list(self.run(self.module, named, images)), 1), dim=1, eps=EPS)

    def __call__(self, images: Tensor, theta: Tensor) -> Tensor:
        """Return features [B, fuse * D] under theta [P]."""
        return self.named(images, self.space.unflatten(theta))


class Dipa:
    """Scale and shift on any method's theta_i, by gradient steps on the support set at learning rate `config.lr`, or that of `at(rate)`."""

    name = "dipa"

    def __init__(self, config: DipaConfig | None = None):
        self.config = config or DipaConfig()
        self.rate = self.config.lr

    def at(self, rate: float) -> Self:
        """Return the same adaptation with another learning rate of scales and shifts."""
        other = copy.copy(self)
        other.rate = rate
        return other

    def adapt(self, task: Task, support: Support, watch: Watch | None = None) -> PrototypeClassifier:
        """Return the prototype classifier of the tuned features; its `theta` includes scale and shift, its `embed` is the fused feature.

        `info`: `passes` (forward passes, including those of `predict`), `loss_start` and `loss` (support cross-entropy under prototypes of
        theta_i and of the tuned features), `rate`, `steps`, `trace` (proxy-anchor loss before each step), `tuned` (number of scales and
        shifts), `fused` (blocks). With rate 0, or if a loss or parameter is not finite, `steps` is 0 and the classifier has plain
        prototypes under theta_i.
        `watch` is called with the classifier before the first step and after each step; its result is ignored.
        Raises `UserError` for a backbone that is not a timm ViT, and without a rate.
        """
        if self.rate is None:
            raise UserError("dipa needs a learning rate: set adapt.dipa.lr, or use --search valid")
        fused = Fused(task, self.config.fuse, self.config.batch)
        sites = Sites.of(fused.space, self.config.blocks)
        start = Proto().adapt(task, support)
        if watch is not None:
            watch(PrototypeClassifier(task, start.theta, start.centres, {"passes": 0}))
        if not self.rate:
            start.info |= {"rate": 0.0, "steps": 0, "trace": []}
            return start
        with torch.inference_mode(mode=False), torch.enable_grad():
            # Inference-mode tensors cannot take part in a graph; their copies can.
            copied = Support(support.images.clone(), support.labels.clone(), support.ways)
            theta, trace = self._tune(fused, sites, replace(task, embed=fused), copied, self.rate, watch)
        tuned = Proto().adapt(replace(task, embed=fused, theta=theta), support)
        finite = isfinite(tuned.info["loss"]) and bool(torch.isfinite(theta).all() & torch.isfinite(tuned.centres).all())
        kept = tuned if finite else start
        steps, loss_start = len(trace) if finite else 0, start.info["loss_start"]
        kept.info |= {"passes": len(trace) + 2, "loss_start": loss_start, "rate": self.rate, "steps": steps, "trace": trace}
        kept.info |= {"tuned": 2 * sum(sites.sizes), "fused": fused.module.last}
        return kept

    def _tune(
        self, fused: Fused, sites: Sites, task: Task, support: Support, rate: float, watch: Watch | None
    ) -> tuple[Tensor, list[float]]:
        """Return theta [P] with the tuned scale and shift merged in, and the losses of the steps."""
        config, tensors, size = self.config, fused.space.unflatten(task.theta.detach().clone()), sum(sites.sizes)
        scale, shift = task.theta.new_ones(size), task.theta.new_zeros(size)
        leaves = [scale.requires_grad_(), shift.requires_grad_()]
        trace: list[Tensor] = []
        for step in range(config.steps):
            features = fused.named(support.images, sites.merged(tensors, scale, shift))
            if step == 0:
                leaves.append(self._anchors(features.detach(), support, task.seed))
                rates = [{"params": leaves[:2], "lr": rate}, {"params": leaves[2:], "lr": config.anchor_lr}]
                optimizer = torch.optim.NAdam(rates)
            loss = proxy_anchor(features, support.labels, leaves[2], config.margin, config.sharpness)
            # Only gradients of these leaves: the model's parameters must not accumulate any.
            for leaf, grad in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
                leaf.grad = grad
            optimizer.step()
            trace.append(loss.detach())
            if watch is not None or step + 1 == config.steps:
                with torch.no_grad():
                    theta = fused.space.flatten(sites.merged(tensors, scale, shift))
            if watch is not None:
                current = Proto().adapt(replace(task, theta=theta), support)
                watch(PrototypeClassifier(task, theta, current.centres, {"passes": 0}))
        return theta, torch.stack(trace).tolist()

    def _anchors(self, features: Tensor, support: Support, seed: int) -> Tensor:
        if self.config.anchors == "class-means":
            return prototypes(features, support.labels, support.ways).requires_grad_()
        noise = torch.randn(support.ways, features.shape[1], generator=torch.Generator().manual_seed(seed))
        return (sqrt(2 / support.ways) * noise).to(features).requires_grad_()
