"""`smat data prepare`: source images to one store per dataset."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from smatcli.data import splits
from smatcli.data.images import Fit
from smatcli.data.sources import SOURCES, Source
from smatcli.data.store import FORMAT_VERSION, SPLITS, Store
from smatcli.engine.convert import Conversion, Settings
from smatcli.engine.reporter import Reporter, SilentReporter
from smatcli.errors import SmatError, UserError


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


def prepare_folder(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    name: str | None = None,
    size: int = 64,
    fit: Fit = "crop",
    split: str | None = None,
    splits_file: str | Path | None = None,
    seed: int | None = None,
    strict: bool = False,
    licence: str = "",
    min_images: int | None = None,
    depth: int = 1,
    workers: int | None = None,
    replace: bool = False,
    reporter: Reporter | None = None,
) -> list[Prepared]:
    """Write `<out>/<name>.h5` for each directory or ZIP of class folders; the same as `smat data prepare folder`.

    `name` is the file stem by default (for one source only otherwise). A store that was made from the same files with the same settings
    is kept; another one is refused without `replace`. `split` is 65/15/20 by default, `seed` 0.
    Raises UserError before anything is read, PrepareError after all sources were tried.
    """
    if splits_file and (split is not None or seed is not None):
        raise UserError(f"the splits file {splits_file} says which classes are for what; leave --split and --seed out")
    listed = str(splits_file) if splits_file else None
    settings = Settings(size, fit, splits.DEFAULT_SPLIT if split is None else split, listed, seed or 0, min_images, depth, licence)
    reporter = reporter or SilentReporter()
    jobs = _jobs([Path(source) for source in sources], Path(out), name)
    for path, result in jobs:
        began = time.monotonic()
        try:
            _prepare(path, result, settings, strict, workers or usable_cores(), replace, reporter)
        except SmatError as error:
            result.error = error
            if len(jobs) > 1:
                reporter.line(f"{result.name}: FAILED: {error}")
        finally:
            reporter.finish()
        result.seconds = time.monotonic() - began
    results = [result for _, result in jobs]
    if any(result.error for result in results):
        raise PrepareError(results)
    return results


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _jobs(sources: list[Path], out: Path, name: str | None) -> list[tuple[Path, Prepared]]:
    if not sources:
        raise UserError("give at least one source: a folder or a ZIP of class folders")
    if name is not None and len(sources) > 1:
        raise UserError(f"--name {name} with {len(sources)} sources: each store is named after its file; give one source")
    jobs: dict[str, tuple[Path, Prepared]] = {}
    for path in sources:
        if not path.exists():
            star = " (the pattern matches nothing)" if set("*?[") & set(path.name) else ""
            raise UserError(f"{path}: there is no such folder or ZIP{star}")
        own = name or (path.resolve().name if path.is_dir() else path.stem)
        if own in jobs:
            raise UserError(f"{path} and {jobs[own][0]} would both become the store {own!r}; prepare one of them with --name")
        if not own.isprintable() or "/" in own or own.startswith("."):
            raise UserError(f"{path}: {own!r} cannot be a dataset's name; give one with --name")
        jobs[own] = (path, Prepared(own, out / f"{own}.h5"))
    return list(jobs.values())


def _prepare(path: Path, result: Prepared, settings: Settings, strict: bool, workers: int, replace: bool, reporter: Reporter) -> None:
    source = SOURCES["folder"](path, depth=settings.depth)
    try:
        fingerprint = _fingerprint(source, settings, result.name)
        if result.path.exists() and not replace:
            _keep(result, fingerprint, strict)
            reporter.line(f"{result.name}: already prepared, {result.path} is kept")
            return
        for remark in source.remarks:
            reporter.line(f"{result.name}: {remark}")
        origin = f"folder {path.resolve().name}"
        Conversion(source, origin, result.name, result.path, settings, reporter, workers, strict, result.unreadable).run(
            fingerprint, replace
        )
    finally:
        source.close()
    _fill(result, Store.open(result.path))
    result.status = "written"


def _fingerprint(source: Source, settings: Settings, name: str) -> str:
    """Changes whenever the store could: SHA-256 over the source's file list and the settings that count."""
    chosen = asdict(settings)
    if settings.splits is not None:
        chosen.update(splits=splits.read_splits(settings.splits, name), split=None, seed=None)
    return hashlib.sha256(json.dumps([FORMAT_VERSION, name, source.fingerprint, chosen], sort_keys=True).encode()).hexdigest()


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
