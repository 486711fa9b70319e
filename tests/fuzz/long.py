"""A longer fuzzing run with random seeds: `python -m tests.fuzz.long MINUTES [TARGET ...]` prints each failure with its seed."""

import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> None:
    from tests.fuzz.targets import TARGETS, Bench

    minutes, names = float(sys.argv[1]), sys.argv[2:] or list(TARGETS)
    for name in names:
        seen: set[str] = set()
        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench(name, Path(scratch) / "w")
            stop, count, said = time.monotonic() + 60 * minutes / len(names), 0, 0
            while time.monotonic() < stop:
                seed = random.SystemRandom().randrange(2**63)
                count += 1
                try:
                    said += bench.attempt(seed)
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    frames = traceback.extract_tb(error.__traceback__)
                    ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "smatcli" in f.filename or "tests" in f.filename][-2:]
                    key = f"{type(error).__name__} {ours}"
                    if key not in seen:
                        seen.add(key)
                        print(f"  {name} seed {seed} file {bench.last}: {type(error).__name__}: {str(error)[:160]!r} at {ours}", flush=True)
        print(f"{name}: {count} attempts, {said} refused, {len(seen)} kinds of findings", flush=True)


if __name__ == "__main__":
    main()
