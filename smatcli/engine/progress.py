"""How far a conversion is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from smatcli.data.store_draft import Mark


@dataclass
class Progress:
    """`counts`: images in the store of each class that is done (0: dropped); `seen`, `kept`: images of the current class read, written.

    `held` are read but not yet written images of the current class: until there are enough of them, the class may still be dropped.
    """

    counts: list[int]
    unreadable: list[tuple[str, str]]
    seen: int = 0
    kept: int = 0
    held: list[tuple[np.ndarray | bytes, int]] = field(default_factory=list)
    unreadable_before: int = 0  # at the begin of the current class
    _written: tuple[int, int] = (0, 0)  # counts and unreadable images that are in the journal

    def end_class(self) -> None:
        """The current class is done; what is held is dropped with it."""
        self.counts.append(self.kept)
        self.seen = self.kept = 0
        self.held.clear()
        self.unreadable_before = len(self.unreadable)

    def entry(self, mark: Mark) -> dict[str, Any]:
        """What is new since the last entry; a class with held images will begin again."""
        again = bool(self.held)
        unreadable = self.unreadable_before if again else len(self.unreadable)
        counts_from, unreadable_from = self._written
        self._written = len(self.counts), unreadable
        return {
            "counts": self.counts[counts_from:],
            "seen": 0 if again else self.seen,
            "kept": self.kept,
            "unreadable": self.unreadable[unreadable_from:unreadable],
            "before": self.unreadable_before,
            "mark": asdict(mark),
        }

    @classmethod
    def read(cls, entries: Sequence[dict[str, Any]], unreadable: list[tuple[str, str]]) -> "Progress":
        """The state after all entries; `unreadable` is filled."""
        unreadable[:] = [(str(image), str(reason)) for entry in entries for image, reason in entry["unreadable"]]
        counts = [int(count) for entry in entries for count in entry["counts"]]
        last = entries[-1]
        state = cls(counts, unreadable, int(last["seen"]), int(last["kept"]), unreadable_before=int(last["before"]))
        state._written = len(counts), len(unreadable)
        return state
