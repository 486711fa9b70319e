"""Children of the fork server (`server.py`), and checks of the files that they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from smatcli.data.stores.verify import verify_store
from smatcli.errors import SmatError
from smatcli.runs.checkpoint import has_checkpoint, load_checkpoint
from smatcli.runs.results import read_records, read_summary

ROOT = Path(__file__).resolve().parents[2]
QUICK = {  # every unit of work is stored immediately, so that there are many files to damage
    "smatcli.engine.evaluate.evaluation.PART_EPISODES": 1,
    "smatcli.engine.prepare.convert.MARK_SECONDS": -1.0,
}


class Children:
    """Run `smat` command lines in forked processes, and count the kills."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
        self.kills = 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert self._read() == "ready"

    def smat(self, cwd: Path, *args: str, **options: Any) -> dict[str, Any]:
        """Run one child; see `server.py` for the options and the answer."""
        task = {"args": list(args), "cwd": str(cwd), "patch": QUICK, **options}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(task) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._read())
        self.kills += answer["status"] == -9
        return answer

    def done(self, cwd: Path, *args: str, **options: Any) -> dict[str, Any]:
        """Run one child, which must succeed."""
        answer = self.smat(cwd, *args, **options)
        assert answer["status"] == 0, answer["stderr"]
        return answer

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)

    def _read(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()


def one_clear_line(answer: dict[str, Any], codes: tuple[int, ...] = (1, 2)) -> str:
    """Return the error line of a child that failed as expected: its last line, without a traceback."""
    assert answer["status"] in codes, answer
    assert "Traceback" not in answer["stderr"], answer["stderr"]
    assert "internal error" not in answer["stderr"], answer["stderr"]
    lines = [line for line in answer["stderr"].splitlines() if line.startswith("smat:")]
    assert len(lines) == 1, answer["stderr"]
    return lines[0]


def check_whole(folder: Path) -> None:
    """Check that every file with a final name can be read."""
    for run in folder.rglob("run.json"):
        json.loads(run.read_text())
        for name in ("last", "best"):
            if has_checkpoint(run.parent / "checkpoints" / name):
                load_checkpoint(run.parent / "checkpoints" / name)
    for file in folder.rglob("*.h5"):
        if file.name.startswith("."):
            continue
        if "eval" in file.parts:
            read_records(file)
        else:
            assert verify_store(file) is None
    for file in folder.rglob("summary.csv"):
        read_summary(file)


def last_step(run: Path) -> int:
    """Return the step at which a resumed run would start; -1: from the beginning."""
    last = run / "checkpoints" / "last"
    return int(load_checkpoint(last).state["step"]) if has_checkpoint(last) else -1


def trained(run: Path) -> tuple[dict[str, torch.Tensor], Any, list[Any]]:
    """Return all results of a training run: tensors (weights, optimizer), state, and metrics except times."""
    found = load_checkpoint(run / "checkpoints" / "last")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {**found.model, **found.optim}, found.state, [{k: v for k, v in r.items() if k != "time"} for r in records]


def assert_same_training(a: Path, b: Path) -> None:
    """Compare parameters, buffers, optimizer states, counters and metrics bit for bit, without missing or repeated lines."""
    (one, state, lines), (two, other_state, other_lines) = trained(a), trained(b)
    assert one.keys() == two.keys()
    assert len(one) > 3
    assert [k for k in one if not torch.equal(one[k], two[k])] == []
    assert state == other_state
    assert lines == other_lines


def evaluated(run: Path) -> dict[str, Any]:
    """Return the records of every results.h5 except times, as lists, and the numbers of the summaries."""
    found: dict[str, Any] = {}
    for file in sorted((run / "eval").glob("*/results.h5")):
        groups = read_records(file)
        found[file.parent.name] = {n: {k: v.tolist() for k, v in sorted(g.items()) if k not in CLOCK} for n, g in groups.items()}
        rows = read_summary(file.with_name("summary.csv"))
        found[file.parent.name + " summary"] = [(r.dataset, r.mean, r.half_width, r.episodes, r.list_hash) for r in rows]
    return found


CLOCK = ("seconds", "peak_memory", "joules")


def refused_or(answer: dict[str, Any]) -> bool:
    """Return True if a child succeeded, False if it failed with a one-line error."""
    if answer["status"] == 0:
        return True
    one_clear_line(answer)
    return False


__all__ = ["Children", "SmatError", "assert_same_training", "check_whole", "evaluated", "last_step", "one_clear_line", "refused_or"]
