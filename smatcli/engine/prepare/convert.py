"""Resumable conversion of a source to a store: decode in parallel, skip and report unreadable images, split the classes, write."""

import io
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from smatcli.data.images import Unreadable, decode_image, fit_image, to_rgb
from smatcli.data.sources import ImageSource
from smatcli.data.stores import writer as store_writer
from smatcli.data.stores.draft import Draft, Mark, records_path
from smatcli.data.stores.store import SPLITS
from smatcli.engine.prepare.duplicates import Duplicates
from smatcli.engine.prepare.journal import Journal, hidden
from smatcli.engine.prepare.ordered import ConversionProgress, ordered_map
from smatcli.engine.prepare.selection import Item, Selection
from smatcli.engine.prepare.settings import Settings
from smatcli.errors import SmatError, UserError
from smatcli.runs.reporter import Reporter
from smatcli.runs.signals import Interrupted, StopRequest
from smatcli.safe.files import atomic_write_text, disk_errors, publish
from smatcli.version import __version__

NAMED = 20  # unreadable images that are named one by one; if there are more, a text file lists all of them
MOST_UNREADABLE = 1_000_000
EVERY = 64  # images per progress update
MARK_SECONDS = 10.0  # images between journal entries: the most that a killed process loses


@dataclass
class Conversion:
    """Write `target` from `source`; afterwards `unreadable` has (image, reason) for every skipped image."""

    source: ImageSource
    origin: str  # origin of the images, recorded in the store
    name: str
    target: Path
    settings: Settings
    reporter: Reporter
    workers: int
    strict: bool = False
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def run(self, fingerprint: str, journal: Journal) -> None:
        """Run the conversion.

        Raises UserError for a class that is too small (without `min_images`), an invalid splits file or, if `strict`, an unreadable image.
        Raises Interrupted on SIGINT or SIGTERM, and keeps draft and journal so that the same call continues. An error deletes them.
        """
        draft = None
        try:
            self.unreadable.clear()
            self.progress = ConversionProgress([], self.unreadable)
            self.duplicates = Duplicates()
            self.selection = Selection(self.source.classes(), self.name, self.settings, self.reporter, getattr(self.source, "dropped", ()))
            with disk_errors(self.target, UserError):
                draft = self._draft(journal, {"fingerprint": fingerprint, "smat": __version__, "pillow": PIL.__version__})
                self._convert(draft, journal)
                self._finish(draft, fingerprint)
            journal.close(remove=True)
        except BaseException as error:
            if draft is not None:
                draft.close()
            if isinstance(error, SmatError) and not isinstance(error, Interrupted):
                self._discard(journal)
            else:
                journal.close()
            raise
        finally:
            self.reporter.finish()

    def _draft(self, journal: Journal, header: dict[str, Any]) -> Draft:
        """Return the draft of an earlier attempt with the same settings, or a new one."""
        path, records = hidden(self.target, "draft.h5"), self.settings.encoding != "raw" or self.selection.by_image
        before = journal.header or {}
        if path.exists() and journal.entries and all(before.get(key) == value for key, value in header.items()):
            with suppress(OSError, ValueError, KeyError, TypeError):
                progress = ConversionProgress.read(journal.entries, self.unreadable)
                draft = Draft(path, records, Mark(**journal.entries[-1]["mark"]))
                self.progress = progress
                image_bytes = self.settings.size**2 * 3 if self.settings.encoding == "raw" else None
                self.duplicates.add_stored(draft, [*progress.counts, progress.kept], image_bytes)
                self.reporter.line(f"{self.name}: continuing at image {self._done():,} of {self.selection.total:,}")
                return draft
        if path.exists():
            self.reporter.line(f"{self.name}: discarding an unfinished attempt that cannot be continued")
        self.unreadable.clear()
        journal.restart(header)
        needed, free = self.selection.total * self.settings.size**2 * 3, shutil.disk_usage(path.parent).free
        if self.settings.encoding == "raw" and needed > free:
            self.reporter.line(f"{self.name}: needs about {needed / 1e9:,.1f} GB, but only {free / 1e9:,.1f} GB are free")
        return Draft(path, records)

    def _convert(self, draft: Draft, journal: Journal) -> None:
        progress = self.progress
        self.reporter.start(self.selection.total, self.name, done=self._done(), unit="images")
        began = time.monotonic()
        rest = self.selection.items(len(progress.counts), progress.seen)
        with warnings.catch_warnings(), StopRequest() as stop, closing(ordered_map(self._decode, rest, self.workers)) as decoded:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            for done, ((index, before, position), image) in enumerate(decoded, self._done() + 1):
                while len(progress.counts) < index:
                    self._end_class()
                if isinstance(image, str):
                    self._add_unreadable(index, position, image)
                else:
                    self._add(draft, index, position, image)
                progress.seen = before + 1
                if done % EVERY == 0:
                    self.reporter.update(done, unreadable=len(self.unreadable))
                if stop:
                    journal.add(progress.entry(draft.mark()))
                    raise self._stopped(stop.signum or 0, done)
                if time.monotonic() - began > MARK_SECONDS:
                    journal.add(progress.entry(draft.mark()))
                    began = time.monotonic()
        while len(progress.counts) < len(self.selection.classes):
            self._end_class()
        self.reporter.update(self.selection.total, unreadable=len(self.unreadable))
        self.reporter.finish()
        self._report_unreadable()

    def _stopped(self, signum: int, done: int) -> Interrupted:
        where = f"{signal.Signals(signum).name} at image {done:,} of {self.selection.total:,}"
        return Interrupted(signum, f"{self.name}: stopped by {where}; progress is kept, the same command continues")

    def _decode(self, item: Item) -> np.ndarray | bytes | str:
        """Return the pixels or the encoded image, depending on the store's encoding, or the reason why the image cannot be read."""
        index, _, position = item
        size, fit = self.settings.size, self.settings.fit
        try:
            data = self.source.read(self.selection.classes[index].images[position])
            pixels = decode_image(data, size, fit) if isinstance(data, bytes) else _fitted(data, size, fit)
            return pixels if self.settings.encoding == "raw" else encode(data, pixels)
        except Unreadable as error:
            return str(error)

    def _add(self, draft: Draft, index: int, position: int, image: np.ndarray | bytes) -> None:
        """Write the image, or hold it back until its class has enough images."""
        progress, c = self.progress, self.selection.classes[index]
        split = SPLITS.index(c.image_splits[position]) if c.image_splits is not None else 0
        progress.held.append((image, split))
        if progress.kept + len(progress.held) < self.settings.fewest:
            return
        where = f"{self.name}, class {c.name!r}"
        for data, code in progress.held:
            if isinstance(data, bytes):
                draft.append(data, code)
            else:
                store_writer.append(draft, [data], self.settings.size, where)
                draft.record(0, code)
            self.duplicates.add(data, index)
            progress.kept += 1
        progress.held.clear()

    def _end_class(self) -> None:
        progress = self.progress
        c = self.selection.classes[len(progress.counts)]
        if progress.kept == 0:
            self.selection.too_small(c, len(progress.held), self.unreadable[progress.unreadable_before :])
        progress.end_class()

    def _finish(self, draft: Draft, fingerprint: str) -> None:
        settings, counts = self.settings, self.progress.counts
        kept = [c.name for c, count in zip(self.selection.classes, counts, strict=True) if count]
        contents = store_writer.Contents(
            name=self.name,
            image_size=settings.size,
            classes=kept,
            counts=[count for count in counts if count],
            split=self.selection.split(kept),
            encoding=settings.encoding,
            split_by_image=self.selection.by_image,
            ontology=self._ontology(kept),
            source=self.origin,
            licence=settings.licence,
            facts={"fit": settings.fit, "fingerprint": fingerprint, "unreadable": len(self.unreadable)},
        )
        if line := self.duplicates.line([c.name for c in self.selection.classes]):
            self.reporter.line(f"{self.name}: {line}")
        store_writer.finish(draft, contents)
        publish(draft.path, self.target)
        draft.records_path.unlink(missing_ok=True)

    def _ontology(self, kept: list[str]) -> str | None:
        ontology, there = self.source.ontology, set(kept)
        if ontology is None:
            return None
        if self.settings.splits is not None:
            self.reporter.line(f"{self.name}: ontology skipped: {self.settings.splits} splits the classes differently")
            return None
        return ontology.keep([i for i, c in enumerate(self.selection.listed) if c.name in there]).to_json()

    def _discard(self, journal: Journal) -> None:
        draft = hidden(self.target, "draft.h5")
        for path in (draft, records_path(draft), store_writer.frame_path(draft)):
            path.unlink(missing_ok=True)
        journal.close(remove=True)

    def _done(self) -> int:
        return self.selection.before(len(self.progress.counts), self.progress.seen)

    def _add_unreadable(self, index: int, position: int, reason: str) -> None:
        c = self.selection.classes[index]
        image = c.images[position]
        describe: Callable[[Any], str] | None = getattr(self.source, "describe", None)
        name = describe(image) if describe else image if isinstance(image, str) else f"{c.name}, image {position}"
        self.unreadable.append((name, reason))
        if len(self.unreadable) > MOST_UNREADABLE or (self.strict and len(self.unreadable) > NAMED):
            self._report_unreadable()

    def _report_unreadable(self) -> None:
        bad = self.unreadable
        if not bad:
            return
        text = [f"{image}: {reason}" for image, reason in bad]
        if self.strict or len(bad) > MOST_UNREADABLE:
            many = f"more than {NAMED}" if len(bad) > NAMED else len(bad)
            why = " (--no-strict skips them)" if self.strict else "; check the source"
            raise UserError(f"{self.name}: {many} unreadable{why}: {'; '.join(text[:NAMED])}")
        for line in text[:NAMED]:
            self.reporter.line(f"{self.name}: unreadable: {line}")
        if len(bad) > NAMED:
            file = self.target.with_suffix(".unreadable.txt")
            atomic_write_text(file, "".join(f"{line}\n" for line in text))
            self.reporter.line(f"{self.name}: unreadable: {len(bad) - NAMED} more, all {len(bad)} are listed in {file}")


def _fitted(pixels: np.ndarray, size: int, fit: Any) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise Unreadable(f"pixels are {pixels.dtype} {list(pixels.shape)}, not uint8 [H, W, 3]")
    return np.asarray(fit_image(to_rgb(Image.fromarray(pixels)), size, fit))


QUALITY = 95


def encode(source: bytes | np.ndarray, fitted: np.ndarray) -> bytes:
    """Return the original image, or its fitted pixels (uint8 [S, S, 3]) as a JPEG of quality 95, 4:4:4, whichever is smaller.

    The original is the file itself, or a PNG of pixels [H, W, 3] (not more than the fitted image has), so that small drawings are lossless.
    """
    choices = [_save(Image.fromarray(fitted), "JPEG", quality=QUALITY, subsampling=0)]
    if isinstance(source, bytes):
        choices.append(source)
    elif source.size <= fitted.size:
        grey = (source == source[..., :1]).all()
        choices.append(_save(Image.fromarray(source[..., 0] if grey else source), "PNG"))
    return min(reversed(choices), key=len)


def _save(image: Image.Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
