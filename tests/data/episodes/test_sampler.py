"""Episode plans: validity, reproducibility, and errors."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smatcli.config.schema import EpisodeConfig
from smatcli.data.counted import counted_rng
from smatcli.data.episodes.sampler import EpisodePlan, EpisodeSampler, protocol_tag
from smatcli.errors import UserError
from tests.data.fakes import FakeStore


def sampler(counts, seed=0, split="all", **config) -> EpisodeSampler:
    return EpisodeSampler({"toy": FakeStore(counts, images=False)}, split, EpisodeConfig(**config), seed)


def flat(plan: EpisodePlan) -> list:
    return [plan.dataset, *(part.tolist() for part in (plan.classes, plan.support, plan.support_labels, plan.query, plan.query_labels))]


def assert_sound(plan: EpisodePlan, store: FakeStore) -> None:
    """Assert that classes and images are unique, support and query disjoint, every row has the class of its label, and all is int64."""
    assert len(set(plan.classes.tolist())) == len(plan.classes)
    rows = np.concatenate([plan.support, plan.query])
    labels = np.concatenate([plan.support_labels, plan.query_labels])
    assert len(np.unique(rows)) == len(rows)
    assert np.array_equal(np.searchsorted(store.class_offsets, rows, side="right") - 1, plan.classes[labels])
    ways = range(len(plan.classes))
    assert set(plan.support_labels.tolist()) == set(plan.query_labels.tolist()) == set(ways)
    assert all(part.dtype == np.int64 for part in (plan.classes, rows, labels))


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(2, 40), min_size=5, max_size=20),
    ways=st.tuples(st.integers(1, 5), st.integers(0, 2)),
    shots=st.tuples(st.integers(1, 4), st.integers(0, 3)),
    queries=st.integers(1, 12),
    index=st.integers(0, 10**9),
)
def test_fixed_episodes_match_the_request_or_are_refused(counts, ways, shots, queries, index):
    low, high = (ways[0], min(5, sum(ways))), (shots[0], sum(shots))
    store = FakeStore(counts, images=False)
    config = EpisodeConfig(ways=low, shots=high, queries=queries)
    if (store.counts >= high[1] + 1).sum() < low[1]:
        with pytest.raises(UserError, match="toy"):
            EpisodeSampler({"toy": store}, "all", config, 0)
        return
    made = EpisodeSampler({"toy": store}, "all", config, 0)
    plan = made.plan(index)
    assert_sound(plan, store)
    assert low[0] <= len(plan.classes) <= low[1]
    per_class = np.bincount(plan.support_labels)
    assert len(set(per_class.tolist())) == 1
    assert high[0] <= per_class[0] <= high[1]
    given_queries = np.bincount(plan.query_labels)
    assert set(given_queries.tolist()) == {made.pools["toy"].queries}
    assert given_queries[0] == queries or (given_queries[0] < queries and any("queries per class" in note for note in made.notes))


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(1, 300), min_size=8, max_size=70), index=st.integers(0, 10**6))
def test_variable_episodes_are_sound(counts, index):
    store = FakeStore(counts, images=False)
    enough = int((store.counts >= 2).sum())
    if enough < 5:
        return
    plan = EpisodeSampler({"toy": store}, "all", EpisodeConfig(kind="variable"), 3).plan(index)
    assert_sound(plan, store)
    assert 5 <= len(plan.classes) <= min(50, enough)
    assert len(plan.support) <= max(500, len(plan.classes))
    queries = np.bincount(plan.query_labels)
    assert len(set(queries.tolist())) == 1
    assert queries[0] == min(10, int(store.counts[plan.classes].min() // 2))


def test_a_plan_depends_on_its_name_alone():
    one, two = sampler([30] * 12), sampler([30] * 12)
    for index in reversed(range(20)):
        two.plan(index)
    assert [flat(one.plan(i)) for i in range(20)] == [flat(two.plan(i)) for i in range(20)]
    assert flat(one.plan(np.int64(3))) == flat(one.plan(3))
    assert len({str(flat(one.plan(i))) for i in range(200)}) == 200


def test_seed_split_and_dataset_are_part_of_the_name():
    store = FakeStore([30] * 12, images=False)
    config = EpisodeConfig()
    plans = [
        EpisodeSampler({name: store}, split, config, seed).plan(0).support.tolist()
        for name, split, seed in [("a", "train", 0), ("b", "train", 0), ("a", "test", 0), ("a", "train", 1)]
    ]
    assert len({str(plan) for plan in plans}) == 4


def test_a_plan_never_changes():
    """Regression test: changed rows would invalidate all comparisons with earlier results."""
    plan = sampler([30] * 12, seed=7, ways=2, shots=2, queries=1).plan(5)
    assert flat(plan) == ["toy", [8, 3], [251, 252, 91, 119], [0, 0, 1, 1], [243, 103], [0, 1]]


def test_several_datasets_are_drawn_uniformly_and_give_the_same_episodes_as_alone():
    stores = {name: FakeStore([20 + n] * (6 + 5 * n), images=False) for n, name in enumerate("cab")}
    config = EpisodeConfig(queries=5)
    mixed = EpisodeSampler(stores, "all", config, 1)
    turned = EpisodeSampler(dict(reversed(stores.items())), "all", config, 1)
    alone = {name: EpisodeSampler({name: store}, "all", config, 1) for name, store in stores.items()}
    seen = [mixed.dataset(i) for i in range(6000)]
    for name in stores:
        assert abs(seen.count(name) - 2000) < 5 * np.sqrt(6000 * 2 / 9)
    for index in range(50):
        plan = mixed.plan(index)
        assert flat(plan) == flat(turned.plan(index)) == flat(alone[plan.dataset].plan(index))


def test_split_of_overrides_the_split_of_one_dataset():
    splits = {"test": [0, 1, 2, 3, 4], "all": range(10)}
    stores = {name: FakeStore([20] * 10, splits, images=False) for name in ("id", "ood")}
    made = EpisodeSampler(stores, "test", EpisodeConfig(), 0, split_of={"ood": "all"})
    assert len(made.pools["id"].classes) == 5
    assert len(made.pools["ood"].classes) == 10


def test_images_and_classes_are_uniform():
    """All images are equally likely to be the first support image, and all classes to have label 0 (chi-square test, p about 1e-4)."""
    made = sampler([12] * 8, ways=5, shots=1, queries=2)
    plans = [made.plan(i) for i in range(9600)]
    first = np.bincount([plan.support[0] for plan in plans], minlength=96)
    last = np.bincount([plan.query[-1] for plan in plans], minlength=96)
    for counts in (first, last):
        assert ((counts - 100) ** 2 / 100).sum() < 150
        by_class = counts.reshape(8, 12).sum(1)
        assert ((by_class - 1200) ** 2 / 1200).sum() < 30


def test_pairs_are_drawn_uniformly_and_inclusively():
    made = sampler([30] * 12, ways=(5, 8), shots=(1, 3), queries=2)
    drawn = np.array([[len(p.classes), len(p.support) // len(p.classes)] for p in map(made.plan, range(4000))])
    for column, values in ((0, range(5, 9)), (1, range(1, 4))):
        counts = np.array([(drawn[:, column] == value).sum() for value in values])
        assert counts.sum() == 4000
        assert (np.abs(counts - 4000 / len(counts)) < 5 * np.sqrt(4000 / len(counts))).all()


def test_too_many_ways_are_refused_with_the_numbers():
    with pytest.raises(UserError) as error:
        sampler([20] * 4, ways=5)
    assert all(part in str(error.value) for part in ("toy", "5 ways of 5 + 10 images", "'all' has 4 classes", "smallest has 20"))
    assert "\n" not in str(error.value)


def test_every_impossible_dataset_is_named():
    stores = {"one": FakeStore([3] * 9, images=False), "fine": FakeStore([20] * 9, images=False), "two": FakeStore([20] * 2, images=False)}
    with pytest.raises(UserError) as error:
        EpisodeSampler(stores, "all", EpisodeConfig(), 0)
    assert "one:" in str(error.value)
    assert "two:" in str(error.value)
    assert "fine" not in str(error.value)


def test_an_empty_split_or_no_dataset_is_refused():
    with pytest.raises(UserError, match="no classes in split 'valid'"):
        EpisodeSampler({"toy": FakeStore([20] * 9, {"train": range(9)}, images=False)}, "valid", EpisodeConfig(), 0)
    with pytest.raises(UserError, match="no dataset"):
        EpisodeSampler({}, "test", EpisodeConfig(), 0)


def test_variable_needs_min_ways_classes_of_two_images():
    with pytest.raises(UserError, match=r"at least 5 ways of 2 images requested.*8 classes, 4 of them"):
        sampler([20] * 4 + [1] * 4, kind="variable")
    made = sampler([20] * 6 + [1] * 4, kind="variable")
    assert made.notes == ["toy: 4 of 10 classes of split 'all' skipped: fewer than 2 images"]


@pytest.mark.parametrize("wrong", [{"ways": (6, 5)}, {"shots": (0, 5)}, {"ways": 0}, {"kind": "variable", "min_ways": 9, "max_ways": 8}])
def test_empty_ranges_are_refused(wrong):
    with pytest.raises(UserError, match=r"episode\."):
        sampler([50] * 60, **wrong)


def test_small_classes_are_skipped_and_noted():
    made = sampler([14] * 3 + [15] * 7)
    assert made.notes == ["toy: 3 of 10 classes of split 'all' skipped: fewer than 15 images"]
    assert made.pools["toy"].classes.tolist() == list(range(3, 10))
    assert made.pools["toy"].queries == 10


def test_queries_are_lowered_only_where_a_dataset_is_too_small_and_never_silently():
    stores = {"pets": FakeStore([10] * 37, images=False), "big": FakeStore([100] * 10, images=False)}
    made = EpisodeSampler(stores, "all", EpisodeConfig(), 0)
    assert made.notes == ["pets: 5 queries per class (10 requested: its classes have 10 images)"]
    assert made.pools["pets"].queries == 5
    assert made.pools["big"].queries == 10


def test_lowered_queries_keep_half_of_the_usable_classes():
    """With 100 classes of 8 images and one of 6, there are 3 queries: the class of 6 is dropped rather than 2 queries of every episode."""
    made = sampler([8] * 100 + [6, 5])
    assert made.pools["toy"].queries == 3
    assert len(made.pools["toy"].classes) == 100
    assert "only 0 of the 102 classes of split 'all' have 15 images" in made.notes[0]
    assert "2 of 102 classes" in made.notes[1]


def test_settings_that_the_kind_ignores_are_noted():
    assert sampler([50] * 60, kind="variable", shots=1).notes == ["episode.kind=variable does not use shots=1"]
    assert sampler([50] * 60, max_ways=9).notes == ["episode.kind=fixed does not use max_ways=9"]


def test_protocol_tags():
    assert protocol_tag(EpisodeConfig(), "test") == "5w5s10q-test"
    assert protocol_tag(EpisodeConfig(ways=(5, 10), shots=(1, 5), queries=15), "train") == "5-10w1-5s15q-train"
    assert protocol_tag(EpisodeConfig(ways=(5, 5), shots=1), "all") == "5w1s10q-all"
    assert protocol_tag(EpisodeConfig(kind="variable"), "test") == "variable-test"
    assert protocol_tag(EpisodeConfig(kind="variable", max_ways=20), "test") == "variable5-20w10q500s100c-test"


def test_counted_generators_are_numpys_philox():
    """The key, SHA-256 of the parts' text, is recomputed here from its definition."""
    import hashlib

    key = int.from_bytes(hashlib.sha256(b"('episode', 0, 'test', 'birds', 4)").digest()[:16], "little")
    expected = np.random.Generator(np.random.Philox(key=key)).random(3)
    assert np.array_equal(counted_rng("episode", 0, "test", "birds", 4).random(3), expected)


def test_planning_is_fast():
    """Planning takes less than a millisecond per episode; the limit allows for a busy machine."""
    made = sampler([5000] * 200, kind="variable")
    start = time.process_time()
    for index in range(300):
        made.plan(index)
    assert (time.process_time() - start) / 300 < 3e-3
