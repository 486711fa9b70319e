"""Source `pmf-episodes`: PMF's fixed validation episodes (`val_ep120_img128.h5`), as a store and a list of episodes.

The file has one group per episode, "0", "1", ...: support images `sx` float32 [S, 3, H, W] and labels `sy` int64 [S], and `x` and `y` for
the queries. Images are normalised by ImageNet's mean and standard deviation; this is undone here, which restores the original 8-bit images.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from smatcli.data.images import MAX_PIXELS
from smatcli.data.sources.base import SourceClass
from smatcli.data.sources.foreign_hdf5 import ForeignHdf5
from smatcli.errors import UserError

if TYPE_CHECKING:
    from smatcli.data.episodes.lists import EpisodeList
    from smatcli.data.stores.ontology import Ontology
    from smatcli.data.stores.store import Store

_MEAN, _STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
PROTOCOL = "pmf-validation"


class Place(NamedTuple):
    """Key of an image: its episode, the dataset ("sx" or "x") and the row in it."""

    episode: int
    part: str
    row: int


class PmfEpisodesSource:
    """One class of the valid split per class of an episode ("episode 007 class 02"): its support images, then its queries.

    If the store has the size of the images, they are unchanged. `episodes` returns the list of episodes for the store.
    Raises UserError, with file and group, for a file that is missing, damaged, or has no such episodes.
    """

    kind = "pmf-episodes"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = f"{self.path.resolve().parent.name}_{self.path.stem}"
        self.remarks: list[str] = []
        self.ontology: Ontology | None = None
        self._file = ForeignHdf5(self.path)
        self._labels = [self._episode(index) for index in range(self._file.groups)]
        if not self._labels:
            raise UserError(f"{self.path}: has no episodes")
        labels = hashlib.sha256(repr([(s.tolist(), q.tolist()) for s, q in self._labels]).encode()).hexdigest()
        facts = self.path.stat()
        self.fingerprint = hashlib.sha256(repr((facts.st_size, facts.st_mtime_ns, labels)).encode()).hexdigest()

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._labels)

    def classes(self) -> Sequence[SourceClass]:
        classes = []
        for index, parts in enumerate(self._labels):
            for label in range(int(parts[0].max()) + 1):
                rows = [np.flatnonzero(labels == label) for labels in parts]
                images = [Place(index, part, int(row)) for part, own in zip(("sx", "x"), rows, strict=True) for row in own]
                classes.append(SourceClass(f"episode {index:03d} class {label:02d}", images, "valid"))
        return classes

    def read(self, image: Place) -> np.ndarray:
        images = self._file.array(image.episode, image.part)
        with self._file.user_errors(image.episode):
            pixels = np.asarray(self._file.checked(images)[image.row], np.float32).transpose(1, 2, 0)
        levels = np.rint((pixels * _STD + _MEAN) * 255)
        if not ((levels >= 0) & (levels <= 255)).all():
            raise UserError(
                f"{self.path}, group {image.episode}: {image.part!r}, row {image.row} is not within 0 to 255 after undoing ImageNet's "
                "normalisation; other normalisations are not supported"
            )
        return np.asarray(levels.astype(np.uint8))

    def describe(self, image: Place) -> str:
        """Return the file, group and row of an image."""
        return f"{self.path.name}, group {image.episode}, {image.part}, row {image.row}"

    def close(self) -> None:
        self._file.close()

    def episodes(self, store: "Store") -> "EpisodeList":
        """Return the episodes as rows of the store that was prepared from this file. Raises UserError for another store."""
        from smatcli.data.episodes.lists import EpisodeList
        from smatcli.data.episodes.sampler import EpisodePlan

        shots = [np.bincount(support) for support, _ in self._labels]
        queries = [np.bincount(query) for _, query in self._labels]
        if store.counts.tolist() != np.concatenate([s + q for s, q in zip(shots, queries, strict=True)]).tolist():
            raise UserError(f"{store.path}: is not the store of {self.path}; prepare it with `smat data prepare {self.kind} {self.path}`")
        plans, first = [], 0
        for index, (s, q) in enumerate(zip(shots, queries, strict=True)):
            classes = np.arange(first, first := first + len(s))
            starts, labels = store.class_offsets[classes], np.arange(len(s))
            support = np.concatenate([np.arange(a, a + k) for a, k in zip(starts, s, strict=True)])
            query = np.concatenate([np.arange(a, a + k) for a, k in zip(starts + s, q, strict=True)])
            plans.append(EpisodePlan(store.name, index, classes, support, np.repeat(labels, s), query, np.repeat(labels, q)))
        return EpisodeList.of(plans, store.name, "valid", PROTOCOL, 0, store.content_hash)

    def _episode(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the labels of support and query, int64, after checking that images and labels are consistent."""
        where, sides, parts = f"{self.path}, group {index}", set(), []
        for name, labels in (("sx", "sy"), ("x", "y")):
            images, values = self._file.array(index, name), self._file.array(index, labels)
            shape = images.shape
            if images.dtype.kind != "f" or len(shape) != 4 or shape[1] != 3 or not 0 < shape[2] * shape[3] <= MAX_PIXELS:
                raise UserError(f"{where}: {name!r} is {images.dtype} {list(shape)}, expected floating-point images [N, 3, H, W]")
            if values.dtype.kind not in "iu" or values.shape != shape[:1] or not shape[0]:
                raise UserError(f"{where}: {labels!r} is {values.dtype} {list(values.shape)}, but {name!r} has {shape[0]} images")
            with self._file.user_errors(index):
                parts.append(np.asarray(self._file.checked(values)[()], np.int64))
            sides.add(shape[2:])
        support, query = parts
        ways = set(support.tolist())
        if ways != set(range(len(ways))) or set(query.tolist()) != ways:
            raise UserError(f"{where}: the labels of 'sy' and 'y' are not the same 0, 1, ...")
        if len(sides) > 1:
            raise UserError(f"{where}: 'sx' and 'x' have images of different sizes")
        return support, query
