"""Random draws of an episode: its classes, and the number of support and query images of each.

Every draw uses only doubles of the episode's own generator, as many as its classes and images need: the cost does not depend on the size
of the dataset.
"""

from typing import NamedTuple

import numpy as np

from smatcli.config.schema import EpisodeConfig
from smatcli.data.episodes.pools import Pool, bounds
from smatcli.data.episodes.protocol import LOG_WEIGHTS, num_query, support_per_class, support_set_size


class Draw(NamedTuple):
    """Classes of an episode: positions `chosen` in the pool and `shots`, both int64 [C]; `queries` per class; `group` (-1: whole split)."""

    chosen: np.ndarray
    shots: np.ndarray
    queries: int
    group: int = -1


def draw(rng: np.random.Generator, pool: Pool, config: EpisodeConfig) -> Draw:
    """Draw an episode's classes, in the order of its labels, by the protocol of `config`."""
    return _fixed(rng, pool, config) if config.kind == "fixed" else _variable(rng, pool, config)


def integer(rng: np.random.Generator, low: int, high: int) -> int:
    """Draw an integer uniformly from [low, high]."""
    return low + int(rng.random() * (high - low + 1))


def ordered_samples(rng: np.random.Generator, sizes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each i, draw `wanted[i]` different numbers below `sizes[i]` in random order and concatenate them.

    Each draw is the start of a Fisher-Yates shuffle. Only swapped positions are stored, so the cost does not depend on the size of a class.
    """
    step = np.concatenate([np.arange(w) for w in wanted])
    target = step + (rng.random(len(step)) * (np.repeat(sizes, wanted) - step)).astype(np.int64)
    drawn: list[int] = []
    swapped: dict[int, int] = {}
    for position, other in zip(step.tolist(), target.tolist(), strict=True):
        if position == 0:
            swapped = {}
        drawn.append(swapped.get(other, other))
        swapped[other] = swapped.get(position, position)
    return np.asarray(drawn, np.int64)


def _sample(rng: np.random.Generator, size: int, wanted: int) -> np.ndarray:
    return ordered_samples(rng, np.array([size]), np.array([wanted]))


def _fixed(rng: np.random.Generator, pool: Pool, config: EpisodeConfig) -> Draw:
    ways = integer(rng, *bounds(config.ways))
    shots = integer(rng, *bounds(config.shots))
    chosen = _sample(rng, len(pool.classes), ways)
    queries = num_query(pool.counts[chosen], pool.queries, bounds(config.shots)) if config.queries == "auto" else pool.queries
    return Draw(chosen, np.full(ways, shots), queries)


def _variable(rng: np.random.Generator, pool: Pool, config: EpisodeConfig) -> Draw:
    chosen, group = _draw_classes(rng, pool, config)
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


def _draw_classes(rng: np.random.Generator, pool: Pool, config: EpisodeConfig) -> tuple[np.ndarray, int]:
    """Return the positions of the classes, in the order of their labels, and their group.

    From a node of a graph, all classes are taken in order, or `max_ways` of them at random. From a superclass or the whole split, the
    number of classes is uniform.
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
