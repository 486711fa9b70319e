"""Every invalid recipe gives a one-line error with the key, the expected value and the place."""

import pytest

from smatcli.config import load_recipe
from smatcli.errors import UserError


def message(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.exit_code == 2
    return text


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.stpes=3", ["command line: unknown key 'train.stpes'; did you mean 'steps'?"]),
        ("trian.steps=3", ["unknown key 'trian'", "'train'"]),
        ("method.expert=3", ["unknown key 'method.expert'", "'experts'"]),
        ("method.router.pol=mean", ["unknown key 'method.router.pol'", "'pool'"]),
        ("method.tau=0.5", ["unknown key 'method.tau'", "method.sparsity.tau"]),
        ("train.groups.theta_delta.rate=1", ["unknown key 'train.groups.theta_delta.rate'", "valid keys here: optimizer, lr"]),
        ("method.name=pfm", ["method.name: expected 'pretrained', 'pmf', 'softmerge', 'mlp_experts', 'smat', got pfm"]),
        ("method.experts=many", ["method.experts: expected an integer, got many (text)"]),
        ("method.experts='4'", ["method.experts: expected an integer", "(text)"]),
        ("train.steps=true", ["train.steps: expected an integer, got true (true/false)"]),
        ("train.steps=1.5", ["train.steps: expected an integer, got 1.5 (number)"]),
        ("train.steps=-1", ["train.steps: expected a number >= 0, got -1"]),
        ("method.sparsity.tau=1", ["method.sparsity.tau: expected a number < 1, got 1"]),
        ("method.sparsity.tau=.nan", ["method.sparsity.tau: expected a finite number"]),
        ("run=5", ["run: expected text, got 5 (integer)"]),
        ("run=", ["run: expected text, got null (nothing)"]),
        ("data.train=a,b", ["data.train: expected a list, such as [a, b], got a,b (text)"]),
        ("data.train=[]", ["data.train: expected at least 1 item(s)"]),
        ("data.ood_split=tset", ["data.ood_split: expected 'train', 'valid', 'test' or 'all', got tset"]),
        ("episode.ways=x", ["episode.ways: expected an integer or a list of two"]),
        ("train.augment.crop_scale=[1]", ["train.augment.crop_scale: expected a list of two"]),
        ("method=smat", ["method: expected a mapping (key: value), got smat (text)"]),
        ("method={experts: 3}", ["method.name is missing"]),
        ("data={root: x}", ["data.train is missing; set it in the recipe or as data.train=..."]),
        ("kind=trian", ["kind: expected train or pretrain", "got trian"]),
        ("steps", ["override 'steps' is not of the form key.path=value"]),
        (".a=1", ["override '.a=1' is not of the form"]),
        ("run.x=1", ["run is the value runs/small and has no key 'x'"]),
        ("data.train.7=z", ["'7' is not an index of a list of 2"]),
        ("data.train=[a", ["override data.train: cannot read '[a'"]),
    ],
)
def test_overrides(recipe_file, override, parts):
    text = message(recipe_file(), [override])
    assert all(part in text for part in parts), text


def test_problem_of_the_file_names_the_file(recipe_file):
    path = recipe_file("train:\n", "trian:\n")
    text = message(path)
    assert text.startswith(f"{path}: unknown key 'trian'; did you mean 'train'?")
    assert "(and 1 more: train)" in text


def test_value_left_over_from_another_method(recipe_file):
    assert "unknown key 'method.experts'; valid keys here: name, scale (and 1 more: method.sparsity)" in message(
        recipe_file(), ["method.name=pmf"]
    )


def test_several_problems_are_counted(recipe_file):
    text = message(recipe_file(), ["seed=-1", "train.steps=x", "foo=1"])
    assert "unknown key 'foo'" in text
    assert "(and 2 more: " in text
    assert "seed" in text
    assert "train.steps" in text


def test_override_given_twice(recipe_file):
    assert message(recipe_file(), ["seed=1", "seed=2"]) == "override seed is given twice; give it once"


def test_rule_across_keys(recipe_file):
    text = "kind: pretrain\nrun: r\ndata: {root: d, datasets: [a], split: {b: all}}\npretrain: {epochs: 1}\n"
    found = message(recipe_file(text=text))
    assert "data.split names datasets that are not in data.datasets: b" in found


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "the recipe is empty"),
        ("  \n\n", "the recipe is empty"),
        ("# only a comment\n", "contains only comments"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe", "is not a text file"),
        (b"kind: train\nrun: \x00\n", "is not a text file"),
        ("kind: train\nrun: [a\ndata: b\n", "line 3: not valid YAML"),
        ("kind: train\nrun: a\nrun: b\n", "line 3: not valid YAML: the key 'run' is given twice"),
        ("kind: train\n5: a\n", "line 2: not valid YAML: the key '5' is not text"),
        ("kind: train\nrun: !!python/object:os.system {}\n", "line 2: not valid YAML"),
        ("- a\n- b\n", "a recipe must be a mapping (key: value), not a list"),
        ("run: a\n", "kind is missing"),
        ("kind: [train]\n", "kind: expected train or pretrain"),
        ("a: &x\n  b: *x\nkind: train\n", "contains itself"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a git-lfs pointer"),
    ],
)
def test_files(recipe_file, content, part):
    path = recipe_file(text=content)
    text = message(path)
    assert part in text
    assert str(path) in text


def test_large_file(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_bytes(b"a" * 1_000_001)
    assert "too large for a recipe" in message(path)


def test_missing_file_and_folder(recipe_file, tmp_path):
    recipe_file(name="smat.yaml")
    assert "this recipe does not exist; did you mean" in message(tmp_path / "smta.yaml")
    assert "'quickstart/smat'" in message("quickstart/smt")
    assert "is a folder, not a recipe" in message(tmp_path)
