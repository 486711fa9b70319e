"""`smat analyze`: output and errors; `smat report --watch` and `--format` on the command line."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.engine.train.trainer import train
from smatcli.runs.reporter import SilentReporter
from tests.engine.train.world import load
from tests.report.fakes import add_eval, draw, make_run


def smat(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)], env={"NO_COLOR": "1"})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(load(tmp_path_factory.mktemp("world"), "train.steps=0"), SilentReporter()).path


def test_prints_the_files_it_made(run: Path):
    done = smat("analyze", run, "--only", "masks, features", "--datasets", "c", "--index", 2, "eval.seed=3")
    assert done.exit_code == 0, done.output
    files = [run / "analysis" / f"{name}.h5" for name in ("masks", "features-proto-3w2s2q-test-seed3")]
    assert done.stdout.split() == [str(file) for file in files]
    assert all(file.exists() for file in files)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "maskes"], "--only maskes: no such analysis; did you mean 'masks'?"),
        (["--only", ", "], "--only is empty"),
        (["--datasets", "d"], "dataset d: not in data.id or data.ood of this run"),
        (["--which", "lasst"], "--which lasst: use best or last; did you mean 'last'?"),
        (["train.steps=3"], "train.steps: cannot be changed after training"),
    ],
)
def test_wrong_options(run: Path, arguments: list[str], message: str):
    done = smat("analyze", run, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_needs_a_run(tmp_path: Path):
    assert "give at least one run directory" in smat("analyze", "eval.seed=1").stderr
    assert smat("analyze", tmp_path).exit_code == 2


def test_formats(tmp_path: Path):
    runs = make_run(tmp_path / "runs", "pmf")
    add_eval(runs, "proto", draw(0, 0, 20), "pmf")
    done = smat("report", runs, "-o", tmp_path / "out", "--format", "html")
    assert done.exit_code == 0
    assert done.stdout.split(":")[0] == str(tmp_path / "out" / "report.html")
    assert "1 file\n" in done.stdout
    wrong = smat("report", runs, "-o", tmp_path / "out2", "--format", "htm")
    assert wrong.exit_code == 2
    assert "--format htm: no such format; did you mean 'html'? (known: files, html)" in wrong.stderr
    assert not (tmp_path / "out2").exists()


def test_watch_follows_a_run_until_it_is_interrupted(tmp_path: Path):
    run = make_run(tmp_path / "runs" / "a", "pmf")
    out = tmp_path / "out" / "report.html"
    command = [
        sys.executable,
        "-m",
        "smatcli",
        "report",
        str(tmp_path / "runs"),
        "-o",
        str(out.parent),
        "--format",
        "html",
        "--watch",
        "--every",
        "0.2",
    ]
    # A shell's background job inherits an ignored SIGINT, and so would its tests.
    listens = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    wide = {**os.environ, "COLUMNS": "200"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=wide, preexec_fn=listens)
    try:
        assert process.stderr is not None
        assert "waiting" in process.stderr.readline()
        add_eval(run, "proto", draw(0, 0, 20), "pmf")
        deadline = time.monotonic() + 200
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "PMF" in out.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
    finally:
        process.kill()
        process.wait()
