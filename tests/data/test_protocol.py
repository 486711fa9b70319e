"""Meta-Dataset's variable way and shot against the published reference sampler: exact cases, and its law over 20,000 episodes."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from smatcli.config.schema import EpisodeConfig
from smatcli.data.episodes import EpisodeSampler, num_query, support_per_class, support_set_size
from smatcli.errors import UserError
from tests.data.fakes import FakeStore

HERE = Path(__file__).parent / "mdsampler"
STATS = json.loads((HERE / "flat_stats.json").read_text())
CASES = json.loads((HERE / "unit_cases.json").read_text())


def test_num_query_cases():
    for case in CASES["num_query"]:
        arguments = (np.array(case["images_per_class"]), case["max_num_query"], case["num_support"])
        if "error" in case:
            with pytest.raises(UserError, match="images"):
                num_query(*arguments)
        else:
            assert num_query(*arguments) == case["num_query"]


def test_support_set_size_cases():
    for case in CASES["support_set_size"]:
        size = support_set_size(
            np.array(case["num_remaining_per_class"]),
            case["beta"],
            case["max_support_set_size"],
            case["max_support_size_contrib_per_class"],
        )
        assert size == case["support_set_size"]


def test_support_per_class_cases():
    for case in CASES["support_per_class"]:
        arguments = (case["images_per_class"], case["num_remaining_per_class"], case["support_set_size"], case["log_weights"])
        assert support_per_class(*arguments).tolist() == case["num_support_per_class"]


@dataclass
class Draws:
    """Descriptions of many episodes, flattened: one row a class of an episode."""

    episode: np.ndarray
    classes: np.ndarray
    support: np.ndarray
    query: np.ndarray
    images: np.ndarray  # of the class

    def per_episode(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.episode, values)


def draw(split: str, config: EpisodeConfig, least: int, episodes: int) -> Draws:
    """Episodes of the split's classes with at least `least` images (step 1 of the protocol)."""
    counts = np.array(STATS["splits"][split]["images_per_class"])
    store = FakeStore(counts, {"part": np.flatnonzero(counts >= least)}, images=False)
    made = EpisodeSampler({"toy_flat": store}, "part", config, 20)
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for index in range(episodes):
        plan = made.plan(index)
        ways = len(plan.classes)
        parts = (np.full(ways, index), plan.classes, np.bincount(plan.support_labels), np.bincount(plan.query_labels))
        for column, part in zip(columns, parts, strict=True):
            column.append(part)
    episode, classes, support, query = map(np.concatenate, columns)
    return Draws(episode, classes, support, query, counts[classes])


def by_episode(draws: Draws) -> list[np.ndarray]:
    """Support counts of each episode, sorted descending."""
    ends = np.flatnonzero(np.diff(draws.episode)) + 1
    return [np.sort(part)[::-1] for part in np.split(draws.support, ends)]


def rates(draws: Draws) -> tuple[np.ndarray, float]:
    """Pooled histogram of the centred log2 rates, and the mean of their variance within an episode (see the statistics' README)."""
    kept = (draws.support >= 10) & (draws.support < draws.images - draws.query)
    episode, z = draws.episode[kept], np.log2((draws.support[kept] - 0.5) / draws.images[kept])
    n = np.bincount(episode)
    enough = n >= 3
    mean = np.bincount(episode, z) / np.maximum(n, 1)
    centred = z - mean[episode]
    variance = np.bincount(episode, centred**2)[enough] / (n[enough] - 1)
    pooled = np.clip(np.round(10 * centred[enough[episode]]) + 20, 0, 40).astype(int)
    return np.bincount(pooled, minlength=41), float(variance.mean())


def padded(values: list[float], length: int) -> np.ndarray:
    return np.pad(np.asarray(values, float), (0, max(0, length - len(values))))


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    length = max(len(a), len(b))
    a, b = padded(list(a), length), padded(list(b), length)
    return float(np.abs(a / a.sum() - b / b.sum()).sum() / 2)


VARIABLE, FIXED = EpisodeConfig(kind="variable"), EpisodeConfig(ways=5, shots=5, queries=15)
SETTINGS = [
    ("variable", VARIABLE, 0, "TRAIN"),
    ("variable", VARIABLE, 0, "TEST"),
    ("variable_min20", VARIABLE, 20, "TEST"),
    ("fixed_5w5s_15q", FIXED, 20, "TRAIN"),
    ("fixed_5w5s_15q", FIXED, 20, "TEST"),
]


@pytest.mark.parametrize(("name", "config", "least", "split"), SETTINGS)
def test_the_law_is_the_reference_samplers(name, config, least, split):
    expected = STATS["configs"][name]["splits"][split]
    draws = draw(split, config, least, STATS["n_draws"])
    episodes = by_episode(draws)
    ways = np.array([len(one) for one in episodes])
    size = draws.per_episode(draws.support).astype(int)
    query = np.round(draws.per_episode(draws.query) / ways).astype(int)
    values = {
        "ways": ways,
        "support_size_bin10": size // 10,
        "num_query": query,
        "support_per_class": np.minimum(draws.support, 200),
        "support_min": np.array([one[-1] for one in episodes]),
        "support_median": np.array([one[len(one) // 2] for one in episodes]),
        "support_max_bin5": np.array([one[0] // 5 for one in episodes]),
    }
    histograms = {key: np.bincount(value) / len(value) for key, value in values.items()}
    if "log2_rate_centered" in expected["histograms"]:
        pooled, variance = rates(draws)
        histograms["log2_rate_centered"] = pooled / pooled.sum()
        known = expected["conditional_means"]["log2_rate_variance"]
        assert abs(variance - known["value"][0]) <= known["tol"][0]
    assert histograms.keys() == expected["histograms"].keys()
    for key, mine in histograms.items():
        known = expected["histograms"][key]
        length = max(len(mine), len(known["p"]))
        assert total_variation(mine, np.array(known["p"])) <= known["tol_tv"], key
        assert np.abs(padded(list(mine), length) - padded(known["p"], length)).max() <= known["tol_max_abs"], key

    known = expected["frequencies"]["class_frequency"]
    frequency = np.bincount(draws.classes, minlength=len(known["freq"])) / len(episodes)
    assert total_variation(frequency, np.array(known["freq"])) <= known["tol_tv"]
    assert np.abs(frequency - padded(known["freq"], len(frequency))).max() <= known["tol_max_abs"]

    scalars = {"ways": ways, "support_size": size, "num_query": query}
    for key, value in scalars.items():
        for kind, number in (("mean", value.mean()), ("std", value.std())):
            known = expected["scalars"][f"{key}_{kind}"]
            assert abs(number - known["value"]) <= known["tol"], (key, kind)

    conditional(expected["conditional_means"], draws, episodes, ways, size, query)
    exact = expected["exact"]
    assert (exact["ways_min"], exact["ways_max"]) == (ways.min(), ways.max())
    assert exact["query_equal_across_classes"] == 1 and np.array_equal(draws.query, query[draws.episode])
    assert set(draws.classes.tolist()) <= set(expected["filtered_classes"])


def conditional(known: dict, draws: Draws, episodes: list, ways: np.ndarray, size: np.ndarray, query: np.ndarray) -> None:
    """Means given the class, the rank inside the episode and the ways."""
    rank_sum, rank_n = np.zeros(51), np.zeros(51)
    for one in episodes:
        rank_sum[: len(one)] += one
        rank_n[: len(one)] += 1
    given_class = np.bincount(draws.classes, draws.support), np.bincount(draws.classes)
    given_ways = np.bincount(ways)
    means = {
        "class_mean_support": given_class,
        "support_by_rank": (rank_sum, rank_n),
        "support_size_by_ways": (np.bincount(ways, size), given_ways),
        "num_query_by_ways": (np.bincount(ways, query), given_ways),
    }
    for key, (total, n) in means.items():
        for i, (value, tolerance) in enumerate(zip(known[key]["value"], known[key]["tol"], strict=True)):
            if value is not None and tolerance is not None:
                assert abs(total[i] / n[i] - value) <= tolerance, (key, i)
