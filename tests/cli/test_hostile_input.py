"""The command line with invalid input: wrong kinds of files, closed pipes, limited terminals, folders without permission."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.data.stores.store import write_store

PLACE = "@"
COMMANDS = [
    ["train", PLACE],
    ["pretrain", PLACE],
    ["tune", PLACE],
    ["import", PLACE, "--out", "new/run"],
    ["eval", PLACE],
    ["predict", "--model", PLACE, "--support", "support", "--images", "support"],
    ["export", PLACE, "--out", "new/e"],
    ["push", PLACE, "--stage", "new/s"],
    ["sweep", PLACE, "--grid", "seed=1,2"],
    ["analyze", PLACE],
    ["report", PLACE, "--out", "new/r"],
    ["recipes", "validate", PLACE],
    ["runs", "show", PLACE],
    ["data", "info", PLACE],
    ["data", "episodes", PLACE, "--out", "new/e.npz"],
    *(["data", "prepare", kind, PLACE, "--out", "new/d"] for kind in ("folder", "meta-dataset", "pmf-h5", "pmf-episodes", "quickdraw")),
    ["data", "prepare", "coco", "support", PLACE, "--out", "new/d"],
]
THINGS = (
    "empty",
    "folder",
    "noise",
    "words.txt",
    "loop",
    "pipe",
    "line\nbreak",
    "missing",
    "x" * 300,
    "words.txt/a",
    "/dev/null",
    "",
    "\udcff",
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    (root / "empty").write_bytes(b"")
    (root / "folder").mkdir()
    (root / "support").mkdir()
    (root / "noise").write_bytes(np.random.default_rng(0).bytes(5000))
    (root / "words.txt").write_text("hello\nworld\n")
    (root / "line\nbreak").write_text("x")
    (root / "loop").symlink_to("loop2")
    (root / "loop2").symlink_to("loop")
    os.mkfifo(root / "pipe")
    return root


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c[:3]).replace(PLACE, ""))
def test_one_line_and_exit_2(here, monkeypatch, command):
    monkeypatch.chdir(here)
    before = {p: p.lstat().st_mtime_ns for p in here.rglob("*")}
    for thing in THINGS:
        done = CliRunner().invoke(app, [thing if part == PLACE else part for part in command])
        said = done.stderr.strip()
        assert done.exit_code in (0, 2), (thing, done.exit_code, said)
        assert "internal error" not in said, (thing, done.exit_code, said)
        assert "Traceback" not in said, (thing, done.exit_code, said)
        if done.exit_code == 2:
            assert said, (thing, said)
            assert len(said.splitlines()[-1]) < 1000, (thing, said)
    after = {p: p.lstat().st_mtime_ns for p in here.rglob("*") if "new" not in p.relative_to(here).parts}
    assert {p for p in after if p not in before} == set(), "something was left behind"


def smat(*args: str, **options: object) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **options.pop("env", {})}  # type: ignore[dict-item]
    for name in options.pop("without", ()):  # type: ignore[attr-defined]
        environment.pop(name, None)
    command = [sys.executable, "-m", "smatcli.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stores")
    write_store(root / "été.h5", "été", 8, [(f"鳥{i}", 0, np.zeros((2, 8, 8, 3), np.uint8)) for i in range(300)])
    return root


@pytest.mark.parametrize(
    "environment",
    [{"LANG": "C", "LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"},
     {"TERM": "dumb", "COLUMNS": "10"}, {"COLUMNS": "1", "FORCE_COLOR": "1"}, {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent"}],
    ids=lambda e: "-".join(f"{k}={v}" for k, v in e.items()),
)  # fmt: skip
def test_poor_terminals(stores, environment):
    for args in (["data", "ls", str(stores)], ["data", "info", str(stores / "été.h5")]):
        done = smat(*args, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "", done.stderr


def test_no_home_at_all(stores):
    done = smat("data", "info", str(stores / "été.h5"), without=("HOME", "USER", "LOGNAME"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("args", [["recipes", "ls"], ["--help"], ["env", "--json"], ["data", "info", "{store}"]])
def test_a_reader_that_leaves_early(stores, args):
    """`| head -1`, and a standard output that is closed or full."""
    command = [sys.executable, "-m", "smatcli.cli", *(a.format(store=stores / "été.h5") for a in args)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        process.wait(timeout=120)
    assert "Traceback" not in said, said
    assert "Exception ignored" not in said, said


def test_a_full_output(stores):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "smatcli.cli", "data", "info", str(stores / "été.h5")], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode != 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr


def test_a_folder_that_cannot_be_written_or_read(tmp_path, recipe_file):
    """Run as another user, because root may read and write everything."""
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")
    if not os.access("/usr/bin/setpriv", os.X_OK):
        pytest.skip("setpriv is not installed")
    secret = tmp_path / "secret.yaml"
    secret.write_text("kind: train\n")
    secret.chmod(0)
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == 0 and path != Path("/") and not path.stat().st_mode & 0o005:
            path.chmod(path.stat().st_mode | 0o005)
    probe = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-m", "smatcli.cli"]
    ready = subprocess.run([*probe, "--version"], cwd=tmp_path, capture_output=True, text=True)
    if ready.returncode:
        pytest.skip("another user cannot run this Python")
    for args in (["recipes", "validate", str(secret)], ["train", str(secret)], ["recipes", "cp", "quickstart/smat", "x.yaml"]):
        done = subprocess.run([*probe, *args], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode in (1, 2), (args, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1, (args, done.stderr)
        assert "internal" not in done.stderr
        assert "Traceback" not in done.stderr
