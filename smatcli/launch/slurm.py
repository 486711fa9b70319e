"""Submit Slurm jobs with submitit, and requeue them on the pre-emption signal."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smatcli.config import Loaded
from smatcli.errors import SmatError, UserError
from smatcli.launch.job_files import JobFiles
from smatcli.launch.worker import execute, report_error

SIGNAL = "USR1"  # sent by Slurm `signal_delay_s` before the time limit, or on pre-emption
RETRIES = 1000  # number of times that a job may be continued after its time limit; practically unlimited
DEFAULT_MINUTES = 24 * 60
# Short names of options -> their names in submitit.
NAMES = {"gpus": "gpus_per_node", "cpus": "cpus_per_task", "tasks": "ntasks_per_node", "signal_delay": "signal_delay_s"}
INTEGERS = ("nodes", "ntasks_per_node", "cpus_per_task", "gpus_per_node", "gpus_per_task", "cpus_per_gpu", "signal_delay_s")


def minutes(text: str) -> int:
    """Convert a Slurm time (30, 30:00, 2:00:00, 1-12, 1-12:30, 1-12:30:00) to minutes, rounded up. Raises UserError if it is invalid."""
    days, dash, rest = text.partition("-") if "-" in text else ("0", "", text)
    parts = rest.split(":")
    if not days.isdecimal() or not all(p.isdecimal() for p in parts) or len(parts) > 3:
        raise UserError(f"--slurm-time {text}: give minutes, HH:MM:SS or D-HH:MM:SS")
    numbers = [int(p) for p in parts]
    if dash:
        hours, mins, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, mins, seconds = (0, *numbers, 0)[:3] if len(numbers) < 3 else numbers
    total = ((int(days) * 24 + hours) * 60 + mins) * 60 + seconds
    if total <= 0:
        raise UserError(f"--slurm-time {text}: give a time above zero")
    return -(-total // 60)


def parameters(options: Mapping[str, str]) -> dict[str, Any]:
    """Convert Slurm options (named as in sbatch, with _ or -) to parameters of submitit. Raises UserError for an invalid number."""
    result: dict[str, Any] = {"time": DEFAULT_MINUTES, "additional_parameters": {"requeue": True}}
    plain = {"partition", "qos", "account", "constraint", "exclude", "nodelist", "gres", "mail_type", "mail_user", "dependency", "comment"}
    for given, value in options.items():
        key = NAMES.get(given.replace("-", "_"), given.replace("-", "_"))
        if key == "time":
            result["time"] = minutes(value)
        elif key in INTEGERS:
            if not value.isdecimal():
                raise UserError(f"--slurm {given}={value}: give a whole number")
            result[key] = int(value)
        elif key == "setup":
            result.setdefault("setup", []).extend(part.strip() for part in value.split(";") if part.strip())
        elif key in plain:
            result[key] = value
        else:
            result["additional_parameters"][key.replace("_", "-")] = True if value == "" else value
    # Set the signal in the job too, because on some clusters jobs do not inherit the environment. Python must not import from the current
    # folder.
    result["setup"] = [f"export SUBMITIT_PREEMPT_SIGNAL={SIGNAL}", "export PYTHONSAFEPATH=1", *result.get("setup", [])]
    if result.get("ntasks_per_node", 1) * result.get("nodes", 1) > 1:
        result["srun_args"] = ["--kill-on-bad-exit=1"]
    return result


@dataclass(frozen=True)
class ClusterJob:
    """The callable that submitit runs on the node. It resumes the run, so the same object is used for every attempt."""

    folder: str
    name: str

    def __call__(self) -> None:
        join_tasks()
        try:
            execute(JobFiles(Path(self.folder), self.name))
        except BaseException as error:
            if getattr(error, "signum", None) == getattr(signal, f"SIG{SIGNAL}"):
                requeue(error)
            raise SystemExit(report_error(error)) from None

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Submit the same job again. Submitit calls this on the signal if no engine handles it."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def join_tasks() -> None:
    """Combine the Slurm tasks of a job into one distributed training, by setting the environment variables that torchrun sets."""
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "RANK" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def requeue(error: BaseException) -> None:
    """Requeue this job from its first task, and exit. If Slurm refuses, print an error line."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if int(os.environ.get("SLURM_PROCID", "0")) == 0:
        print(f"smat: {error}; requeueing job {job}", file=sys.stderr, flush=True)
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(report_error(SmatError(f"job {job} cannot be requeued: {done.stderr.strip()}; submit it again with --retry")))
    raise SystemExit(0)


def submit(jobs: Sequence[tuple[JobFiles, Loaded]], options: Mapping[str, str], folder: Path, *, evaluated: bool) -> list[str]:
    """Submit a job per recipe, with its logs in `folder`, and return the job ids.

    Raises UserError if Slurm is not installed or rejects an option.
    """
    try:
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = SIGNAL
        import submitit
        from submitit.slurm.slurm import SlurmJobEnvironment

        SlurmJobEnvironment.USR_SIG = SIGNAL  # submitit reads the variable on its first import, which may be earlier
    except ImportError:
        raise UserError("--launcher slurm needs submitit; install it with `pip install 'smatcli[cluster]'`") from None
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("--launcher slurm: Slurm is not installed here (sbatch and srun are not in PATH); use --launcher local")
    for files, loaded in jobs:
        files.forget_state()
        files.write_spec(loaded, evaluate=evaluated)
    ids = []
    executor = submitit.SlurmExecutor(folder=folder.resolve(), max_num_timeout=RETRIES)
    settings = parameters(options)
    for files, _ in jobs:
        before = set(folder.glob("*"))
        try:
            executor.update_parameters(**{"job_name": f"smat-{files.name}", **settings})
            job = executor.submit(ClusterJob(str(files.folder.resolve()), files.name))
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, subprocess.CalledProcessError) as error:
            for rest in set(folder.glob("*")) - before:
                rest.unlink(missing_ok=True)
            raise UserError(f"Slurm refuses the job: {refusal(str(error))}") from None
        files.note_sent("slurm", job.job_id, Path(str(job.paths.stderr)))
        ids.append(job.job_id)
    return ids


def refusal(text: str) -> str:
    """Return the line of sbatch from the long error message of submitit."""
    lines = [line.strip() for line in text.splitlines() if "sbatch:" in line]
    first = lines[0] if lines else text.strip().splitlines()[-1]
    return first.split("sbatch:", 1)[-1].removeprefix(" error:").strip()
