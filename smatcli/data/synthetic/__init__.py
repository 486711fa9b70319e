"""Synthetic datasets: seven training domains and four unseen ones, generated from a seed without any download."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from smatcli.data.stores.splits import class_counts
from smatcli.data.stores.store import Store, write_store
from smatcli.data.synthetic import glyphs, plants, shapes, signs, sketches, small_worlds, textures, tilings
from smatcli.data.synthetic.canvas import Draws
from smatcli.errors import UserError, nearest

LICENCE = "generated, CC0"
GENERATION = 1  # increment whenever a drawing changes; it is part of a store's fingerprint


@dataclass(frozen=True)
class Domain:
    """A family of classes; `role` is "id" (training domain) or "ood" (unseen).

    `catalogue(draws)` returns (class name, specification) pairs; `draw(spec, draws, n, size)` returns uint8 [n, size, size, 3].
    """

    role: str
    description: str
    catalogue: Callable[[Draws], list[tuple[str, Any]]]
    draw: Callable[[Any, Draws, int, int], NDArray[np.uint8]]


DOMAINS: dict[str, Domain] = {
    "glyphs": Domain("id", "characters of sixteen scripts and symbol sets in twelve fonts", glyphs.letter_catalogue, glyphs.draw_letter),
    "textures": Domain("id", "procedural textures of thirteen families", textures.texture_catalogue, textures.draw_texture),
    "shapes": Domain("id", "filled outlines with five kinds of interior", shapes.shape_catalogue, shapes.draw_shape),
    "signs": Domain("id", "road signs: frame, colours, pictogram", signs.sign_catalogue, signs.draw_sign),
    "sketches": Domain("id", "line drawings from random stroke programs", sketches.sketch_catalogue, sketches.draw_sketch),
    "flowers": Domain("id", "flowers: petals, colour, whorls", plants.flower_catalogue, plants.draw_flower),
    "fungi": Domain("id", "mushrooms: cap, stem, markings, colour", plants.mushroom_catalogue, plants.draw_mushroom),
    "numbers": Domain("ood", "two-digit numbers in nine fonts that no training domain uses", glyphs.number_catalogue, glyphs.draw_number),
    "sprites": Domain("ood", "mirror-symmetric pixel sprites", small_worlds.sprite_catalogue, small_worlds.draw_sprite),
    "tilings": Domain("ood", "plane patterns with 2-, 3-, 4- or 6-fold symmetry", tilings.tiling_catalogue, tilings.draw_tiling),
    "cells": Domain("ood", "cells under a microscope", small_worlds.cell_catalogue, small_worlds.draw_cells),
}


class DrawingReporter(Protocol):
    """The methods of an engine's reporter that are used here."""

    def line(self, text: str) -> None: ...

    def start(self, total: int, what: str) -> None: ...

    def update(self, done: int) -> None: ...

    def finish(self) -> None: ...


def make_synthetic(
    out: Path,
    seed: int = 0,
    size: int = 32,
    classes: int = 40,
    per_class: int = 30,
    domains: Sequence[str] | None = None,
    reporter: DrawingReporter | None = None,
) -> list[Path]:
    """Write one store `<out>/<domain>.h5` per domain (`domains` None: all) and return the paths.

    Equal seed and size give equal images; more classes or images only add to them. The classes of a training domain are split 60/15/25 into
    train/valid/test; all classes of an unseen domain are test classes. A store that already has the same content is kept.
    Before drawing, raises UserError for an unknown domain, a number out of range, or an existing store with other content.
    """
    out = Path(out)
    names = list(dict.fromkeys(DOMAINS if domains is None else domains))
    _check(names, seed, size, classes, per_class)
    catalogues = {name: catalogue(name, seed) for name in names}
    for name in names:
        if classes > len(catalogues[name]):
            raise UserError(f"domain {name}: has {len(catalogues[name])} classes, {classes} were requested; choose fewer")
    facts = {"fingerprint": f"synthetic/{GENERATION} seed {seed}, {classes} x {per_class}, {size} px"}
    paths = {name: out / f"{name}.h5" for name in names}
    missing = [name for name in names if not _already_drawn(paths[name], facts["fingerprint"])]
    out.mkdir(parents=True, exist_ok=True)
    if reporter:
        if len(missing) < len(names):
            reporter.line(f"{len(names) - len(missing)} of {len(names)} synthetic datasets exist in {out} already and are kept")
        reporter.start(classes * len(missing), "drawing")
    try:
        for position, name in enumerate(missing):
            drawn = _draw_classes(name, catalogues[name][:classes], seed, size, per_class, reporter, position * classes)
            write_store(paths[name], name, size, drawn, f"smat data synthetic, seed {seed}", LICENCE, facts=facts)
    finally:
        if reporter:
            reporter.finish()
    return list(paths.values())


@functools.lru_cache(maxsize=64)
def catalogue(domain: str, seed: int = 0) -> list[tuple[str, Any]]:
    """Return (name, specification) of all classes of a domain, in the order of the store."""
    return DOMAINS[domain].catalogue(Draws(seed, domain))


def draw_class(domain: str, index: int, seed: int = 0, size: int = 32, per_class: int = 30) -> NDArray[np.uint8]:
    """Draw the images of class `index`, uint8 [per_class, size, size, 3]; image j is the same for any `per_class` > j."""
    return DOMAINS[domain].draw(catalogue(domain, seed)[index][1], Draws(seed, domain, index + 1), per_class, size)


def _draw_classes(
    domain: str, classes: list[tuple[str, Any]], seed: int, size: int, per_class: int, reporter: DrawingReporter | None, done: int
) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
    shares = (60, 15, 25) if DOMAINS[domain].role == "id" else (0, 0, 100)
    split = np.repeat(np.arange(3), class_counts(len(classes), shares))
    for index, (name, _) in enumerate(classes):
        yield name, int(split[index]), draw_class(domain, index, seed, size, per_class)
        if reporter:
            reporter.update(done + index + 1)


def _check(names: Sequence[str], seed: int, size: int, classes: int, per_class: int) -> None:
    for name in names:
        if name not in DOMAINS:
            raise UserError(f"unknown synthetic domain {name!r}{nearest(name, list(DOMAINS))} (available: {', '.join(DOMAINS)})")
    if not names:
        raise UserError(f"no synthetic domain given (available: {', '.join(DOMAINS)})")
    ranges = (("seed", seed, 0, 2**63), ("size", size, 8, 512), ("classes", classes, 1, 1000), ("per_class", per_class, 1, 10000))
    for what, value, low, high in ranges:
        if not low <= value <= high:
            raise UserError(f"synthetic data: {what} is {value}, must be between {low} and {high}")


def _already_drawn(path: Path, fingerprint: str) -> bool:
    """Return whether the store exists. Raises UserError if it has other content than would be drawn."""
    if not path.exists():
        return False
    if Store.open(path).facts.get("fingerprint") != fingerprint:
        raise UserError(f"{path}: exists and was generated with other settings; choose another folder, or remove it first")
    return True
