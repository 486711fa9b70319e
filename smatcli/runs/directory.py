"""The run directory: recipe, origins, facts, metrics and checkpoints of one run. It is never deleted, and reused only with --resume.

recipe.yaml  origins.json  run.json  metrics.jsonl  checkpoints/{last,best}/
"""

import json
import math
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from smatcli.errors import SmatError, UserError
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import Interrupted
from smatcli.safe.files import atomic_path, atomic_write_text, clear_drafts, lock, open_lock
from smatcli.safe.links import refuse_outside_links
from smatcli.safe.text import parse_json, read_json
from smatcli.safe.tree import differing_keys, flatten
from smatcli.version import __version__

if TYPE_CHECKING:
    from pydantic import BaseModel

    from smatcli.config import Loaded
    from smatcli.config.loader import AnyRecipe
    from smatcli.runs.tracking import Tracker

FORMAT = 1
# Settings that may change when a run is resumed: they do not affect its steps, they extend it, or they are read only after training.
FREE = (
    "run", "device", "threads", "deterministic", "track", "train.steps", "train.checkpoint_every", "train.keep_every",
    "train.checkpoint_activations", "train.shard_optimizer", "pretrain.epochs", "eval.", "adapt.",
)  # fmt: skip
SHOWN = 8  # differing keys in an error line
LONGER = ("train.steps", "pretrain.epochs")


def differing(old: "BaseModel", new: "BaseModel") -> list[str]:
    """Return the dotted keys in which two recipes differ, sorted."""
    return differing_keys(old.model_dump(mode="json"), new.model_dump(mode="json"))


def _may_change(key: str) -> bool:
    return any(key == f or (f.endswith(".") and key.startswith(f)) for f in FREE)


def _exists_error(path: Path) -> UserError:
    return UserError(f"run {path} exists; use --resume to continue it or choose another run=")


def _clear_dead(path: Path) -> None:
    """Remove the drafts of processes that were killed while they created this run."""
    for draft in path.parent.glob(f".{path.name}.tmp-*"):
        try:
            os.kill(int(draft.name.rpartition("-")[2]), 0)
        except ProcessLookupError:
            shutil.rmtree(draft, ignore_errors=True)
        except (ValueError, OSError):
            continue


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    numbers = {"python": sys.version.split()[0], "smatcli": __version__}
    for name in ("torch", "timm", "numpy", "safetensors"):
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return numbers


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    """Return `value` as JSON types; non-finite numbers become null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RunDir:
    """A run on disk: `recipe` is the resolved recipe, `info` the content of run.json."""

    def __init__(self, path: Path, recipe: "AnyRecipe", info: dict[str, Any]) -> None:
        self.path, self.recipe, self.info = path, recipe, info
        self._metrics: TextIO | None = None
        self._lock: int | None = None
        self._trackers: list[Tracker] | None = None
        self._clock = time.monotonic()

    @classmethod
    def create(
        cls,
        path: str | Path,
        recipe: "AnyRecipe",
        origins: dict[str, str] | None = None,
        command: Sequence[str] | None = None,
    ) -> "RunDir":
        """Create a run directory atomically; UserError if `path` exists."""
        from smatcli.config import dump_recipe

        path = Path(path)
        if path.exists() or path.is_symlink():
            raise _exists_error(path)
        info = {
            "format": FORMAT,
            "kind": recipe.kind,
            "status": "created",
            "versions": versions(),
            "command": list(sys.argv if command is None else command),
            "started": _now(),
        }
        draft = path.parent / f".{path.name}.tmp-{os.getpid()}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _clear_dead(path)
            draft.mkdir()
            (draft / "checkpoints").mkdir()
            atomic_write_text(draft / "recipe.yaml", dump_recipe(recipe))
            atomic_write_text(draft / "origins.json", json.dumps(origins or {}, indent=1))
            atomic_write_text(draft / "run.json", json.dumps(info, indent=1))
            draft.rename(path)
        except OSError as error:
            raise UserError(f"run {path} cannot be created: {error.strerror or error}") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return cls(path, recipe, info)

    @classmethod
    def open(cls, path: str | Path) -> "RunDir":
        """Open an existing run directory. Raises UserError, naming what is missing or damaged."""
        from smatcli.config import load_recipe

        path = Path(path)
        if not path.is_dir():
            raise UserError(f"run {path} does not exist")
        try:
            info = read_json(path / "run.json")
        except FileNotFoundError:
            raise UserError(f"{path} is not a run directory (it has no run.json)") from None
        except (ValueError, OSError) as error:
            raise UserError(f"{path / 'run.json'} cannot be read: {error}") from None
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            raise UserError(f"{path / 'run.json'} has a format that this version does not support (expected {FORMAT})")
        return cls(path, load_recipe(path / "recipe.yaml").recipe, info)

    @classmethod
    def reserve(cls, loaded: "Loaded", reporter: Reporter, resume: bool = False) -> "RunDir | None":
        """Return the run to continue (it may be finished), or None if it has yet to be created. Call this before anything expensive.

        Raises UserError if the run exists and `resume` is False, or if it belongs to another recipe (naming the keys that differ).
        """
        path = Path(loaded.recipe.run)
        if names := getattr(loaded.recipe, "track", []):
            from smatcli.runs.tracking import check_trackers

            check_trackers(names)
        if not (path.exists() or path.is_symlink()):
            if resume:
                reporter.line(f"no run at {path} yet: starting it")
            return None
        if not resume:
            raise _exists_error(path)
        run = cls.open(path)
        refuse_outside_links(path)
        keys = differing(run.recipe, loaded.recipe)
        refused = [k for k in keys if not _may_change(k)]
        old, new = (flatten(r.model_dump(mode="json")) for r in (run.recipe, loaded.recipe))
        if refused:
            shown = [f"{key}: {old.get(key, 'absent')}, now {new.get(key, 'absent')}" for key in refused[:SHOWN]]
            more = f" and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
            raise UserError(
                f"run {path} was started with another recipe (differs in {'; '.join(shown)}{more}); choose another run= for this one"
            )
        longer = [k for k in keys if k in LONGER]
        if shorter := [k for k in longer if new[k] < old[k]]:
            raise UserError(f"{shorter[0]}={new[shorter[0]]} would end run {path} earlier than its {old[shorter[0]]}; choose another run=")
        if run.finished and not longer:
            reporter.line(f"run {path} is already finished")
            return run
        run._adopt(loaded, [k for k in keys if k != "run"], reporter)
        if longer:
            run.info["status"] = "continued"
        return run

    @classmethod
    def start(cls, loaded: "Loaded", reporter: Reporter, resume: bool = False) -> "RunDir":
        """Return the run to continue, or create it."""
        return cls.reserve(loaded, reporter, resume) or cls.create(loaded.recipe.run, loaded.recipe, loaded.origins)

    def _adopt(self, loaded: "Loaded", keys: list[str], reporter: Reporter) -> None:
        from smatcli.config import dump_recipe

        if keys:
            reporter.line(f"continuing {self.path} with changed {', '.join(keys)}")
            atomic_write_text(self.path / "recipe.yaml", dump_recipe(loaded.recipe))
            atomic_write_text(self.path / "origins.json", json.dumps(loaded.origins, indent=1))
        self.recipe = loaded.recipe

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return self.info.get("status") == "finished"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints `last` and `best`."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The file metrics.jsonl: one JSON object per line, with `step`, `kind` and `time` (seconds of work since the start)."""
        return self.path / "metrics.jsonl"

    def note(self, **facts: Any) -> None:
        """Add facts (device, precision ...) to run.json."""
        self.info.update(facts)
        atomic_write_text(self.path / "run.json", json.dumps(_plain(self.info), indent=1))

    @contextmanager
    def active(self) -> Iterator["RunDir"]:
        """Lock the run against other processes, and record in run.json how the work ended (finished, interrupted, failed)."""
        refuse_outside_links(self.path)
        self._acquire()
        clear_drafts(self.path)
        self._clock = time.monotonic()
        self.note(status="running", pid=os.getpid(), host=socket.gethostname())
        ending: dict[str, Any] = {"status": "failed"}
        try:
            yield self
            ending = {"status": "finished", "message": ""}
        except (Interrupted, KeyboardInterrupt) as error:
            ending = {"status": "interrupted", "message": str(error)}
            raise
        except BaseException as error:
            ending["message"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            if self._metrics is not None:
                self._metrics.close()
                self._metrics = None
            for tracker in self._trackers or []:
                with suppress(Exception):  # the run has ended: the error of a tracker does not matter
                    tracker.close()
            self._trackers = None
            try:
                self.note(**ending, finished=_now())
            except Exception:  # a full disk must not hide the first error
                if ending["status"] == "finished":
                    raise
            finally:
                self._release()

    def _acquire(self) -> None:
        try:
            self._lock = open_lock(self.path / ".lock")
            lock(self._lock)
        except OSError as error:
            self._release()
            if isinstance(error, BlockingIOError):
                raise UserError(f"run {self.path} is in use by another process; wait for it or choose another run=") from None
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"{self.path / '.lock'}: cannot be opened ({reason}); if it is a link or a folder, remove it") from None

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def log(self, record: dict[str, Any]) -> None:
        """Append a record with `step` and `kind` to metrics.jsonl, with the `time` unless the run is deterministic."""
        clock = {} if getattr(self.recipe, "deterministic", False) else {"time": round(time.monotonic() - self._clock, 3)}
        timed = {"step": record["step"], **clock, **record}
        try:
            if self._metrics is None:
                self._metrics = self.metrics.open("a", encoding="utf-8")
            self._metrics.write(json.dumps(_plain(timed), allow_nan=False) + "\n")
            self._metrics.flush()
            self._track(timed)
        except OSError as error:
            raise SmatError(f"{self.metrics} cannot be written: {error.strerror}; make room and continue with --resume") from None

    def _track(self, record: dict[str, Any]) -> None:
        """Pass a record to the recipe's trackers. The first record opens them: only then is the step of a resumed run known."""
        names = getattr(self.recipe, "track", [])
        if names and self._trackers is None:
            from smatcli.runs.tracking import open_trackers

            step = max((int(r["step"]) for r in self.records()[:-1]), default=0)
            self._trackers = open_trackers(names, self.path, self.recipe.model_dump(mode="json"), step)
        for tracker in self._trackers or []:
            tracker.log(_plain(record))

    def sync(self) -> None:
        """Flush metrics.jsonl to disk, so that a checkpoint is never ahead of it."""
        if self._metrics is not None:
            os.fsync(self._metrics.fileno())

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the records of metrics.jsonl, optionally of one kind; an incomplete last line is skipped."""
        records = []
        if self.metrics.exists():
            for text in self.metrics.read_text(encoding="utf-8").splitlines():
                try:
                    record = parse_json(text)
                except ValueError:
                    continue
                if kind is None or record.get("kind") == kind:
                    records.append(record)
        return records

    def truncate(self, step: int) -> None:
        """Remove the records after `step` (-1: all) when a run is resumed, and continue the clock from the last record kept."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        kept = [r for r in self.records() if r["step"] <= step]
        if self.metrics.exists():
            with atomic_path(self.metrics) as draft:
                draft.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        self._clock = time.monotonic() - max((r.get("time", 0.0) for r in kept), default=0.0)
