"""In-memory store, for tests that do not need a file."""

from collections.abc import Mapping, Sequence

import numpy as np

Ids = Sequence[int] | np.ndarray


class FakeStore:
    """`counts[c]` images of class c; `splits` gives class ids by split name ("all" is always there). Pixels are a function of the row."""

    def __init__(self, counts: Ids, splits: Mapping[str, Ids] | None = None, size: int = 8, images: bool = True) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.class_offsets = np.concatenate([[0], np.cumsum(self.counts)])
        self.image_size = size
        self._splits = splits or {}
        rows = int(self.class_offsets[-1]) if images else 0
        pixels = np.arange(rows, dtype=np.uint64)[:, None] * np.uint64(7919) + np.arange(size * size * 3, dtype=np.uint64) * np.uint64(31)
        self.images = (pixels % np.uint64(251)).astype(np.uint8).reshape(rows, size, size, 3)

    def classes(self, split: str) -> np.ndarray:
        if split == "all" or not self._splits:
            return np.arange(len(self.counts))
        return np.asarray(self._splits.get(split, []), np.int64)
