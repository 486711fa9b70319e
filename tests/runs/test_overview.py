"""`smat runs`: states, best validation, differences and tails from files alone."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from typer.testing import CliRunner

from smatcli.cli import app
from smatcli.errors import UserError
from smatcli.runs.overview import differing_settings, facts, find_runs, follow, tail


def made(root, name, status="finished", rows=(), recipe="method: {name: smat, experts: 4}\ntrain: {steps: 10}\n", **info: Any):
    """Write a run directory as the engine does."""
    run = root / name
    (run / "checkpoints/last").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"format": 1, "kind": "train", "status": status, **info}))
    (run / "recipe.yaml").write_text(recipe)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


ROWS = [
    {"step": 0, "time": 0.5, "kind": "valid", "mean": 0.9},
    {"step": 5, "time": 60.0, "kind": "valid", "mean": 0.5, "datasets": {"a": 0.5}},
    {"step": 6, "time": 70.0, "kind": "train", "loss": 1.5},
    {"step": 8, "time": 75.0, "kind": "valid", "mean": 0.4},
]


def run_cli(*words):
    return CliRunner().invoke(app, ["runs", *map(str, words)])


def test_facts(tmp_path):
    found = facts(made(tmp_path, "a", rows=ROWS))
    assert (found.method, found.state, found.step, found.steps, found.best, found.best_step, found.last, found.seconds) == (
        "smat", "finished", 8, 10, 0.5, 5, 0.4, 75.0,
    )  # fmt: skip
    assert facts(made(tmp_path, "b", rows=ROWS[:1])).best == 0.9, "the untrained model counts where nothing else is there"
    empty = facts(made(tmp_path, "c", status="created"))
    assert (empty.step, empty.best, empty.seconds) == (None, None, None)


def test_a_torn_line_and_a_damaged_recipe_are_no_reason_to_fail(tmp_path):
    run = made(tmp_path, "a", rows=ROWS, recipe="method: [")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "ki')
    found = facts(run)
    assert found.step == 8
    assert found.method == "?"
    assert found.steps is None


def test_states_of_running_ones(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    here = socket.gethostname()
    assert facts(made(tmp_path, "gone", "running", pid=done.pid, host=here)).state == "dead"
    assert facts(made(tmp_path, "other", "running", pid=done.pid, host="elsewhere")).state == "running"
    alive = made(tmp_path, "alive", "running", pid=os.getpid(), host=here)
    assert facts(alive).state == "dead", "the number belongs to another process now: nobody holds the lock"
    with (alive / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert facts(alive).state == "running"
    assert facts(alive).state == "dead"
    assert facts(made(tmp_path, "failed", "failed")).state == "failed"


def test_find(tmp_path):
    for name in ("b", "deep/er/a", ".hidden/x"):
        made(tmp_path, name)
    assert [p.relative_to(tmp_path).as_posix() for p in find_runs([tmp_path])] == ["b", "deep/er/a"]
    with pytest.raises(UserError, match="does not exist"):
        find_runs([tmp_path / "none"])


def test_ls(tmp_path):
    made(tmp_path, "one", rows=ROWS)
    made(tmp_path, "two", "failed", message="SmatError: the loss is nan")
    out = run_cli("ls", tmp_path).stdout
    assert "8/10" in out
    assert "50.00" in out
    assert "1:15" in out
    assert "failed" in out
    assert "one" not in run_cli("ls", tmp_path, "--state", "failed").stdout
    rows = [json.loads(line) for line in run_cli("ls", tmp_path, "--json").stdout.splitlines()]
    assert [(r["state"], r["best"]) for r in rows] == [("finished", 0.5), ("failed", None)]
    bad = run_cli("ls", "--state", "finishd", tmp_path)
    assert bad.exit_code == 2
    assert "did you mean 'finished'" in bad.stderr
    assert run_cli("ls", tmp_path / "none").exit_code == 2


def test_show(tmp_path):
    run = made(tmp_path, "one", "interrupted", ROWS, message="stopped by SIGTERM at step 8", versions={"torch": "2"}, device="cpu")
    out = run_cli("show", run).stdout
    for part in ("stopped by SIGTERM", "50.00 % at step 5", "torch 2", "loss 1.5", "checkpoints      last"):
        assert part in out
    assert run_cli("show", tmp_path).exit_code == 2


def test_compare(tmp_path):
    made(tmp_path, "one", rows=ROWS)
    made(tmp_path, "two", rows=ROWS[:2], recipe="run: elsewhere\nmethod: {name: smat, experts: 8}\ntrain: {steps: 10}\n")
    assert differing_settings([facts(p) for p in find_runs([tmp_path])]) == {"method.experts": [4, 8]}
    out = run_cli("compare", tmp_path / "one", tmp_path / "two").stdout
    assert "method.experts" in out
    assert "8/10" in out
    assert "5/10" in out
    assert "train.steps" not in out
    assert run_cli("compare", tmp_path / "one").exit_code == 2


def test_tail_and_follow(tmp_path):
    run = made(tmp_path, "one", rows=ROWS)
    assert [r["step"] for r in tail(run, 2)] == [6, 8]
    assert run_cli("tail", run, "-n", "1").stdout == "step 8 valid [1:15] mean 0.4\n"
    assert list(follow(run, 0.01)) == [], "a run that is over has nothing new"
    growing = made(tmp_path, "two", "running", ROWS, host="elsewhere")

    def grow() -> None:
        time.sleep(0.1)
        with (growing / "metrics.jsonl").open("a") as file:
            for text in ('{"step": 9, "kind": "tr', 'ain"}\n'):
                file.write(text)
                file.flush()
                time.sleep(0.1)
        (growing / "run.json").write_text(json.dumps({"status": "finished"}))

    thread = threading.Thread(target=grow)
    thread.start()
    assert [r["step"] for r in follow(growing, 0.02)] == [9], "a line that is half written is waited for"
    thread.join()


def test_no_torch_is_needed(tmp_path):
    made(tmp_path, "one", rows=ROWS)
    call = f"app(['runs', 'ls', {str(tmp_path)!r}], standalone_mode=False)"
    body = f"import sys; from smatcli.cli import app; {call}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
