"""Import everything once and fork a child for every command line, so that a child takes only tenths of a second.

Reads one JSON object per line from stdin and writes one per line to stdout: {"args": [...], "cwd": DIR, "kill_after": seconds or null,
"die_at": n or null (SIGKILL before its n-th change of the disk), "largest": bytes a file may have, "patch": {"module.NAME": value}} ->
{"status": exit code or minus the signal, "stderr": text, "changes": changes of the disk, "seconds": ...}.
"""

import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "ftruncate")


def serve() -> None:
    """Answer requests until stdin ends."""
    import torch

    for name in (
        "engine.train.debug_episode",
        "engine.evaluate.evaluation",
        "launch.sweep",
        "engine.prepare.preparation",
        "engine.pretrain.pretraining",
    ):
        importlib.import_module(f"smatcli.{name}")
    from smatcli.cli import app

    torch.set_num_threads(1)
    _warm_up()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), app)), flush=True)


def _warm_up() -> None:
    """Train and evaluate once, to import modules that are imported late (timm)."""
    from smatcli.engine.evaluate.evaluation import evaluate
    from smatcli.engine.train.trainer import train
    from smatcli.runs.reporter import SilentReporter
    from tests.engine.train.world import load

    with tempfile.TemporaryDirectory() as scratch:
        evaluate(train(load(Path(scratch), "train.steps=1"), SilentReporter()).path, ["proto", "flip"], ["a"], 1)


def _answer(task: dict[str, Any], app: Callable[..., None]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        errors, changes = Path(scratch) / "stderr", Path(scratch) / "changes"
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(task, app, errors, changes)
        if task.get("kill_after") is not None:
            time.sleep(task["kill_after"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        count = len(changes.read_bytes()) if changes.exists() else 0
        text = errors.read_text(errors="replace") if errors.exists() else ""
        return {"status": code, "stderr": text, "changes": count, "seconds": time.monotonic() - begun}


def _child(task: dict[str, Any], app: Callable[..., None], errors: Path, changes: Path) -> None:
    code = 70
    try:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.chdir(task["cwd"])
        for name, value in task.get("patch", {}).items():
            module, _, attribute = name.rpartition(".")
            setattr(importlib.import_module(module), attribute, value)
        _count(os.open(changes, os.O_WRONLY | os.O_CREAT | os.O_APPEND), task.get("die_at"))
        from smatcli.cli.frame import catch_signals

        catch_signals()
        if task.get("largest"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (task["largest"], task["largest"]))
        app(task["args"], prog_name="smat")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _count(file: int, die_at: int | None) -> None:
    """Count the calls that change the disk, and kill the process before the n-th."""
    lock, done = threading.Lock(), [0]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with lock:
                done[0] += 1
                os.write(file, b".")
                if done[0] == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))


if __name__ == "__main__":
    serve()
