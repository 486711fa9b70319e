"""`smat data prepare`: source images to one store per dataset."""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from smatcli.data.images import Fit
from smatcli.data.sources import Source, open_source
from smatcli.data.stores import splits
from smatcli.data.stores.store import SPLITS, Store
from smatcli.engine.prepare.convert import Conversion
from smatcli.engine.prepare.journal import Journal, hidden
from smatcli.engine.prepare.settings import Settings
from smatcli.errors import SmatError, UserError
from smatcli.runs.reporter import Reporter, SilentReporter
from smatcli.runs.signals import Interrupted

_FINGERPRINT = 1  # changes when the same source and settings would give other images


@dataclass
class Prepared:
    """What became of one source: `status` is 'written', 'already prepared' or 'failed' (`error` says why)."""

    name: str
    path: Path
    status: str = "failed"
    error: SmatError | None = None
    classes: tuple[int, ...] = (0, 0, 0)  # train, valid, test
    images: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (image, reason) of this call
    unreadable_count: int = 0  # as the store records it
    bytes: int = 0
    seconds: float = 0.0


class PrepareError(SmatError):
    """One or more sources failed; `results` has all of them, the stores of the others are written."""

    def __init__(self, results: list[Prepared]):
        failed = [(r.name, r.error) for r in results if r.error is not None]
        others = ", ".join(name for name, _ in failed[1:])
        rest = f" ({len(failed) - 1} more of {len(results)} sources failed: {others})" if others else ""
        super().__init__(f"{failed[0][1]}{rest}")
        self.results = results
        self.exit_code = max(error.exit_code for _, error in failed)


@dataclass(frozen=True)
class Job:
    """One store to be: its name and what is recorded as its origin (None: as the source says), how to open the source, a word for it."""

    name: str | None
    origin: str | None
    open: Callable[[], Source]
    label: str = ""


def prepare(
    sources: Sequence[Job],
    out: str | Path,
    *,
    name: str | None = None,
    size: int = 64,
    fit: Fit = "crop",
    encoding: str = "raw",
    split: str | None = None,
    splits_file: str | Path | None = None,
    seed: int | None = None,
    max_per_class: int | None = None,
    min_images: int | None = None,
    strict: bool | None = None,
    licence: str = "",
    workers: int | None = None,
    replace: bool = False,
    reporter: Reporter | None = None,
) -> list[Prepared]:
    """Write `<out>/<name>.h5` for each source; the same as `smat data prepare KIND`.

    A store that was made from the same files with the same settings is kept; another one is refused without `replace`. What was
    interrupted (also by SIGKILL) continues. `split` is 65/15/20 by default, unless the source knows its own, `seed` 0; `strict` (an
    unreadable image is an error) is what the source says: records of an official conversion are expected to be whole.
    Raises UserError before anything is read, Interrupted for SIGINT and SIGTERM, PrepareError after all sources were tried.
    """
    if splits_file and (split is not None or (seed is not None and max_per_class is None)):
        raise UserError(f"the splits file {splits_file} says which classes are for what; leave --split and --seed out")
    settings = Settings(
        size=size, fit=fit, encoding=encoding, split=splits.DEFAULT_SPLIT if split is None else split, split_asked=split is not None,
        splits=str(splits_file) if splits_file else None, seed=seed or 0, max_per_class=max_per_class, min_images=min_images,
        licence=licence,
    )  # fmt: skip
    reporter = reporter or SilentReporter()
    results: list[Prepared] = []
    for job in _named(sources, name):
        result = Prepared(job.name or job.label or job.origin or "source", Path(out))
        results.append(result)
        began = time.monotonic()
        try:
            _prepare(job, result, results[:-1], settings, strict, workers or usable_cores(), replace, reporter)
        except Interrupted:
            raise
        except SmatError as error:
            result.error = error
            if len(sources) > 1:
                reporter.line(f"{result.name}: FAILED: {error}")
        finally:
            reporter.finish()
        result.seconds = time.monotonic() - began
    if any(result.error for result in results):
        raise PrepareError(results)
    return results


def prepare_folder(sources: Sequence[str | Path], out: str | Path, *, depth: int = 1, **options: Any) -> list[Prepared]:
    """`prepare` for directories or ZIPs of class folders; the same as `smat data prepare folder`."""
    return prepare(folder_jobs(sources, depth), out, **options)


def folder_jobs(sources: Sequence[str | Path], depth: int = 1) -> list[Job]:
    """Jobs of directories or ZIPs of class folders; UserError for one that does not exist."""
    if depth < 1:
        raise UserError(f"depth {depth}: give 1 or more")
    jobs = []
    for path in map(Path, sources):
        if not path.exists():
            star = " (the pattern matches nothing)" if set("*?[") & set(path.name) else ""
            raise UserError(f"{path}: there is no such folder or ZIP{star}")
        own = path.resolve().name if path.is_dir() else path.stem
        jobs.append(Job(own, f"folder {path.resolve().name}", partial(open_source, "folder", path, depth=depth), str(path)))
    return jobs


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _named(jobs: Sequence[Job], name: str | None) -> list[Job]:
    """The jobs with the name that was asked for; UserError for names that cannot be, as far as they are known before the source is open."""
    if not jobs:
        raise UserError("give at least one source")
    if name is not None and len(jobs) > 1:
        raise UserError(f"--name {name} with {len(jobs)} sources: each store is named after its source; give one source")
    jobs = [dataclasses.replace(job, name=name or job.name) for job in jobs]
    seen: dict[str, Job] = {}
    for job in jobs:
        if job.name is None:
            continue
        if job.name in seen:
            raise UserError(f"{job.label} and {seen[job.name].label} would both become the store {job.name!r}; prepare one with --name")
        _check_name(job.name, job.label)
        seen[job.name] = job
    return jobs


def _check_name(name: str, label: str) -> None:
    if not name or not name.isprintable() or "/" in name or name.startswith(".") or len(name.encode()) > 200:
        raise UserError(f"{label}: {name[:300]!r} cannot be a dataset's name; give one with --name")


def _prepare(
    job: Job,
    result: Prepared,
    earlier: Sequence[Prepared],
    settings: Settings,
    strict: bool | None,
    workers: int,
    replace: bool,
    reporter: Reporter,
) -> None:
    source = job.open()
    try:
        strict = bool(getattr(source, "strict", False)) if strict is None else strict
        result.name = job.name or source.name
        _check_name(result.name, job.label)
        result.path = result.path / f"{result.name}.h5"
        if any(other.path == result.path for other in earlier):
            raise UserError(f"{job.label}: another source already became the store {result.name!r}; prepare one with --name")
        fingerprint = _fingerprint(source, settings, result.name)
        if _there(result, fingerprint, strict, replace, reporter):
            _tidy(result.path)
            return
        journal = Journal(result.path)
        try:  # the process that had the lock may just have finished it
            finished = _there(result, fingerprint, strict, replace, reporter)
        except BaseException:
            journal.close(remove=True)
            raise
        if finished:
            journal.close(remove=True)
            return
        if not journal.locked:
            reporter.line(f"{result.name}: this file system knows no locks; do not prepare the same store twice at once")
        for remark in source.remarks:
            reporter.line(f"{result.name}: {remark}")
        origin = job.origin or f"{source.kind} {source.name}"
        Conversion(source, origin, result.name, result.path, settings, reporter, workers, strict, result.unreadable).run(
            fingerprint, journal
        )
    finally:
        source.close()
    _fill(result, Store.open(result.path))
    result.status = "written"


def _tidy(store: Path) -> None:
    """Remove the journal of a process that was killed when its store was just in place; one that is in use stays."""
    if hidden(store, "journal").exists():
        with suppress(SmatError):
            Journal(store).close(remove=True)


def _there(result: Prepared, fingerprint: str, strict: bool, replace: bool, reporter: Reporter) -> bool:
    """Whether the store exists already, from the same files and settings; UserError if it is another one."""
    if not result.path.exists() or replace:
        return False
    _keep(result, fingerprint, strict)
    reporter.line(f"{result.name}: already prepared, {result.path} is kept")
    return True


def _fingerprint(source: Source, settings: Settings, name: str) -> str:
    """Changes whenever the store could: SHA-256 over the source's file list and the settings that count."""
    chosen = settings.facts()
    if settings.splits is not None:
        chosen.update(splits=splits.read_splits(settings.splits, name), split=None, seed=None)
    return hashlib.sha256(json.dumps([_FINGERPRINT, name, source.fingerprint, chosen], sort_keys=True).encode()).hexdigest()


def _keep(result: Prepared, fingerprint: str, strict: bool) -> None:
    """Accept the existing store as the answer, or raise UserError."""
    try:
        store = Store.open(result.path)
    except UserError as error:
        raise UserError(f"{error} (--replace rebuilds it)") from error
    if store.facts.get("fingerprint") != fingerprint:
        raise UserError(f"{result.path}: exists, made from other files or settings; --replace rebuilds it, --out or --name keeps both")
    if strict and store.facts.get("unreadable"):
        raise UserError(f"{result.path}: exists, but {store.facts['unreadable']} images of its source were unreadable (--strict)")
    _fill(result, store)
    result.status = "already prepared"


def _fill(result: Prepared, store: Store) -> None:
    result.classes, result.images = tuple(len(store.classes(split)) for split in SPLITS), len(store)
    result.unreadable_count = int(store.facts.get("unreadable", 0))
    result.bytes = result.path.stat().st_size
