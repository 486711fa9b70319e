"""Stores with one pixel per image and the class counts of known datasets."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from smatcli.data.catalogue.datasets import COLLECTIONS, KnownDataset
from smatcli.data.stores.ontology import Node, Ontology
from smatcli.data.stores.store import write_store

PAPER = COLLECTIONS["paper"]


def paper(name: str) -> KnownDataset:
    return next(known for known in PAPER if known.name == name)


def spread(known: KnownDataset) -> list[int]:
    """Return image counts per class with the known total, and the known minimum and maximum for the first two classes."""
    low, high = known.images_per_class or (2, 10**9)
    count, total = known.number_of_classes, known.images or 0
    counts = [low] * count
    if known.images_per_class:
        counts[1] = high
    for i in [*range(2, count), 1]:
        counts[i] += min(high - counts[i], total - sum(counts))
    assert sum(counts) == total
    return counts


def write_known(folder: Path, known: KnownDataset, counts: list[int] | None = None, split: list[int] | None = None, **options) -> Path:
    """Write a store of `known`, optionally with other `counts` or `split`."""
    counts = spread(known) if counts is None else counts
    assert isinstance(known.classes, tuple)
    split = np.repeat([0, 1, 2], known.classes).tolist() if split is None else split
    classes = ((f"c{i}", code, np.zeros((n, 1, 1, 3), np.uint8)) for i, (n, code) in enumerate(zip(counts, split, strict=True)))
    given = {"name": known.name, "source": f"meta-dataset RECORDS/{known.name}", **options}
    if known.ontology and "ontology" not in given:
        given["ontology"] = Ontology(known.ontology, {"train": (Node("a", "a", (0, 1)),)}).to_json()  # type: ignore[arg-type]
    name = given.pop("name")
    folder.mkdir(parents=True, exist_ok=True)
    return write_store(folder / f"{name}.h5", name, 1, classes, **given)


def write_task(folder: Path, known: KnownDataset, images: tuple[int, int, int], classes: int, source: str) -> Path:
    """Write a store that is split by image."""
    codes = np.repeat([0, 1, 2], images).astype(np.uint8)
    bounds = np.linspace(0, len(codes), classes + 1).astype(int)
    blocks = ((f"{i}", 0, np.zeros((b - a, 1, 1, 3), np.uint8)) for i, (a, b) in enumerate(pairwise(bounds)))
    folder.mkdir(parents=True, exist_ok=True)
    return write_store(folder / f"{known.name}.h5", known.name, 1, blocks, source, image_split=codes)
