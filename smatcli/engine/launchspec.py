"""What a launched job does, as files: the recipe as it was when the job was made, and what became of it; nothing here needs torch."""

import json
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smatcli import safe
from smatcli.config import Loaded
from smatcli.config.loader import build_recipe
from smatcli.errors import SmatError, UserError
from smatcli.files import atomic_write_text

FORMAT = 1


@dataclass(frozen=True)
class JobFiles:
    """The three files of a job in `folder`: what to do (`spec`), where it was sent (`sent`), what became of it (`state`)."""

    folder: Path
    name: str

    @property
    def spec(self) -> Path:
        return self.folder / f"{self.name}.spec.json"

    @property
    def sent(self) -> Path:
        return self.folder / f"{self.name}.job.json"

    @property
    def state(self) -> Path:
        return self.folder / f"{self.name}.state.json"

    def write_spec(self, loaded: Loaded, evaluate: bool) -> None:
        """Freeze a recipe: later changes of its file do not reach a job that waits in a queue."""
        body = {
            "format": FORMAT,
            "recipe": loaded.recipe.model_dump(mode="json"),
            "origins": loaded.origins,
            "source": str(loaded.path),
            "evaluate": evaluate,
        }
        _write(self.spec, body)

    def read_spec(self) -> tuple[Loaded, bool]:
        """The recipe, and whether it is evaluated after training."""
        body = read_json(self.spec)
        if body is None or body.get("format") != FORMAT:
            raise SmatError(f"{self.spec} is missing or damaged; launch again")
        made = build_recipe(body["recipe"], Path(body["source"]))
        return Loaded(made.recipe, dict(body["origins"]), made.path), bool(body["evaluate"])

    def note_sent(self, launcher: str, job: str, log: Path | None) -> None:
        """Where the job was sent: `job` is Slurm's number or a process id; what became of an earlier attempt is forgotten."""
        before = read_json(self.sent) or {}
        attempt = int(before.get("attempt", 0)) + 1
        body = {
            "launcher": launcher,
            "job": job,
            "host": socket.gethostname(),
            "log": str(log or ""),
            "sent": time.time(),
            "attempt": attempt,
        }
        _write(self.sent, body)

    def note_state(self, state: str, error: str = "", pid: int | None = None) -> None:
        """`running`, `done`, `interrupted` or `failed` (with its error line), and which process (default: this one) does the work."""
        body = {"state": state, "error": error, "pid": pid or os.getpid(), "host": socket.gethostname(), "time": time.time()}
        _write(self.state, body)

    def forget_state(self) -> None:
        """Before a new attempt: what the one before came to."""
        self.state.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none, or no whole one."""
    try:
        body = safe.read_json(path)
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def last_lines(path: Path, count: int = 1, most: int = 65536) -> list[str]:
    """The last lines of a log that are not empty, without the `smat: ` of an error."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - most))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [line.removeprefix("smat: ") for line in lines[-count:]]


def execute(files: JobFiles) -> None:
    """Do a job in this process: train (or continue), then evaluate where that is asked for; its state file follows.

    Raises what the engines raise. With several processes (torch.distributed) only the first one writes the state.
    """
    from smatcli.config.schema import TrainRecipe
    from smatcli.engine.reporter import PlainReporter
    from smatcli.engine.signals import Interrupted

    writer = int(os.environ.get("RANK", "0")) == 0
    if writer:
        files.note_state("running")
    ending = ("failed", "")
    try:
        loaded, evaluated = files.read_spec()
        from smatcli.engine.evaluate import evaluate
        from smatcli.engine.sweep import eval_overrides
        from smatcli.engine.train import train

        reporter = PlainReporter()
        if loaded.recipe.kind == "tune":
            from smatcli.engine.tune import tune

            run = tune(loaded, reporter, resume=True)
        else:
            run = train(loaded, reporter, resume=True)
        if evaluated:
            assert isinstance(loaded.recipe, TrainRecipe)
            evaluate(run.path, overrides=eval_overrides(loaded.recipe), device=loaded.recipe.device, reporter=reporter)
        ending = ("done", "")
    except Interrupted as error:
        ending = ("interrupted", str(error))
        raise
    except SmatError as error:
        ending = ("failed", str(error))
        raise
    except BaseException as error:
        ending = ("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        if writer:
            files.note_state(*ending)


def say_error(error: BaseException) -> int:
    """The error's line on stderr, as the command line prints it, and its exit code."""
    known = isinstance(error, SmatError)
    print(f"smat: {' '.join(str(error).split())}" if known else f"smat: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return error.exit_code if isinstance(error, SmatError) else 1


def _write(path: Path, body: dict[str, Any]) -> None:
    try:
        atomic_write_text(path, json.dumps(body, indent=1))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another folder") from None
