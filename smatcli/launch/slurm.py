"""Jobs on a Slurm cluster through submitit: sent, asked about, and put back in the queue on the pre-emption signal."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smatcli.errors import SmatError, UserError
from smatcli.launch.job_files import JobFiles
from smatcli.launch.worker import execute, say_error

SIGNAL = "USR1"  # what Slurm sends `signal_delay_s` before the time limit or on pre-emption
RETRIES = 1000  # how often a job may run into its time limit and continue: as long as it takes
DEFAULT_MINUTES = 24 * 60
# Short names of options that Slurm or submitit call otherwise.
NAMES = {"gpus": "gpus_per_node", "cpus": "cpus_per_task", "tasks": "ntasks_per_node", "signal_delay": "signal_delay_s"}
INTEGERS = ("nodes", "ntasks_per_node", "cpus_per_task", "gpus_per_node", "gpus_per_task", "cpus_per_gpu", "signal_delay_s")


def minutes(text: str) -> int:
    """Slurm's time formats (30, 30:00, 2:00:00, 1-12, 1-12:30, 1-12:30:00) as whole minutes, rounded up; UserError for others."""
    days, dash, rest = text.partition("-") if "-" in text else ("0", "", text)
    parts = rest.split(":")
    if not days.isdecimal() or not all(p.isdecimal() for p in parts) or len(parts) > 3:
        raise UserError(f"--slurm-time {text}: write minutes, HH:MM:SS or D-HH:MM:SS")
    numbers = [int(p) for p in parts]
    if dash:
        hours, mins, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, mins, seconds = (0, *numbers, 0)[:3] if len(numbers) < 3 else numbers
    total = ((int(days) * 24 + hours) * 60 + mins) * 60 + seconds
    if total <= 0:
        raise UserError(f"--slurm-time {text}: must be longer than nothing")
    return -(-total // 60)


def parameters(options: Mapping[str, str]) -> dict[str, Any]:
    """submitit's parameters for Slurm options by name (as sbatch spells them, with _ or -); UserError on values that are no numbers."""
    made: dict[str, Any] = {"time": DEFAULT_MINUTES, "additional_parameters": {"requeue": True}}
    plain = {"partition", "qos", "account", "constraint", "exclude", "nodelist", "gres", "mail_type", "mail_user", "dependency", "comment"}
    for given, value in options.items():
        key = NAMES.get(given.replace("-", "_"), given.replace("-", "_"))
        if key == "time":
            made["time"] = minutes(value)
        elif key in INTEGERS:
            if not value.isdecimal():
                raise UserError(f"--slurm {given}={value}: give a whole number")
            made[key] = int(value)
        elif key == "setup":
            made.setdefault("setup", []).extend(part.strip() for part in value.split(";") if part.strip())
        elif key in plain:
            made[key] = value
        else:
            made["additional_parameters"][key.replace("_", "-")] = True if value == "" else value
    # A site that does not hand the environment on must still agree on the signal.
    made["setup"] = [f"export SUBMITIT_PREEMPT_SIGNAL={SIGNAL}", *made.get("setup", [])]
    if made.get("ntasks_per_node", 1) * made.get("nodes", 1) > 1:
        made["srun_args"] = ["--kill-on-bad-exit=1"]
    return made


@dataclass(frozen=True)
class ClusterJob:
    """What submitit calls on the node; it continues by itself, so the same object is right for every attempt."""

    folder: str
    name: str

    def __call__(self) -> None:
        join_tasks()
        try:
            execute(JobFiles(Path(self.folder), self.name))
        except BaseException as error:
            if getattr(error, "signum", None) == getattr(signal, f"SIG{SIGNAL}"):
                requeue(error)
            raise SystemExit(say_error(error)) from None

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """submitit asks on the signal while no engine is at work: run the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def join_tasks() -> None:
    """Several tasks of one job are the processes of one training: name each its place as torchrun would."""
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "RANK" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def requeue(error: BaseException) -> None:
    """Put this job back in the queue (its first task does) and leave; SmatError when Slurm refuses."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if int(os.environ.get("SLURM_PROCID", "0")) == 0:
        print(f"smat: {error}; requeueing job {job}", file=sys.stderr, flush=True)
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(say_error(SmatError(f"job {job} cannot be requeued: {done.stderr.strip()}; submit it again with --retry")))
    raise SystemExit(0)


def submit(jobs: Sequence[JobFiles], options: Mapping[str, str], folder: Path) -> list[str]:
    """Send each job to Slurm, its logs below `folder`; the job numbers. UserError where there is no Slurm or it refuses an option."""
    try:
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = SIGNAL
        import submitit
        from submitit.slurm.slurm import SlurmJobEnvironment

        SlurmJobEnvironment.USR_SIG = SIGNAL  # read when submitit was first imported, perhaps by someone else
    except ImportError:
        raise UserError("--launcher slurm needs submitit; install it with `pip install 'smatcli[cluster]'`") from None
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("--launcher slurm: there is no Slurm here (no sbatch and srun in PATH); use --launcher local")
    found = []
    executor = submitit.SlurmExecutor(folder=folder.resolve(), max_num_timeout=RETRIES)
    settings = parameters(options)
    for files in jobs:
        before = set(folder.glob("*"))
        try:
            executor.update_parameters(**{"job_name": f"smat-{files.name}", **settings})
            job = executor.submit(ClusterJob(str(files.folder.resolve()), files.name))
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, subprocess.CalledProcessError) as error:
            for rest in set(folder.glob("*")) - before:
                rest.unlink(missing_ok=True)
            raise UserError(f"Slurm refuses the job: {refusal(str(error))}") from None
        files.note_sent("slurm", job.job_id, Path(str(job.paths.stderr)))
        found.append(job.job_id)
    return found


def refusal(text: str) -> str:
    """The line of sbatch in submitit's long error."""
    lines = [line.strip() for line in text.splitlines() if "sbatch:" in line]
    first = lines[0] if lines else text.strip().splitlines()[-1]
    return first.split("sbatch:", 1)[-1].removeprefix(" error:").strip()
