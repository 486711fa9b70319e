"""Pool that the episodes of one dataset are drawn from: its usable classes, and their groups in an ontology."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smatcli.config.schema import EpisodeConfig
from smatcli.data.episodes.protocol import MAX_QUERIES, MAX_SPAN
from smatcli.data.stores.ontology import Node, Ontology
from smatcli.errors import UserError


@dataclass(frozen=True)
class ClassGroup:
    """Classes of a superclass or of a graph node: `members` [n] are positions in the pool (graph: in the order of wn_id)."""

    name: str
    words: str
    members: np.ndarray


@dataclass(frozen=True)
class Pool:
    """Usable `classes`, their image `counts` and first rows `offsets` [n]; (maximum) `queries` per class; `groups` of ontology `kind`."""

    dataset: str
    split: str
    classes: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray
    queries: int
    notes: tuple[str, ...] = ()
    kind: str = "flat"
    groups: tuple[ClassGroup, ...] = ()


def bounds(value: int | tuple[int, int]) -> tuple[int, int]:
    """Return a number or a pair as (lowest, highest)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _required(config: EpisodeConfig) -> tuple[int, int, int]:
    """Return the ways and shots that every pool must support, and the queries per class that a class must have images for."""
    if config.kind == "fixed":
        return bounds(config.ways)[1], bounds(config.shots)[1], 1 if config.queries == "auto" else config.queries
    return config.min_ways, 1 if config.balanced is None else bounds(config.balanced)[1], 1


def make_pool(store: Any, dataset: str, split: str, config: EpisodeConfig) -> Pool:
    """Return the usable classes of the split and the number of queries. Raises UserError if no episode is possible.

    Classes with fewer than `min_images` images, or too few for any episode, are dropped; fixed episodes drop classes with
    fewer than shots + queries images. If too few classes would remain, the number of queries is lowered for this dataset, to the largest
    that keeps the requested ways and at least half of the classes. Both are reported in `notes`.
    """
    classes = np.asarray(store.classes(split), np.int64)
    counts = np.asarray(store.counts, np.int64)[classes]
    offsets = np.asarray(store.class_offsets, np.int64)[classes]
    if not len(classes):
        raise UserError(f"{dataset}: no classes in split {split!r}; choose another split or prepare the dataset with one")
    ways, shots, queries = _required(config)
    usable = np.sort(counts[counts >= max(shots + 1, config.min_images)])[::-1]
    if len(usable) < ways:
        raise UserError(f"{dataset}: {_too_few(config, counts, len(usable), split)}; choose fewer ways or shots, or another split")
    notes = []
    if (counts >= max(shots + queries, config.min_images)).sum() < ways:
        requested, queries = queries, int(usable[max(ways, -(-len(usable) // 2)) - 1]) - shots
        notes.append(f"{dataset}: {queries} queries per class ({requested} requested: {_few(counts, shots + requested, split)})")
    least = max(shots + queries, config.min_images)
    keep = counts >= least
    if not keep.all():
        notes.append(f"{dataset}: {(~keep).sum()} of {len(keep)} classes of split {split!r} skipped: fewer than {least} images")
    if config.queries == "auto":
        queries = MAX_QUERIES
    elif config.kind != "fixed":
        queries = config.queries
    pool = Pool(dataset, split, classes[keep], counts[keep], offsets[keep], queries, tuple(notes))
    return pool if config.kind == "fixed" else _checked(_with_groups(pool, store, config), config)


def _too_few(config: EpisodeConfig, counts: np.ndarray, usable: int, split: str) -> str:
    ways, shots, queries = _required(config)
    requested = f"{ways} ways of {shots} + {queries} images" if config.kind == "fixed" else f"at least {ways} ways of {shots + 1} images"
    least = max(shots + 1, config.min_images)
    needed = f"at least {least} images" if least == shots + 1 else f"min_images={least} or more"
    return (
        f"{requested} requested, but split {split!r} has {len(counts)} classes, {usable} of them with {needed} "
        f"(the smallest has {counts.min()})"
    )


def _few(counts: np.ndarray, needed: int, split: str) -> str:
    low, high = counts.min(), counts.max()
    if low == high:
        return f"its classes have {low} images"
    return f"only {(counts >= needed).sum()} of the {len(counts)} classes of split {split!r} have {needed} images"


def _checked(pool: Pool, config: EpisodeConfig) -> Pool:
    """Return the pool. Raises UserError if a support set with variable shots could be too small for one image of each class."""
    most = min(config.max_ways, len(pool.classes))
    if config.balanced is None and most > config.max_support:
        raise UserError(
            f"{pool.dataset}: episode.max_support is {config.max_support}, but an episode may have {most} classes; "
            "raise it, or lower episode.max_ways"
        )
    return pool


def _with_groups(pool: Pool, store: Any, config: EpisodeConfig) -> Pool:
    """Return the pool with the groups of the store's ontology that episodes may be drawn from, if the protocol uses the ontology."""
    ontology: Ontology | None = getattr(store, "ontology", None)
    if config.kind != "meta-dataset" or ontology is None or config.ontology not in ("both", ontology.kind):
        return pool
    nodes_by_split = ontology.nodes if pool.split == "all" else {pool.split: ontology.nodes.get(pool.split, ())}
    position = np.full(len(store.counts), -1, np.int64)
    position[pool.classes] = np.arange(len(pool.classes))
    groups = [_group(node, position) for nodes in nodes_by_split.values() for node in nodes]
    choose = _superclasses if ontology.kind == "bilevel" else _eligible_nodes
    return replace(pool, kind=ontology.kind, groups=choose(groups, pool, config))


def _group(node: Node, position: np.ndarray) -> ClassGroup:
    members = position[np.asarray(node.leaves, np.int64)]
    return ClassGroup(node.name, node.words, members[members >= 0])


def _superclasses(groups: list[ClassGroup], pool: Pool, config: EpisodeConfig) -> tuple[ClassGroup, ...]:
    """Return all superclasses; UserError if one has too few classes, or if small classes must be dropped."""
    where = f"{pool.dataset}, split {pool.split!r}"
    if config.min_images:
        raise UserError(f"{where}: episode.min_images cannot be combined with superclasses; set it to 0, or episode.ontology to none")
    small = [g for g in groups if len(g.members) < config.min_ways]
    if small or not groups:
        problem = f"the superclass {small[0].name} has {len(small[0].members)} classes" if small else "there is no superclass"
        raise UserError(f"{where}: {problem}, an episode needs {config.min_ways}; lower episode.min_ways, or set episode.ontology to none")
    return tuple(groups)


def _eligible_nodes(groups: list[ClassGroup], pool: Pool, config: EpisodeConfig) -> tuple[ClassGroup, ...]:
    """Return the nodes that span enough classes, but not too many. Nodes with equal classes stay separate."""
    eligible = tuple(g for g in groups if config.min_ways <= len(g.members) <= MAX_SPAN)
    if not eligible:
        raise UserError(
            f"{pool.dataset}, split {pool.split!r}: no node of its graph spans {config.min_ways} to {MAX_SPAN} of the {len(pool.classes)} "
            "classes; lower episode.min_ways, or set episode.ontology to none"
        )
    return eligible
