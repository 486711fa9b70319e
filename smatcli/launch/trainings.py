"""`smat train --launcher slurm`: trainings as jobs of a cluster. Their files lie beside the runs, in `.launch/`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smatcli.config import Loaded
from smatcli.errors import UserError
from smatcli.launch.job_files import JobFiles
from smatcli.launch.slurm import submit
from smatcli.launch.slurm_queue import queue_states
from smatcli.launch.state import WAITING, WORKING
from smatcli.runs.overview import read_json

HIDDEN = ".launch"


@dataclass(frozen=True)
class Sent:
    """A training that was sent: its run directory, the number of its job, and the log."""

    run: Path
    job: str
    log: str


def send(trainings: Sequence[Loaded], resume: bool, options: Mapping[str, str]) -> list[Sent]:
    """Send each training as a job; it continues by itself when it is requeued.

    UserError, before anything is sent, when a run exists (without `resume`), a job of it still waits or works, or there is no Slurm.
    """
    jobs = []
    for one in trainings:
        run = Path(one.recipe.run)
        if run.exists() and not resume:
            raise UserError(f"run {run} exists; use --resume to continue it or choose another run=")
        files = JobFiles(run.parent / HIDDEN, run.name)
        before = read_json(files.sent) or {}
        number = str(before.get("job", ""))
        if before.get("launcher") == "slurm" and (queue_states([number]) or {}).get(number) in (*WAITING, *WORKING):
            raise UserError(f"job {number} of run {run} is still in Slurm's queue; wait for it or `scancel {number}` first")
        jobs.append((run, files, one))
    for _, files, one in jobs:
        files.forget_state()
        files.write_spec(one, evaluate=False)
    found = []
    for run, files, _ in jobs:
        (number,) = submit([files], options, files.folder / "slurm")
        found.append(Sent(run, number, str((read_json(files.sent) or {}).get("log", ""))))
    return found
