"""Comparison of a store with the known dataset that it should be."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from smatcli.data.catalogue.datasets import COLLECTIONS, Counts, KnownDataset, find_dataset
from smatcli.data.stores.store import Store

_TUNING = {"vtab", "fgvc"}
_NAMED_BY_SOURCE = {"meta-dataset", "pmf-h5", "torchvision"}


@dataclass(frozen=True)
class ComparedFact:
    """One number or word of a store beside the expected one."""

    what: str
    expected: str
    actual: str
    agrees: bool


@dataclass(frozen=True)
class Comparison:
    """A store beside the dataset that it should be. `remarks` are differences that are not mistakes."""

    dataset: KnownDataset
    items: tuple[ComparedFact, ...]
    remarks: tuple[str, ...]

    @property
    def mismatches(self) -> list[str]:
        """One phrase per item that disagrees, such as "images 1,928, expected 10,000"."""
        return [f"{item.what} {item.actual}, expected {item.expected}" for item in self.items if not item.agrees]


def identify(store: Store) -> KnownDataset | None:
    """Return the known dataset that a store claims to be, by its name or by the folder that it was prepared from, or None.

    Synthetic stores are never a known dataset. Stores that are split by image are compared with the tuning benchmarks only.
    """
    kind, _, origin = store.source.partition(" ")
    if store.source.startswith("smat data synthetic"):
        return None
    tuning = kind in _TUNING or store.image_split is not None
    candidates = tuple(dataset for name, group in COLLECTIONS.items() for dataset in group if (name in _TUNING) == tuning)
    folder = PurePath(origin).name
    names = [store.name, f"{kind}_{folder}" if kind in _TUNING else folder if kind in _NAMED_BY_SOURCE else ""]
    return next((dataset for name in names if (dataset := find_dataset(name, candidates))), None)


def compare(store: Store, dataset: KnownDataset) -> Comparison:
    """Compare the numbers of `dataset` with those of the store; only the store's description is read."""
    return _tuning(store, dataset) if dataset.images_by_split else _few_shot(store, dataset)


def _few_shot(store: Store, dataset: KnownDataset) -> Comparison:
    assert not isinstance(dataset.classes, int)
    split = np.bincount(store.class_split, minlength=3)
    items, remarks = [_item("classes train/valid/test", counts_text(dataset.classes), counts_text(split))], []
    if dataset.images is not None:
        variant = dataset.variants.get(len(store))
        if variant and len(store.class_names) == dataset.number_of_classes:
            remarks.append(f"{len(store):,} images: {variant}")
        items.append(_item("images", f"{dataset.images:,}", f"{len(store):,}", len(store) == dataset.images or bool(remarks)))
    if dataset.images_per_class and not remarks:
        actual = (int(store.counts.min()), int(store.counts.max()))
        items.append(_item("images per class", _range(dataset.images_per_class), _range(actual)))
    if dataset.ontology:
        items.append(_item("ontology", dataset.ontology, store.ontology.kind if store.ontology else "none"))
    return Comparison(dataset, tuple(items), (*remarks, *_unreadable(store)))


def _tuning(store: Store, dataset: KnownDataset) -> Comparison:
    assert dataset.images_by_split
    items = [_item("classes", f"{dataset.number_of_classes:,}", f"{len(store.class_names):,}")]
    actual = "none" if store.image_split is None else counts_text(np.bincount(store.image_split, minlength=3))
    items.append(_item("images train/valid/test", counts_text(dataset.images_by_split), actual))
    return Comparison(dataset, tuple(items), _unreadable(store))


def _unreadable(store: Store) -> tuple[str, ...]:
    count = int(store.facts.get("unreadable", 0))
    return (f"{count:,} unreadable file{'s' * (count > 1)} of the source skipped",) if count else ()


def _item(what: str, expected: str, actual: str, agrees: bool | None = None) -> ComparedFact:
    return ComparedFact(what, expected, actual, expected == actual if agrees is None else agrees)


def counts_text(counts: Counts | Iterable[int]) -> str:
    """Write (712, 158, 130) as 712/158/130."""
    return "/".join(f"{int(count):,}" for count in counts)


def _range(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} to {pair[1]:,}"
