"""Selection of the classes and images of a source for a store, and their splits. No image is read."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from smatcli.data.sources import SourceClass
from smatcli.data.sources.parts import class_key
from smatcli.data.stores import splits
from smatcli.data.stores.store import SPLITS
from smatcli.engine.prepare.settings import Settings
from smatcli.errors import UserError
from smatcli.runs.reporter import Reporter

Item = tuple[int, int, int]  # class, number of its images before this one, position among its images


class Selection:
    """The classes and images of a source that are stored.

    `classes` are those of `listed` with enough files, `total` is the number of their selected images, `by_image` whether images rather than
    classes are split; `dropped` are classes that the source skips.

    Raises UserError for a class that is too small (without `min_images`) or given twice, for an invalid splits file, and for a split if
    the source has its own.
    """

    def __init__(
        self, listed: Sequence[SourceClass], name: str, settings: Settings, reporter: Reporter, dropped: Sequence[str] = ()
    ) -> None:
        self.listed, self.name, self.settings, self.reporter, self.dropped = listed, name, settings, reporter, dropped
        self.by_image = any(c.image_splits is not None for c in listed)
        self._codes = self._class_codes()
        self.classes = self._large_enough()
        self.total = sum(map(self.count, self.classes))

    def items(self, first: int = 0, seen: int = 0) -> Iterator[Item]:
        """Yield the selected images, starting at image `seen` of class `first`.

        The keys of the images, maybe millions, are not looked up.
        """
        for index, c in enumerate(self.classes[first:], first):
            positions = self._positions(c)
            for before in range(seen, len(positions)):
                yield index, before, int(positions[before])
            seen = 0

    def before(self, first: int, seen: int) -> int:
        """Return the number of selected images before image `seen` of class `first`."""
        return sum(map(self.count, self.classes[:first])) + seen

    def count(self, c: SourceClass) -> int:
        """Return the number of selected images of a class."""
        return min(len(c.images), self.settings.max_per_class or len(c.images))

    def _positions(self, c: SourceClass) -> Sequence[int] | np.ndarray:
        """Return the positions of the selected images in ascending order: all images, or `max_per_class` random ones."""
        if self.count(c) == len(c.images):
            return range(len(c.images))
        return np.sort(_chance_order(len(c.images), f"images/{self.settings.seed}/{self.name}/{c.name}")[: self.count(c)])

    def _large_enough(self) -> list[SourceClass]:
        """Return the classes with enough files. Only later is it known how many of these can be read."""
        kept = []
        for c in self.listed:
            if len(c.images) < self.settings.fewest:
                self.too_small(c, len(c.images), [])
            else:
                kept.append(c)
        if not kept:
            raise UserError(f"{self.name}: no class has {self.settings.fewest} images")
        names = {c.name for c in kept}
        if len(names) < len(kept):
            twice = next(c.name for c in kept if sum(other.name == c.name for other in kept) > 1)
            raise UserError(f"{self.name}: the class {twice!r} is given twice")
        alike: dict[str, list[str]] = {}
        for c in kept:
            alike.setdefault(class_key(c.name), []).append(c.name)
        for group in alike.values():
            if len(group) > 1:
                listed = ", ".join(map(repr, group[:5])) + (f" and {len(group) - 5} more" if len(group) > 5 else "")
                self.reporter.line(f"{self.name}: the classes {listed} differ only by case, Unicode form or blanks")
        return kept

    def too_small(self, c: SourceClass, readable: int, bad: Sequence[tuple[str, str]]) -> None:
        """Report that a class is dropped, or raise UserError if that is not allowed; `bad`: (image, reason) per unreadable image."""
        files = self.count(c)
        kind = "" if readable == files else "readable "
        have = {0: f"no {kind}image", 1: f"one {kind}image"}.get(readable, f"{readable} {kind}images")
        reasons = "; ".join(f"{image}: {reason}" for image, reason in bad[:20])
        of = f" ({files} file{'s' * (files > 1)}; {reasons[:300]})" if kind else ""
        if self.settings.min_images is None:
            raise UserError(
                f"{self.name}: class {c.name!r} has {have}{of}: an episode needs support and query; "
                "add images, or drop such classes with --min-images 2"
            )
        self.reporter.line(f"{self.name}: class {c.name!r} dropped: {have}{of}, fewer than {self.settings.min_images}")

    def _class_codes(self) -> dict[str, int] | None:
        """Return the split code of each class of the source, or None if the split is random. Raises UserError for impossible splits."""
        names, own = [c.name for c in self.listed], [c.split for c in self.listed]
        listed, asked = self.settings.splits, self.settings.split_asked
        if self.by_image or any(own):
            kind = "every image" if self.by_image else "every class"
            if asked or (listed is not None and self.by_image):
                raise UserError(f"{self.name}: its files define the split of {kind}; remove --split and --splits")
        if self.by_image:
            for c in self.listed:
                if c.image_splits is None or len(c.image_splits) != len(c.images):
                    raise UserError(f"{self.name}: class {c.name!r} does not have one split for each of its {len(c.images)} images")
            return dict.fromkeys(names, 0)
        if listed is not None:
            codes = splits.split_by_names(names, splits.read_splits(listed, self.name), listed, self.dropped)
            return dict(zip(names, codes.tolist(), strict=True))
        if not any(own):
            return None
        if None in own:
            raise UserError(f"{self.name}: the source has no split for class {names[own.index(None)]!r}, but has one for other classes")
        return {name: SPLITS.index(split) for name, split in zip(names, own, strict=True) if split is not None}

    def split(self, names: list[str]) -> list[int]:
        """Return the split codes of the classes `names`, which are those that are kept."""
        if self._codes is not None:
            return [self._codes[name] for name in names]
        shares = splits.parse_shares(self.settings.split)
        if remark := splits.split_remark(len(names), shares):
            self.reporter.line(f"{self.name}: {remark}")
        return [int(code) for code in splits.split_by_chance(names, self.name, shares, self.settings.seed)]


def _chance_order(count: int, key: str) -> np.ndarray:
    """Return a permutation that depends only on `key` (from raw Philox numbers, which are the same in all numpy versions)."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    return np.argsort(np.random.Philox(key=number).random_raw(count), kind="stable")
