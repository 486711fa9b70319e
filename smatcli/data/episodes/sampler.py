"""Sampler of episodes: fixed N-way K-shot, Meta-Dataset's variable way and shot, and its official protocol with ontologies.

Random numbers are counter-based: episode `index` of (seed, split, dataset) has its own Philox generator, keyed by SHA-256 of these four.
It uses only doubles in [0, 1), so an episode depends neither on the number of workers nor on the version of numpy.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from smatcli.config.schema import EpisodeConfig
from smatcli.data.counted import counted_rng
from smatcli.data.episodes.draws import draw, ordered_samples
from smatcli.data.episodes.pools import Pool, bounds, make_pool
from smatcli.data.episodes.protocol import MAX_QUERIES, num_query, support_per_class, support_set_size
from smatcli.errors import UserError

__all__ = [
    "Description",
    "EpisodePlan",
    "EpisodeSampler",
    "Pool",
    "make_pool",
    "num_query",
    "plan_digest",
    "protocol_tag",
    "support_per_class",
    "support_set_size",
]


@dataclass(frozen=True)
class EpisodePlan:
    """Rows of an episode in its store's images, sorted by label. All arrays are int64."""

    dataset: str
    index: int
    classes: np.ndarray  # [C] class ids of the store; a label is a position in it
    support: np.ndarray  # [S]
    support_labels: np.ndarray  # [S]
    query: np.ndarray  # [Q]
    query_labels: np.ndarray  # [Q]


@dataclass(frozen=True)
class Description:
    """An episode without its images: `classes` of the store in the order of their labels and `shots`, both int64 [C]; `queries` per class.

    `group` is the superclass or the graph node (wn_id) that the classes were drawn from, None for the whole split.
    """

    dataset: str
    index: int
    classes: np.ndarray
    shots: np.ndarray
    queries: int
    group: str | None = None


def plan_digest(plan: EpisodePlan) -> np.uint64:
    """64-bit hash of an episode: its classes, and the rows and labels of support and query."""
    digest = hashlib.sha256()
    for part in (plan.classes, plan.support, plan.support_labels, plan.query, plan.query_labels):
        digest.update(len(part).to_bytes(8, "little") + np.ascontiguousarray(part, "<i8").tobytes())
    return np.uint64(int.from_bytes(digest.digest()[:8], "little"))


_OFFICIAL = ("ontology", "ignore_hierarchy")
_UNEVEN = ("max_support", "max_support_per_class")
_IGNORED = {
    "fixed": ("min_ways", "max_ways", *_UNEVEN, "balanced", *_OFFICIAL, "file"),
    "variable": ("ways", "shots", *_OFFICIAL, "file"),
    "meta-dataset": ("ways", "shots", "file"),
}


def _check_config(config: EpisodeConfig) -> list[str]:
    """Return notes on settings that this kind of episode ignores. Raises UserError for an empty range."""
    if config.kind == "list":
        raise UserError("episode.kind=list: a fixed list of episodes is for smat eval; choose fixed, variable or meta-dataset here")
    for name in ("ways", "shots", *(["balanced"] if config.balanced is not None else [])):
        low, high = bounds(getattr(config, name))
        if low < 1 or low > high:
            raise UserError(f"episode.{name}: [{low}, {high}] is not a valid range; give two whole numbers from 1, the smaller one first")
    if config.min_ways > config.max_ways:
        raise UserError(f"episode.min_ways={config.min_ways} is above episode.max_ways={config.max_ways}; lower one or raise the other")
    ignored = _IGNORED[config.kind] + (_UNEVEN if config.balanced is not None else ())
    default = EpisodeConfig()
    changed = [f"{name}={getattr(config, name)}" for name in dict.fromkeys(ignored) if getattr(config, name) != getattr(default, name)]
    balanced = "" if config.balanced is None or config.kind == "fixed" else " with balanced shots"
    return [f"episode.kind={config.kind}{balanced} does not use {', '.join(changed)}"] if changed else []


class EpisodeSampler:
    """Sampler of episodes: `plan(index)` is a pure function of (seed, split, dataset, index), with the dataset uniform over `stores`.

    `split_of` overrides `split` for single datasets. `notes` are messages for the user, such as dropped classes.
    Raises UserError at construction if a dataset cannot provide the requested episodes.
    """

    def __init__(
        self,
        stores: Mapping[str, Any],
        split: str,
        config: EpisodeConfig,
        seed: int,
        split_of: Mapping[str, str] | None = None,
    ) -> None:
        self.stores, self.split, self.config, self.seed = dict(stores), split, config, int(seed)
        self.names = tuple(sorted(self.stores))
        self._splits = dict(split_of or {})
        self.notes: list[str] = []
        self.pools: dict[str, Pool] = {}
        self.check()

    def check(self) -> None:
        """Build the pool of every dataset. Raises UserError that lists all datasets without a possible episode."""
        if not self.names:
            raise UserError("no dataset to draw episodes from; name at least one")
        notes, problems = _check_config(self.config), []
        for name in self.names:
            try:
                self.pools[name] = make_pool(self.stores[name], name, self.split_of(name), self.config)
                notes.extend(self.pools[name].notes)
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError(" | ".join(problems))
        self.notes = notes

    def split_of(self, dataset: str) -> str:
        """Return the split of a dataset's classes."""
        return self._splits.get(dataset, self.split)

    def dataset(self, index: int | np.integer) -> str:
        """Return the dataset of episode `index`, uniform over the names, regardless of the sizes and order of the datasets."""
        if len(self.names) == 1:
            return self.names[0]
        rng = counted_rng("dataset", self.seed, self.split, int(index), self.names)
        return self.names[int(rng.random() * len(self.names))]

    def describe(self, index: int | np.integer) -> Description:
        """Return the classes and numbers of images of episode `index`, the same as in its plan."""
        name = self.dataset(index)
        pool = self.pools[name]
        chosen, shots, queries, group = draw(self._rng(pool, index), pool, self.config)
        return Description(name, int(index), pool.classes[chosen], shots, queries, None if group < 0 else pool.groups[group].name)

    def _rng(self, pool: Pool, index: int | np.integer) -> np.random.Generator:
        return counted_rng("episode", self.seed, pool.split, pool.dataset, int(index))

    def plan(self, index: int | np.integer) -> EpisodePlan:
        """Return episode `index`. Images of a class are drawn uniformly without replacement; the first ones are support images."""
        name = self.dataset(index)
        pool = self.pools[name]
        rng = self._rng(pool, index)
        chosen, shots, queries, _ = draw(rng, pool, self.config)
        total = shots + queries
        images = ordered_samples(rng, pool.counts[chosen], total)
        labels = np.arange(len(chosen))
        rows = np.repeat(pool.offsets[chosen], total) + images
        row_labels = np.repeat(labels, total)
        in_support = np.arange(len(rows)) - np.repeat(np.cumsum(total) - total, total) < shots[row_labels]
        return EpisodePlan(
            dataset=name,
            index=int(index),
            classes=pool.classes[chosen],
            support=rows[in_support],
            support_labels=row_labels[in_support],
            query=rows[~in_support],
            query_labels=row_labels[~in_support],
        )


def _text(value: int | tuple[int, int]) -> str:
    low, high = bounds(value)
    return str(low) if low == high else f"{low}-{high}"


def protocol_tag(config: EpisodeConfig, split: str) -> str:
    """Name of the protocol, usable as a folder name: "5w5s10q-test", "variable-test", "meta-dataset-test", "md-oneshot-all".

    Numbers that differ from Meta-Dataset's follow the name: "variable5-20w10q500s100c-test", "meta-dataset-1-10s-min20-test".
    """
    least = f"-min{config.min_images}" if config.min_images else ""
    if config.kind == "fixed":
        return f"{_text(config.ways)}w{_text(config.shots)}s{config.queries}q{least}-{split}"
    queries = MAX_QUERIES if config.queries == "auto" else config.queries
    numbers = (config.min_ways, config.max_ways, queries, config.max_support, config.max_support_per_class)
    name = config.kind if numbers == (5, 50, 10, 500, 100) else "{}{}-{}w{}q{}s{}c".format(config.kind, *numbers)
    if name == "meta-dataset" and config.balanced == 1:
        name = "md-oneshot"
    elif config.balanced is not None:
        name += f"-{_text(config.balanced)}s"
    if config.kind == "meta-dataset":
        name += "" if config.ontology == "both" else f"-ontology-{config.ontology}"
        name += f"-flat{config.ignore_hierarchy:g}" if config.ignore_hierarchy else ""
    return f"{name}{least}-{split}"
