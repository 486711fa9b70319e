"""Updates that must not be made: a loss or gradient that is not finite, or (if asked for) a loss far above the ones before.

Such an update is left out without a trace and counted; after some in a row the run stops, naming the episodes.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from smatcli.config.schema import SpikeConfig
from smatcli.seams import Episode

SMALL = 1 << 16  # elements; larger buffers (weights, masks) are constants of the training
FEWEST = 10  # losses from which their spread is known
TO_SIGMA = 1.4826  # median absolute deviation -> standard deviation of a normal distribution


@dataclass(frozen=True)
class Problem:
    """Why an update is left out, and the episodes that it would have learned from."""

    what: str
    episodes: Sequence[Episode]

    def __str__(self) -> str:
        return f"{self.what} ({', '.join(map(str, self.episodes))})"

    def record(self) -> dict[str, Any]:
        """The fields of a `metrics.jsonl` line."""
        names = [{"dataset": e.dataset, "index": e.index, "seed": e.seed} for e in self.episodes]
        return {"reason": self.what, "episodes": names}


@dataclass
class Guard:
    """Counts what is left out; `state()` goes into the checkpoint, so that a resumed run judges as the unbroken one would."""

    config: SpikeConfig
    skipped: int = 0
    row: int = 0
    losses: list[float] = field(default_factory=list)  # of the last updates that were made
    _buffers: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False)

    def remember(self, module: nn.Module) -> None:
        """Keep the buffers that a forward pass may change (power iterations), for `forget`."""
        self._buffers = [(buffer, buffer.clone()) for buffer in module.buffers() if buffer.numel() <= SMALL]

    def forget(self) -> None:
        """Put the buffers of `remember` back."""
        for buffer, before in self._buffers:
            buffer.copy_(before)

    def spike(self, loss: float) -> str | None:
        """What to say of a loss that is a spike; None for others, or while too few are known."""
        factor = self.config.factor
        if factor is None or len(self.losses) < min(FEWEST, self.config.window):
            return None
        middle = statistics.median(self.losses)
        spread = TO_SIGMA * statistics.median(abs(x - middle) for x in self.losses)
        limit = middle + factor * max(spread, 1e-3 * abs(middle), 1e-12)
        return f"the loss is {loss:.4g}, a spike above {limit:.4g}" if loss > limit else None

    def made(self, loss: float) -> None:
        """An update was made."""
        self.row = 0
        if self.config.factor is not None:
            self.losses = [*self.losses, loss][-self.config.window :]

    def left_out(self) -> bool:
        """An update was left out; are these too many in a row?"""
        self.skipped += 1
        self.row += 1
        return self.row >= self.config.in_a_row

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {"skipped": self.skipped, "row": self.row, "losses": self.losses}

    def restore(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.skipped, self.row, self.losses = int(state["skipped"]), int(state["row"]), [float(x) for x in state["losses"]]


def bad_terms(total: float, terms: dict[str, float]) -> str | None:
    """What to say of a loss that is not finite, naming its terms; None for a finite one."""
    if math.isfinite(total):
        return None
    bad = [f"{name} {value}" for name, value in terms.items() if not math.isfinite(value)]
    return f"the loss is {total}" + (f" (its terms: {', '.join(bad)})" if bad else "")
