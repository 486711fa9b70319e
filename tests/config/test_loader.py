"""Recipes: values, origins, overrides, round trips."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smatcli.config import TrainRecipe, dump_recipe, load_recipe, yaml_text
from smatcli.config.loader import vision
from smatcli.config.methods import SmatConfig
from smatcli.config.overrides import split_override
from smatcli.config.schema import GroupConfig
from smatcli.errors import UserError
from smatcli.safe.tree import flatten


def test_values_and_origins(recipe_file):
    path = recipe_file()
    loaded = load_recipe(path, ["method.sparsity.tau=0.5", "train.groups.theta_delta.lr=2e-4", "backbone.args.depth=3"])
    recipe = loaded.recipe
    assert isinstance(recipe, TrainRecipe)
    assert isinstance(recipe.method, SmatConfig)
    assert recipe.train.steps == 10
    assert type(recipe.train.steps) is int
    assert recipe.method.sparsity.tau == 0.5
    assert recipe.train.groups["theta_delta"].lr == 2e-4
    assert recipe.backbone.args == {"embed_dim": 32, "depth": 3}
    assert loaded.origins["method.sparsity.tau"] == "command line"
    assert loaded.origins["backbone.args.depth"] == "command line"
    assert loaded.origins["backbone.args.embed_dim"] == loaded.origins["data.train"] == f"file {path}"
    assert loaded.origins["method.router.heads"] == loaded.origins["seed"] == "default"


def test_every_value_has_an_origin(recipe_file):
    loaded = load_recipe(recipe_file())
    assert set(loaded.origins) == set(flatten(loaded.recipe.model_dump(mode="json")))


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("a.b=c=d=e", "a.b", "c=d=e"),
        ("lr=1e-3", "lr", 1e-3),
        ("lr=5E4", "lr", 5e4),
        ("n=10", "n", 10),
        ("n=010", "n", "010"),
        ("x=no", "x", "no"),
        ("x=off", "x", "off"),
        ("x=true", "x", True),
        ("x=12:30", "x", "12:30"),
        ("x=2024-01-02", "x", "2024-01-02"),
        ("x=[1, 2e0]", "x", [1, 2.0]),
        ("x={a: 1}", "x", {"a": 1}),
        ("x=", "x", None),
        ("x=null", "x", None),
        ("x=@home", "x", "@home"),
        ("x='1'", "x", "1"),
        ("run=runs/a#1", "run", "runs/a#1"),
        ("run=runs/try #2", "run", "runs/try #2"),
        ("run=#2", "run", "#2"),
        ("n=3 # three", "n", "3 # three"),
        ("run='try' #2", "run", "'try' #2"),
        ("run='try #2'", "run", "try #2"),
        ("run=--- a", "run", "--- a"),
        ("run=a\n...", "run", "a\n..."),
        ("run=&x a", "run", "&x a"),
        ("run=| a", "run", "| a"),
        ("run=>", "run", ">"),
        ("run=- a", "run", "- a"),
        ("run=try: 2", "run", "try: 2"),
        ("run=a  b", "run", "a  b"),
        ("x=!!str 5", "x", "!!str 5"),
        ("x=['a #1', b]", "x", ["a #1", "b"]),
    ],
)
def test_override_values(text, key, value):
    found = split_override(text)
    assert found == (key, value)
    assert type(found[1]) is type(value)


@pytest.mark.parametrize("value", ["[a #1, b]", "[a] #1", "{a: 1} # b", "[a\n#b\n]"])
def test_a_comment_in_a_list_is_an_error(value):
    with pytest.raises(UserError, match=r"override x: .*starts a comment; quote the text"):
        split_override(f"x={value}")


def test_lists_are_tuples_and_items_can_be_set(recipe_file):
    recipe = load_recipe(recipe_file(), ["train.augment.crop_scale=[0.5, 1]", "data.train.1=z", "episode.ways=[5, 10]"]).recipe
    assert isinstance(recipe, TrainRecipe)
    assert recipe.train.augment.crop_scale == (0.5, 1.0)
    assert recipe.data.train == ["a", "z"]
    assert recipe.episode.ways == (5, 10)


def test_a_mapping_can_be_replaced_whole(recipe_file):
    loaded = load_recipe(recipe_file(), ["method={name: pmf}"])
    assert loaded.recipe.method.name == "pmf"  # type: ignore[union-attr]
    assert loaded.origins["method.name"] == "command line"
    assert loaded.origins["method.scale"] == "default"


def test_dump_loads_again_to_the_equal_recipe(recipe_file, tmp_path):
    awkward = [
        "run=1e-3x",
        "backbone.weights='1e-3'",
        "data.root=no",
        "train.groups.theta_delta.lr=1e-7",
        "backbone.args.flag='true'",
        "seed=3",
    ]
    recipe = load_recipe(recipe_file(), awkward).recipe
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml").recipe == recipe
    assert vision(recipe).backbone.weights == "1e-3"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("abn01e-+.:_ ~#'\"\nTF", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1e-", min_size=1, max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_yaml_round_trip(value):
    assert yaml_text.parse(yaml_text.dump({"k": value})) == {"k": value}
    assert yaml_text.parse(f"k: {yaml_text.flow(value)}") == {"k": value}


def test_recipe_by_packaged_name():
    assert load_recipe("quickstart/smat").recipe == load_recipe("recipes/quickstart/smat.yaml").recipe


def test_whole_floats_stay_floats_where_any_value_goes(recipe_file):
    recipe = load_recipe(recipe_file(), ["backbone.args.mlp_ratio=4.0"]).recipe
    assert type(vision(recipe).backbone.args["mlp_ratio"]) is float


def test_fields_are_described():
    def walk(model, seen):
        for field in model.model_fields.values():
            kind = field.annotation
            if isinstance(kind, type) and hasattr(kind, "model_fields") and kind not in seen:
                seen.add(kind)
                walk(kind, seen)
        assert model.__doc__, model

    walk(TrainRecipe, set())
    assert GroupConfig.model_fields["lr"].description


def test_kind_is_asked_for(recipe_file):
    with pytest.raises(UserError, match=r"is a train recipe; run it with `smat train "):
        load_recipe(recipe_file(), kind="pretrain")


def test_path_is_kept(recipe_file):
    path = recipe_file()
    assert load_recipe(str(path)).path == Path(path)
