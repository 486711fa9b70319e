"""The recipe of `smat llm train`: read with origins, refused in one line."""

import pytest

from smatcli.config import dump_recipe, load_recipe
from smatcli.config.llm import LlmRecipe, SimoeConfig
from smatcli.errors import UserError

SMALL = "kind: llm\nrun: runs/x\nmethod: {name: simoe}\ndata: {train: synthetic, heldout: synthetic}\n"


@pytest.fixture
def recipe(recipe_file):
    return recipe_file(text=SMALL)


def test_defaults_and_origins(recipe, tmp_path):
    loaded = load_recipe(recipe, ["train.steps=7"], kind="llm")
    assert isinstance(loaded.recipe, LlmRecipe)
    assert isinstance(loaded.recipe.method, SimoeConfig)
    assert loaded.origins["train.steps"] == "command line"
    assert loaded.origins["data.train"] == f"file {recipe}"
    assert loaded.origins["method.experts"] == "default"
    (tmp_path / "again.yaml").write_text(dump_recipe(loaded.recipe))
    assert load_recipe(tmp_path / "again.yaml").recipe == loaded.recipe


def test_an_llm_recipe_has_no_backbone(recipe):
    assert "backbone" not in dump_recipe(load_recipe(recipe).recipe)
    with pytest.raises(UserError, match="unknown key 'backbone'"):
        load_recipe(recipe, ["backbone.name=x"])


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.stpes=3", "unknown key 'train.stpes'; did you mean 'steps'?"),
        ("method.expert=3", "unknown key 'method.expert'"),
        ("method.name=simo", "method.name: expected"),
        ("method.experts=1e9", "method.experts: expected a number <= 256"),
        ("method.sparsity.tau=1", "method.sparsity.tau: expected a number < 1"),
        ("method.masks.group=input", "method.masks.group: expected 'output'"),
        ("method.masks.kind=random", "method.masks.kind: expected 'learned'"),
        ("model.heads=7", "hidden: 192 cannot be split into 7 heads of even width"),
        ("train.row=100", "train.row: 100 tokens are fewer than data.context (512)"),
        ("train.steps=1e12", "train.steps: expected a number <= 1e+09"),
        ("data.too_long=truncate", "data.too_long: expected 'refuse', 'drop' or 'truncate-prompt-left'"),
        ("data={}", "data.train is missing"),
        ("method={name: upcycle, experts: 2, top: 3}", "method.top: 3 experts per token of 2"),
        ("model={path: base, layers: 3}", "model: path: base is used as it is; remove layers"),
    ],
)
def test_bad_values(recipe, override, part):
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, [override], kind="llm")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_of_the_kind_is_named(recipe, recipe_file):
    with pytest.raises(UserError, match=r"is a llm recipe; run it with `smat llm train "):
        load_recipe(recipe, kind="train")
    with pytest.raises(UserError, match=r"is a train recipe; run it with `smat train "):
        load_recipe(recipe_file(name="other.yaml"), kind="llm")
