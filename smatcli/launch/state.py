"""The plan of a sweep and the progress of its points, read from `.sweep/` in its folder. Importing it does not import torch."""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smatcli.errors import UserError
from smatcli.launch.grid import Axis, parse_axis
from smatcli.launch.job_files import JobFiles
from smatcli.launch.points import Point
from smatcli.runs.overview import last_lines
from smatcli.safe.files import atomic_write_text
from smatcli.safe.text import parse_json, read_object

HIDDEN = ".sweep"
PLAN = "plan.json"
LINES = 3  # number of lines to show from the end of the log of a failed job
BUSY = ("queued", "running")
# States of a Slurm job that has not ended.
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT", "SUSPENDED", "STOPPED")
WORKING = ("RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT")


@dataclass(frozen=True)
class PointStatus:
    """Progress of a point.

    `state` is waiting (not launched), queued, running, done, interrupted or failed. `lines` are the end of the log of a failed point.
    """

    name: str
    state: str
    job: str = ""
    step: int | None = None
    steps: int | None = None
    attempt: int = 0
    lines: tuple[str, ...] = ()
    log: str = ""


def job_files(folder: Path, name: str) -> JobFiles:
    """Return the job files of a point."""
    return JobFiles(folder / HIDDEN, name)


def write_plan(folder: Path, recipe: str | Path, axes: Sequence[Axis], overrides: Sequence[str], points: Sequence[Point]) -> None:
    """Store the arguments of a sweep, so that `--status` and `--retry` need only the folder."""
    source = Path(recipe)
    body = {
        "recipe": str(source.resolve()) if source.is_file() else str(recipe),
        "axes": {axis.key: list(axis.values) for axis in axes},
        "overrides": list(overrides),
        "points": [point.name for point in points],
        "steps": {point.name: getattr(getattr(point.loaded.recipe, "train", None), "steps", None) for point in points},
    }
    (folder / HIDDEN).mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / HIDDEN / PLAN, json.dumps(body, indent=1))


def read_plan(folder: Path) -> dict[str, Any]:
    """Return the plan stored by `write_plan`. Raises UserError if `folder` is not the folder of a sweep."""
    body = read_object(folder / HIDDEN / PLAN)
    if body is None or not isinstance(body.get("points"), list):
        raise UserError(f"{folder}: is not the folder of a sweep ({HIDDEN}/{PLAN} is missing); give the folder that smat sweep printed")
    return body


def planned_axes(body: dict[str, Any]) -> list[Axis]:
    """Return the axes of a stored plan."""
    return [parse_axis(key, ",".join(values)) for key, values in body["axes"].items()]


def statuses(folder: Path, points: Sequence[str], steps: dict[str, Any] | None = None) -> list[PointStatus]:
    """Return the progress of each point. Slurm is queried once for all jobs."""
    sent = {name: read_object(job_files(folder, name).sent) or {} for name in points}
    numbers = [str(body["job"]) for body in sent.values() if body.get("launcher") == "slurm"]
    queue: dict[str, str] | None = {}
    if numbers:
        from smatcli.launch.slurm_queue import queue_states

        queue = queue_states(numbers)
    return [_status(folder, name, sent[name], queue, (steps or {}).get(name)) for name in points]


def _status(folder: Path, name: str, sent: dict[str, Any], queue: dict[str, str] | None, steps: int | None) -> PointStatus:
    record = read_object(job_files(folder, name).state) or {}
    state, why = str(record.get("state", "waiting")), str(record.get("error", ""))
    job, log = str(sent.get("job", "")), Path(str(sent.get("log", "")))
    if sent.get("launcher") == "slurm":
        state, why = _on_slurm(state, why, None if queue is None else queue.get(job, "GONE"))
    elif state == "running" and not _alive(record):
        state, why = "failed", "its process ended without an error message (killed, or the machine went down)"
    elif state == "waiting" and sent:
        alive = _alive({"host": sent.get("host"), "pid": sent.get("job")})
        state, why = ("running", "") if alive else ("failed", "its process ended before the run started")
    lines: list[str] = []
    if state == "failed":
        lines = last_lines(log, LINES) if sent.get("log") else []
        if why and not any(why[:60] in line for line in lines):
            lines.append(why)
    done = last_step(folder / name)
    return PointStatus(name, state, job, done, steps, int(sent.get("attempt", 0)), tuple(lines), str(sent.get("log", "")))


def _on_slurm(recorded: str, why: str, queue: str | None) -> tuple[str, str]:
    """Combine the last state that a job recorded with the state in Slurm (None: Slurm cannot be queried)."""
    if queue is None:
        return ("queued", "") if recorded == "waiting" else (recorded, why)
    if queue in WAITING:
        return "queued", ""
    if queue in WORKING:
        return ("running", "") if recorded in ("waiting", "running", "interrupted") else (recorded, why)
    if recorded in ("done", "failed"):
        return recorded, why
    if queue == "CANCELLED":
        return "failed", "the job was cancelled"
    if recorded == "interrupted" and queue in ("COMPLETED", "PREEMPTED"):
        return recorded, why
    names = {
        "GONE": "Slurm has no record of the job",
        "OUT_OF_MEMORY": "Slurm: out of memory (--slurm-mem)",
        "NODE_FAIL": "the node failed",
    }
    return "failed", names.get(queue, f"Slurm: the job ended as {queue}")


def _alive(process: dict[str, Any]) -> bool:
    """Return whether the process exists. A process on another machine is assumed to exist."""
    if process.get("host") not in (None, socket.gethostname()):
        return True
    try:
        os.kill(int(process["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError, TypeError):
        return False
    except PermissionError:
        return True
    return True


def last_step(run: Path) -> int | None:
    """Return the step of the last complete line in the metrics of a run, or None if there is none."""
    for line in reversed(last_lines(run / "metrics.jsonl", 2)):
        try:
            return int(parse_json(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return None
