"""`smat sweep --status` and `--retry`, the local launcher's processes, and the meaning of Slurm's states."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.errors import UserError
from smatcli.launch import local
from smatcli.launch.grid import parse_axis
from smatcli.launch.job_files import JobFiles
from smatcli.launch.placement import Placement
from smatcli.launch.state import _on_slurm, job_files
from smatcli.launch.sweep import read_sweep, sweep, sweep_status
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import SilentReporter

AXIS = "tau"


@pytest.fixture
def recipe(recipe_file, tmp_path):
    return recipe_file("run: runs/small", f"run: {tmp_path}/runs/small")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs/small-sweep-tau"


def stand_in(monkeypatch, body):
    """Replace every command of a point by `python -c body VERB TAU`."""
    real = local.commands_of

    def commands(point, device, side_by_side):
        return [
            [sys.executable, "-c", body, c[c.index("smatcli.cli") + 1], point.values["method.sparsity.tau"]]
            for c in real(point, device, side_by_side)
        ]

    monkeypatch.setattr(local, "commands_of", commands)


def launch(recipe, values="0.5,0.7", **more):
    return sweep(recipe, [parse_axis(AXIS, values)], SilentReporter(), placement=Placement("local"), **more)


def test_a_crashing_point_is_survived_shown_and_retried(monkeypatch, recipe, folder, tmp_path):
    mark = tmp_path / "fixed"
    body = (
        "import os, pathlib, sys\n"
        f"print('working on', sys.argv[1], sys.argv[2]); sys.stdout.flush()\n"
        f"if sys.argv[2] == '0.5' and not pathlib.Path({str(mark)!r}).exists(): os.kill(os.getpid(), 11)\n"
    )
    stand_in(monkeypatch, body)
    result = launch(recipe)
    assert list(result.failed) == ["tau=0.5"]
    assert "killed by signal 11" in result.failed["tau=0.5"]
    bad, good = sweep_status(folder)
    assert (bad.state, bad.attempt, good.state) == ("failed", 1, "done")
    assert bad.lines[0] == "working on train 0.5"
    assert "killed by signal 11" in bad.lines[-1]
    shown = CliRunner().invoke(app, ["sweep", str(folder), "--status"])
    assert shown.exit_code == 0
    assert "working on train 0.5" in shown.stdout
    assert "1 failed, 1 done" in shown.stdout
    assert "--retry" in shown.stdout
    mark.touch()
    assert not launch(recipe, retry=True).failed
    assert [(one.state, one.attempt) for one in sweep_status(folder)] == [("done", 2), ("done", 1)]
    again = SilentReporter()
    sweep(recipe, [parse_axis(AXIS, "0.5,0.7")], again, placement=Placement("local"), retry=True)
    assert "no point has failed; there is nothing to retry" in again.lines


def test_the_folder_knows_its_sweep(monkeypatch, recipe, folder, tmp_path):
    stand_in(monkeypatch, "pass")
    launch(recipe, overrides=["train.steps=7"])
    found, axes, overrides = read_sweep(folder)
    assert Path(found) == recipe.resolve()
    assert overrides == ["train.steps=7"]
    assert [(a.key, a.values) for a in axes] == [("method.sparsity.tau", ("0.5", "0.7"))]
    with pytest.raises(UserError, match="is not the folder of a sweep"):
        sweep_status(tmp_path)


def test_states_of_local_points(monkeypatch, recipe, folder):
    stand_in(monkeypatch, "pass")
    launch(recipe)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    job_files(folder, "tau=0.5").note_state("running", pid=gone.pid)
    job_files(folder, "tau=0.7").note_state("running")
    (folder / "tau=0.7").mkdir(exist_ok=True)
    (folder / "tau=0.7/metrics.jsonl").write_text('{"step": 3, "kind": "train"}\n{"ste')
    first, second = sweep_status(folder)
    assert first.state == "failed"
    assert "ended without an error message" in first.lines[-1]
    assert (second.state, second.step, second.steps) == ("running", 3, 10)


@pytest.mark.parametrize(
    ("said", "queue", "expected"),
    [
        ("waiting", "PENDING", "queued"), ("interrupted", "PENDING", "queued"), ("running", "RUNNING", "running"),
        ("interrupted", "COMPLETING", "running"), ("done", "COMPLETING", "done"), ("done", "COMPLETED", "done"), ("done", "GONE", "done"),
        ("failed", "FAILED", "failed"), ("running", "CANCELLED", "failed"), ("interrupted", "CANCELLED", "failed"),
        ("running", "TIMEOUT", "failed"), ("running", "GONE", "failed"), ("running", "OUT_OF_MEMORY", "failed"),
        ("waiting", None, "queued"), ("running", None, "running"), ("interrupted", "PREEMPTED", "interrupted"),
    ],
)  # fmt: skip
def test_what_slurm_says(said, queue, expected):
    state, why = _on_slurm(said, "", queue)
    assert state == expected
    assert bool(why) == (expected == "failed" and said != "failed")


def test_a_job_does_what_it_was_told_when_it_was_sent(recipe, tmp_path):
    from smatcli.config import load_recipe

    loaded = load_recipe(recipe, ["train.steps=7"], kind="train")
    files = JobFiles(tmp_path / "jobs", "x")
    files.write_spec(loaded, evaluate=True)
    recipe.write_text("changed: later\n")
    again, evaluated = files.read_spec()
    assert again.recipe == loaded.recipe
    assert again.origins == loaded.origins
    assert evaluated
    run = RunDir.create(tmp_path / "r", again.recipe, again.origins)
    assert json.loads((run.path / "origins.json").read_text())["train.steps"] == "command line"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--launcher", "slrum"], "did you mean 'slurm'"),
        (["--slurm-mem", "4G"], "needs --launcher slurm"),
        (["--launcher", "slurm", "--slurm", "gres"], "is not of the form KEY=VALUE"),
        (["--launcher", "slurm", "--slurm-mem", "4G", "--slurm", "mem=4G"], "is given twice"),
        (["--launcher", "slurm", "--jobs", "2"], "are options of the local launcher"),
        (["--status", "--retry"], "give one of them"),
        (["--status"], "is not the folder of a sweep"),
    ],
)
def test_bad_words(recipe, words, part):
    done = CliRunner().invoke(app, ["sweep", "tau", str(recipe), "--values", "0.5", *words])
    assert done.exit_code == 2, done.output
    assert part in done.stderr, done.output
