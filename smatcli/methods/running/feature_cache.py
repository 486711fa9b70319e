"""Per-image cache of frozen-backbone features."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LIMIT = 2**30


class FeatureCache:
    """Cache of features [D] by (dataset, row of its store), up to `limit` bytes; other images are computed each time.

    The other images of a batch change an image's features only by rounding.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.requests = self.hits = 0
        self._features: dict[tuple[str, int], Tensor] = {}

    @property
    def hit_share(self) -> float:
        """Share of the requested features that were in the cache."""
        return self.hits / self.requests if self.requests else 0.0

    def get(self, dataset: str, rows: Sequence[int], compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return features [B, D] of the images `rows`; `compute(positions)` embeds the missing images at `positions` (among the B)."""
        keys = [(dataset, int(row)) for row in rows]
        missing = [i for i, key in enumerate(keys) if key not in self._features]
        self.requests += len(keys)
        self.hits += len(keys) - len(missing)
        fresh: dict[int, Tensor] = {}
        if missing:
            computed = compute(torch.tensor(missing)).detach()
            fresh = dict(zip(missing, computed.unbind(), strict=True))
            room = self.limit // (computed.shape[1] * computed.element_size()) - len(self._features)
            # Clones, because a view of one row would keep all of `computed` alive.
            self._features |= {keys[i]: fresh[i].clone() for i in missing[: max(0, room)]}
        return torch.stack([fresh[i] if i in fresh else self._features[key] for i, key in enumerate(keys)])
