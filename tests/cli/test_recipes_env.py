"""`smat recipes` and `smat env`."""

import json

import pytest
from typer.testing import CliRunner

from smatcli import __version__
from smatcli.cli import app
from smatcli.config import packaged_recipes

runner = CliRunner()


def test_ls_names_every_recipe_with_what_it_is():
    done = runner.invoke(app, ["recipes", "ls"])
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.strip()}
    assert done.exit_code == 0
    assert set(lines) == set(packaged_recipes())
    assert all(len(text) > 15 and not text.startswith("smat ") for text in lines.values())


def test_cat_prints_the_file():
    assert runner.invoke(app, ["recipes", "cat", "quickstart/smat"]).stdout == packaged_recipes()["quickstart/smat"].read_text()


def test_cp_copies_and_never_overwrites(tmp_path):
    assert runner.invoke(app, ["recipes", "cp", "quickstart/smat", str(tmp_path)]).exit_code == 0
    copy = tmp_path / "smat.yaml"
    assert copy.read_text() == packaged_recipes()["quickstart/smat"].read_text()
    copy.write_text("mine")
    done = runner.invoke(app, ["recipes", "cp", "quickstart/smat", str(copy)])
    assert done.exit_code == 2
    assert "exists" in done.stderr
    assert copy.read_text() == "mine"
    done = runner.invoke(app, ["recipes", "cp", "quickstart/smat", str(tmp_path / "no" / "x.yaml")])
    assert done.exit_code == 2
    assert "folder does not exist" in done.stderr


def test_validate_prints_values_with_their_origin(recipe_file):
    path = recipe_file()
    done = runner.invoke(app, ["recipes", "validate", str(path), "seed=7"])
    rows = {line.split()[0]: line.split(maxsplit=1)[1].strip() for line in done.stdout.splitlines() if line.startswith("  ")}
    assert done.exit_code == 0
    assert f"{path}: valid train recipe" in done.stdout
    assert rows["seed"].split() == ["7", "command", "line"]
    assert rows["train.steps"].split() == ["10", "file"]
    assert rows["method.router.temperature"].endswith("default")


def test_validate_all_and_quiet(recipe_file):
    done = runner.invoke(app, ["recipes", "validate"])
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == len(packaged_recipes())
    assert len(runner.invoke(app, ["recipes", "validate", "-q", str(recipe_file())]).stdout.splitlines()) == 1


def test_validate_reports_every_bad_recipe(recipe_file):
    good, bad, worse = recipe_file(), recipe_file("run:", "rnu:", name="bad.yaml"), recipe_file(text="", name="worse.yaml")
    done = runner.invoke(app, ["recipes", "validate", str(bad), str(good), str(worse)])
    assert done.exit_code == 2
    assert f"{good}: valid" in done.stdout
    assert len(done.stderr.splitlines()) == 2
    assert "unknown key 'rnu'" in done.stderr
    assert "is empty" in done.stderr


@pytest.mark.parametrize("words", [["seed=1"], ["recipes/none.yaml"]])
def test_validate_bad_arguments(words):
    assert runner.invoke(app, ["recipes", "validate", *words]).exit_code == 2


def test_env():
    done = runner.invoke(app, ["env"])
    assert done.exit_code == 0
    assert all(word in done.stdout for word in ("torch", "timm", "cpu capability", "threads", "recipes", "working folder"))
    found = json.loads(runner.invoke(app, ["env", "--json"]).stdout)
    import torch

    assert found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] == torch.__version__
    assert found["versions"]["smat"] == __version__  # not that of a stale installation
    assert set(found) == {"versions", "devices", "paths"}
