"""`smat train --seeds`: one run per seed, with the seed in its name."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from smatcli.cli import app

RECIPE = str(Path(__file__).parents[2] / "recipes" / "quickstart" / "pmf.yaml")


def smat(*arguments: str):
    return CliRunner().invoke(app, ["train", RECIPE, *arguments], env={"NO_COLOR": "1"})


def test_one_run_a_seed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    made: list[tuple[str, int, int, bool]] = []

    def fake(loaded, reporter, resume, *rest):
        recipe = loaded.recipe
        made.append((recipe.run, recipe.seed, recipe.train.steps, resume))
        return SimpleNamespace(path=recipe.run)

    monkeypatch.setattr("smatcli.engine.train.trainer.train", fake)
    run = str(tmp_path / "p")
    done = smat("--seeds", "0,7, 2", f"run={run}", "train.steps=3", "--resume")
    assert done.exit_code == 0, done.output
    assert made == [(f"{run}-seed{seed}", seed, 3, True) for seed in (0, 7, 2)]
    made.clear()
    assert smat(f"run={run}", "seed=4").exit_code == 0
    assert made[0][:2] == (run, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0,a"], "--seeds 0,a: give different whole numbers"),
        (["--seeds", "1,01"], "give different whole numbers"),
        (["--seeds", "-1"], "give different whole numbers"),
        (["--seeds", "0,1", "seed=3"], "cannot be combined"),
    ],
)
def test_wrong_seeds(arguments: list[str], message: str):
    done = smat(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
