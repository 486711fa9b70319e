"""Per-image cache of features in a meta-test: under parameters that all tasks share, each image is embedded only once.

While a `Features` is attached, the method's `embed` uses it for the images of the current episode:
- Under parameters of the method (theta_pre for routers, theta of PMF), features come from a table of the dataset. It is
  computed after the first episode, in batches of a fixed size, so that its rows do not depend on the episodes or their order.
- Under the task's own theta, support and query features are kept until the next episode, and computed in one forward pass if both are
  certain to be needed.

Compared with embedding every episode alone, only the composition of the batches changes. It can affect rounding: there was no difference
in fp32 and bf16 on the CPUs tested; on devices that choose kernels by batch size, the last bits differ. Other images are embedded as usual.
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
LIMIT = 2**30  # bytes of features per dataset
WORTH = 0.8  # distinct images / images needed; above this ratio, a table does not pay off
JOINED = 512  # support and query images; up to this many are embedded in one forward pass
Key = tuple[int, int]


@dataclass
class FeatureTable:
    """Features [K, D] of some rows of a store; `place[r]` is the position of row r among them (-1: missing)."""

    place: np.ndarray
    features: Tensor
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        self.device = self.features.device

    def get(self, rows: np.ndarray) -> Tensor | None:
        """Return features [B, D], or None if one is missing."""
        places = self.place[rows]
        return None if (places < 0).any() else self.features[torch.from_numpy(places).to(self.device)]


class Images:
    """The images of a store, normalised and on a device, as in episodes."""

    def __init__(self, store: Store, device: torch.device, size: int | None) -> None:
        self.store, self.device, self.size = store, device, size

    def raw(self, rows: np.ndarray) -> Tensor:
        """Return images uint8 [B, H, W, 3]."""
        images = self.store.images
        pixels = _buffer(len(rows), images, self.device.type == "cuda")
        gather(images, rows, pixels.numpy())
        return pixels

    def ready(self, raw: Tensor) -> Tensor:
        """Return normalised images float32 [B, 3, size, size]."""
        return normalise(raw.to(self.device, non_blocking=True), self.size)

    def __call__(self, rows: np.ndarray) -> Tensor:
        return self.ready(self.raw(rows))


class Features:
    """The features of an evaluation of `method`. If `enabled` is False, every episode is embedded alone."""

    def __init__(self, method: Method, device: torch.device, image_size: int | None, enabled: bool = True, limit: int = LIMIT) -> None:
        self.method, self.device, self.image_size, self.enabled, self.limit = method, device, image_size, enabled, limit
        self.plain: Callable[[Tensor, Tensor], Tensor] | None = getattr(method, "embed", None)
        state: dict[str, Tensor] = getattr(method, "state_dict", dict)()
        # Keep references, so that no other tensors can reuse their addresses.
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
        """Route the method's `embed` through this object."""
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
        """Start a dataset."""
        self._tables, self._asked, self.seconds = {}, {}, 0.0
        self._images = Images(store, self.device, self.image_size)
        self._forget()

    def bind(self, episode: Episode, joined: bool) -> None:
        """Set the current episode; `joined`: its query is certain to be embedded with the task's theta."""
        support = episode.support.images
        self._roles = {"support": support, "query": episode.query_images}
        self._rows = {}
        if episode.rows is not None:
            rows = np.asarray(episode.rows, np.int64)
            self._rows = {"support": rows[: len(support)], "query": rows[len(support) :]}
        self._theta, self._known, self._joined = None, {}, joined and len(support) + len(episode.query_images) <= JOINED

    def of(self, task: Task) -> Task:
        """Set the task of the current episode, and return it."""
        self._theta, self._known = task.theta, {}
        return task

    def _forget(self) -> None:
        self._roles, self._rows, self._known = {}, {}, {}
        self._theta, self._joined = None, False

    def embed(self, images: Tensor, theta: Tensor) -> Tensor:
        """Return features [B, D] of `images` [B, 3, H, W] under `theta` [P]."""
        assert self.plain is not None
        role = next((name for name, own in self._roles.items() if own is images), None)
        if role is None or (torch.is_grad_enabled() and theta.requires_grad):
            return self.plain(images, theta)
        key = self._key(theta)
        if key is not None and self._rows:
            self._asked.setdefault(key, set()).add(role)
            table = self._tables.get(key)
            features = None if table is None else table.get(self._rows[role])
            if features is not None:
                return features
        if theta is self._theta:
            return self._task_features(role, theta)
        return self.plain(self._load_images(role), theta)

    def _task_features(self, role: str, theta: Tensor) -> Tensor:
        assert self.plain is not None
        if role not in self._known and self._joined and not self._known:
            both = [self._load_images("support"), self._load_images("query")]
            parts = self.plain(torch.cat(both), theta).split([len(one) for one in both])
            self._known = dict(zip(("support", "query"), parts, strict=True))
        if role not in self._known:
            self._known[role] = self.plain(self._load_images(role), theta)
        return self._known[role]

    def _load_images(self, role: str) -> Tensor:
        """Return the images of the current episode; read them if the episode came without images."""
        images = self._roles[role]
        if images.device.type != "meta":
            return images
        assert self._images is not None
        return self._images(self._rows[role])

    def _key(self, theta: Tensor) -> Key | None:
        own = self._own.get(theta.data_ptr())
        return None if own is None or own.shape != theta.shape else (own.data_ptr(), own._version)

    def tabulate(self, plans: Mapping[int, EpisodePlan], first: Episode, stop: object = False) -> None:
        """Compute tables for the episodes `plans`, of the kinds of features that the first episode needed, if this saves forward passes.

        Ends early when `stop` becomes true; features that are then missing are computed on demand. Raises SmatError for unreadable images.
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
                if len(ready) < BATCH:  # pad to a fixed shape, so that a feature does not depend on the number of images
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
        """Return whether the table of the current task's theta has the support and query images of all `plans`."""
        key = None if self._theta is None else self._key(self._theta)
        table = None if key is None else self._tables.get(key)
        if table is None or not plans:
            return False
        return all(bool((table.place[rows] >= 0).all()) for plan in plans.values() for rows in (plan.support, plan.query))


def without_images(plan: EpisodePlan, seed: int, size: tuple[int, ...], device: torch.device) -> Episode:
    """Return an episode that has the rows of its images but no pixels (tensors on the meta device)."""
    meta: dict[str, Any] = {"device": "meta", "dtype": torch.float32}
    labels = torch.from_numpy(plan.support_labels).to(device)
    return Episode(
        support=Support(torch.empty(len(plan.support), *size, **meta), labels, len(plan.classes)),
        query_images=torch.empty(len(plan.query), *size, **meta),
        query_labels=torch.from_numpy(plan.query_labels).to(device),
        dataset=plan.dataset,
        index=plan.index,
        seed=seed,
        rows=(*plan.support.tolist(), *plan.query.tolist()),
    )


def plans_of(plan: Callable[[int], EpisodePlan], indices: Sequence[int]) -> dict[int, EpisodePlan]:
    """Return the plans of the episodes `indices`, by episode number."""
    return {index: plan(index) for index in indices}
