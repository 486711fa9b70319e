"""Small tasks whose losses can be computed by hand: features are pixels weighted by theta."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from smatcli.seams import Support, Task

PIXELS = 12  # 3 x 2 x 2


class Counted:
    """Compute embed(images, theta) = pixels * theta, and count the calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.images = 0

    def __call__(self, images: Tensor, theta: Tensor) -> Tensor:
        self.calls += 1
        self.images += len(images)
        return images.flatten(1) * theta


def make_support(seed: int, ways: int = 3, shots: int = 4) -> Support:
    """Return a support set of noisy class clusters, with labels in random order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(ways).repeat_interleave(shots)[torch.randperm(ways * shots, generator=generator)]
    means = torch.randn(ways, PIXELS, generator=generator)
    images = means[labels] + 1.5 * torch.randn(len(labels), PIXELS, generator=generator)
    return Support(images.view(-1, 3, 2, 2), labels, ways)


def make_task(seed: int, experts: int = 4, delta: bool = False) -> tuple[Task, Counted, Tensor, Tensor]:
    """Return a task with random experts, its counter, theta_pre [P] and the experts' steps theta_delta z_m [M, P]."""
    generator = torch.Generator().manual_seed(1000 + seed)
    pre = torch.ones(PIXELS)
    steps = 2 * torch.randn(experts, PIXELS, generator=generator) * (torch.rand(experts, PIXELS, generator=generator) < 0.4)
    alpha = torch.rand(experts, generator=generator)
    alpha = alpha / alpha.sum()
    embed = Counted()

    def merge(scores: Tensor) -> Tensor:
        return pre + scores @ steps

    def move(before: Tensor, after: Tensor, theta: Tensor) -> Tensor:
        return theta + (after - before) @ steps

    return Task(merge(alpha), embed, 10.0, alpha, merge, move if delta else None), embed, pre, steps


def softmax_loss(features: np.ndarray, labels: np.ndarray, ways: int, leave_one_out: bool = False) -> float:
    """Return the cross-entropy of the cosine prototype classifier, computed image by image in float64."""
    total = 0.0
    for i, (x, label) in enumerate(zip(features, labels, strict=True)):
        logits = []
        for c in range(ways):
            members = [k for k in range(len(labels)) if labels[k] == c and not (leave_one_out and k == i)]
            members = members or [i]
            centre = features[members].mean(0)
            logits.append(10 * float(x @ centre) / max(float(np.linalg.norm(x) * np.linalg.norm(centre)), 1e-12))
        peak = max(logits)
        total += peak + float(np.log(np.sum(np.exp(np.array(logits) - peak)))) - logits[int(label)]
    return total / len(labels)


def state_loss(support: Support, theta: Tensor, leave_one_out: bool = False) -> float:
    """Return the support loss of parameters theta, directly from the definition."""
    features = (support.images.flatten(1).double() * theta.double()).numpy()
    return softmax_loss(features, support.labels.numpy(), support.ways, leave_one_out)


def all_states(experts: int) -> Iterator[tuple[int, ...]]:
    """Return all binary states."""
    return itertools.product((0, 1), repeat=experts)


def binary_theta(bits: tuple[int, ...], pre: Tensor, steps: Tensor) -> Tensor:
    """Return theta_pre + sum_m (bits_m / sum bits) theta_delta z_m."""
    return pre + torch.tensor(bits, dtype=torch.float32) @ steps / max(sum(bits), 1)
