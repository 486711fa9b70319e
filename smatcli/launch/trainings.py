"""`smat train --launcher slurm`: submit trainings as Slurm jobs. The job files are in `.launch/` beside the runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smatcli.config import Loaded
from smatcli.errors import UserError
from smatcli.launch.job_files import JobFiles
from smatcli.launch.slurm import submit
from smatcli.launch.slurm_queue import queue_states
from smatcli.launch.state import WAITING, WORKING
from smatcli.safe.text import read_object

HIDDEN = ".launch"


@dataclass(frozen=True)
class SubmittedTraining:
    """A training in the Slurm queue: its run directory, job id and log."""

    run: Path
    job: str
    log: str


def submit_trainings(trainings: Sequence[Loaded], options: Mapping[str, str], *, resume: bool) -> list[SubmittedTraining]:
    """Submit a job per training. A job that is requeued continues its run.

    Raises UserError, before anything is submitted, if a run exists (without `resume`), if a job of a run is still in the queue, or if Slurm
    is not installed.
    """
    jobs = [(_files_of(Path(loaded.recipe.run), resume=resume), loaded) for loaded in trainings]
    submitted = []
    for files, loaded in jobs:
        (number,) = submit([(files, loaded)], options, files.folder / "slurm", evaluated=False)
        submitted.append(SubmittedTraining(Path(loaded.recipe.run), number, str((read_object(files.sent) or {}).get("log", ""))))
    return submitted


def _files_of(run: Path, *, resume: bool) -> JobFiles:
    if run.exists() and not resume:
        raise UserError(f"run {run} exists; use --resume to continue it or choose another run=")
    files = JobFiles(run.parent / HIDDEN, run.name)
    earlier = read_object(files.sent) or {}
    number = str(earlier.get("job", ""))
    if earlier.get("launcher") == "slurm" and (queue_states([number]) or {}).get(number) in (*WAITING, *WORKING):
        raise UserError(f"job {number} of run {run} is still in Slurm's queue; wait for it or `scancel {number}` first")
    return files
