"""Which images an episode is made of: fixed N-way K-shot, and Meta-Dataset's variable way and shot for flat class lists.

Episodes are counted, not drawn: episode `index` of (seed, split, dataset) has its own Philox generator, keyed by SHA-256 of these four, and
uses only its doubles in [0, 1), so that neither the number of workers nor another numpy changes what it holds.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from smatcli.config.schema import EpisodeConfig
from smatcli.data.protocol import LOG_WEIGHTS, num_query, support_per_class, support_set_size
from smatcli.errors import UserError

__all__ = [
    "EpisodePlan",
    "EpisodeSampler",
    "Pool",
    "counted_key",
    "counted_rng",
    "make_pool",
    "num_query",
    "protocol_tag",
    "support_per_class",
    "support_set_size",
]


def counted_key(*parts: str | int | tuple[str, ...]) -> int:
    """128-bit key of the parts (SHA-256 of their text): equal parts, equal key, on every machine."""
    plain = tuple(part.item() if isinstance(part, np.generic) else part for part in parts)
    return int.from_bytes(hashlib.sha256(repr(plain).encode()).digest()[:16], "little")


def counted_rng(*parts: str | int | tuple[str, ...]) -> np.random.Generator:
    """The generator that belongs to the parts, whatever was drawn before."""
    return np.random.Generator(np.random.Philox(key=counted_key(*parts)))


@dataclass(frozen=True)
class EpisodePlan:
    """Rows of an episode in its store's images, class by class in the order of the labels. Everything is int64."""

    dataset: str
    index: int
    classes: np.ndarray  # [C] class ids of the store; a label is a position in it
    support: np.ndarray  # [S]
    support_labels: np.ndarray  # [S]
    query: np.ndarray  # [Q]
    query_labels: np.ndarray  # [Q]


@dataclass(frozen=True)
class Pool:
    """What episodes of one dataset are drawn from: eligible `classes`, their image `counts`, first rows `offsets` [n]; queries a class."""

    dataset: str
    split: str
    classes: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray
    queries: int
    notes: tuple[str, ...] = ()


def _bounds(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _text(value: int | tuple[int, int]) -> str:
    low, high = _bounds(value)
    return str(low) if low == high else f"{low}-{high}"


def _check_config(config: EpisodeConfig) -> list[str]:
    """Refuses ranges that hold nothing; returns notes on settings that this kind of episode does not read."""
    for name in ("ways", "shots"):
        low, high = _bounds(getattr(config, name))
        if low < 1 or low > high:
            raise UserError(f"episode.{name}: [{low}, {high}] is no range of whole numbers from 1 up; the smaller number comes first")
    if config.min_ways > config.max_ways:
        raise UserError(f"episode.min_ways is {config.min_ways}, above episode.max_ways {config.max_ways}; lower one or raise the other")
    unread = ("ways", "shots") if config.kind == "variable" else ("min_ways", "max_ways", "max_support", "max_support_per_class")
    default = EpisodeConfig()
    changed = [f"{name}={getattr(config, name)}" for name in unread if getattr(config, name) != getattr(default, name)]
    return [f"episode.kind={config.kind} does not use {', '.join(changed)}"] if changed else []


def make_pool(store: Any, dataset: str, split: str, config: EpisodeConfig) -> Pool:
    """Classes of the split that can be used, and how many queries; UserError with the numbers when an episode is impossible.

    Fixed episodes leave out classes with fewer than shots + queries images. Where too few would remain, the queries are lowered for this
    dataset, to the most that keeps the ways asked and at least half of its classes; `notes` says both.
    """
    classes = np.asarray(store.classes(split), np.int64)
    counts = np.asarray(store.counts, np.int64)[classes]
    offsets = np.asarray(store.class_offsets, np.int64)[classes]
    if not len(classes):
        raise UserError(f"{dataset}: no classes in split {split!r}; choose another split or prepare the dataset with one")
    fixed = config.kind == "fixed"
    ways = _bounds(config.ways)[1] if fixed else config.min_ways
    shots = _bounds(config.shots)[1] if fixed else 1
    queries = config.queries if fixed else 1
    usable = np.sort(counts[counts >= shots + 1])[::-1]
    asked = f"{ways} ways of {shots} + {queries} images" if fixed else f"at least {ways} ways of 2 images"
    if len(usable) < ways:
        raise UserError(
            f"{dataset}: {asked} asked, but split {split!r} has {len(classes)} classes, {len(usable)} of them with the {shots + 1} images "
            f"needed at least (the smallest has {counts.min()}); ask for fewer ways or shots, or another split"
        )
    notes = []
    if (counts >= shots + queries).sum() < ways:
        queries = int(usable[max(ways, -(-len(usable) // 2)) - 1]) - shots
        notes.append(f"{dataset}: {queries} queries a class (asked {config.queries}: {_few(counts, shots + config.queries, split)})")
    keep = counts >= shots + queries
    if not keep.all():
        notes.append(f"{dataset}: {(~keep).sum()} of {len(keep)} classes of split {split!r} left out: fewer than {shots + queries} images")
    return Pool(dataset, split, classes[keep], counts[keep], offsets[keep], queries if fixed else config.queries, tuple(notes))


def _few(counts: np.ndarray, needed: int, split: str) -> str:
    low, high = counts.min(), counts.max()
    if low == high:
        return f"its classes have {low} images"
    return f"only {(counts >= needed).sum()} of the {len(counts)} classes of split {split!r} have {needed} images"


class EpisodeSampler:
    """Plans episodes: `plan(index)` is a pure function of (seed, split, dataset, index), with the dataset uniform over `stores`.

    `split_of` gives single datasets another split than `split`. `notes` lists what had to be changed or left out, for the user to see.
    Raises UserError at construction when a dataset cannot give the episodes asked for.
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
        """Builds every dataset's pool; UserError that names all datasets which cannot give an episode."""
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
        """The split that a dataset's classes come from."""
        return self._splits.get(dataset, self.split)

    def dataset(self, index: int | np.integer) -> str:
        """The dataset of episode `index`, uniform over the names, whatever their sizes or order."""
        if len(self.names) == 1:
            return self.names[0]
        rng = counted_rng("dataset", self.seed, self.split, int(index), self.names)
        return self.names[int(rng.random() * len(self.names))]

    def plan(self, index: int | np.integer) -> EpisodePlan:
        """Episode `index`."""
        name = self.dataset(index)
        pool = self.pools[name]
        rng = counted_rng("episode", self.seed, pool.split, name, int(index))
        draw = _draw_fixed if self.config.kind == "fixed" else _draw_variable
        chosen, shots, queries = draw(rng, pool, self.config)
        images = _ordered_samples(rng, pool.counts[chosen], shots + queries)
        labels = np.arange(len(chosen))
        total = shots + queries
        rows = np.repeat(pool.offsets[chosen], total) + images
        of_class = np.repeat(labels, total)
        in_support = np.arange(len(rows)) - np.repeat(np.cumsum(total) - total, total) < shots[of_class]
        return EpisodePlan(
            dataset=name,
            index=int(index),
            classes=pool.classes[chosen],
            support=rows[in_support],
            support_labels=of_class[in_support],
            query=rows[~in_support],
            query_labels=of_class[~in_support],
        )


def _integer(rng: np.random.Generator, low: int, high: int) -> int:
    """Uniform on the integers [low, high]."""
    return low + int(rng.random() * (high - low + 1))


def _ordered_samples(rng: np.random.Generator, sizes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each i, `wanted[i]` different numbers below `sizes[i]` in random order, one after the other: the start of a Fisher-Yates shuffle.

    Only the touched positions are kept, so the cost does not grow with the size of a class.
    """
    step = np.concatenate([np.arange(w) for w in wanted])
    target = step + (rng.random(len(step)) * (np.repeat(sizes, wanted) - step)).astype(np.int64)
    picked: list[int] = []
    moved: dict[int, int] = {}
    for position, other in zip(step.tolist(), target.tolist(), strict=True):
        if position == 0:
            moved = {}
        picked.append(moved.get(other, other))
        moved[other] = moved.get(position, position)
    return np.asarray(picked, np.int64)


def _draw_fixed(rng: np.random.Generator, pool: Pool, config: EpisodeConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions in the pool of the episode's classes, support and query images of each."""
    ways = _integer(rng, *_bounds(config.ways))
    shots = _integer(rng, *_bounds(config.shots))
    chosen = _ordered_samples(rng, np.array([len(pool.classes)]), np.array([ways]))
    return chosen, np.full(ways, shots), np.full(ways, pool.queries)


def _draw_variable(rng: np.random.Generator, pool: Pool, config: EpisodeConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same by Meta-Dataset's rules: uniform ways, a support set of uneven classes (see `protocol`)."""
    ways = _integer(rng, config.min_ways, min(config.max_ways, len(pool.classes)))
    chosen = _ordered_samples(rng, np.array([len(pool.classes)]), np.array([ways]))
    counts = pool.counts[chosen]
    queries = num_query(counts, pool.queries)
    remaining = counts - queries
    size = support_set_size(remaining, rng.random(), config.max_support, config.max_support_per_class)
    low, high = LOG_WEIGHTS
    shots = support_per_class(counts, remaining, size, low + (high - low) * rng.random(ways))
    return chosen, shots, np.full(ways, queries)


def protocol_tag(config: EpisodeConfig, split: str) -> str:
    """Name of the protocol, fit for a folder: "5w5s10q-test", "5-10w1-5s10q-train", "variable-test" (Meta-Dataset's numbers) ..."""
    if config.kind == "fixed":
        return f"{_text(config.ways)}w{_text(config.shots)}s{config.queries}q-{split}"
    numbers = (config.min_ways, config.max_ways, config.queries, config.max_support, config.max_support_per_class)
    if numbers == (5, 50, 10, 500, 100):
        return f"variable-{split}"
    return f"variable{numbers[0]}-{numbers[1]}w{numbers[2]}q{numbers[3]}s{numbers[4]}c-{split}"
