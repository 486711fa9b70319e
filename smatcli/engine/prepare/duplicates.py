"""Equal images in several classes, detected by a hash of the stored bytes; 12 bytes of memory per image."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np

from smatcli.data.stores.draft import START, Draft

NAMED = 5


class Duplicates:
    """The hashes of the images of a store, with their classes (index)."""

    def __init__(self) -> None:
        self.hashes, self.classes = array("Q"), array("I")

    def add(self, image: np.ndarray | bytes, index: int) -> None:
        """Add an image of a class."""
        data = image if isinstance(image, bytes) else np.ascontiguousarray(image).data
        self.hashes.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little"))
        self.classes.append(index)

    def add_stored(self, draft: Draft, counts: Sequence[int], image_bytes: int | None) -> None:
        """Add the images that a draft contains: `counts` per class, of `image_bytes` bytes each, or (None) as its records state."""
        owners = (index for index, count in enumerate(counts) for _ in range(count))
        with draft.path.open("rb") as file:
            file.seek(START)
            if image_bytes is not None:
                for index in owners:
                    self.add(file.read(image_bytes), index)
            else:
                for block in draft.records():
                    for length, index in zip(block["length"].tolist(), owners, strict=False):
                        self.add(file.read(length), index)

    def line(self, names: Sequence[str]) -> str | None:
        """Return a sentence about images that are in several of the classes `names`, or None."""
        hashes, classes = np.frombuffer(self.hashes, np.uint64), np.frombuffer(self.classes, np.uint32)
        order = np.lexsort((classes, hashes))
        same = hashes[order][1:] == hashes[order][:-1]
        differ = same & (classes[order][1:] != classes[order][:-1])
        if not differ.any():
            return None
        pairs = Counter(zip(classes[order][:-1][differ].tolist(), classes[order][1:][differ].tolist(), strict=True))
        shown = [
            f"{names[a]!r} and {names[b]!r} ({count})"
            for (a, b), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:NAMED]
        ]
        images = len(np.unique(hashes[order][1:][differ]))
        more = f" and {len(pairs) - NAMED} more pairs of classes" if len(pairs) > NAMED else ""
        return f"{images} image{'s' * (images > 1)} in several classes: {', '.join(shown)}{more}; check their labels"
