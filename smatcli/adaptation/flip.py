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

    `batched`: measure all single flips of a state in one forward pass, or never (None: where that was measured to be faster).
    """

    def __init__(self, config: FlipConfig | None = None, batched: bool | None = None):
        self.config = config or FlipConfig()
        self.pace = BatchingChoice(batched)

    @torch.no_grad()
    def adapt(self, task: Task, support: Support) -> PrototypeClassifier:
        """The prototype classifier of the best state.

        `info`: `bits` (None when the router's own scores were best), `scores` [M], `loss_start`, `loss`, `evaluations` (states measured),
        `passes` (forward passes, those of `predict` included; with augmented copies each has 1 + copies times the images), `accepted`,
        `trace` ((bits, loss) in the order of measurement).
        Raises `UserError` for a task without experts, `SmatError` when the loss of the router's scores is not finite.
        """
        measure = Measure("flip", self.config, task, support)
        start = measure.start()
        ahead = self.pace.batched(measure, start, nearest_bits(start.scores))
        best, accepted = walk(start, self.config, BatchedVisits(measure) if ahead else measure.visit)
        return PrototypeClassifier(task, best.theta, best.centres, {**chosen(start, best, measure), "accepted": accepted})


def chosen(start: State, best: State, measure: Measure) -> dict[str, Any]:
    """What every search over states reports."""
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
    """The best state that Algorithm 2 meets from alpha_i (`start`), and how many flips it keeps; `visit(here, bits)` measures a state."""
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


def flipped(bits: Bits, expert: int) -> Bits:
    """`bits` with one expert switched."""
    return (*bits[:expert], 1 - bits[expert], *bits[expert + 1 :])
