"""Fonts shipped with matplotlib: their location, their code points, and glyph masks."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from smatcli.data.synthetic.canvas import Array, blurred, rows
from smatcli.errors import SmatError

BOX = 64
LETTER_FONTS = tuple(
    f"DejaVu{family}" for family in
    ("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique", "SansMono", "SansMono-Bold", "SansMono-Oblique", "SansMono-BoldOblique",
     "Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic")
)  # fmt: skip
DIGIT_FONTS = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta", "cmr10", "cmb10", "cmss10", "cmti10", "cmtt10")


@functools.cache
def font_folder() -> Path:
    """Return matplotlib's font folder without importing matplotlib."""
    spec = importlib.util.find_spec("matplotlib")
    folder = Path(spec.origin or "").parent / "mpl-data" / "fonts" / "ttf" if spec else None
    if folder is None or not (folder / "DejaVuSans.ttf").is_file():
        raise SmatError(f"no fonts at {folder}: synthetic data needs matplotlib's fonts; reinstall matplotlib")
    return folder


@functools.cache
def code_points(font: str) -> frozenset[int]:
    """Return the code points that a font has a glyph for (others would be drawn as a box)."""
    from fontTools.ttLib import TTFont

    with TTFont(font_folder() / f"{font}.ttf", lazy=True) as file:
        return frozenset(file.getBestCmap() or ())


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_folder() / f"{name}.ttf", size, layout_engine=ImageFont.Layout.BASIC)


def glyph_mask(font: str, text: str, extent: int = 44) -> Array:
    """Draw the mask of one glyph, [64, 64] in [0, 1], centred; large glyphs are shrunk to `extent` pixels."""
    size = extent
    for attempt in range(2):
        left, top, right, bottom = _font(font, size).getbbox(text)
        longest = max(right - left, bottom - top, 1)
        if longest <= extent or attempt:
            break
        size = max(8, int(size * extent / longest))
    page = Image.new("L", (BOX, BOX))
    at = ((BOX - left - right) / 2, (BOX - top - bottom) / 2)
    ImageDraw.Draw(page).text(at, text, fill=255, font=_font(font, size))
    return np.asarray(page, np.float32) / 255


def stamped(masks: Array, which: NDArray[np.int64], x: Array, y: Array, weight: Array) -> Array:
    """Sample mask number `which` [n] of `masks` [k, 64, 64] at object coordinates x, y: coverage [n, S, S]; `weight` [n] thickens it."""
    column, row = ((np.clip(c, -1, 0.999) + 1) * (BOX / 2) - 0.5 for c in (x, y))
    left, top = np.clip(column.astype(int), 0, BOX - 2), np.clip(row.astype(int), 0, BOX - 2)
    right, down = np.clip(column - left, 0, 1), np.clip(row - top, 0, 1)
    flat = masks.reshape(-1)
    start = which[:, None, None] * (BOX * BOX) + top * BOX + left
    above = flat[start] * (1 - right) + flat[start + 1] * right
    below = flat[start + BOX] * (1 - right) + flat[start + BOX + 1] * right
    ink = above * (1 - down) + below * down
    return np.asarray(np.clip((ink - 0.5 + rows(weight)) * 2.5 + 0.5, 0, 1))


def soft(masks: Array) -> Array:
    """Blur masks by a few pixels, so that a threshold on them changes the stroke weight."""
    return blurred(masks, 1.4)
