"""What the loop promises to all kinds of training: exact resume, the guard, determinism, the check of the data, signals."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from smatcli.engine.loop import guard
from smatcli.errors import SmatError, UserError
from smatcli.runs.checkpoint import load_checkpoint
from smatcli.runs.directory import RunDir
from smatcli.runs.reporter import SilentReporter
from smatcli.runs.signals import Interrupted, StopNow
from tests.engine.loop.jobs import KINDS, Job

STEPS = 6
CODES = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138}


@pytest.fixture(params=KINDS)
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    return Job(KINDS[request.param], tmp_path)


def interrupt(job: Job, step: int, *overrides: str, signum: int = signal.SIGTERM) -> Interrupted:
    """Train until a signal arrives during `step` (from 0)."""

    def act(now: int) -> None:
        if now == step:
            os.kill(os.getpid(), signum)

    with job.before_step(act), pytest.raises(Interrupted) as stopped:
        job(SilentReporter(), *overrides)
    return stopped.value


def records(run: RunDir) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "time"} for r in run.records()]


def state(run: RunDir, name: str = "last") -> dict[str, Any]:
    return {k: v for k, v in load_checkpoint(run.checkpoints / name).state.items() if k != "seconds"}


def assert_same(one: RunDir, two: RunDir) -> None:
    """Bit for bit: tensors and state of every checkpoint, and the records but for the clock."""
    names = sorted(p.name for p in one.checkpoints.iterdir())
    assert {"last", "best"} & set(names), "nothing to compare"
    for name in (n for n in names if n != "last.old"):
        a, b = (load_checkpoint(run.checkpoints / name) for run in (one, two))
        assert a.model.keys() == b.model.keys()
        assert a.optim.keys() == b.optim.keys()
        assert [k for k in a.model if not torch.equal(a.model[k], b.model[k])] == []
        assert [k for k in a.optim if not torch.equal(a.optim[k], b.optim[k])] == []
        assert state(one, name) == state(two, name)
    assert records(one) == records(two)


@pytest.mark.parametrize("step", [0, 3])
def test_an_interrupted_run_continues_exactly(job: Job, step: int) -> None:
    whole = job(SilentReporter(), run="whole")
    assert state(whole)["step"] == STEPS
    noise = torch.get_rng_state()
    error = interrupt(job, step)
    assert f"step {step + 1} of {STEPS}" in str(error)
    assert json.loads((job.root / "run" / "run.json").read_text())["status"] == "interrupted"
    assert load_checkpoint(job.root / "run" / "checkpoints" / "last").state["step"] == step + 1
    torch.manual_seed(99)  # as in another process
    reporter = SilentReporter()
    resumed = job(reporter, resume=True)
    assert any(f"at step {step + 1} of {STEPS}" in line for line in reporter.lines)
    assert torch.equal(noise, torch.get_rng_state())
    assert_same(whole, resumed)
    times = [r["time"] for r in resumed.records()]
    assert times == sorted(times)


def test_a_killed_run_continues_from_its_last_checkpoint(job: Job) -> None:
    """Nothing is written at the moment of death: later steps are repeated, and their records are not doubled."""
    whole = job(SilentReporter(), run="whole")

    def die(step: int) -> None:
        if step == 5:
            raise MemoryError

    with job.before_step(die), pytest.raises(MemoryError):
        job(SilentReporter())
    assert json.loads((job.root / "run" / "run.json").read_text())["status"] == "failed"
    assert_same(whole, job(SilentReporter(), resume=True))


def test_a_finished_run_is_left_alone(job: Job) -> None:
    run = job(SilentReporter())
    assert run.finished
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()}
    reporter = SilentReporter()
    job(reporter, resume=True)
    assert "already finished" in reporter.lines[-1]
    with pytest.raises(UserError, match="--resume"):
        job(SilentReporter())
    assert before == {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("signum", CODES)
def test_a_signal_leaves_a_checkpoint_and_a_second_one_ends_at_once(job: Job, signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    assert interrupt(job, 0, signum=signum).exit_code == CODES[signum]
    assert signal.getsignal(signum) is before

    if signum == signal.SIGHUP:  # sent twice when a terminal is closed, see tests/runs/test_signals.py
        return

    def twice(step: int) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signum)

    with job.before_step(twice), pytest.raises(StopNow) as left:
        job(SilentReporter(), resume=True)
    assert left.value.exit_code == CODES[signum]
    assert RunDir.open(job.root / "run").info["status"] == "interrupted"
    assert load_checkpoint(job.root / "run" / "checkpoints" / "last").state["step"] == 1


def poisoned(job: Job, *steps: int) -> Any:
    """The parameters are NaN while the gradients of these steps are computed, so that their losses are NaN."""
    backward = job.kind.learner.backward

    def wrapped(learner: Any, batch: Any, step: int) -> Any:
        if step not in steps:
            return backward(learner, batch, step)
        trained = [p for p in learner.model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in trained]
        with torch.no_grad():
            for p in trained:
                p.fill_(float("nan"))
        result = backward(learner, batch, step)
        with torch.no_grad():
            for p, value in zip(trained, before, strict=True):
                p.copy_(value)
        return result

    patch = pytest.MonkeyPatch()
    patch.setattr(job.kind.learner, "backward", wrapped)
    return patch


def test_a_loss_that_is_not_finite_is_skipped_and_counted(job: Job) -> None:
    patch = poisoned(job, 3)
    reporter = SilentReporter()
    try:
        run = job(reporter)
    finally:
        patch.undo()
    (skip,) = run.records("skip")
    assert (skip["step"], skip["skipped"]) == (4, 1)
    assert skip["reason"].startswith("the loss is nan")
    assert any(line.startswith("step 4 is skipped: the loss is nan") for line in reporter.lines)
    assert any("1 of 6 updates were skipped" in line for line in reporter.lines)
    saved = load_checkpoint(run.checkpoints / "last")
    assert all(bool(torch.isfinite(v).all()) for v in saved.model.values())
    assert saved.state["optimizers"]["step"] == STEPS, "the schedule advances"


def test_too_many_in_a_row_stop_the_run_and_keep_the_last_checkpoint(job: Job) -> None:
    patch = poisoned(job, 4, 5)
    try:
        with pytest.raises(
            SmatError, match=r"step 6: the loss is nan.*; 2 updates in a row were skipped; the last good checkpoint"
        ) as error:
            job(SilentReporter(), f"{job.kind.section}.spike.in_a_row=2")
    finally:
        patch.undo()
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)
    run = RunDir.open(job.root / "run")
    assert str(run.checkpoints / "last") in str(error.value)
    assert state(run)["step"] in (3, 4), "the last one before the skipped updates"
    assert state(run, "failed")["step"] == 5
    (failed,) = run.records("failed")
    assert failed["step"] == 5
    resumed = job(SilentReporter(), f"{job.kind.section}.spike.in_a_row=2", resume=True)
    assert resumed.finished
    assert not (run.checkpoints / "failed").exists()
    assert_same(job(SilentReporter(), f"{job.kind.section}.spike.in_a_row=2", run="whole"), resumed)


def test_a_spike_is_skipped_if_asked_for_and_survives_a_resume(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "FEWEST", 2)
    spike = [f"{job.kind.section}.spike.factor=50", f"{job.kind.section}.spike.window=2"]
    with job.losses(lambda step, loss: loss * (1e6 if step in (2, 4) else 1)):
        assert not job(SilentReporter(), run="free").records("skip")
        whole = job(SilentReporter(), *spike, run="whole")
        assert [(r["step"], r["skipped"]) for r in whole.records("skip")] == [(3, 1), (5, 2)]
        assert "a spike above" in whole.records("skip")[0]["reason"]
        interrupt(job, 3, *spike)
        assert_same(whole, job(SilentReporter(), *spike, resume=True))


def test_deterministic_gives_equal_files_twice(job: Job) -> None:
    runs = [job(SilentReporter(), "deterministic=true", run=name) for name in ("one", "two")]
    assert not torch.are_deterministic_algorithms_enabled()
    for run in runs:
        assert "time" not in run.records()[0]
    assert_same(*runs)
    for name in ("metrics.jsonl", "checkpoints/last/model.safetensors", "checkpoints/last/optim.safetensors"):
        assert (runs[0].path / name).read_bytes() == (runs[1].path / name).read_bytes()


def test_algorithms_are_deterministic_only_if_asked_for(job: Job) -> None:
    seen = []
    with job.before_step(lambda step: seen.append(torch.are_deterministic_algorithms_enabled())):
        job(SilentReporter(), "deterministic=true", run="one")
        job(SilentReporter(), run="two")
    assert seen == [True] * STEPS + [False] * STEPS


def test_changed_data_are_refused(job: Job) -> None:
    interrupt(job, 1)
    before = records(RunDir.open(job.root / "run"))
    job.kind.change(job.root)
    with pytest.raises(UserError, match=f"{job.kind.changed}.* changed since run .* began; choose another run=") as error:
        job(SilentReporter(), resume=True)
    if job.kind.name == "segment":
        assert str(job.root / "set") in str(error.value)
    assert records(RunDir.open(job.root / "run")) == before


def test_a_damaged_checkpoint_gives_way_to_the_previous_one(job: Job) -> None:
    whole = job(SilentReporter(), run="whole")
    interrupt(job, 4)
    checkpoints = job.root / "run" / "checkpoints"
    assert (checkpoints / "last.old").is_dir()
    (checkpoints / "last" / "optim.safetensors").write_bytes(b"")
    reporter = SilentReporter()
    resumed = job(reporter, resume=True)
    assert any("damaged" in line for line in reporter.lines)
    assert_same(whole, resumed)
