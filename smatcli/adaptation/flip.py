"""Gradient-free choice of experts from the support set: Algorithm 2 of SMAT (Chen et al., ICML 2024).

The search starts from the router's scores alpha_i and walks over binary scores alpha' in {0, 1}^M, merged as alpha' / sum(alpha'):

1. The first state is alpha_i itself. The walk starts at the binary state whose normalised scores are nearest to alpha_i.
2. R rounds: for each expert m in turn, flip alpha'_m and measure the support loss by a forward pass. Accept the flip if the loss decreases
   by more than rho; otherwise undo it.
3. The result is the best of all measured states, including alpha_i (ties: the earlier state), so that it is never worse than no search.

The state with all experts off is the pre-trained model. Each state is measured once: the loss decreases along the walk, so that a state
seen before cannot be accepted. A round without an accepted flip ends the search, because all remaining states were seen.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smatcli.adaptation.batched_flip import BatchedVisits, BatchingChoice
from smatcli.adaptation.proto import PrototypeClassifier
from smatcli.adaptation.states import Bits, Measure, State, normalised
from smatcli.config.schema import FlipConfig
from smatcli.seams import Support, Task


class Flip:
    """Flip search with `config.rounds` R, acceptance `config.rho` and support loss `config.loss`.

    `batched`: measure all single flips of a state in one forward pass (True), never (False), or if that is measured to be faster (None).
    """

    def __init__(self, config: FlipConfig | None = None, batched: bool | None = None):
        self.config = config or FlipConfig()
        self.batching = BatchingChoice(batched)

    @torch.no_grad()
    def adapt(self, task: Task, support: Support) -> PrototypeClassifier:
        """Return the prototype classifier of the best state.

        `info`: `bits` (None if the router's own scores are best), `scores` [M], `loss_start`, `loss`, `evaluations` (measured states),
        `passes` (forward passes, including those of `predict`; with augmented copies, each has 1 + copies times as many images),
        `accepted` (flips), `trace` ((bits, loss) in the order of measurement).
        Raises `UserError` for a task without experts, `SmatError` if the loss of the router's scores is not finite.
        """
        measure = Measure("flip", self.config, task, support)
        start = measure.start()
        batched = self.batching.batched(measure, start, nearest_bits(start.scores))
        best, accepted = walk(start, self.config, BatchedVisits(measure) if batched else measure.visit)
        return PrototypeClassifier(task, best.theta, best.centres, {**chosen(start, best, measure), "accepted": accepted})


def chosen(start: State, best: State, measure: Measure) -> dict[str, Any]:
    """Return the `info` that all searches over states have in common."""
    return {
        "bits": best.bits,
        "scores": best.scores,
        "loss_start": start.loss,
        "loss": best.loss,
        "evaluations": len(measure.trace),
        "passes": len(measure.trace),
        "trace": measure.trace,
    }


def walk(start: State, config: FlipConfig, visit: Callable[[State, Bits], State]) -> tuple[State, int]:
    """Run Algorithm 2 from alpha_i (`start`) with `visit(here, bits)`; return the best state and the number of accepted flips."""
    at = nearest_bits(start.scores)
    same = torch.equal(normalised(at, start.scores), start.scores)
    here = start if same else visit(start, at)
    best = min(start, here, key=lambda state: state.loss)
    seen, accepted = {at}, 0
    for _ in range(config.rounds):
        kept_before = accepted
        for expert in range(len(at)):
            bits = flipped(at, expert)
            if bits in seen:
                continue
            seen.add(bits)
            there = visit(here, bits)
            best = min(best, there, key=lambda state: state.loss)
            if there.loss < here.loss - config.rho:
                here, at, accepted = there, bits, accepted + 1
        if accepted == kept_before:
            break
    return best, accepted


def nearest_bits(alpha: Tensor) -> Bits:
    """Return the binary state whose normalised scores are nearest to `alpha` [M] in the Euclidean norm.

    Among states with k experts, the nearest one has the k largest scores: |alpha - 1_k / k|^2 = |alpha|^2 - 2 top_k / k + 1 / k, where
    top_k is the sum of these scores.
    """
    scores = alpha.detach().cpu().double()
    order = torch.argsort(scores, descending=True, stable=True)
    top = scores[order].cumsum(0)
    k = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    distance = torch.cat([torch.zeros(1, dtype=torch.float64), (1 - 2 * top) / k])
    # Equal scores belong together: among equally near choices (up to rounding), take the larger one.
    count = int((distance <= distance.min() + 1e-9).nonzero().max())
    chosen = set(order[:count].tolist())
    return tuple(int(m in chosen) for m in range(len(scores)))


def flipped(bits: Bits, expert: int) -> Bits:
    """Return `bits` with one expert switched."""
    return (*bits[:expert], 1 - bits[expert], *bits[expert + 1 :])
