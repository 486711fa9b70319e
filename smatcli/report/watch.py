"""Makes a report again whenever its runs have changed."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from smatcli.errors import UserError
from smatcli.report.results.runs import run_folders
from smatcli.runs.analysis import FOLDER

_READ = ("recipe.yaml", "metrics.jsonl", "eval/*/summary.csv", "eval/*/results.h5", f"{FOLDER}/*.h5")


def state(roots: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Time of change (ns) and size of every file that a report of `roots` reads."""
    found = {}
    for root in roots:
        for folder in run_folders(root) if root.is_dir() else ():
            for pattern in _READ:
                for path in folder.glob(pattern):
                    try:
                        status = path.stat()
                    except OSError:  # replaced at this moment: the next look sees it
                        continue
                    found[str(path)] = (status.st_mtime_ns, status.st_size)
    return found


def watch(
    make: Callable[[], None],
    roots: Sequence[str | Path],
    every: float,
    say: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
    times: int | None = None,
) -> None:
    """Call `make` now and whenever the runs have changed, looking every `every` seconds, until interrupted (or `times` looks were taken).

    While there are no results yet it waits for them; any other `UserError` of the first call is raised, of later ones it is said.
    """
    folders, made, looks = [Path(root) for root in roots], False, 0
    known: dict[str, tuple[int, int]] | None = None
    while times is None or looks < times:
        if looks:
            pause(every)
        looks += 1
        now = state(folders)
        if now == known:
            continue
        known = now
        try:
            make()
            made = True
        except UserError as error:
            if not made and not str(error).startswith("no results"):
                raise
            say(f"{error}; waiting")
