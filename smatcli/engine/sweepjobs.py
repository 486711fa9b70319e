"""Points of a sweep side by side: one process each, one at a time on every device."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smatcli.config.schema import TrainRecipe
from smatcli.engine.grid import Point
from smatcli.engine.reporter import Reporter

if TYPE_CHECKING:
    from smatcli.engine.sweep import Sweep

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0


@dataclass
class Job:
    """A point that is being worked on: the commands still to be run, and the process of the present one."""

    point: Point
    device: str | None
    log: Path
    commands: list[list[str]]
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
        return None

    def error(self) -> str:
        """The last line of the log."""
        lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"{lines[-1].removeprefix('smat: ') if lines else 'it said nothing'} (log: {self.log})"


def commands_of(point: Point, recipe: str | Path, device: str | None, side_by_side: int) -> list[list[str]]:
    """The two commands of a point: train (or continue), evaluate."""
    from smatcli.engine.sweep import changes, eval_overrides

    settings = point.loaded.recipe
    assert isinstance(settings, TrainRecipe)
    smat = [sys.executable, "-m", "smatcli.cli"]
    train = [*smat, "train", str(recipe), *changes(point, device, side_by_side), "--resume"]
    return [train, [*smat, "eval", str(point.run), *eval_overrides(settings), *(("--device", device) if device else ())]]


def run_side_by_side(result: "Sweep", recipe: str | Path, slots: list[str | None], reporter: Reporter) -> None:
    """Work off the points, `len(slots)` at a time; each writes to `<folder>/<point>.log`."""
    from smatcli.engine.sweep import fail

    waiting, free, jobs, done = list(result.points), list(slots), list[Job](), 0
    result.folder.mkdir(parents=True, exist_ok=True)
    reporter.start(len(waiting), "sweep", unit="points")
    try:
        while waiting or jobs:
            while waiting and free:
                point, device = waiting.pop(0), free.pop(0)
                commands = commands_of(point, recipe, device, len(slots))
                jobs.append(Job(point, device, result.folder / f"{point.name}.log", commands))
                reporter.line(f"{point.name}: started{f' on {device}' if device else ''}")
            for job in list(jobs):
                ended = job.advance()
                if ended is None:
                    continue
                jobs.remove(job)
                free.append(job.device)
                done += 1
                if ended:
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
