"""Runs from others: no command writes outside of the run through a link in it."""

import os
from pathlib import Path

import pytest

from smatcli.engine.analyze.analysis import analyze
from smatcli.engine.evaluate.evaluation import evaluate
from smatcli.engine.train.trainer import train
from smatcli.errors import UserError
from smatcli.launch.grid import parse_axis
from smatcli.launch.sweep import sweep
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import SilentReporter
from tests.engine.train.world import load

VERBS = {
    "train": lambda root: train(load(root, "train.steps=9"), SilentReporter(), resume=True),
    "eval": lambda root: evaluate(root / "run", ["proto"], ["a"], 1),
    "analyze": lambda root: analyze(root / "run"),
    "active": lambda root: RunDir.open(root / "run").active().__enter__(),
}
PLACES = (".lock", "eval", "checkpoints", "metrics.jsonl", "analysis", "recipe.yaml", "profile/trace.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sent")
    train(load(root, "train.steps=1"), SilentReporter())
    return root


@pytest.mark.parametrize("place", PLACES)
def test_a_link_that_leaves_the_run_is_refused_by_every_verb_that_writes(trained, tmp_path, place):
    outside, link = tmp_path / "outside", trained / "run" / place
    link.parent.mkdir(exist_ok=True)
    existed = link.exists()
    if existed:
        link.rename(outside)
    else:
        outside.write_text("keep")
    content = outside.read_bytes() if outside.is_file() else sorted(os.listdir(outside))
    link.symlink_to(outside)
    try:
        for name, verb in VERBS.items():
            with pytest.raises(UserError, match=f"{link.name}: is a link to .*outside"):
                verb(trained)
            assert content == (outside.read_bytes() if outside.is_file() else sorted(os.listdir(outside))), name
    finally:
        link.unlink()
        if existed:
            outside.rename(link)


def test_a_pipe_is_refused_and_links_within_the_run_and_to_it_are_allowed(trained, tmp_path):
    pipe = trained / "run/pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="pipe: is a pipe or a device"):
        evaluate(trained / "run", ["proto"], ["a"], 1)
    pipe.unlink()
    (trained / "run/latest").symlink_to("checkpoints/last")
    (tmp_path / "mine").symlink_to(trained / "run")
    assert evaluate(tmp_path / "mine", ["proto"], ["a"], 1)
    (trained / "run/latest").unlink()


def test_a_sweep_does_not_write_through_the_links_of_its_folder(trained, tmp_path):
    out, precious = tmp_path / "swept", tmp_path / "precious"
    out.mkdir()
    precious.write_text("keep")
    (out / "tau=0.5.log").symlink_to(precious)
    with pytest.raises(UserError, match=r"tau=0\.5\.log: is a link"):
        sweep(trained / "recipe.yaml", [parse_axis("tau", "0.5")], SilentReporter(), out=out)
    assert precious.read_text() == "keep"
