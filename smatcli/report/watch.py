"""Watching of runs: write the report again whenever they change."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from smatcli.errors import UserError
from smatcli.report.results.runs import run_folders
from smatcli.runs.analysis import FOLDER

_READ = ("recipe.yaml", "metrics.jsonl", "tune.json", "eval/*/summary.csv", "eval/*/results.h5", "segment/*.*", f"{FOLDER}/*.h5")


def state(roots: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Return the modification time (ns) and size of every file that a report on `roots` reads."""
    stamps = {}
    for root in roots:
        for folder in run_folders(root) if root.is_dir() else ():
            for pattern in _READ:
                for path in folder.glob(pattern):
                    try:
                        status = path.stat()
                    except OSError:  # the file is just being replaced: the next check sees the new one
                        continue
                    stamps[str(path)] = (status.st_mtime_ns, status.st_size)
    return stamps


def watch(
    write: Callable[[], None],
    roots: Sequence[str | Path],
    every: float,
    show: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
    times: int | None = None,
) -> None:
    """Call `write` now and whenever the runs have changed; check every `every` seconds, until interrupted or `times` times.

    As long as there are no results, wait for them. Any other `UserError` is raised in the first call, and shown in later ones.
    """
    folders, succeeded, checks = [Path(root) for root in roots], False, 0
    last: dict[str, tuple[int, int]] | None = None
    while times is None or checks < times:
        if checks:
            pause(every)
        checks += 1
        now = state(folders)
        if now == last:
            continue
        last = now
        try:
            write()
            succeeded = True
        except UserError as error:
            if not succeeded and not str(error).startswith("no results"):
                raise
            show(f"{error}; waiting")
