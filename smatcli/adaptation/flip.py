"""Gradient-free choice of experts from the support set: Algorithm 2 of SMAT (Chen et al., ICML 2024).

The search starts from the router's scores alpha_i and walks over binary scores alpha' in {0, 1}^M, merged as alpha' / sum(alpha'):

1. The first state is alpha_i itself. The walk begins at the binary state whose normalised scores are nearest to alpha_i.
2. R rounds: for each expert m in turn, flip alpha'_m and measure the support loss by a forward pass. The flip is kept if the loss
   falls by more than rho; otherwise it is taken back.
3. The answer is the best state of all that were measured, alpha_i included (ties: the earlier one), so it is never worse than no search.

All experts off is a state like any other: the pre-trained model. A state is measured once: the loss along the walk only falls, so a state
seen before cannot be accepted, and a round that keeps no flip ends the search, because all that is left was seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smatcli.adaptation.proto import PrototypeClassifier
from smatcli.config.schema import FlipConfig
from smatcli.errors import SmatError, UserError
from smatcli.methods.prototypes import cosine_logits, leave_one_out_logits, prototypes
from smatcli.seams import Support, Task

Bits = tuple[int, ...]


@dataclass(frozen=True)
class State:
    """A measured state: its scores [M] (None: alpha_i as the router gave it), parameters, prototypes [C, D] and support loss."""

    bits: Bits | None
    scores: Tensor
    theta: Tensor
    centres: Tensor
    loss: float


def normalised(bits: Bits, like: Tensor) -> Tensor:
    """alpha' / sum(alpha') [M] in the dtype and on the device of `like`; zeros when every expert is off."""
    scores = torch.tensor(bits, dtype=like.dtype, device=like.device)
    return scores / max(sum(bits), 1)


def nearest_bits(alpha: Tensor) -> Bits:
    """The binary state whose normalised scores are nearest to `alpha` [M] in the Euclidean norm.

    Of k experts the nearest are those with the k largest scores: |alpha - 1_k / k|^2 = |alpha|^2 - 2 top_k / k + 1 / k, where top_k
    is the sum of these scores.
    """
    scores = alpha.detach().cpu().double()
    order = torch.argsort(scores, descending=True, stable=True)
    top = scores[order].cumsum(0)
    k = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    distance = torch.cat([torch.zeros(1, dtype=torch.float64), (1 - 2 * top) / k])
    # Equal scores belong together: of equally near choices (up to rounding) the larger one is taken.
    count = int((distance <= distance.min() + 1e-9).nonzero().max())
    chosen = set(order[:count].tolist())
    return tuple(int(m in chosen) for m in range(len(scores)))


def support_loss(kind: str, features: Tensor, centres: Tensor, support: Support, scale: float) -> Tensor:
    """Cross-entropy of the support set with its own prototypes, or with prototypes that leave out the image in question."""
    if kind == "leave-one-out":
        logits = leave_one_out_logits(features, support.labels, support.ways, scale)
    else:
        logits = cosine_logits(features, centres, scale)
    return F.cross_entropy(logits, support.labels)


def mover(task: Task) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """How theta follows the scores: by the flipped expert's non-zeros where the task can, else by a new merge."""
    if task.delta is not None:
        return task.delta
    merge = task.merge
    if merge is None:
        raise UserError("flip needs a task whose parameters can be merged for other scores")
    return lambda before, after, theta: merge(after)


class Flip:
    """Flip search with `config.rounds` R, acceptance `config.rho` and support loss `config.loss`."""

    def __init__(self, config: FlipConfig | None = None):
        self.config = config or FlipConfig()

    @torch.no_grad()
    def adapt(self, task: Task, support: Support) -> PrototypeClassifier:
        """The prototype classifier of the best state.

        `info`: `bits` (None when the router's own scores were best), `scores` [M], `loss_start`, `loss`, `evaluations` (states measured),
        `passes` (forward passes, those of `predict` included), `accepted`, `trace` ((bits, loss) in the order of measurement).
        Raises `UserError` for a task without experts, `SmatError` when the loss of the router's scores is not finite.
        """
        if task.alpha is None:
            raise UserError("flip needs a method with experts: use --adapt proto")
        trace: list[tuple[Bits | None, float]] = []

        def measure(bits: Bits | None, scores: Tensor, theta: Tensor) -> State:
            features = task.embed(support.images, theta)
            centres = prototypes(features, support.labels, support.ways)
            loss = float(support_loss(self.config.loss, features, centres, support, task.scale))
            trace.append((bits, loss))
            loss = loss if isfinite(loss) else inf  # so that it is never chosen
            return State(bits, scores, theta, centres, loss)

        start = measure(None, task.alpha, task.theta)
        if not isfinite(start.loss):
            raise SmatError("flip: the support loss of the router's scores is not finite")
        best, accepted = self._walk(task, start, measure)
        info: dict[str, Any] = {
            "bits": best.bits,
            "scores": best.scores,
            "loss_start": start.loss,
            "loss": best.loss,
            "evaluations": len(trace),
            "passes": len(trace),
            "accepted": accepted,
            "trace": trace,
        }
        return PrototypeClassifier(task, best.theta, best.centres, info)

    def _walk(self, task: Task, start: State, measure: Callable[[Bits | None, Tensor, Tensor], State]) -> tuple[State, int]:
        """The best state measured, and how many flips were kept."""
        move = mover(task)
        at = nearest_bits(start.scores)
        scores = normalised(at, start.scores)
        same = torch.equal(scores, start.scores)
        here = start if same else measure(at, scores, task.merge(scores) if task.merge else move(start.scores, scores, start.theta))
        best = min(start, here, key=lambda state: state.loss)
        seen, accepted = {at}, 0
        for _ in range(self.config.rounds):
            kept_before = accepted
            for expert in range(len(at)):
                bits = flipped(at, expert)
                if bits in seen:
                    continue
                seen.add(bits)
                scores = normalised(bits, start.scores)
                there = measure(bits, scores, move(here.scores, scores, here.theta))
                best = min(best, there, key=lambda state: state.loss)
                if there.loss < here.loss - self.config.rho:
                    here, at, accepted = there, bits, accepted + 1
            if accepted == kept_before:
                break
        return best, accepted


def flipped(bits: Bits, expert: int) -> Bits:
    """`bits` with one expert switched."""
    return (*bits[:expert], 1 - bits[expert], *bits[expert + 1 :])
