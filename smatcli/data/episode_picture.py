"""A picture of one episode: for each class its name, its support images and, behind a line, its query images."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from smatcli.data.contact_sheet import font, shortened
from smatcli.data.episodes import EpisodePlan
from smatcli.errors import UserError
from smatcli.files import atomic_path

_SUPPORT, _QUERY = "#1b6e3c", "#8a1c1c"
_GAP, _HEAD = 2, 48
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".pdf")


def episode_picture(store: Any, plan: EpisodePlan, title: str, most: int = 12) -> Image.Image:
    """One row a class, at most `most` support and `most` query images in it; the numbers say how many there are."""
    sides = [(plan.support, plan.support_labels), (plan.query, plan.query_labels)]
    parts = [[rows[labels == c] for rows, labels in sides] for c in range(len(plan.classes))]
    columns = [max(min(most, len(own[side])) for own in parts) for side in (0, 1)]
    side = max(48, min(128, store.image_size))
    large, small = font(15), font(12)
    names = [shortened(store.class_names[c], 32) for c in plan.classes]
    margin = 14 + round(max([large.getlength(n) for n in names] + [small.getlength("000 support, 000 query")]))
    middle = margin + columns[0] * (side + _GAP)
    width = max(middle + 8 + columns[1] * (side + _GAP), 520)
    sheet = Image.new("RGB", (width, _HEAD + len(parts) * (side + _GAP)), "white")
    drawing = ImageDraw.Draw(sheet)
    drawing.text((6, 5), shortened(title, (width - 10) // 8), fill="black", font=large)
    drawing.text((margin, 28), f"support, {len(plan.support)} images", fill=_SUPPORT, font=small)
    drawing.text((middle + 8, 28), f"query, {len(plan.query)} images", fill=_QUERY, font=small)
    drawing.line([(middle + 3, 28), (middle + 3, sheet.height)], fill="black", width=2)
    for row, (name, own) in enumerate(zip(names, parts, strict=True)):
        top = _HEAD + row * (side + _GAP)
        drawing.text((6, top + side // 2 - 18), name, fill="black", font=large)
        drawing.text((6, top + side // 2 + 2), f"{len(own[0])} support, {len(own[1])} query", fill="#555555", font=small)
        for left, rows in ((margin, own[0]), (middle + 8, own[1])):
            for column, pixels in enumerate(np.asarray(store.images[rows[:most]])):
                sheet.paste(_tile(pixels, side), (left + column * (side + _GAP), top))
    return sheet


def _tile(pixels: np.ndarray, side: int) -> Image.Image:
    tile = Image.fromarray(pixels)
    if tile.width == side:
        return tile
    return tile.resize((side, side), Image.Resampling.NEAREST if side % tile.width == 0 else Image.Resampling.BICUBIC)


def write_episode_picture(store: Any, plan: EpisodePlan, title: str, out: str | Path, replace: bool = False) -> Path:
    """Draw `episode_picture` into a file (PNG, or by its suffix). Raises UserError for an existing file without `replace`."""
    out = Path(out)
    if out.exists() and not replace:
        raise UserError(f"{out}: exists already; choose another name, or give --replace")
    if out.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{out}: give a file name that ends in .png (or .jpg, .webp, .pdf)")
    sheet = episode_picture(store, plan, title)
    with atomic_path(out) as draft:
        sheet.save(draft)
    return out
