"""Compare the deterministic parts of Meta-Dataset's protocol with exact values from the published reference sampler."""

import json
from pathlib import Path

import numpy as np
import pytest

from smatcli.data.episodes.protocol import num_query, support_per_class, support_set_size
from smatcli.data.metadataset.spec import read_spec
from smatcli.errors import UserError

HERE = Path(__file__).parents[1] / "mdsampler"
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


def test_superclasses_have_the_reference_samplers_classes():
    spec = read_spec(HERE / "bilevel_spec.json")
    assert spec.ontology is not None
    splits = [c.split for c in spec.classes]
    superclasses = [node for split in ("train", "valid", "test") for node in spec.ontology.nodes[split]]
    for case in CASES["bilevel_ids"]:
        leaves = superclasses[case["superclass_id"]].leaves
        found = [leaves[i] for i in case["index_in_superclass"]]
        assert found == case["class_ids"]
        assert [i - splits.index(case["split"].lower()) for i in found] == case["relative_ids"]
