"""A real Slurm cluster of one node: jobs are submitted, fail, are resubmitted, are requeued and continue, and are cancelled."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smatcli.errors import UserError
from smatcli.launch.grid import parse_grid
from smatcli.launch.placement import Placement
from smatcli.launch.slurm import minutes, parameters
from smatcli.launch.sweep import sweep, sweep_status, update_table
from smatcli.launch.trainings import submit_trainings
from smatcli.runs.overview import facts, records
from smatcli.runs.reporter import SilentReporter
from tests.engine.train.world import load

HERE = Path(__file__).parent
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
MISSING = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
PATIENCE = 120.0
CPU = {"cpus": "1", "time": "10"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start a Slurm cluster, whose configuration is `SLURM_CONF`."""
    pytest.importorskip("submitit", reason="submitit is not installed (extra `cluster`)")
    if MISSING:
        pytest.skip(f"Slurm is not installed ({', '.join(MISSING)} missing); apt-get install slurm-wlm munge")
    if os.geteuid():
        pytest.skip("the daemons of the test cluster must be started by root")
    folder = tmp_path_factory.mktemp("slurm")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    before = dict(os.environ)
    done = subprocess.run([HERE / "cluster.sh", "start", folder], capture_output=True, text=True, env={**os.environ, "PATH": path})
    if done.returncode:
        pytest.skip(f"Slurm does not start here: {done.stderr.strip()[-300:]}")
    os.environ["SLURM_CONF"] = done.stdout.strip()
    try:
        yield folder
    finally:
        subprocess.run(["scancel", "--user", "root"], capture_output=True)
        subprocess.run([HERE / "cluster.sh", "stop", folder], env={**os.environ, "PATH": path}, check=True)
        os.environ.clear()
        os.environ.update(before)


def until(what: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.3)


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def job_field(job: str, name: str) -> str:
    return slurm("scontrol", "-o", "show", "job", job).split(f"{name}=")[1].split()[0]


@pytest.mark.slow
def test_a_sweep_is_sent_fails_in_part_and_is_retried(cluster, tmp_path):
    load(tmp_path)
    axes = [parse_grid("data.ood=[c],[absent]")]
    extra = ["train.steps=2", "train.valid_every=2"]
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "swept"
    sent = sweep(recipe, axes, SilentReporter(), extra, out, Placement("slurm", slurm=CPU)).submitted
    assert len(sent) == 2
    until(lambda: not {one.state for one in sweep_status(out)} & {"queued", "running"})
    good, bad = sweep_status(out)
    assert (good.state, good.step, bad.state, bad.attempt) == ("done", 2, "failed", 1)
    assert any("absent" in line for line in bad.lines), bad.lines
    again = sweep(recipe, axes, SilentReporter(), extra, out, Placement("slurm", slurm=CPU))
    assert not again.submitted, "done points are not sent again, failed ones only with --retry"
    assert len(again.rows) == 1, "done points are not sent again, failed ones only with --retry"
    shutil.copy(tmp_path / "c.h5", tmp_path / "absent.h5")
    retried = sweep(recipe, axes, SilentReporter(), extra, out, Placement("slurm", slurm=CPU), retry=True)
    assert list(retried.submitted) == [bad.name]
    until(lambda: sweep_status(out)[1].state not in ("queued", "running"))
    assert sweep_status(out)[1].attempt == 2
    table = update_table(out)
    assert table is not None, "the table is there without waiting for the jobs"
    assert len(table.read_text().splitlines()) == 3, "the table is there without waiting for the jobs"


@pytest.mark.slow
def test_a_job_is_requeued_on_the_signal_and_goes_on(cluster, tmp_path):
    tasks = str(min(2, len(os.sched_getaffinity(0))))  # two are one training of two processes
    loaded = load(tmp_path, "train.steps=60", "train.valid_every=60", "train.checkpoint_every=1000")
    (sent,) = submit_trainings([loaded], {**CPU, "tasks": tasks}, resume=False)
    (script,) = (tmp_path / ".launch/slurm").glob("*_submission.sh")
    assert "--signal=USR1@90" in script.read_text()
    assert "--requeue" in script.read_text()
    until(lambda: sum(1 for _ in records(sent.run)) > 3)
    with pytest.raises(UserError, match=f"job {sent.job} of run .* is still in Slurm's queue"):
        submit_trainings([loaded], CPU, resume=True)
    slurm("scancel", "--signal=USR1", sent.job)
    until(lambda: job_field(sent.job, "JobState") == "PENDING" or facts(sent.run).state == "finished")
    assert job_field(sent.job, "Restarts") == "1", "it was requeued"
    stopped = facts(sent.run)
    assert stopped.state == "interrupted"
    assert stopped.step is not None
    assert stopped.step < 60
    slurm("scontrol", "update", f"JobId={sent.job}", "StartTime=now")  # Slurm waits two minutes by default
    until(lambda: facts(sent.run).state == "finished")
    assert [r["step"] for r in records(sent.run) if r["kind"] == "train"] == list(range(1, 61)), "no step is missing or done twice"


@pytest.mark.slow
def test_a_cancelled_job_keeps_its_checkpoint_and_is_not_requeued(cluster, tmp_path):
    load(tmp_path)
    out = tmp_path / "long"
    result = sweep(
        tmp_path / "recipe.yaml", [parse_grid("seed=0")], SilentReporter(), ["train.steps=100000"], out, Placement("slurm", slurm=CPU)
    )
    until(lambda: (sweep_status(out)[0].step or 0) > 2)
    assert sweep_status(out)[0].state == "running"
    slurm("scancel", *result.submitted.values())
    until(lambda: sweep_status(out)[0].state != "running")
    (found,) = sweep_status(out)
    assert found.state == "failed"
    assert "the job was cancelled" in found.lines[-1]
    run = facts(out / "seed=0")
    assert run.state == "interrupted"
    assert (run.path / "checkpoints/last").is_dir()


def test_refused_options_are_one_line_and_nothing_is_sent(cluster, tmp_path):
    load(tmp_path)
    with pytest.raises(UserError, match=r"Slurm refuses the job: .*partition"):
        submit_trainings([load(tmp_path)], {"partition": "nowhere"}, resume=False)
    with pytest.raises(UserError, match=r"Slurm refuses the job: .*colour"):
        submit_trainings([load(tmp_path)], {"colour": "red"}, resume=False)
    assert not list((tmp_path / ".launch/slurm").iterdir())
    assert not (tmp_path / "run").exists()
    assert "smat-" not in slurm("squeue", "-h")


@pytest.mark.parametrize(
    ("text", "expected"), [("30", 30), ("30:01", 31), ("2:00:00", 120), ("1-0", 1440), ("1-12:30", 2190), ("0-0:0:1", 1), ("1:0:0", 60)]
)
def test_times(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "-1", "0", "1-", "1d"])
def test_bad_times(text):
    with pytest.raises(UserError, match="--slurm-time"):
        minutes(text)


def test_parameters():
    made = parameters({"gpus": "2", "mem": "16G", "partition": "gpu", "mem-bind": "local", "setup": "module load a; echo b", "nodes": "2"})
    assert made["gpus_per_node"] == 2
    assert made["partition"] == "gpu"
    assert made["nodes"] == 2
    assert made["srun_args"] == ["--kill-on-bad-exit=1"]
    assert made["additional_parameters"] == {"requeue": True, "mem": "16G", "mem-bind": "local"}
    assert made["setup"] == ["export SUBMITIT_PREEMPT_SIGNAL=USR1", "export PYTHONSAFEPATH=1", "module load a", "echo b"]
    with pytest.raises(UserError, match="give a whole number"):
        parameters({"gpus": "two"})


def test_without_slurm_it_says_so(monkeypatch, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed (extra `cluster`)")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="Slurm is not installed here"):
        submit_trainings([load(tmp_path)], {}, resume=False)
