"""Generated data sets: seven training domains and four unseen ones, drawn from a seed; nothing is downloaded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from smatcli.data.synthetic import glyphs, plants, shapes, signs, sketches, small_worlds, textures
from smatcli.data.synthetic.canvas import Draws
from smatcli.errors import UserError, nearest

LICENCE = "generated, CC0"


@dataclass(frozen=True)
class Domain:
    """A family of classes. `catalogue(draws)` lists (class name, specification); `draw(spec, draws, n, size)` -> uint8 [n, size, size, 3]."""

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
    "tilings": Domain("ood", "plane patterns with 2-, 3-, 4- or 6-fold symmetry", textures.tiling_catalogue, textures.draw_tiling),
    "cells": Domain("ood", "cells under a microscope", small_worlds.cell_catalogue, small_worlds.draw_cells),
}


class Progress(Protocol):
    """The part of the engine's reporter that is used here."""

    def start(self, total: int, what: str) -> None: ...

    def update(self, done: int, **numbers: float) -> None: ...

    def finish(self) -> None: ...


def draw_class(domain: str, index: int, seed: int = 0, size: int = 32, per_class: int = 30) -> NDArray[np.uint8]:
    """Images uint8 [per_class, size, size, 3] of one class; image j is the same for any `per_class` > j and any other classes."""
    _, spec = DOMAINS[domain].catalogue(Draws(seed, domain))[index]
    return DOMAINS[domain].draw(spec, Draws(seed, domain, index + 1), per_class, size)
