"""`smat export`, `push`, `pull`: options and exit codes."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from tests.deploy.world import make_run, make_support


def smat(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_run(folder)
    make_support(folder / "support", 2)
    return folder


def test_exports(world: Path, tmp_path: Path) -> None:
    done = smat("export", world / "run", "--support", world / "support", "--out", tmp_path / "model")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "model")
    done = smat("export", world / "run", "--experts", "--out", tmp_path / "experts.safetensors")
    assert done.exit_code == 0, done.output
    assert "times smaller than dense experts (0.38 MB)" in done.stdout


def test_staged_upload(world: Path, tmp_path: Path) -> None:
    done = smat("push", world / "run", "--stage", tmp_path / "look")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "look" / "README.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "run", "--experts", "--average", "--out", "a.safetensors"], "--average: cannot be combined with --experts"),
        (["export", "run", "--out", "a"], "add --support DIR, or --average"),
        (["export", "run", "--average", "--fit", "squash", "--out", "a"], "need --support"),
        (["push", "run"], "HUB_ID"),
        (["push", "run", "me/x", "--stage", "a"], "HUB_ID"),
        (["push", "run", "me/x"], "HF_HUB_OFFLINE"),
        (["push", "none", "me/x"], "does not exist"),
        (["pull", "nonsense", "--out", "a"], "OWNER/NAME"),
        (["pull", "me/x", "--out", "a"], "HF_HUB_OFFLINE"),
    ],
)
def test_bad_use_is_one_line_and_nothing_is_written(
    world: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(world)
    before = sorted(world.rglob("*"))
    done = smat(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr.splitlines()[-1]
    assert sum(line.startswith("smat: ") for line in done.stderr.splitlines()) == 1
    assert sorted(world.rglob("*")) == before
