"""Prototype classification by cosine similarity (Snell et al. 2017; scale 10 as in PMF and the SMAT release)."""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-12


def prototypes(features: Tensor, labels: Tensor, ways: int) -> Tensor:
    """Return class means [C, D] of `features` [S, D] with `labels` [S] in [0, ways); every class must occur."""
    onehot = F.one_hot(labels, ways).to(features.dtype)
    return (onehot.T @ features) / onehot.sum(0)[:, None]


def cosine_logits(features: Tensor, centres: Tensor, scale: float = 10.0) -> Tensor:
    """Return `scale` times the cosine similarity [Q, C] of `features` [Q, D] and `centres` [C, D]; a zero vector gives zeros."""
    return scale * F.cosine_similarity(features[:, None, :], centres[None, :, :], dim=-1, eps=EPS)


def leave_one_out_logits(features: Tensor, labels: Tensor, ways: int, scale: float = 10.0) -> Tensor:
    """Return logits [S, C] of each support image against prototypes computed without it.

    Closed form from the same features: the prototype of the image's own class becomes (sum - x) / (n - 1). A class with a single image
    keeps its prototype.
    """
    onehot = F.one_hot(labels, ways).to(features.dtype)
    count, total = onehot.sum(0), onehot.T @ features
    logits = cosine_logits(features, total / count[:, None], scale)
    own = count[labels]
    without = (total[labels] - features) / (own - 1).clamp_min(1)[:, None]
    held_out = scale * F.cosine_similarity(features, without, dim=-1, eps=EPS)
    kept = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.scatter(1, labels[:, None], torch.where(own > 1, held_out, kept)[:, None])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of rows of `logits` [Q, C] whose largest entry is at `labels` [Q]."""
    return float((logits.argmax(1) == labels).float().mean())
