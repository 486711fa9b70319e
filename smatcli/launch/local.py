"""Run points on this machine: one after the other in this process, or in parallel in separate processes."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smatcli.config import load_recipe
from smatcli.config.schema import TrainRecipe
from smatcli.launch.batch import Batch
from smatcli.launch.job_files import JobFiles
from smatcli.launch.points import Point, eval_overrides
from smatcli.launch.state import job_files
from smatcli.launch.worker import describe, recorded, run_recipe
from smatcli.runs.overview import last_lines
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import Interrupted

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0


def run_one_by_one(batch: Batch, todo: Sequence[Point], device: str | None, reporter: Reporter) -> None:
    """Run the points `todo` in this process, one after the other. Raises Interrupted after a signal."""
    for i, point in enumerate(todo, 1):
        reporter.line(f"[{i}/{len(todo)}] {point.name}")
        files = job_files(batch.folder, point.name)
        files.forget_state()
        files.note_sent("local", str(os.getpid()), None)
        try:
            with recorded(files):
                loaded = load_recipe(point.loaded.path, point.placed(device), kind=point.loaded.recipe.kind)
                run_recipe(loaded, reporter, resume=point.run.exists(), evaluated=loaded.recipe.kind == "train")
        except Interrupted as error:
            line = f"stopped at {point.name}; all progress is kept, run the same command again to continue"
            raise Interrupted(error.signum, line) from None
        except Exception as error:  # a failed point must not stop the others
            batch.fail(point, describe(error), reporter)
        batch.collect()


@dataclass
class PointProcess:
    """A point in progress: the process of the current command, and the remaining commands."""

    point: Point
    device: str | None
    log: Path
    commands: list[list[str]]
    files: JobFiles
    process: subprocess.Popen[bytes] | None = None

    def advance(self) -> bool | None:
        """Start the next command if the current command has ended. Returns None in progress, True at the end, False after a failure."""
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return None
            if code != 0:
                return False
        if not self.commands:
            return True
        with self.log.open("ab") as log:
            # A new session, so that Ctrl-C reaches the child only once, through `stop`.
            self.process = subprocess.Popen(
                self.commands.pop(0), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.files.note_state("running", pid=self.process.pid)
        return None

    def error(self) -> str:
        """Return the last line of the log, or the signal that ended the process."""
        lines = last_lines(self.log)
        code = self.process.returncode if self.process is not None else 0
        reason = f"killed by signal {-code}" if code is not None and code < 0 else lines[-1] if lines else "no output"
        return f"{reason} (log: {self.log})"


def commands_of(point: Point, device: str | None, side_by_side: int) -> list[list[str]]:
    """Return the commands of a point: train (or continue) and evaluate, or tune."""
    recipe = point.loaded.recipe
    smat = [sys.executable, "-P", "-m", "smatcli.cli"]  # -P: nothing is imported from the current folder
    run = [*smat, recipe.kind, str(point.loaded.path), *point.placed(device, side_by_side), "--resume"]
    if not isinstance(recipe, TrainRecipe):
        return [run]
    return [run, [*smat, "eval", str(point.run), *eval_overrides(recipe), *(("--device", device) if device else ())]]


def run_side_by_side(batch: Batch, todo: Sequence[Point], slots: Sequence[str | None], reporter: Reporter) -> None:
    """Run each of the points `todo` in a separate process, `len(slots)` at a time, with its log in `<folder>/<point>.log`."""
    waiting, free, running, done = list(todo), list(slots), list[PointProcess](), 0
    batch.folder.mkdir(parents=True, exist_ok=True)
    reporter.start(len(waiting), "sweep", unit="points")
    try:
        while waiting or running:
            while waiting and free:
                running.append(_start(batch.folder, waiting.pop(0), free.pop(0), len(slots)))
                point, device = running[-1].point, running[-1].device
                reporter.line(f"{point.name}: started{f' on {device}' if device else ''}")
            for job in list(running):
                succeeded = job.advance()
                if succeeded is None:
                    continue
                running.remove(job)
                free.append(job.device)
                done += 1
                if succeeded:
                    job.files.note_state("done")
                    reporter.line(f"{job.point.name}: done")
                else:
                    batch.fail(job.point, job.error(), reporter)
                batch.collect()
                reporter.update(done)
            time.sleep(POLL_SECONDS)
    except BaseException:
        stop(running)
        raise
    finally:
        reporter.finish()


def _start(folder: Path, point: Point, device: str | None, side_by_side: int) -> PointProcess:
    files = job_files(folder, point.name)
    job = PointProcess(point, device, folder / f"{point.name}.log", commands_of(point, device, side_by_side), files)
    files.forget_state()
    job.advance()
    assert job.process is not None
    files.note_sent("local", str(job.process.pid), job.log)
    return job


def stop(jobs: Sequence[PointProcess]) -> None:
    """Terminate the processes, which then write a checkpoint, and kill those that are still running after `GRACE_SECONDS`."""
    working = [(job, job.process) for job in jobs if job.process is not None and job.process.poll() is None]
    for _, process in working:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for _, process in working:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for job, _ in working:
        job.files.note_state("interrupted", "the sweep was stopped; run the same command again to continue")
