"""A dataset counts once, and a copy of a training dataset is not out-of-domain without a word."""

import shutil

import pytest

from smatcli.config import load_recipe
from smatcli.data.stores.overlap import copies
from smatcli.engine.evaluate import evaluate
from smatcli.errors import UserError
from smatcli.runs.results import read_results
from tests.engine.evaluate.evalruns import FakeMethod, make_run, serve


@pytest.mark.parametrize("key", ["train", "valid", "id", "ood"])
def test_a_dataset_named_twice_is_refused(tmp_path, key):
    run = make_run(tmp_path)
    with pytest.raises(UserError, match=rf"data\.{key} names far twice"):
        load_recipe(run / "recipe.yaml", [f"data.{key}=[far, other, far]", *(["data.ood=[]"] if key != "ood" else [])])


def test_a_dataset_with_two_roles_is_refused(tmp_path):
    recipe = make_run(tmp_path) / "recipe.yaml"
    with pytest.raises(UserError, match=r"data\.id and data\.ood both name far"):
        load_recipe(recipe, ["data.id=[far]", "data.allow_overlap=true"])
    with pytest.raises(UserError, match=r"data\.train and data\.ood both name near; .*data\.allow_overlap=true"):
        load_recipe(recipe, ["data.id=[]", "data.ood=[near, far]"])
    load_recipe(recipe, ["data.id=[]", "data.ood=[near, far]", "data.allow_overlap=true"])


def test_copies_by_hand():
    train, near, far = {"a": "1", "b": "2"}, {"a": "1", "c": "3"}, {"d": "4", "e": "5"}
    assert copies(train, near, far) == {}
    assert copies(train, near, {**far, "twin": "2"}, allowed=True) == {"twin": "b"}
    assert copies(train, near, {**far, "twin": "4"}, allowed=True) == {"twin": "d"}
    assert copies(train, {**near, "twin": "3"}, far, allowed=True) == {"twin": "c"}
    for more in ({"twin": "1"}, {"twin": "3"}, {"twin": "5"}):
        with pytest.raises(UserError, match=r"twin has the same content as the .*data\.allow_overlap=true"):
            copies(train, near, {**far, **more})


def test_a_copy_under_another_name_needs_consent_and_is_recorded(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    serve(monkeypatch, FakeMethod())
    shutil.copy(tmp_path / "data" / "near.h5", tmp_path / "data" / "twin.h5")
    given = ["data.ood=[far, twin]"]
    with pytest.raises(UserError, match="twin has the same content as the training dataset near"):
        evaluate(run, ["proto"], overrides=given)
    assert not (run / "eval").exists()
    [folder] = evaluate(run, ["proto"], overrides=[*given, "data.allow_overlap=true"])
    drawn = read_results(folder / "results.h5").drawn
    assert {name: own.get("copy_of") for name, own in drawn.items()} == {"near": None, "far": None, "twin": "near"}


def test_a_store_beside_the_others_can_be_added(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    shutil.copy(tmp_path / "data" / "near.h5", tmp_path / "data" / "fer.h5")
    with pytest.raises(UserError, match=r"dataset fer: not in .*; add it as out-of-domain: data\.ood=\[far, farther, fer\]"):
        evaluate(run, ["proto"], datasets=["fer"])
    with pytest.raises(UserError, match="did you mean 'far'"):
        evaluate(run, ["proto"], datasets=["farr"])
