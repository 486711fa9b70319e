import json
import os
import signal
import threading
from pathlib import Path

import pytest

from smatcli.errors import SmatError, UserError
from smatcli.runs.directory import RunDir, differing
from smatcli.runs.reporter import SilentReporter
from smatcli.runs.signals import Interrupted, StopRequest
from tests.engine.pretrain.world import load


@pytest.fixture
def run(tmp_path):
    loaded = load(tmp_path)
    return RunDir.create(loaded.recipe.run, loaded.recipe, loaded.origins, ["smat", "pretrain"])


def test_a_new_run_holds_recipe_origins_and_facts(tmp_path, run):
    loaded = load(tmp_path)
    opened = RunDir.open(run.path)
    assert opened.recipe == loaded.recipe
    assert json.loads((run.path / "origins.json").read_text()) == loaded.origins
    assert (opened.info["kind"], opened.info["status"], opened.info["command"]) == ("pretrain", "created", ["smat", "pretrain"])
    assert {"python", "torch", "timm"} <= opened.info["versions"].keys()
    assert run.checkpoints.is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "b.h5", "recipe.yaml", "run"]


def test_an_existing_folder_is_never_used(tmp_path, run):
    loaded = load(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="exists; use --resume to continue it or choose another run="):
        RunDir.start(loaded, SilentReporter())
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="exists"):
        RunDir.create(empty, loaded.recipe)
    with pytest.raises(UserError, match="not a run directory"):
        RunDir.start(load(tmp_path, f"run={empty}"), SilentReporter(), resume=True)
    assert sorted(p for p in tmp_path.rglob("*") if p != empty) == before


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path):
    loaded = load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        RunDir.create(tmp_path / "file" / "run", loaded.recipe)


def test_resume_without_a_run_starts_one(tmp_path):
    reporter = SilentReporter()
    run = RunDir.start(load(tmp_path), reporter, resume=True)
    assert run.path.is_dir()
    assert reporter.lines == [f"no run at {run.path} yet: starting it"]


def test_another_recipe_is_refused_by_its_keys(tmp_path, run):
    other = load(tmp_path, "pretrain.batch_size=3", "backbone.args.depth=1", "seed=4")
    with pytest.raises(UserError, match=r"differs in backbone\.args\.depth: 2, now 1; pretrain\.batch_size: 12, now 3; seed: 0, now 4"):
        RunDir.start(other, SilentReporter(), resume=True)


def test_device_threads_and_length_may_change(tmp_path, run):
    reporter = SilentReporter()
    other = load(tmp_path, "device=auto", "threads=2", "pretrain.epochs=9")
    continued = RunDir.start(other, reporter, resume=True)
    assert continued.recipe == other.recipe == RunDir.open(run.path).recipe
    assert reporter.lines == [f"continuing {run.path} with changed device, pretrain.epochs, threads"]


def test_a_run_is_not_shortened(tmp_path, run):
    with pytest.raises(UserError, match=r"pretrain\.epochs=2\.0 would end run .* earlier than its 4\.0"):
        RunDir.start(load(tmp_path, "pretrain.epochs=2"), SilentReporter(), resume=True)
    assert RunDir.open(run.path).recipe == run.recipe


def test_differing(tmp_path):
    assert differing(load(tmp_path).recipe, load(tmp_path, "data.split={}").recipe) == ["data.split", "data.split.b"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "finished"),
        (ValueError("x"), "failed"),
        (Interrupted(signal.SIGTERM, "stopped"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_the_ending_is_recorded(run, error, status):
    try:
        with run.active():
            assert RunDir.open(run.path).info["status"] == "running"
            if error is not None:
                raise error
    except (ValueError, Interrupted, KeyboardInterrupt) as caught:
        assert caught is error
    assert RunDir.open(run.path).info["status"] == status
    assert RunDir.open(run.path).finished == (error is None)


def test_two_processes_do_not_share_a_run(run):
    with run.active(), pytest.raises(UserError, match="in use by another process"), RunDir.open(run.path).active():
        pass
    with RunDir.open(run.path).active():
        pass


def test_metrics_are_lines_of_json_and_forget_what_came_after_a_step(run):
    with run.active():
        for step in (1, 2, 3):
            run.log({"kind": "train", "step": step, "loss": float("nan") if step == 2 else 0.5, "by": {"x": float("inf")}})
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "kin')  # a process that was killed while writing
    assert [r["step"] for r in run.records()] == [1, 2, 3]
    assert (run.records()[1]["loss"], run.records()[1]["by"]) == (None, {"x": None})
    with run.active():
        run.truncate(2)
        run.log({"kind": "valid", "step": 3, "mean": 1.0})
    assert [(r["step"], r["kind"]) for r in run.records()] == [(1, "train"), (2, "train"), (3, "valid")]
    assert run.records("valid")[0]["time"] >= run.records("train")[-1]["time"]
    assert all(json.loads(line) for line in run.metrics.read_text().splitlines())
    run.truncate(-1)
    assert run.records() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_in_one_line(run, monkeypatch):
    with run.active():
        run._metrics = Path("/dev/full").open("a")  # noqa: SIM115
        with pytest.raises(SmatError, match="No space left on device; make room and continue with --resume"):
            run.log({"kind": "train", "step": 1})
        run._metrics = None


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read"), ('{"format": 99}', "format that this version does not support"), ("3", "format")]
)
def test_damaged_runs(run, text, message):
    (run.path / "run.json").write_text(text)
    with pytest.raises(UserError, match=message):
        RunDir.open(run.path)


def test_a_missing_run():
    with pytest.raises(UserError, match="run nowhere does not exist"):
        RunDir.open("nowhere")


def test_stop_request_notes_the_first_signal_and_obeys_the_second():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        error = stop.interrupted("step 3")
        assert (error.exit_code, error.signum) == (143, signal.SIGTERM)
        assert "SIGTERM at step 3" in str(error)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_stop_request_is_harmless_in_another_thread():
    failures = []

    def work():
        try:
            with StopRequest() as stop:
                assert not stop
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
