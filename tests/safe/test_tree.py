"""Nested dictionaries as dotted keys."""

from smatcli.safe.tree import MISSING, differing_keys, differing_values, flatten


def test_empty_dictionaries_are_values():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
    assert flatten({}) == {}


def test_values_by_key_in_order_of_appearance():
    trees = [{"z": 1, "a": {"b": 2}}, {"z": 1, "a": {"b": 3}, "n": None}]
    assert differing_values(trees) == {"a.b": [2, 3], "n": [MISSING, None]}
    assert differing_values(trees, missing=None) == {"a.b": [2, 3]}
    assert differing_values(trees[:1]) == differing_values([]) == {}


def test_a_value_in_place_of_a_dictionary():
    assert differing_keys({"a": {"b": 1}, "c": 0}, {"a": 1, "c": 0}) == ["a", "a.b"]
    assert differing_keys({"a": {}}, {"a": {}}) == []
