"""Stand-in for a store, built from a dataset's specification: episodes can be described before the images are prepared."""

import numpy as np

from smatcli.data.metadataset.spec import Spec
from smatcli.data.stores.format import SPLITS
from smatcli.errors import UserError


class SpecStore:
    """The part of a store that samplers use: `counts` [C], `class_offsets` [C + 1] int64, `classes(split)`, `class_names`, `ontology`."""

    def __init__(self, spec: Spec) -> None:
        self.name, self.ontology = spec.name, spec.ontology
        self.class_names = [c.name for c in spec.classes]
        self.counts = np.array([c.images for c in spec.classes], np.int64)
        self.class_offsets = np.concatenate([[0], np.cumsum(self.counts)])
        self._split = np.array([SPLITS.index(c.split) for c in spec.classes], np.uint8)

    def classes(self, split: str) -> np.ndarray:
        """Return the class ids of a split, int64, ascending."""
        if split == "all":
            return np.arange(len(self.counts))
        if split not in SPLITS:
            raise UserError(f"{self.name}: unknown split {split!r} (train, valid, test, all)")
        return np.flatnonzero(self._split == SPLITS.index(split))
