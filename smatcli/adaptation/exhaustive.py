"""Exhaustive search over binary choices of experts: the reference for the gap between Algorithm 2 (flip) and the optimum.

All 2^M states alpha' in {0, 1}^M, including that with all experts off, and the router's alpha_i are compared by their support loss.
States are visited in Gray-code order, so that neighbours differ in one expert and theta changes at that expert's non-zeros only. The walk
of Algorithm 2 is then replayed on the table of losses, which needs no further forward pass.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from smatcli.adaptation.flip import chosen, walk
from smatcli.adaptation.proto import PrototypeClassifier
from smatcli.adaptation.states import Bits, Measure, State, normalised
from smatcli.config.schema import ExhaustiveConfig
from smatcli.errors import UserError
from smatcli.seams import Support, Task

MOST_EXPERTS = 8


def check_experts(experts: int) -> None:
    """Raise `UserError` for too many experts for an exhaustive search."""
    if experts > MOST_EXPERTS:
        raise UserError(
            f"exhaustive tries all 2^M choices of M experts and supports at most {MOST_EXPERTS}; this run has {experts}: use --adapt flip"
        )


def gray(experts: int) -> Iterator[Bits]:
    """Yield all 2^M states, starting with all experts off; each differs from its predecessor in one expert."""
    for count in range(2**experts):
        code = count ^ (count >> 1)
        yield tuple((code >> m) & 1 for m in range(experts))


class Exhaustive:
    """The best of all states by the support loss `config.loss`; `config.rounds` and `config.rho` are those of the replayed flip."""

    def __init__(self, config: ExhaustiveConfig | None = None):
        self.config = config or ExhaustiveConfig()

    @torch.no_grad()
    def adapt(self, task: Task, support: Support) -> PrototypeClassifier:
        """Return the prototype classifier of the best state (ties: alpha_i, then the earlier state).

        `info`: that of flip without `accepted`, and `loss_binary` (lowest loss of the 2^M binary states), `flip_bits` and `flip_loss`
        (result of flip), `flip_gap` = flip_loss - loss (0: flip found the best state, which may be alpha_i), `flip_evaluations` (states
        that flip measures).
        Raises `UserError` for a task without experts or with more than 8, `SmatError` if the loss of the router's scores is not finite.
        """
        check_experts(0 if task.alpha is None else len(task.alpha))
        measure = Measure("exhaustive", self.config, task, support)
        start = here = best = measure.start()
        losses: dict[Bits, float] = {}
        for bits in gray(len(start.scores)):
            here = measure.visit(here, bits)
            losses[bits] = here.loss
            best = min(best, here, key=lambda state: state.loss)

        visited: list[Bits] = []

        def look_up(_: State, bits: Bits) -> State:
            visited.append(bits)
            return replace(start, bits=bits, scores=normalised(bits, start.scores), loss=losses[bits])

        flip, _ = walk(start, self.config, look_up)
        info = chosen(start, best, measure) | {
            "loss_binary": min(losses.values()),
            "flip_bits": flip.bits,
            "flip_loss": flip.loss,
            "flip_gap": flip.loss - best.loss,
            "flip_evaluations": 1 + len(visited),
        }
        return PrototypeClassifier(task, best.theta, best.centres, info)
