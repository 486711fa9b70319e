"""Recipes and overrides of random words: each is accepted, or rejected with a one-line error."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smatcli.config import load_recipe
from smatcli.config.protocols import episode_config
from smatcli.errors import UserError
from tests.fuzz.guard import refused

STEADY = settings(max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))

KEYS = st.sampled_from(
    ["train", "train.steps", "train.groups", "train.groups.a.lr", "data.train", "data.train.0", "data.train.9", "method", "method.name",
     "backbone.args", "backbone.args.x.y", "episode", "eval.episode", "eval.adapt.0", "kind", "run", "a.b.c", "", ".", "..", "adapt.flip"]
)  # fmt: skip
VALUES = st.one_of(
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.sampled_from(
        ["", "[]", "{}", "null", "~", "[1, 2", "{a: ", "&a [*a]", "*a", "!!python/name:os", "!!binary YQ==", "!!set {a}", "0x" + "f" * 50,
         "9" * 5000, "1e400", ".nan", "-.inf", "2020-01-01", "<<", "{<<: {a: 1}}", "[[" * 30, "{a: {a: {a: 1}}}", "5w5s", "9" * 30 + "w1s",
         "l.npz", "\x00", "\u202e", "\ud800", "a\nb", "'", '"', "- a", "? a", "@x", "`", "%", "|", ">", "#", "!!float x", "!x y"]
    ),
)  # fmt: skip


@STEADY
@given(st.lists(st.tuples(st.one_of(KEYS, st.text(max_size=8)), VALUES), min_size=1, max_size=3))
def test_overrides(recipe_file, pairs):
    path = recipe_file()
    refused(lambda: load_recipe(path, [f"{key}={value}" for key, value in pairs]))


@STEADY
@given(st.text(max_size=30))
def test_any_text_as_override(recipe_file, text):
    path = recipe_file()
    refused(lambda: load_recipe(path, [text]))


@STEADY
@given(st.recursive(VALUES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)), max_leaves=8))
def test_values_where_others_belong(recipe_file, value):
    import yaml

    text = yaml.safe_dump({"kind": "train", "run": "r", "data": {"root": value}, "train": value, "method": value}, allow_unicode=True)
    path = recipe_file(text=text.encode("utf-8", "surrogatepass"))
    refused(lambda: load_recipe(path))


@STEADY
@given(st.text(alphabet="0123456789-wsqauto.", max_size=12))
def test_names_of_protocols(name):
    refused(lambda: episode_config(name))


def test_a_value_of_thousands_of_digits(recipe_file):
    with pytest.raises(UserError, match=r"train\.steps: expected an integer"):
        load_recipe(recipe_file(), ["train.steps=" + "9" * 5000])
