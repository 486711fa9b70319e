"""One source to one store: decode in parallel, leave out what cannot be read and say so, split the classes, write."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from smatcli.data import splits
from smatcli.data.images import Fit, Unreadable, decode_image, fit_image, to_rgb
from smatcli.data.sources import Source, SourceClass
from smatcli.data.store import SPLITS, write_store
from smatcli.engine.ordered import ordered_map
from smatcli.engine.reporter import Reporter
from smatcli.errors import UserError
from smatcli.files import atomic_write_text

NAMED = 20  # unreadable images named one by one; if there are more, a text file lists all of them
EVERY = 64  # images between two progress updates


@dataclass(frozen=True)
class Settings:
    """What decides the content of a store, besides the source. Raises UserError for values that make no sense."""

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

    @property
    def fewest(self) -> int:
        """Readable images that a class needs."""
        return self.min_images or 2


@dataclass
class Conversion:
    """Writes `target` from `source`; afterwards `unreadable` holds (image, reason) of every image that was left out."""

    source: Source
    origin: str  # where the images come from, kept in the store
    name: str
    target: Path
    settings: Settings
    reporter: Reporter
    workers: int
    strict: bool = False
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def run(self, fingerprint: str, replace: bool) -> None:
        """Raises UserError for a class that is too small (without `min_images`), a wrong splits file, or (strict) an unreadable image."""
        settings, listed = self.settings, self.source.classes()
        assign = self._assigner(listed)
        classes = self._large_enough(listed)
        facts: dict[str, Any] = {"fit": settings.fit, "fingerprint": fingerprint, "unreadable": 0}
        work = [(index, image) for index, c in enumerate(classes) for image in c.images]
        self.reporter.start(len(work), self.name, unit="images")
        with warnings.catch_warnings(), closing(ordered_map(self._decode, work, self.workers)) as decoded:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            images = self._classes(classes, self._noted(decoded), len(work), facts)
            write_store(
                self.target, self.name, settings.size, images, self.origin, settings.licence, facts=facts, assign=assign, replace=replace
            )

    def _decode(self, item: tuple[int, str]) -> np.ndarray | str:
        """The image, or why it cannot be read."""
        try:
            data = self.source.read(item[1])
            if isinstance(data, bytes):
                return decode_image(data, self.settings.size, self.settings.fit)
            from PIL import Image

            return np.asarray(fit_image(to_rgb(Image.fromarray(data)), self.settings.size, self.settings.fit))
        except Unreadable as error:
            return str(error)

    def _noted(self, decoded: Iterator[tuple[tuple[int, str], np.ndarray | str]]) -> Iterator[tuple[int, np.ndarray | None]]:
        """Class index and image, None in the place of an unreadable one."""
        for done, ((index, image), pixels) in enumerate(decoded, 1):
            if isinstance(pixels, str):
                self.unreadable.append((image, pixels))
            if done % EVERY == 0:
                self.reporter.update(done, unreadable=len(self.unreadable))
            yield index, None if isinstance(pixels, str) else pixels

    def _classes(
        self, classes: Sequence[SourceClass], images: Iterator[tuple[int, np.ndarray | None]], total: int, facts: dict[str, Any]
    ) -> Iterator[tuple[str, int, Iterator[np.ndarray]]]:
        for index, group in groupby(images, key=lambda pair: pair[0]):
            readable = (image for _, image in group if image is not None)
            head = list(islice(readable, self.settings.fewest))
            if len(head) < self.settings.fewest:
                self._too_small(classes[index], len(head))
            else:
                yield classes[index].name, 0, chain(head, readable)
        self.reporter.update(total, unreadable=len(self.unreadable))
        self.reporter.finish()
        facts["unreadable"] = len(self.unreadable)
        self._say_unreadable()

    def _large_enough(self, classes: Sequence[SourceClass]) -> list[SourceClass]:
        """The classes with enough files; how many of them are readable is only known later."""
        kept = []
        for c in classes:
            if len(c.images) < self.settings.fewest:
                self._too_small(c, len(c.images))
            else:
                kept.append(c)
        if not kept:
            raise UserError(f"{self.name}: no class has {self.settings.fewest} images")
        return kept

    def _too_small(self, c: SourceClass, readable: int) -> None:
        files = len(c.images)
        kind = "" if readable == files else "readable "
        have = {0: f"no {kind}image", 1: f"one {kind}image"}.get(readable, f"{readable} {kind}images")
        reasons = "; ".join(f"{image}: {reason}" for image, reason in self.unreadable if image in set(c.images)) if kind else ""
        of = f" ({files} file{'s' * (files > 1)}; {reasons[:300]})" if kind else ""
        if self.settings.min_images is None:
            raise UserError(
                f"{self.name}: class {c.name!r} has {have}{of}: an episode needs support and query; "
                "add images, or drop such classes with --min-images 2"
            )
        self.reporter.line(f"{self.name}: class {c.name!r} dropped: {have}{of}, fewer than {self.settings.min_images}")

    def _assigner(self, listed: Sequence[SourceClass]) -> Callable[[list[str]], Sequence[int]]:
        """Gives the split codes of the classes that are kept; a splits file is checked at once, against all classes of the source."""
        if self.settings.splits is not None:
            chosen = splits.read_splits(self.settings.splits, self.name)
            splits.split_by_names([c.name for c in listed], chosen, self.settings.splits)
        elif listed and all(c.split is not None for c in listed):
            chosen = {c.name: c.split for c in listed if c.split is not None}
        else:
            return self._by_chance
        return lambda names: [SPLITS.index(chosen[name]) for name in names]

    def _by_chance(self, names: list[str]) -> Sequence[int]:
        shares = splits.parse_shares(self.settings.split)
        if remark := splits.split_remark(len(names), shares):
            self.reporter.line(f"{self.name}: {remark}")
        return splits.split_by_chance(names, self.name, shares, self.settings.seed).tolist()

    def _say_unreadable(self) -> None:
        bad = self.unreadable
        if not bad:
            return
        text = [f"{image}: {reason}" for image, reason in bad]
        if self.strict:
            more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
            raise UserError(f"{self.name}: {len(bad)} unreadable (--strict): {'; '.join(text[:NAMED])}{more}")
        for line in text[:NAMED]:
            self.reporter.line(f"{self.name}: unreadable: {line}")
        if len(bad) > NAMED:
            file = self.target.with_suffix(".unreadable.txt")
            atomic_write_text(file, "".join(f"{line}\n" for line in text))
            self.reporter.line(f"{self.name}: unreadable: {len(bad) - NAMED} more, all {len(bad)} are listed in {file}")
