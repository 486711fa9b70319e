"""What a sweep set out to do and how far each point is, read from its folder alone (`.sweep/`); nothing here needs torch."""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smatcli.errors import UserError
from smatcli.launch.grid import Axis, Point, parse_axis
from smatcli.launch.job_files import JobFiles
from smatcli.runs.overview import last_lines, read_json
from smatcli.safe.files import atomic_write_text
from smatcli.safe.text import parse_json

HIDDEN = ".sweep"
PLAN = "plan.json"
LINES = 3  # of a failed job's log that the status shows
BUSY = ("queued", "running")
# Slurm's states of a job that is still to do something.
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT", "SUSPENDED", "STOPPED")
WORKING = ("RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT")


@dataclass(frozen=True)
class PointStatus:
    """One point: `state` is waiting (not launched), queued, running, done, interrupted or failed (`lines`: the end of its log)."""

    name: str
    state: str
    job: str = ""
    step: int | None = None
    steps: int | None = None
    attempt: int = 0
    lines: tuple[str, ...] = ()
    log: str = ""


def job_files(folder: Path, name: str) -> JobFiles:
    """The files of a point."""
    return JobFiles(folder / HIDDEN, name)


def write_plan(folder: Path, recipe: str | Path, axes: Sequence[Axis], overrides: Sequence[str], points: Sequence[Point]) -> None:
    """Keep what the sweep was asked for, so that `--status` and `--retry` need the folder alone."""
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
    """What `write_plan` kept; UserError where the folder is no sweep's."""
    body = read_json(folder / HIDDEN / PLAN)
    if body is None or not isinstance(body.get("points"), list):
        raise UserError(f"{folder}: is not the folder of a sweep (it has no {HIDDEN}/{PLAN}); give the folder that smat sweep printed")
    return body


def planned_axes(body: dict[str, Any]) -> list[Axis]:
    """The axes of a kept plan."""
    return [parse_axis(key, ",".join(values)) for key, values in body["axes"].items()]


def statuses(folder: Path, points: Sequence[str], steps: dict[str, Any] | None = None) -> list[PointStatus]:
    """How far each point is; Slurm is asked once for all of its jobs."""
    sent = {name: read_json(job_files(folder, name).sent) or {} for name in points}
    numbers = [str(body["job"]) for body in sent.values() if body.get("launcher") == "slurm"]
    queue: dict[str, str] | None = {}
    if numbers:
        from smatcli.launch.slurm_queue import queue_states

        queue = queue_states(numbers)
    return [_status(folder, name, sent[name], queue, (steps or {}).get(name)) for name in points]


def _status(folder: Path, name: str, sent: dict[str, Any], queue: dict[str, str] | None, steps: int | None) -> PointStatus:
    said = read_json(job_files(folder, name).state) or {}
    state, why = str(said.get("state", "waiting")), str(said.get("error", ""))
    job, log = str(sent.get("job", "")), Path(str(sent.get("log", "")))
    if sent.get("launcher") == "slurm":
        state, why = _on_slurm(state, why, None if queue is None else queue.get(job, "GONE"))
    elif state == "running" and not _alive(said):
        state, why = "failed", "its process ended without a word (killed, or the machine went down)"
    elif state == "waiting" and sent:
        alive = _alive({"host": sent.get("host"), "pid": sent.get("job")})
        state, why = ("running", "") if alive else ("failed", "its process ended before it began to work")
    lines: list[str] = []
    if state == "failed":
        lines = last_lines(log, LINES) if sent.get("log") else []
        if why and not any(why[:60] in line for line in lines):
            lines.append(why)
    done = last_step(folder / name)
    return PointStatus(name, state, job, done, steps, int(sent.get("attempt", 0)), tuple(lines), str(sent.get("log", "")))


def _on_slurm(said: str, why: str, queue: str | None) -> tuple[str, str]:
    """A point's state from what its job said last and what Slurm says of it (None: it cannot be asked)."""
    if queue is None:
        return ("queued", "") if said == "waiting" else (said, why)
    if queue in WAITING:
        return "queued", ""
    if queue in WORKING:
        return ("running", "") if said in ("waiting", "running", "interrupted") else (said, why)
    if said in ("done", "failed"):
        return said, why
    if queue == "CANCELLED":
        return "failed", "the job was cancelled"
    if said == "interrupted" and queue in ("COMPLETED", "PREEMPTED"):
        return said, why
    names = {"GONE": "the job is gone from Slurm", "OUT_OF_MEMORY": "Slurm: out of memory (--slurm-mem)", "NODE_FAIL": "the node failed"}
    return "failed", names.get(queue, f"Slurm: the job ended as {queue}")


def _alive(who: dict[str, Any]) -> bool:
    """Is the process there? One on another machine is believed to be."""
    if who.get("host") not in (None, socket.gethostname()):
        return True
    try:
        os.kill(int(who["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError, TypeError):
        return False
    except PermissionError:
        return True
    return True


def last_step(run: Path) -> int | None:
    """The step of the last whole line of a run's metrics; None where there is none."""
    for line in reversed(last_lines(run / "metrics.jsonl", 2)):
        try:
            return int(parse_json(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return None
