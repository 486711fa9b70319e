"""Statistics of episode descriptions, as defined for the reference sampler (mdsampler/README.md), and their comparison with its files."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.config.schema import EpisodeConfig
from smatcli.data.episodes.sampler import EpisodeSampler
from smatcli.data.metadataset.spec import read_spec
from smatcli.data.metadataset.spec_store import SpecStore

HERE = Path(__file__).parent / "mdsampler"
KINDS = ("flat", "bilevel", "dag")


@cache
def statistics(kind: str) -> dict[str, Any]:
    return json.loads((HERE / f"{kind}_stats.json").read_text())


@cache
def spec_store(kind: str) -> SpecStore:
    return SpecStore(read_spec(HERE / f"{kind}_spec.json"))


def blocks() -> list[tuple[str, str, str]]:
    """Return (kind, config, split) of all measurements of the reference."""
    return [(kind, name, split) for kind in KINDS for name, config in statistics(kind)["configs"].items() for split in config["splits"]]


def episode_config(overrides: dict[str, Any]) -> EpisodeConfig:
    """Convert the reference's settings to an `EpisodeConfig`."""
    known = dict(overrides)
    settings: dict[str, Any] = {"kind": "meta-dataset", "min_images": known.pop("min_examples_in_class", 0)}
    if known.pop("ignore_dag_ontology", False) and known.pop("ignore_bilevel_ontology", False):
        settings["ontology"] = "none"
    settings["ignore_hierarchy"] = known.pop("ignore_hierarchy_probability", 0.0)
    ways, shots, queries = (known.pop(name, None) for name in ("num_ways", "num_support", "num_query"))
    assert not known
    shots = tuple(shots) if isinstance(shots, list) else shots
    if ways is None:
        return EpisodeConfig(**settings, balanced=shots)
    return EpisodeConfig(kind="fixed", ways=ways, shots=shots, queries=queries or "auto", min_images=settings["min_images"])


class Draws:
    """`episodes` descriptions, one row per class of an episode: `episode`, `classes` (relative to the split), `support`, `images`."""

    def __init__(self, kind: str, split: str, config: EpisodeConfig, episodes: int, seed: int = 0) -> None:
        store = spec_store(kind)
        sampler = EpisodeSampler({f"toy_{kind}": store}, split.lower(), config, seed)
        found = [sampler.describe(i) for i in range(episodes)]
        self.ways = np.array([len(d.classes) for d in found])
        self.query = np.array([d.queries for d in found])
        self.group = [d.group for d in found]
        self.episode = np.repeat(np.arange(episodes), self.ways)
        absolute = np.concatenate([d.classes for d in found])
        self.classes = absolute - store.classes(split.lower())[0]
        self.support = np.concatenate([d.shots for d in found])
        self.images = store.counts[absolute]
        self.pool, self.episodes = sampler.pools[f"toy_{kind}"], episodes
        # within an episode by falling support: rank[i] is the place of row order[i]
        self.order = np.lexsort((-self.support, self.episode))
        self.rank = np.arange(len(self.episode)) - np.repeat(np.cumsum(self.ways) - self.ways, self.ways)
        self.size = np.bincount(self.episode, self.support).astype(int)

    def ranked(self, rank: np.ndarray) -> np.ndarray:
        """The support count at a rank of every episode."""
        return self.support[self.order][np.cumsum(self.ways) - self.ways + rank]

    def sets(self) -> list[frozenset[int]]:
        """The classes of every episode."""
        ends = np.cumsum(self.ways)[:-1]
        return [frozenset(part.tolist()) for part in np.split(self.classes, ends)]

    def histograms(self) -> dict[str, np.ndarray]:
        values = {
            "ways": self.ways,
            "support_size_bin10": self.size // 10,
            "num_query": self.query,
            "support_per_class": np.minimum(self.support, 200),
            "support_min": self.ranked(self.ways - 1),
            "support_median": self.ranked(self.ways // 2),
            "support_max_bin5": self.ranked(np.zeros_like(self.ways)) // 5,
        }
        return {key: np.bincount(value) / len(value) for key, value in values.items()}

    def rates(self) -> tuple[np.ndarray, float]:
        """Pooled histogram of the centred log2 rates, and the mean of their variance within an episode."""
        kept = (self.support >= 10) & (self.support < self.images - self.query[self.episode])
        episode, z = self.episode[kept], np.log2((self.support[kept] - 0.5) / self.images[kept])
        n = np.bincount(episode)
        enough = n >= 3
        centred = z - (np.bincount(episode, z) / np.maximum(n, 1))[episode]
        variance = np.bincount(episode, centred**2)[enough] / (n[enough] - 1)
        pooled = np.clip(np.round(10 * centred[enough[episode]]) + 20, 0, 40).astype(int)
        return np.bincount(pooled) / len(pooled), float(variance.mean())

    def frequencies(self, known: dict[str, Any], kind: str) -> dict[str, np.ndarray]:
        found = {"class_frequency": np.bincount(self.classes) / self.episodes}
        if kind == "bilevel":
            found["superclass_frequency"] = self.inside() / self.episodes
        if "eligible_nodes" in known:
            names = [node["wn_id"] for node in known["eligible_nodes"]]
            found["node_frequency"] = np.array([self.group.count(name) for name in names]) / self.episodes
            leaves = {g.name: frozenset((self.pool.classes[g.members] - self._first(kind)).tolist()) for g in self.pool.groups}
            where = {leaves[group["wn_ids"][0]]: i for i, group in enumerate(known["leaf_set_groups"])}
            matched = np.array([where.get(classes, len(where)) for classes in self.sets()])
            found["leaf_set_frequency"] = np.bincount(matched, minlength=len(where) + 1) / self.episodes
        return found

    def inside(self) -> np.ndarray:
        """Number of episodes within each superclass of the split."""
        ontology = spec_store("bilevel").ontology
        assert ontology is not None
        first = self._first("bilevel")
        nodes = [frozenset(leaf - first for leaf in node.leaves) for node in ontology.nodes[self.pool.split]]
        found = np.zeros(len(nodes), np.int64)
        for classes in self.sets():
            found += [classes <= node for node in nodes]
        return found

    def _first(self, kind: str) -> int:
        return int(spec_store(kind).classes(self.pool.split)[0])

    def conditional_means(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """(sum, number of cases) per index."""
        by_ways = np.bincount(self.ways)
        return {
            "class_mean_support": (np.bincount(self.classes, self.support), np.bincount(self.classes)),
            "support_by_rank": (np.bincount(self.rank, self.support[self.order]), np.bincount(self.rank)),
            "support_size_by_ways": (np.bincount(self.ways, self.size), by_ways),
            "num_query_by_ways": (np.bincount(self.ways, self.query), by_ways),
        }

    def scalars(self, kind: str) -> dict[str, float]:
        values = {"ways": self.ways, "support_size": self.size, "num_query": self.query}
        found = {f"{key}_mean": float(value.mean()) for key, value in values.items()}
        found |= {f"{key}_std": float(value.std()) for key, value in values.items()}
        return found | ({"same_superclass_fraction": float(self.inside().sum() / self.episodes)} if kind == "bilevel" else {})


def padded(values: Any, length: int) -> np.ndarray:
    return np.pad(np.asarray(values, float), (0, max(0, length - len(values))))


def differences(known: dict[str, Any], draws: Draws, kind: str, limit: str = "tol_tv_strict") -> list[str]:
    """Return all statistics of `draws` that are out of tolerance. Raises an error if one side lacks a statistic."""
    problems: list[str] = []

    def compare(name: str, mine: np.ndarray, theirs: Any, entry: dict[str, Any]) -> None:
        length = max(len(mine), len(theirs))
        a, b = padded(mine, length), padded(theirs, length)
        if (tv := np.abs(a / a.sum() - b / b.sum()).sum() / 2) > entry[limit]:
            problems.append(f"{name}: total variation {tv:.4f} > {entry[limit]}")
        if (most := np.abs(a - b).max()) > entry["tol_max_abs"]:
            problems.append(f"{name}: a bin differs by {most:.4f} > {entry['tol_max_abs']}")

    histograms = draws.histograms()
    means: dict[str, Callable[[int], float]] = {}
    for key, (total, number) in draws.conditional_means().items():
        means[key] = lambda i, total=total, number=number: total[i] / number[i] if i < len(number) and number[i] else np.nan  # type: ignore[misc]
    if "log2_rate_centered" in known["histograms"]:
        pooled, variance = draws.rates()
        histograms["log2_rate_centered"] = pooled
        means["log2_rate_variance"] = lambda i: variance
    if "root_span" in known["histograms"]:
        spans = {g.name: len(g.members) for g in draws.pool.groups}
        values = known["histograms"]["root_span"]["span_values"]
        drawn = [0 if name is None else spans[name] for name in draws.group]
        histograms["root_span"] = np.bincount([values.index(span) for span in drawn]) / draws.episodes
    assert histograms.keys() == known["histograms"].keys()
    for key, mine in histograms.items():
        compare(key, mine, known["histograms"][key]["p"], known["histograms"][key])
    frequencies = draws.frequencies(known, kind)
    assert frequencies.keys() == known["frequencies"].keys()
    for key, mine in frequencies.items():
        compare(key, mine, known["frequencies"][key]["freq"], known["frequencies"][key])
    assert means.keys() == known["conditional_means"].keys()
    for key, mean in means.items():
        entry = known["conditional_means"][key]
        for i, (value, tolerance) in enumerate(zip(entry["value"], entry["tol"], strict=True)):
            if value is not None and tolerance is not None and not abs(mean(i) - value) <= tolerance:
                problems.append(f"{key} {i}: {mean(i):.4f}, not {value} +- {tolerance}")
    scalars = draws.scalars(kind)
    assert scalars.keys() == known["scalars"].keys()
    for key, scalar in scalars.items():
        entry = known["scalars"][key]
        if not abs(scalar - entry["value"]) <= entry["tol"]:
            problems.append(f"{key}: {scalar:.4f}, not {entry['value']} +- {entry['tol']}")
    return problems
