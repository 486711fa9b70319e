"""Detection of bad updates: a loss or gradient that is not finite or, optionally, a loss far above previous losses (a spike).

The loop undoes and counts bad updates. After too many in a row it stops the run.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from smatcli.config.schema import SpikeConfig
from smatcli.seams import Episode

SMALL = 1 << 16  # elements; larger buffers (weights, masks) do not change during training
FEWEST = 10  # losses needed to estimate their spread
TO_SIGMA = 1.4826  # median absolute deviation -> standard deviation of a normal distribution


@dataclass(frozen=True)
class Problem:
    """The reason why an update is skipped and, in meta-training, the episodes of the update."""

    what: str
    episodes: Sequence[Episode] = ()

    def __str__(self) -> str:
        return f"{self.what} ({', '.join(map(str, self.episodes))})" if self.episodes else self.what

    def record(self) -> dict[str, Any]:
        """Return the fields of a `metrics.jsonl` record."""
        names = [{"dataset": e.dataset, "index": e.index, "seed": e.seed} for e in self.episodes]
        return {"reason": self.what, **({"episodes": names} if names else {})}


@dataclass
class Guard:
    """Counts skipped updates and detects spikes. `state()` is part of a checkpoint, so that a resumed run makes the same decisions."""

    config: SpikeConfig
    skipped: int = 0
    in_a_row: int = 0
    losses: list[float] = field(default_factory=list)  # losses of the last updates that were applied
    _buffers: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False)

    def keep_buffers(self, module: nn.Module) -> None:
        """Save the buffers that a forward pass may change (power iterations, batch statistics) for `restore_buffers`."""
        self._buffers = [(buffer, buffer.clone()) for buffer in module.buffers() if buffer.numel() <= SMALL]

    def restore_buffers(self) -> None:
        """Undo the changes to the buffers since `keep_buffers`."""
        for buffer, before in self._buffers:
            buffer.copy_(before)

    def spike(self, loss: float) -> str | None:
        """Describe a spike; None for other losses, and while there are too few losses to compare with."""
        factor = self.config.factor
        if factor is None or len(self.losses) < min(FEWEST, self.config.window):
            return None
        middle = statistics.median(self.losses)
        spread = TO_SIGMA * statistics.median(abs(x - middle) for x in self.losses)
        limit = middle + factor * max(spread, 1e-3 * abs(middle), 1e-12)
        return f"the loss is {loss:.4g}, a spike above {limit:.4g}" if loss > limit else None

    def accept(self, loss: float) -> None:
        """Record the loss of an update that was applied."""
        self.in_a_row = 0
        if self.config.factor is not None:
            self.losses = [*self.losses, loss][-self.config.window :]

    def skip(self) -> bool:
        """Count a skipped update, and return whether there are now too many in a row."""
        self.skipped += 1
        self.in_a_row += 1
        return self.in_a_row >= self.config.in_a_row

    def state(self) -> dict[str, Any]:
        """Return the counts and losses as plain data."""
        return {"skipped": self.skipped, "row": self.in_a_row, "losses": self.losses}

    def restore(self, state: dict[str, Any]) -> None:
        """Load the result of `state`."""
        self.skipped, self.in_a_row, self.losses = int(state["skipped"]), int(state["row"]), [float(x) for x in state["losses"]]


def nonfinite(total: float, terms: dict[str, float] | None = None) -> str | None:
    """Describe a loss that is not finite, naming the terms that are not; None for a finite loss."""
    if math.isfinite(total):
        return None
    bad = [f"{name} {value}" for name, value in (terms or {}).items() if not math.isfinite(value)]
    return f"the loss is {total}" + (f" (its terms: {', '.join(bad)})" if bad else "")
