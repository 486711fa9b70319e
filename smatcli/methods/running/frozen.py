"""Features of the pre-trained model for images that come again."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LIMIT = 2**30


class FeatureCache:
    """Features [D] by (dataset, row of its store), up to `limit` bytes; what comes later is computed each time.

    The features of an image depend on the others of its batch by rounding alone.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.asked = self.found = 0
        self._features: dict[tuple[str, int], Tensor] = {}

    @property
    def hit_share(self) -> float:
        """Share of the features asked for that were there."""
        return self.found / self.asked if self.asked else 0.0

    def get(self, dataset: str, rows: Sequence[int], compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Features [B, D] of the images `rows`; `compute(positions)` embeds those at `positions` (of the B) that are not there yet."""
        keys = [(dataset, int(row)) for row in rows]
        missing = [i for i, key in enumerate(keys) if key not in self._features]
        self.asked += len(keys)
        self.found += len(keys) - len(missing)
        fresh: dict[int, Tensor] = {}
        if missing:
            made = compute(torch.tensor(missing)).detach()
            fresh = dict(zip(missing, made.unbind(), strict=True))
            room = self.limit // (made.shape[1] * made.element_size()) - len(self._features)
            # Clones: a row of `made` would keep all of it.
            self._features |= {keys[i]: fresh[i].clone() for i in missing[: max(0, room)]}
        return torch.stack([fresh[i] if i in fresh else self._features[key] for i, key in enumerate(keys)])
