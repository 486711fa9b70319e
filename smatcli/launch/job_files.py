"""The files of a launched job: its specification, submission and state."""

import json
import os
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smatcli.config import Loaded
from smatcli.config.loader import build_recipe
from smatcli.errors import SmatError, UserError
from smatcli.safe.files import atomic_write_text
from smatcli.safe.text import read_object

FORMAT = 1


@dataclass(frozen=True)
class JobFiles:
    """The three files of a job in `folder`: its specification (`spec`), its submission (`sent`) and its outcome (`state`)."""

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
        """Store the recipe, so that later changes to the recipe file do not affect a queued job."""
        body = {
            "format": FORMAT,
            "recipe": loaded.recipe.model_dump(mode="json"),
            "origins": loaded.origins,
            "source": str(loaded.path),
            "evaluate": evaluate,
        }
        _write(self.spec, body)

    def read_spec(self) -> tuple[Loaded, bool]:
        """Return the recipe, and whether the run is evaluated after training."""
        body = read_object(self.spec)
        if body is None or body.get("format") != FORMAT:
            raise SmatError(f"{self.spec} is missing or damaged; launch the job again")
        loaded = build_recipe(body["recipe"], Path(body["source"]))
        return replace(loaded, origins=dict(body["origins"])), bool(body["evaluate"])

    def note_sent(self, launcher: str, job: str, log: Path | None) -> None:
        """Record the submission and count the attempt; `job` is a Slurm job id or a process id."""
        attempt = int((read_object(self.sent) or {}).get("attempt", 0)) + 1
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
        """Record the process (default: this process) and its state: `running`, `done`, `interrupted` or `failed` (with an error line)."""
        body = {"state": state, "error": error, "pid": pid or os.getpid(), "host": socket.gethostname(), "time": time.time()}
        _write(self.state, body)

    def forget_state(self) -> None:
        """Remove the state of an earlier attempt."""
        self.state.unlink(missing_ok=True)


def _write(path: Path, body: dict[str, Any]) -> None:
    try:
        atomic_write_text(path, json.dumps(body, indent=1))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another folder") from None
