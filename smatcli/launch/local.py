"""Points of a sweep side by side: one process each, one at a time on every device."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smatcli.config.schema import TrainRecipe
from smatcli.launch.grid import Point
from smatcli.launch.job_files import JobFiles
from smatcli.launch.state import job_files
from smatcli.runs.overview import last_lines
from smatcli.runs.reporter import Reporter

if TYPE_CHECKING:
    from smatcli.launch.points import Sweep

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0


@dataclass
class Job:
    """A point that is being worked on: the commands still to be run, and the process of the present one."""

    point: Point
    device: str | None
    log: Path
    commands: list[list[str]]
    files: JobFiles
    process: subprocess.Popen[bytes] | None = None

    def advance(self) -> bool | None:
        """None: still working; True: done; False: a command failed."""
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return None
            if code != 0:
                return False
        if not self.commands:
            return True
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches the children through `stop` only, once.
            self.process = subprocess.Popen(
                self.commands.pop(0), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.files.note_state("running", pid=self.process.pid)
        return None

    def error(self) -> str:
        """The last line of the log, or which signal ended the process."""
        lines = last_lines(self.log)
        code = self.process.returncode if self.process is not None else 0
        said = f"killed by signal {-code}" if code is not None and code < 0 else lines[-1] if lines else "it said nothing"
        return f"{said} (log: {self.log})"


def commands_of(point: Point, recipe: str | Path, device: str | None, side_by_side: int) -> list[list[str]]:
    """The commands of a point: train (or continue) and evaluate; of a tuning the one that does all."""
    from smatcli.launch.points import changes, eval_overrides

    settings = point.loaded.recipe
    smat = [sys.executable, "-m", "smatcli.cli"]
    if settings.kind == "tune":
        return [[*smat, "tune", str(point.loaded.path), *changes(point, device, side_by_side), "--resume"]]
    assert isinstance(settings, TrainRecipe)
    train = [*smat, "train", str(recipe), *changes(point, device, side_by_side), "--resume"]
    return [train, [*smat, "eval", str(point.run), *eval_overrides(settings), *(("--device", device) if device else ())]]


def run_side_by_side(result: "Sweep", recipe: str | Path, slots: list[str | None], reporter: Reporter, todo: list[Point]) -> None:
    """Work off the points `todo`, `len(slots)` at a time; each writes to `<folder>/<point>.log`."""
    from smatcli.launch.points import fail

    waiting, free, jobs, done = list(todo), list(slots), list[Job](), 0
    result.folder.mkdir(parents=True, exist_ok=True)
    reporter.start(len(waiting), "sweep", unit="points")
    try:
        while waiting or jobs:
            while waiting and free:
                point, device = waiting.pop(0), free.pop(0)
                commands = commands_of(point, recipe, device, len(slots))
                job = Job(point, device, result.folder / f"{point.name}.log", commands, job_files(result.folder, point.name))
                job.files.forget_state()
                job.advance()
                assert job.process is not None
                job.files.note_sent("local", str(job.process.pid), job.log)
                jobs.append(job)
                reporter.line(f"{point.name}: started{f' on {device}' if device else ''}")
            for job in list(jobs):
                ended = job.advance()
                if ended is None:
                    continue
                jobs.remove(job)
                free.append(job.device)
                done += 1
                if ended:
                    job.files.note_state("done")
                    reporter.line(f"{job.point.name}: done")
                else:
                    fail(result, job.point, job.error(), reporter)
                result.collect()
                reporter.update(done)
            time.sleep(POLL_SECONDS)
    except BaseException:
        stop(jobs)
        raise
    finally:
        reporter.finish()


def stop(jobs: list[Job]) -> None:
    """Ask every process to end in good order (checkpoints are written), and wait for them."""
    working = [job for job in jobs if job.process is not None and job.process.poll() is None]
    processes = [job.process for job in jobs if job.process is not None and job.process.poll() is None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for job in working:
        job.files.note_state("interrupted", "the sweep was stopped; the same command continues it")
