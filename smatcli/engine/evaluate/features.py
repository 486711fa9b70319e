"""Features of images that come again in a meta-test: every image of a dataset once under parameters that are the same for every task.

While a `Features` is attached, the method's `embed` looks first whether it is asked for the images of the episode at hand:
- Under parameters that are the method's own (theta_pre, which routers read; theta of PMF), features come from a table of the dataset, which
  is made after its first episode, in batches of a fixed size. Their rows do not depend on which episodes are evaluated, or in what order.
- Under the task's own theta, support and query features are kept until the next episode, and made in one forward pass where both are
  certain to be wanted.

Against embedding every episode by itself only the composition of batches changes, hence rounding: none in fp32 and bf16 on the CPUs that
were tried, the last bits where a device chooses its kernels by the number of images. Whatever else is embedded passes through.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smatcli.data.augment import normalise
from smatcli.data.episodes.loader import _buffer, gather, prefetched
from smatcli.data.episodes.sampler import EpisodePlan
from smatcli.data.stores.store import Store
from smatcli.errors import SmatError
from smatcli.seams import Episode, Method, Support, Task

BATCH = 64
LIMIT = 2**30  # bytes of features a dataset
WORTH = 0.8  # distinct images / images asked for, above which a table does not pay
JOINED = 512  # images of support and query up to which one forward pass embeds both
Key = tuple[int, int]


@dataclass
class FeatureTable:
    """Features [K, D] of some rows of a store: those of row r are at `place[r]` (-1: not there)."""

    place: np.ndarray
    features: Tensor
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        self.device = self.features.device

    def get(self, rows: np.ndarray) -> Tensor | None:
        """Features [B, D], or None if one is missing."""
        places = self.place[rows]
        return None if (places < 0).any() else self.features[torch.from_numpy(places).to(self.device)]


class Images:
    """The images of a store as episodes have them: normalised, on a device."""

    def __init__(self, store: Store, device: torch.device, size: int | None) -> None:
        self.store, self.device, self.size = store, device, size

    def raw(self, rows: np.ndarray) -> Tensor:
        """uint8 [B, H, W, 3]."""
        images = self.store.images
        found = _buffer(len(rows), images, self.device.type == "cuda")
        gather(images, rows, found.numpy())
        return found

    def ready(self, raw: Tensor) -> Tensor:
        """float32 [B, 3, size, size]."""
        return normalise(raw.to(self.device, non_blocking=True), self.size)

    def __call__(self, rows: np.ndarray) -> Tensor:
        return self.ready(self.raw(rows))


class Features:
    """The features of one evaluation of `method`; `enabled` False leaves every episode to itself."""

    def __init__(self, method: Method, device: torch.device, image_size: int | None, enabled: bool = True, limit: int = LIMIT) -> None:
        self.method, self.device, self.image_size, self.enabled, self.limit = method, device, image_size, enabled, limit
        self.plain: Callable[[Tensor, Tensor], Tensor] | None = getattr(method, "embed", None)
        state: dict[str, Tensor] = getattr(method, "state_dict", dict)()
        # The tensors are held, so that no other tensor can come to lie where they are.
        self._own = {t.data_ptr(): t for t in state.values() if t.is_floating_point() and t.ndim == 1 and t.is_contiguous()}
        self._tables: dict[Key, FeatureTable] = {}
        self._asked: dict[Key, set[str]] = {}
        self._images: Images | None = None
        self._roles: dict[str, Tensor] = {}
        self._rows: dict[str, np.ndarray] = {}
        self._known: dict[str, Tensor] = {}
        self._theta: Tensor | None = None
        self._joined = False
        self.seconds = 0.0

    @contextmanager
    def attached(self) -> Iterator["Features"]:
        """The method embeds through this object."""
        if not self.enabled or self.plain is None:
            yield self
            return
        self.method.embed = self.embed  # type: ignore[attr-defined]
        try:
            yield self
        finally:
            del self.method.embed  # type: ignore[attr-defined]
            self._tables = {}
            self._forget()

    def begin(self, store: Store) -> None:
        """A new dataset."""
        self._tables, self._asked, self.seconds = {}, {}, 0.0
        self._images = Images(store, self.device, self.image_size)
        self._forget()

    def bind(self, episode: Episode, joined: bool) -> None:
        """`episode` is at hand; `joined`: its query is embedded under the task's theta for certain."""
        support = episode.support.images
        self._roles = {"support": support, "query": episode.query_images}
        self._rows = {}
        if episode.rows is not None:
            rows = np.asarray(episode.rows, np.int64)
            self._rows = {"support": rows[: len(support)], "query": rows[len(support) :]}
        self._theta, self._known, self._joined = None, {}, joined and len(support) + len(episode.query_images) <= JOINED

    def of(self, task: Task) -> Task:
        """Told what the method made of the episode at hand; returns it."""
        self._theta, self._known = task.theta, {}
        return task

    def _forget(self) -> None:
        self._roles, self._rows, self._known = {}, {}, {}
        self._theta, self._joined = None, False

    def embed(self, images: Tensor, theta: Tensor) -> Tensor:
        """Features [B, D] of `images` [B, 3, H, W] under `theta` [P]."""
        assert self.plain is not None
        role = next((name for name, known in self._roles.items() if known is images), None)
        if role is None or (torch.is_grad_enabled() and theta.requires_grad):
            return self.plain(images, theta)
        key = self._key(theta)
        if key is not None and self._rows:
            self._asked.setdefault(key, set()).add(role)
            table = self._tables.get(key)
            found = None if table is None else table.get(self._rows[role])
            if found is not None:
                return found
        if theta is self._theta:
            return self._of_task(role, theta)
        return self.plain(self._real(role), theta)

    def _of_task(self, role: str, theta: Tensor) -> Tensor:
        assert self.plain is not None
        if role not in self._known and self._joined and not self._known:
            both = [self._real("support"), self._real("query")]
            parts = self.plain(torch.cat(both), theta).split([len(one) for one in both])
            self._known = dict(zip(("support", "query"), parts, strict=True))
        if role not in self._known:
            self._known[role] = self.plain(self._real(role), theta)
        return self._known[role]

    def _real(self, role: str) -> Tensor:
        """The images of the episode at hand, read now if it came without."""
        images = self._roles[role]
        if images.device.type != "meta":
            return images
        assert self._images is not None
        return self._images(self._rows[role])

    def _key(self, theta: Tensor) -> Key | None:
        own = self._own.get(theta.data_ptr())
        return None if own is None or own.shape != theta.shape else (own.data_ptr(), own._version)

    def tabulate(self, plans: Mapping[int, EpisodePlan], first: Episode, stop: object = False) -> None:
        """After the dataset's first episode: make tables of what it asked for, for the episodes `plans`, if that saves forward passes.

        Ends early when `stop` becomes true; what is missing then is embedded when it is asked for. Raises SmatError for unreadable images.
        """
        begun = time.perf_counter()
        asked, self._asked = self._asked, {}
        for key, roles in asked.items():
            wanted = np.concatenate([getattr(plan, role) for plan in plans.values() for role in sorted(roles)] or [np.empty(0, np.int64)])
            rows = np.unique(wanted)
            own = self._own[key[0]]
            if len(rows) > WORTH * len(wanted) or key[1] != own._version:
                continue
            try:
                self._tables[key] = self._table(own, rows, stop)
            except OSError as error:
                raise SmatError(f"{first.dataset}: cannot read its images: {type(error).__name__}: {error}") from error
        self.seconds = time.perf_counter() - begun

    def _table(self, theta: Tensor, rows: np.ndarray, stop: object) -> FeatureTable:
        assert self.plain is not None
        assert self._images is not None
        images = self._images
        place = np.full(len(images.store.images), -1, np.int64)
        parts: list[Tensor] = []
        chunks = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        reading = prefetched(images.raw, chunks, 1)
        try:
            for chunk, raw in zip(chunks, reading, strict=True):
                ready = images.ready(raw)
                if len(ready) < BATCH:  # always the same shape, so that a feature does not depend on how many there are
                    ready = torch.cat([ready, ready.new_zeros(BATCH - len(ready), *ready.shape[1:])])
                parts.append(self.plain(ready, theta.detach())[: len(chunk)])
                done = len(parts) * BATCH
                if stop or (done + BATCH) * parts[0].shape[1] * parts[0].element_size() > self.limit:
                    break
        finally:
            reading.close()  # type: ignore[attr-defined]
        features = torch.cat(parts)
        place[rows[: len(features)]] = np.arange(len(features))
        return FeatureTable(place, features)

    def complete(self, plans: Mapping[int, EpisodePlan]) -> bool:
        """Does a table hold both the support and the query images of all `plans`, under the theta of the task at hand?"""
        key = None if self._theta is None else self._key(self._theta)
        table = None if key is None else self._tables.get(key)
        if table is None or not plans:
            return False
        return all(bool((table.place[rows] >= 0).all()) for plan in plans.values() for rows in (plan.support, plan.query))


def without_images(plan: EpisodePlan, seed: int, size: tuple[int, ...], device: torch.device) -> Episode:
    """An episode that names its images and does not hold them: tensors that refuse to be read."""
    made: dict[str, Any] = {"device": "meta", "dtype": torch.float32}
    known = torch.from_numpy(plan.support_labels).to(device)
    return Episode(
        support=Support(torch.empty(len(plan.support), *size, **made), known, len(plan.classes)),
        query_images=torch.empty(len(plan.query), *size, **made),
        query_labels=torch.from_numpy(plan.query_labels).to(device),
        dataset=plan.dataset,
        index=plan.index,
        seed=seed,
        rows=(*plan.support.tolist(), *plan.query.tolist()),
    )


def plans_of(plan: Callable[[int], EpisodePlan], indices: Sequence[int]) -> dict[int, EpisodePlan]:
    """Plans by episode number."""
    return {index: plan(index) for index in indices}
