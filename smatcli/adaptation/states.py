"""States of a search over merging scores: scores, theta, and the support loss that compares states.

Losses of the support set, computed from forward passes only:
- support: cross-entropy under the support set's own prototypes (Algorithm 2 of SMAT).
- leave-one-out: the same, with prototypes computed without the classified image.
- augmented: cross-entropy of augmented copies of the support images (DiffAugment) under the prototypes of the original images.
"""

from dataclasses import dataclass
from math import inf, isfinite

import torch
import torch.nn.functional as F
from torch import Tensor

from smatcli.adaptation.diffaugment import diff_augment
from smatcli.config.schema import FlipConfig
from smatcli.errors import SmatError, UserError
from smatcli.methods.prototypes import cosine_logits, leave_one_out_logits, prototypes
from smatcli.seams import Support, Task

Bits = tuple[int, ...]


@dataclass(frozen=True)
class State:
    """A measured state: scores [M] (`bits` None: the router's alpha_i), parameters [P], prototypes [C, D] and support loss."""

    bits: Bits | None
    scores: Tensor
    theta: Tensor
    centres: Tensor
    loss: float


def normalised(bits: Bits, like: Tensor) -> Tensor:
    """Return alpha' / sum(alpha') [M] in the dtype and on the device of `like`; zeros if all experts are off."""
    scores = torch.tensor(bits, dtype=like.dtype, device=like.device)
    return scores / max(sum(bits), 1)


class Measure:
    """Measure states of one task by the loss of `config`; `trace` lists (bits, loss) in the order of measurement.

    Augmented copies are drawn once, with the task's noise, so that all states are measured on the same images.
    """

    def __init__(self, name: str, config: FlipConfig, task: Task, support: Support):
        if task.alpha is None:
            raise UserError(f"{name} needs a method with experts: use --adapt proto")
        if task.merge is None and task.delta is None:
            raise UserError(f"{name} needs a task whose parameters can be merged for other scores")
        self.name, self.kind, self.task, self.support, self.alpha = name, config.loss, task, support, task.alpha
        self.images, self.labels = support.images, support.labels
        if self.kind == "augmented":
            self.images, self.labels = augmented(task, support, config.copies)
        self.trace: list[tuple[Bits | None, float]] = []

    def start(self) -> State:
        """Measure the router's alpha_i. Raises `SmatError` if its loss is not finite."""
        state = self._noted(self.state(None, self.alpha, self.task.theta))
        if not isfinite(state.loss):
            raise SmatError(f"{self.name}: the support loss of the router's scores is not finite")
        return state

    def visit(self, here: State, bits: Bits) -> State:
        """Measure the binary state `bits`; theta is updated from that of `here` if the task supports it, else merged anew."""
        return self._noted(self.state(bits, *self.moved(here, bits)))

    def moved(self, here: State, bits: Bits) -> tuple[Tensor, Tensor]:
        """Return scores [M] and theta [P] of the binary state `bits`."""
        scores, task = normalised(bits, self.alpha), self.task
        if task.delta is None or (here.bits is None and task.merge is not None):
            assert task.merge is not None
            return scores, task.merge(scores)
        return scores, task.delta(here.scores, scores, here.theta)

    def _noted(self, state: State) -> State:
        self.trace.append((state.bits, state.loss))
        return state

    def state(self, bits: Bits | None, scores: Tensor, theta: Tensor, features: Tensor | None = None) -> State:
        """Return the state with its loss, from `features` of the images under `theta` (None: by a forward pass); `trace` is unchanged."""
        if features is None:
            features = self.task.embed(self.images, theta)
        centres = prototypes(features[: len(self.support.labels)], self.support.labels, self.support.ways)
        loss = float(self._loss(features, centres))
        return State(bits, scores, theta, centres, loss if isfinite(loss) else inf)  # inf: never chosen

    def _loss(self, features: Tensor, centres: Tensor) -> Tensor:
        support, scale = self.support, self.task.scale
        if self.kind == "leave-one-out":
            return F.cross_entropy(leave_one_out_logits(features, support.labels, support.ways, scale), support.labels)
        queries = features[len(support.labels) :] if self.kind == "augmented" else features
        return F.cross_entropy(cosine_logits(queries, centres, scale), self.labels)


def augmented(task: Task, support: Support, copies: int) -> tuple[Tensor, Tensor]:
    """Return support images followed by `copies` augmented copies of them [(1 + copies) S, 3, H, W], and the labels of the copies."""
    generator = torch.Generator().manual_seed(task.seed)
    batches = [diff_augment(support.images, generator) for _ in range(copies)]
    return torch.cat([support.images, *batches]), support.labels.repeat(copies)
