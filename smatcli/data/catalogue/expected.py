"""What a store of a known dataset should hold, beside what it holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from smatcli.data.catalogue.known import Counts, Known
from smatcli.data.catalogue.suites import by_name, collections
from smatcli.data.stores.store import Store

_TUNING = {"vtab", "fgvc"}
_NAMED_BY_SOURCE = {"meta-dataset", "pmf-h5", "torchvision"}


@dataclass(frozen=True)
class Item:
    """One number or word that is compared."""

    what: str
    expected: str
    found: str
    agrees: bool


@dataclass(frozen=True)
class Comparison:
    """A store beside the dataset that it should be. `remarks` are differences that are no mistake."""

    known: Known
    items: tuple[Item, ...]
    remarks: tuple[str, ...]

    @property
    def mismatches(self) -> list[str]:
        """One phrase for each item that disagrees, such as "images 1,928, expected 10,000"."""
        return [f"{item.what} {item.found}, expected {item.expected}" for item in self.items if not item.agrees]


def identify(store: Store) -> Known | None:
    """The known dataset that a store claims to be, by its name or by the folder that it was made from; None for any other.

    Synthetic stores never claim to be one; those that are split by image are compared with the tuning benchmarks only.
    """
    kind, _, origin = store.source.partition(" ")
    if store.source.startswith("smat data synthetic"):
        return None
    tuning = kind in _TUNING or store.image_split is not None
    among = tuple(known for name, group in collections().items() for known in group if (name in _TUNING) == tuning)
    folder = PurePath(origin).name
    names = [store.name, f"{kind}_{folder}" if kind in _TUNING else folder if kind in _NAMED_BY_SOURCE else ""]
    return next((known for name in names if (known := by_name(name, among))), None)


def compare(store: Store, known: Known) -> Comparison:
    """The numbers of `known` beside those of the store; nothing is read but its description."""
    return _tuning(store, known) if known.images_by_split else _few_shot(store, known)


def _few_shot(store: Store, known: Known) -> Comparison:
    assert not isinstance(known.classes, int)
    split = np.bincount(store.class_split, minlength=3)
    items, remarks = [_item("classes train/valid/test", counts_text(known.classes), counts_text(split))], []
    if known.images is not None:
        variant = known.variants.get(len(store))
        if variant and len(store.class_names) == known.number_of_classes:
            remarks.append(f"{len(store):,} images: {variant}")
        items.append(_item("images", f"{known.images:,}", f"{len(store):,}", len(store) == known.images or bool(remarks)))
    if known.images_a_class and not remarks:
        found = (int(store.counts.min()), int(store.counts.max()))
        items.append(_item("images a class", _range(known.images_a_class), _range(found)))
    if known.ontology:
        items.append(_item("ontology", known.ontology, store.ontology.kind if store.ontology else "none"))
    return Comparison(known, tuple(items), (*remarks, *_unreadable(store)))


def _tuning(store: Store, known: Known) -> Comparison:
    assert known.images_by_split
    items = [_item("classes", f"{known.number_of_classes:,}", f"{len(store.class_names):,}")]
    found = "none" if store.image_split is None else counts_text(np.bincount(store.image_split, minlength=3))
    items.append(_item("images train/valid/test", counts_text(known.images_by_split), found))
    return Comparison(known, tuple(items), _unreadable(store))


def _unreadable(store: Store) -> tuple[str, ...]:
    count = int(store.facts.get("unreadable", 0))
    return (f"{count:,} unreadable file{'s' * (count > 1)} of the source left out",) if count else ()


def _item(what: str, expected: str, found: str, agrees: bool | None = None) -> Item:
    return Item(what, expected, found, expected == found if agrees is None else agrees)


def counts_text(counts: Counts | Iterable[int]) -> str:
    """(712, 158, 130) -> 712/158/130."""
    return "/".join(f"{int(count):,}" for count in counts)


def _range(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} to {pair[1]:,}"
