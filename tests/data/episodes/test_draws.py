"""The official protocol: invariants on datasets of any shape, errors, and reproducibility of episodes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smatcli.config.schema import EpisodeConfig
from smatcli.data.episodes.sampler import EpisodeSampler, plan_digest
from smatcli.data.stores.ontology import Node, Ontology
from smatcli.errors import UserError
from tests.data.episodes.test_sampler import assert_sound, flat
from tests.data.fakes import FakeStore
from tests.data.mdstats import spec_store

MD = EpisodeConfig(kind="meta-dataset")


class OntologyStore(FakeStore):
    """A store in memory with an ontology; `groups` are the leaves of its test nodes."""

    def __init__(self, counts, kind: str, groups) -> None:
        super().__init__(counts, {"test": range(len(counts))}, images=False)
        nodes = tuple(Node(f"n{i:03d}", f"group {i}", tuple(leaves)) for i, leaves in enumerate(groups))
        self.ontology = Ontology(kind, {"test": nodes})  # type: ignore[arg-type]


def sampler(store, config: EpisodeConfig = MD, split: str = "test", seed: int = 0) -> EpisodeSampler:
    return EpisodeSampler({"toy": store}, split, config, seed)


@st.composite
def stores(draw):
    """A dataset that is flat, or has superclasses or overlapping nodes, with 2 to 300 images per class."""
    kind = draw(st.sampled_from(["flat", "bilevel", "dag"]))
    groups: list[Any]
    if kind == "bilevel":
        sizes = draw(st.lists(st.integers(5, 70), min_size=1, max_size=4))
        ends = np.cumsum(sizes)
        groups = [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        classes = int(ends[-1])
    else:
        classes = draw(st.integers(5, 90))
        node = st.sets(st.integers(0, classes - 1), min_size=1)
        groups = [list(draw(st.permutations(sorted(leaves)))) for leaves in draw(st.lists(node, min_size=1, max_size=5))]
        groups.append(list(range(classes)))
    seed = draw(st.integers(0, 2**32 - 1))
    counts = np.random.default_rng(seed).integers(2, draw(st.integers(3, 300)), classes)
    return FakeStore(counts, {"test": range(classes)}, images=False) if kind == "flat" else OntologyStore(counts, kind, groups)


@settings(max_examples=120, deadline=None)
@given(store=stores(), index=st.integers(0, 10**9), balanced=st.sampled_from([None, 1, (1, 4)]), ignore=st.sampled_from([0.0, 0.5, 1.0]))
def test_every_episode_keeps_the_protocol(store, index, balanced, ignore):
    config = EpisodeConfig(kind="meta-dataset", balanced=balanced, ignore_hierarchy=ignore)
    try:
        made = sampler(store, config)
    except UserError:
        most = 1 if balanced is None else int(np.max(balanced))
        assume((store.counts <= most).any())  # refused only where classes are too small for the shots
        return
    plan, told = made.plan(index), made.describe(index)
    assert_sound(plan, store)
    ways, shots, queries = len(plan.classes), np.bincount(plan.support_labels), np.bincount(plan.query_labels)
    assert np.array_equal(plan.classes, told.classes)
    assert np.array_equal(shots, told.shots)
    assert set(queries.tolist()) == {told.queries}
    pool = made.pools["toy"]
    assert set(plan.classes.tolist()) <= set(pool.classes.tolist())
    counts = store.counts[plan.classes]
    assert 5 <= ways <= min(50, len(pool.classes))
    assert 1 <= told.queries <= 10
    assert (shots >= 1).all()
    assert (shots + told.queries <= counts).all()
    if balanced is None:
        assert told.queries <= counts.min() // 2
        assert shots.sum() <= 500
    else:
        low, high = (balanced, balanced) if isinstance(balanced, int) else balanced
        assert low <= shots[0] <= high
        assert len(set(shots.tolist())) == 1
        assert told.queries == min(10, counts.min() - high)
    if ignore == 1 or getattr(store, "ontology", None) is None:
        assert told.group is None
    if told.group is not None:
        (node,) = [n for n in store.ontology.nodes["test"] if n.name == told.group]
        usable = [leaf for leaf in node.leaves if leaf in pool.classes]
        assert set(plan.classes.tolist()) <= set(usable)
        if store.ontology.kind == "dag":
            assert ways == min(50, len(usable))
            assert len(usable) > 50 or plan.classes.tolist() == usable


def test_nodes_are_drawn_uniformly_even_with_equal_leaves():
    """Two of the 18 nodes have the same leaves. Chi-square test of 9,000 draws at 17 degrees of freedom, p about 1e-5."""
    made = EpisodeSampler({"toy": spec_store("dag")}, "train", MD, 5)
    names = [g.name for g in made.pools["toy"].groups]
    drawn = [made.describe(i).group for i in range(9000)]
    counts = np.array([drawn.count(name) for name in names])
    assert len(names) == 18
    assert ((counts - 500) ** 2 / 500).sum() < 53


def test_spans_above_392_and_below_the_ways_are_not_eligible():
    store = OntologyStore([20] * 400, "dag", [range(400), range(392), range(393), range(5), range(4), range(50, 101)])
    made = sampler(store)
    assert [len(g.members) for g in made.pools["toy"].groups] == [392, 5, 51]
    ways = {g: {len(d.classes) for d in map(made.describe, range(60)) if d.group == g} for g in ("n001", "n003", "n005")}
    assert ways == {"n001": {50}, "n003": {5}, "n005": {50}}


def test_small_classes_are_dropped_before_spans_are_counted():
    store = OntologyStore([20] * 6 + [3] * 4, "dag", [range(6), range(2, 8), range(10)])
    made = sampler(store, EpisodeConfig(kind="meta-dataset", min_images=20))
    assert [(g.name, len(g.members)) for g in made.pools["toy"].groups] == [("n000", 6), ("n002", 6)]
    assert "4 of 10 classes of split 'test' skipped: fewer than 20 images" in made.notes[0]


def test_a_flat_dataset_has_the_same_episodes_as_by_the_variable_rule():
    store = FakeStore([30, 40, 5, 200] * 10, images=False)
    both = [EpisodeSampler({"toy": store}, "all", EpisodeConfig(kind=kind), 3) for kind in ("variable", "meta-dataset")]
    assert [flat(both[0].plan(i)) for i in range(30)] == [flat(both[1].plan(i)) for i in range(30)]


@pytest.mark.parametrize(
    ("ontology", "kind", "grouped"), [("none", "dag", 0), ("bilevel", "dag", 0), ("dag", "dag", 1), ("both", "bilevel", 1)]
)
def test_ontologies_can_be_ignored_by_kind(ontology, kind, grouped):
    store = OntologyStore([20] * 12, kind, [range(6), range(6, 12)])
    made = sampler(store, EpisodeConfig(kind="meta-dataset", ontology=ontology))
    assert len(made.pools["toy"].groups) == 2 * grouped
    assert {len(d.classes) > 6 for d in map(made.describe, range(60))} == ({False} if grouped else {False, True})


def test_the_other_kinds_ignore_the_ontology():
    store = OntologyStore([20] * 12, "dag", [range(6)])
    for kind in ("fixed", "variable"):
        assert not sampler(store, EpisodeConfig(kind=kind)).pools["toy"].groups


def test_split_all_draws_from_the_nodes_of_every_split():
    found = EpisodeSampler({"toy": spec_store("dag")}, "all", MD, 0).pools["toy"].groups
    each = [len(EpisodeSampler({"toy": spec_store("dag")}, split, MD, 0).pools["toy"].groups) for split in ("train", "test")]
    assert len(found) >= sum(each)


@pytest.mark.parametrize(
    ("store", "config", "message"),
    [
        (OntologyStore([20] * 9, "bilevel", [range(5), range(5, 9)]), {}, "superclass n001 has 4 classes, an episode needs 5"),
        (OntologyStore([20] * 10, "bilevel", [range(5), range(5, 10)]), {"min_images": 5}, "min_images cannot be combined"),
        (OntologyStore([20] * 9, "bilevel", []), {}, "there is no superclass"),
        (OntologyStore([20] * 9, "dag", [range(4)]), {}, "no node of its graph spans 5 to 392 of the 9 classes"),
        (OntologyStore([20] * 9, "dag", [range(9)]), {"min_images": 21}, "9 classes, 0 of them with min_images=21 or more"),
        (OntologyStore([20] * 60, "dag", [range(9)]), {"max_support": 40}, "max_support is 40, but an episode may have 50 classes"),
        (OntologyStore([5] * 9, "dag", [range(9)]), {"balanced": 5}, "at least 5 ways of 6 images"),
        (OntologyStore([20] * 9, "dag", [range(9)]), {"balanced": (3, 2)}, r"episode\.balanced: \[3, 2\]"),
        (OntologyStore([20] * 9, "dag", [range(9)]), {"kind": "list"}, "fixed list of episodes is for smat eval"),
    ],
)
def test_refusals(store, config, message):
    with pytest.raises(UserError, match=message) as error:
        sampler(store, EpisodeConfig(**{"kind": "meta-dataset", **config}))
    assert "\n" not in str(error.value)


def test_settings_that_balanced_shots_ignore_are_noted():
    store = FakeStore([30] * 9, images=False)
    made = EpisodeSampler({"toy": store}, "all", EpisodeConfig(kind="variable", balanced=2, max_support=60, ontology="none"), 0)
    assert made.notes == ["episode.kind=variable with balanced shots does not use ontology=none, max_support=60"]


def test_episodes_with_an_ontology_never_change():
    """Regression test: changed digests would invalidate all comparisons with earlier results."""
    found = [str(plan_digest(EpisodeSampler({"toy": spec_store(kind)}, "test", MD, 7).plan(5))) for kind in ("bilevel", "dag")]
    assert found == ["2335259156134747103", "8685808296316562207"]


def test_an_ontology_reads_back_what_was_written_and_follows_dropped_classes():
    for kind in ("bilevel", "dag"):
        made = spec_store(kind).ontology
        classes = len(spec_store(kind).counts)
        assert made is not None
        assert Ontology.from_json(made.to_json(), classes) == made
        kept = list(range(3, classes, 2))
        less = made.keep(kept)
        for split, nodes in less.nodes.items():
            known = {n.name: n for n in made.nodes[split]}
            assert all([kept[leaf] for leaf in n.leaves] == [leaf for leaf in known[n.name].leaves if leaf in kept] for n in nodes)
            assert {n.name for n in nodes} == {n.name for n in known.values() if set(n.leaves) & set(kept)}


NODE = '{"name":"a","words":"","leaves":[0,1]}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"kind":"dag"}',
        '{"kind":"tree","nodes":{}}',
        '{"kind":"dag","nodes":{"dev":[]}}',
        '{"kind":"dag","nodes":{"test":{}}}',
        '{"kind":"dag","nodes":{"test":[1]}}',
        '{"kind":"dag","nodes":{"test":[{"name":"a","words":"","leaves":[]}]}}',
        '{"kind":"dag","nodes":{"test":[{"name":"a","words":"","leaves":[0,0]}]}}',
        '{"kind":"dag","nodes":{"test":[{"name":"a","words":"","leaves":[true]}]}}',
        '{"kind":"dag","nodes":{"test":[' + NODE.replace("1", "5") + "]}}",
        "[" * 100_000,
    ],
)
def test_a_damaged_ontology_is_one_line(text):
    with pytest.raises(UserError, match="ontology") as error:
        Ontology.from_json(text, 5)
    assert len(str(error.value)) < 300
