"""`smat data prepare`: source images to one store per dataset."""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.data import splits
from smatcli.data.images import Fit, Unreadable, decode_image
from smatcli.data.sources import SOURCES, Source, SourceClass
from smatcli.data.store import FORMAT_VERSION, Store, write_store
from smatcli.engine.ordered import ordered_map
from smatcli.engine.reporter import Reporter, SilentReporter
from smatcli.errors import SmatError, UserError
from smatcli.files import atomic_write_text

NAMED = 20  # unreadable images named one by one; all of them are in a text file if there are more
_EVERY = 64  # images between two progress updates


@dataclass(frozen=True)
class Settings:
    """What decides the content of a store, besides the source."""

    size: int = 64
    fit: Fit = "crop"
    split: str = splits.DEFAULT_SPLIT
    splits: str | None = None
    seed: int = 0
    min_images: int | None = None
    depth: int = 1
    licence: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise UserError(f"size {self.size}: give 1 to 4096 pixels")
        if self.fit not in ("crop", "squash"):
            raise UserError(f"fit {self.fit!r}: give crop or squash")
        if self.min_images is not None and self.min_images < 2:
            raise UserError(f"min-images {self.min_images}: an episode needs at least 2 images a class")
        if self.depth < 1:
            raise UserError(f"depth {self.depth}: give 1 or more")
        if len(self.licence.encode()) > 30_000:
            raise UserError("the licence text is longer than 30,000 bytes; give its name and where it stands")
        splits.parse_shares(self.split)


@dataclass
class Prepared:
    """What became of one source: `status` is 'written', 'already prepared' or 'failed' (`error` says why)."""

    name: str
    path: Path
    status: str = "failed"
    error: SmatError | None = None
    classes: tuple[int, int, int] = (0, 0, 0)  # train, valid, test
    images: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (image, reason)
    unreadable_count: int = 0
    bytes: int = 0
    seconds: float = 0.0


class PrepareError(SmatError):
    """One or more sources failed; `results` has all of them, the stores of the others are written."""

    def __init__(self, results: list[Prepared]):
        failed = [(r, r.error) for r in results if r.error is not None]
        first, count = failed[0][1], len(failed)
        rest = f" ({count - 1} more of {len(results)} sources failed: {', '.join(r.name for r, _ in failed[1:])})" if count > 1 else ""
        super().__init__(f"{first}{rest}")
        self.results = results
        self.exit_code = max(error.exit_code for _, error in failed)


def prepare_folder(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    name: str | None = None,
    size: int = 64,
    fit: Fit = "crop",
    split: str = splits.DEFAULT_SPLIT,
    splits_file: str | Path | None = None,
    seed: int = 0,
    strict: bool = False,
    licence: str = "",
    min_images: int | None = None,
    depth: int = 1,
    workers: int | None = None,
    replace: bool = False,
    reporter: Reporter | None = None,
) -> list[Prepared]:
    """Write `<out>/<name>.h5` for each directory or ZIP of class folders; the same as `smat data prepare folder`.

    `name` is the file stem by default (one source only otherwise). A store that was made from the same files with the same settings is
    kept; another one is refused without `replace`. Raises UserError before anything is read, PrepareError after all sources were tried.
    """
    settings = Settings(size, fit, split, str(splits_file) if splits_file else None, seed, min_images, depth, licence)
    reporter = reporter or SilentReporter()
    jobs = _jobs([Path(source) for source in sources], Path(out), name)
    results = []
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
        results.append(result)
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
        _convert(source, path, result, settings, strict, workers, replace, fingerprint, reporter)
    finally:
        source.close()
    _fill(result, Store.open(result.path))
    result.status = "written"


def _convert(
    source: Source,
    path: Path,
    result: Prepared,
    settings: Settings,
    strict: bool,
    workers: int,
    replace: bool,
    fingerprint: str,
    reporter: Reporter,
) -> None:
    listed = source.classes()
    classes = _large_enough(listed, settings, result.name, reporter)
    assign = _assigner(settings, result.name, [c.name for c in listed], reporter)
    facts: dict[str, Any] = {"fit": settings.fit, "fingerprint": fingerprint, "unreadable": 0}

    def decode(item: tuple[int, str]) -> np.ndarray | str:
        try:
            data = source.read(item[1])
            return decode_image(data, settings.size, settings.fit) if isinstance(data, bytes) else data
        except Unreadable as error:
            return str(error)

    total = sum(len(c.images) for c in classes)
    work = [(index, image) for index, c in enumerate(classes) for image in c.images]

    def stream(decoded: Iterator[tuple[int, np.ndarray | None]]) -> Iterator[tuple[str, int, Iterator[np.ndarray]]]:
        for index, group in groupby(decoded, key=lambda pair: pair[0]):
            images = (image for _, image in group if image is not None)
            head = list(islice(images, settings.min_images or 2))
            if len(head) < (settings.min_images or 2):
                _too_small(classes[index].name, len(head), len(classes[index].images), settings, result.name, reporter)
            else:
                yield classes[index].name, 0, chain(head, images)
        reporter.update(total, unreadable=len(result.unreadable))
        reporter.finish()
        facts["unreadable"] = len(result.unreadable)
        _report_unreadable(result, strict, reporter)

    reporter.start(total, result.name, unit="images")
    with warnings.catch_warnings(), closing(ordered_map(decode, work, workers)) as decoded:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        images, where = stream(_readable(decoded, result, reporter)), f"folder {path.name}"
        write_store(result.path, result.name, settings.size, images, where, settings.licence, facts=facts, assign=assign, replace=replace)


def _readable(
    decoded: Iterator[tuple[tuple[int, str], np.ndarray | str]], result: Prepared, reporter: Reporter
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Class index and image; None in the place of an unreadable one, which is noted in `result`."""
    for done, ((index, name), image) in enumerate(decoded, 1):
        if isinstance(image, str):
            result.unreadable.append((name, image))
        if done % _EVERY == 0:
            reporter.update(done, unreadable=len(result.unreadable))
        yield index, None if isinstance(image, str) else image


def _large_enough(classes: Sequence[SourceClass], settings: Settings, name: str, reporter: Reporter) -> list[SourceClass]:
    """The classes with enough files; which of them are readable is only known later."""
    small = [c for c in classes if len(c.images) < (settings.min_images or 2)]
    for c in small:
        _too_small(c.name, len(c.images), len(c.images), settings, name, reporter)
    kept = [c for c in classes if len(c.images) >= (settings.min_images or 2)]
    if not kept:
        raise UserError(f"{name}: no class has {settings.min_images or 2} images")
    return kept


def _too_small(name: str, readable: int, files: int, settings: Settings, dataset: str, reporter: Reporter) -> None:
    have = {0: "no readable image", 1: "one image" if files == 1 else "one readable image"}.get(readable, f"{readable} readable images")
    of = f" ({files} files)" if files > readable else ""
    if settings.min_images is None:
        raise UserError(
            f"{dataset}: class {name!r} has {have}{of}: an episode needs support and query; add images, or drop such classes with --min-images 2"
        )
    reporter.line(f"{dataset}: class {name!r} dropped: {have}{of}, fewer than {settings.min_images}")


def _assigner(settings: Settings, dataset: str, listed: list[str], reporter: Reporter) -> Callable[[list[str]], Sequence[int]]:
    """The split codes of the classes that are kept; a splits file is checked at once against all classes that the source lists."""
    if settings.splits is not None:
        chosen = splits.read_splits(settings.splits, dataset)
        codes = dict(zip(listed, splits.split_by_names(listed, chosen, settings.splits).tolist(), strict=True))
        return lambda names: [codes[name] for name in names]

    def by_chance(names: list[str]) -> Sequence[int]:
        shares = splits.parse_shares(settings.split)
        if remark := splits.split_remark(len(names), shares):
            reporter.line(f"{dataset}: {remark}")
        return splits.split_by_chance(names, dataset, shares, settings.seed).tolist()

    return by_chance


def _report_unreadable(result: Prepared, strict: bool, reporter: Reporter) -> None:
    bad = result.unreadable
    if not bad:
        return
    text = [f"{image}: {reason}" for image, reason in bad]
    if strict:
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise UserError(f"{result.name}: {len(bad)} unreadable (--strict): {'; '.join(text[:NAMED])}{more}")
    for line in text[:NAMED]:
        reporter.line(f"{result.name}: unreadable: {line}")
    if len(bad) > NAMED:
        file = result.path.with_suffix(".unreadable.txt")
        atomic_write_text(file, "".join(f"{line}\n" for line in text))
        reporter.line(f"{result.name}: unreadable: {len(bad) - NAMED} more, all {len(bad)} are listed in {file}")


def _fingerprint(source: Source, settings: Settings, name: str) -> str:
    chosen = asdict(settings)
    if settings.splits is not None:
        chosen["splits"] = splits.read_splits(settings.splits, name)
        chosen["split"] = chosen["seed"] = None
    return hashlib.sha256(json.dumps([FORMAT_VERSION, name, source.fingerprint, chosen], sort_keys=True).encode()).hexdigest()


def _keep(result: Prepared, fingerprint: str, strict: bool) -> None:
    """Accept the existing store as the answer, or raise UserError."""
    try:
        store = Store.open(result.path)
    except UserError as error:
        raise UserError(f"{error} (--replace rebuilds it)") from error
    if store.facts.get("fingerprint") != fingerprint:
        raise UserError(
            f"{result.path}: exists, made from other files or with other settings; --replace rebuilds it, --out or --name keeps both"
        )
    if strict and store.facts.get("unreadable"):
        raise UserError(f"{result.path}: exists, but {store.facts['unreadable']} images of its source were unreadable (--strict)")
    _fill(result, store)
    result.status = "already prepared"


def _fill(result: Prepared, store: Store) -> None:
    train, valid, test = (len(store.classes(split)) for split in ("train", "valid", "test"))
    result.classes, result.images = (train, valid, test), len(store)
    result.unreadable_count = int(store.facts.get("unreadable", 0))
    result.bytes = result.path.stat().st_size
