"""Query the states of Slurm jobs."""

import re
import subprocess
from collections.abc import Sequence

TIMEOUT_S = 30


def queue_states(jobs: Sequence[str]) -> dict[str, str] | None:
    """Return the state (PENDING, RUNNING, CANCELLED ...) of each job that Slurm has a record of, or None if Slurm cannot be queried."""
    if not jobs:
        return {}
    queue = _output(["squeue", "-h", "-t", "all", "-o", "%i %T %r"])
    if queue is None:
        return None
    states = {}
    for line in queue.splitlines():
        words = line.split(None, 2)
        if len(words) >= 2 and words[0] in jobs:
            states[words[0]] = words[1]
    for job in set(jobs) - states.keys():
        shown = _output(["scontrol", "-o", "show", "job", job]) or _output(["sacct", "-n", "-X", "-j", job, "-o", "State%30"])
        state = re.search(r"JobState=(\w+)", shown or "") or re.match(r"\s*(\w+)", shown or "")
        if state:
            states[job] = state.group(1)
    return states


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
