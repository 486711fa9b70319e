"""Every shipped recipe is valid and states the command that runs it."""

from pathlib import Path

import pytest

from smatcli.config import find_recipe, load_recipe, packaged_recipes, recipes_root
from smatcli.config.loader import verb

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(p for p in (ROOT / "recipes").rglob("*") if p.is_file())


def test_there_are_recipes_and_nothing_else():
    assert {p.suffix for p in FILES} == {".yaml"}
    assert set(packaged_recipes().values()) == set(FILES)
    assert recipes_root() == ROOT / "recipes"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_recipe(path):
    recipe = load_recipe(path).recipe
    lines = path.read_text().splitlines()
    name = path.relative_to(ROOT).as_posix()
    assert lines[0] == f"# smat {verb(recipe.kind)} {name}", "the first line is the command that runs the recipe"
    assert lines[1].startswith("# "), "and a comment says what it is"
    assert find_recipe(name) == path or find_recipe(name).resolve() == path


def test_runs_do_not_share_a_directory():
    runs = [load_recipe(path).recipe.run for path in FILES]
    assert len(set(runs)) == len(runs)
