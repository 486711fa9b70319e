"""Engine of `smat data prepare`: convert source images to one store per dataset."""

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
from typing import Unpack

from smatcli.data.sources import ImageSource, open_source
from smatcli.data.stores import splits
from smatcli.data.stores.store import SPLITS, Store
from smatcli.engine.prepare.convert import Conversion
from smatcli.engine.prepare.journal import Journal, hidden
from smatcli.engine.prepare.settings import Settings, SettingsOptions
from smatcli.errors import SmatError, UserError
from smatcli.runs.reporter import Reporter, SilentReporter
from smatcli.runs.signals import Interrupted

_FINGERPRINT = 1  # increase it if the same source and settings begin to give different images


@dataclass
class Prepared:
    """Result of preparing one source: `status` is 'written', 'already prepared' or 'failed' (`error` is the reason)."""

    name: str
    path: Path
    status: str = "failed"
    error: SmatError | None = None
    classes: tuple[int, ...] = (0, 0, 0)  # train, valid, test
    images: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (image, reason) in this call
    unreadable_count: int = 0  # number recorded in the store
    bytes: int = 0
    seconds: float = 0.0


class PrepareError(SmatError):
    """Raised if one or more sources failed. `results` has an entry per source; the stores of the other sources were written."""

    def __init__(self, results: list[Prepared]):
        failed = [(r.name, r.error) for r in results if r.error is not None]
        others = ", ".join(name for name, _ in failed[1:])
        rest = f" ({len(failed) - 1} more of {len(results)} sources failed: {others})" if others else ""
        super().__init__(f"{failed[0][1]}{rest}")
        self.results = results
        self.exit_code = max(error.exit_code for _, error in failed)


@dataclass(frozen=True)
class PrepareJob:
    """A store to prepare: name and origin (None: those of the source), a function that opens the source, and a label for messages."""

    name: str | None
    origin: str | None
    open: Callable[[], ImageSource]
    label: str = ""


@dataclass(frozen=True)
class _PrepareOptions:
    """Settings of one call of `prepare`."""

    settings: Settings
    strict: bool | None
    workers: int
    replace: bool
    reporter: Reporter


def prepare(
    sources: Sequence[PrepareJob],
    out: str | Path,
    *,
    name: str | None = None,
    strict: bool | None = None,
    workers: int | None = None,
    replace: bool = False,
    reporter: Reporter | None = None,
    **options: Unpack[SettingsOptions],
) -> list[Prepared]:
    """Write `<out>/<name>.h5` for each source; the Python form of `smat data prepare KIND`.

    A store that was prepared from the same files with the same settings is kept. A different one is an error unless `replace` is set.
    An interrupted preparation (SIGKILL included) is continued. With `strict`, an unreadable image is an error; by default the source
    decides, because records of an official conversion should be complete. `options` are those of `SettingsOptions`.
    Raises UserError before anything is read, Interrupted on SIGINT and SIGTERM, PrepareError after all sources were tried.
    """
    reporter = reporter or SilentReporter()
    run = _PrepareOptions(Settings.from_options(**options), strict, workers or usable_cores(), replace, reporter)
    results: list[Prepared] = []
    for job in _named(sources, name):
        result = Prepared(job.name or job.label or job.origin or "source", Path(out))
        results.append(result)
        began = time.monotonic()
        try:
            _prepare(job, result, results[:-1], run)
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


def folder_jobs(sources: Sequence[str | Path], depth: int = 1) -> list[PrepareJob]:
    """Return jobs for directories or ZIPs of class folders. Raises UserError if one does not exist."""
    if depth < 1:
        raise UserError(f"depth {depth}: give 1 or more")
    jobs = []
    for path in map(Path, sources):
        if not path.exists():
            star = " (the pattern matches nothing)" if set("*?[") & set(path.name) else ""
            raise UserError(f"{path}: does not exist; give a folder or a ZIP{star}")
        own = path.resolve().name if path.is_dir() else path.stem
        jobs.append(PrepareJob(own, f"folder {path.resolve().name}", partial(open_source, "folder", path, depth=depth), str(path)))
    return jobs


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _named(jobs: Sequence[PrepareJob], name: str | None) -> list[PrepareJob]:
    """Return the jobs with the requested name.

    Raises UserError for invalid names, as far as they can be checked before the sources are opened.
    """
    if not jobs:
        raise UserError("give at least one source")
    if name is not None and len(jobs) > 1:
        raise UserError(f"--name {name} with {len(jobs)} sources: each store is named after its source; give one source")
    jobs = [dataclasses.replace(job, name=name or job.name) for job in jobs]
    seen: dict[str, PrepareJob] = {}
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


def _prepare(job: PrepareJob, result: Prepared, earlier: Sequence[Prepared], run: _PrepareOptions) -> None:
    settings, reporter = run.settings, run.reporter
    source = job.open()
    try:
        strict = bool(getattr(source, "strict", False)) if run.strict is None else run.strict
        result.name = job.name or source.name
        _check_name(result.name, job.label)
        result.path = result.path / f"{result.name}.h5"
        if any(other.path == result.path for other in earlier):
            raise UserError(f"{job.label}: the store {result.name!r} was already written from another source; prepare one with --name")
        fingerprint = _fingerprint(source, settings, result.name)
        if _already_prepared(result, fingerprint, strict, run):
            _remove_stale_journal(result.path)
            return
        journal = Journal(result.path)
        try:  # the process that had the lock may have finished the store meanwhile
            finished = _already_prepared(result, fingerprint, strict, run)
        except BaseException:
            journal.close(remove=True)
            raise
        if finished:
            journal.close(remove=True)
            return
        if not journal.locked:
            reporter.line(f"{result.name}: this file system does not support locks; do not prepare the same store twice at once")
        for remark in source.remarks:
            reporter.line(f"{result.name}: {remark}")
        origin = job.origin or f"{source.kind} {source.name}"
        conversion = Conversion(source, origin, result.name, result.path, settings, reporter, run.workers, strict, result.unreadable)
        conversion.run(fingerprint, journal)
    finally:
        source.close()
    _fill(result, Store.open(result.path))
    result.status = "written"


def _remove_stale_journal(store: Path) -> None:
    """Remove the journal of a process that was killed just after it had published the store. A journal in use is kept."""
    if hidden(store, "journal").exists():
        with suppress(SmatError):
            Journal(store).close(remove=True)


def _already_prepared(result: Prepared, fingerprint: str, strict: bool, run: _PrepareOptions) -> bool:
    """Return whether the store already exists. Raises UserError if it was prepared from other files or settings."""
    if not result.path.exists() or run.replace:
        return False
    _keep(result, fingerprint, strict)
    run.reporter.line(f"{result.name}: already prepared, {result.path} is kept")
    return True


def _fingerprint(source: ImageSource, settings: Settings, name: str) -> str:
    """Return the SHA-256 of the source's file list and the relevant settings. It changes whenever the store could."""
    chosen = settings.facts()
    if settings.splits is not None:
        chosen.update(splits=splits.read_splits(settings.splits, name), split=None, seed=None)
    return hashlib.sha256(json.dumps([_FINGERPRINT, name, source.fingerprint, chosen], sort_keys=True).encode()).hexdigest()


def _keep(result: Prepared, fingerprint: str, strict: bool) -> None:
    """Use the existing store as the result, or raise UserError."""
    try:
        store = Store.open(result.path)
    except UserError as error:
        raise UserError(f"{error} (--replace rebuilds it)") from error
    if store.facts.get("fingerprint") != fingerprint:
        raise UserError(f"{result.path}: exists, prepared from other files or settings; --replace rebuilds it, --out or --name keeps both")
    if strict and store.facts.get("unreadable"):
        raise UserError(f"{result.path}: exists, but {store.facts['unreadable']} images of its source were unreadable (--strict)")
    _fill(result, store)
    result.status = "already prepared"


def _fill(result: Prepared, store: Store) -> None:
    result.classes, result.images = tuple(len(store.classes(split)) for split in SPLITS), len(store)
    result.unreadable_count = int(store.facts.get("unreadable", 0))
    result.bytes = result.path.stat().st_size
