"""Query the state of Slurm jobs."""

import re
import subprocess
from collections.abc import Sequence

ASK_SECONDS = 30


def queue_states(jobs: Sequence[str]) -> dict[str, str] | None:
    """Slurm's state (PENDING, RUNNING, CANCELLED ...) of each job that it still knows; None when it cannot be asked from here."""
    if not jobs:
        return {}
    listed = _ask(["squeue", "-h", "-t", "all", "-o", "%i %T %r"])
    if listed is None:
        return None
    found = {}
    for line in listed.splitlines():
        words = line.split(None, 2)
        if len(words) >= 2 and words[0] in jobs:
            found[words[0]] = words[1]
    for job in set(jobs) - found.keys():
        shown = _ask(["scontrol", "-o", "show", "job", job]) or _ask(["sacct", "-n", "-X", "-j", job, "-o", "State%30"])
        state = re.search(r"JobState=(\w+)", shown or "") or re.match(r"\s*(\w+)", shown or "")
        if state:
            found[job] = state.group(1)
    return found


def _ask(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
