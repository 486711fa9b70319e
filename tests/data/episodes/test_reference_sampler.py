"""Compare the official protocol with the published reference sampler: distributions over 20,000 episodes per setting, and exact values."""

import numpy as np
import pytest

from tests.data.mdstats import Draws, blocks, differences, episode_config, spec_store, statistics


@pytest.mark.parametrize(("kind", "name", "split"), blocks())
def test_distributions_agree_with_the_reference_sampler(kind, name, split):
    config = statistics(kind)["configs"][name]
    known = config["splits"][split]
    settings = episode_config(config["overrides"])
    draws = Draws(kind, split, settings, statistics(kind)["n_draws"])
    assert not differences(known, draws, kind)

    exact = known["exact"]
    assert (exact["ways_min"], exact["ways_max"]) == (draws.ways.min(), draws.ways.max())
    repeated = len(draws.classes) - len(np.unique(np.stack([draws.episode, draws.classes]), axis=1).T)
    assert repeated == exact["episodes_with_repeated_class"] == 0
    assert exact["query_equal_across_classes"] == 1
    first = spec_store(kind).classes(split.lower())[0]
    assert (draws.pool.classes - first).tolist() == known["filtered_classes"]
    if "eligible_nodes" in known:
        assert [{"wn_id": g.name, "span": len(g.members)} for g in draws.pool.groups] == known["eligible_nodes"]
        by_leaves: dict[frozenset[int], list[str]] = {}
        for group in draws.pool.groups:
            by_leaves.setdefault(frozenset(group.members.tolist()), []).append(group.name)
        merged = [{"wn_ids": names, "span": len(leaves)} for leaves, names in by_leaves.items()]
        assert merged == known["leaf_set_groups"]
