"""The draws of an episode: which classes, and how many support and query images of each.

Only doubles of the episode's own generator are used, as many as its classes and images need: the cost does not grow with a dataset.
"""

from typing import NamedTuple

import numpy as np

from smatcli.config.schema import EpisodeConfig
from smatcli.data.episodes.pools import Pool, bounds
from smatcli.data.episodes.protocol import LOG_WEIGHTS, num_query, support_per_class, support_set_size


class Draw(NamedTuple):
    """`chosen` positions in the pool and `shots` [C] int64, `queries` of each class; `group` drawn from, -1 for the whole split."""

    chosen: np.ndarray
    shots: np.ndarray
    queries: int
    group: int = -1


def draw(rng: np.random.Generator, pool: Pool, config: EpisodeConfig) -> Draw:
    """One episode's classes in the order of its labels, by the protocol of `config`."""
    return _fixed(rng, pool, config) if config.kind == "fixed" else _variable(rng, pool, config)


def integer(rng: np.random.Generator, low: int, high: int) -> int:
    """Uniform on the integers [low, high]."""
    return low + int(rng.random() * (high - low + 1))


def ordered_samples(rng: np.random.Generator, sizes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
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


def _sample(rng: np.random.Generator, size: int, wanted: int) -> np.ndarray:
    return ordered_samples(rng, np.array([size]), np.array([wanted]))


def _fixed(rng: np.random.Generator, pool: Pool, config: EpisodeConfig) -> Draw:
    ways = integer(rng, *bounds(config.ways))
    shots = integer(rng, *bounds(config.shots))
    chosen = _sample(rng, len(pool.classes), ways)
    queries = num_query(pool.counts[chosen], pool.queries, bounds(config.shots)) if config.queries == "auto" else pool.queries
    return Draw(chosen, np.full(ways, shots), queries)


def _variable(rng: np.random.Generator, pool: Pool, config: EpisodeConfig) -> Draw:
    chosen, group = _classes(rng, pool, config)
    counts = pool.counts[chosen]
    if config.balanced is not None:
        queries = num_query(counts, pool.queries, bounds(config.balanced))
        return Draw(chosen, np.full(len(chosen), integer(rng, *bounds(config.balanced))), queries, group)
    queries = num_query(counts, pool.queries)
    remaining = counts - queries
    size = support_set_size(remaining, rng.random(), config.max_support, config.max_support_per_class)
    low, high = LOG_WEIGHTS
    shots = support_per_class(counts, remaining, size, low + (high - low) * rng.random(len(chosen)))
    return Draw(chosen, shots, queries, group)


def _classes(rng: np.random.Generator, pool: Pool, config: EpisodeConfig) -> tuple[np.ndarray, int]:
    """Positions of the classes in the order of their labels, and the group that they are from.

    A graph's node gives all its classes, in their order, or `max_ways` of them; a superclass or the whole split a uniform number.
    """
    most = config.max_ways
    if not pool.groups or (config.ignore_hierarchy > 0 and rng.random() < config.ignore_hierarchy):
        ways = integer(rng, config.min_ways, min(most, len(pool.classes)))
        return _sample(rng, len(pool.classes), ways), -1
    group = integer(rng, 0, len(pool.groups) - 1)
    members = pool.groups[group].members
    if pool.kind == "bilevel":
        return members[_sample(rng, len(members), integer(rng, config.min_ways, min(most, len(members))))], group
    return (members if len(members) <= most else members[_sample(rng, len(members), most)]), group
