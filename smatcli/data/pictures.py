"""Contact sheets of a store and of an episode: one row of images per class, with the class name and image counts."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from smatcli.data.episodes.sampler import EpisodePlan
from smatcli.data.stores.store import SPLITS, Store
from smatcli.errors import UserError
from smatcli.safe.files import atomic_path
from smatcli.safe.text import shown

_COLOURS = {"train": "#1b6e3c", "valid": "#9a6700", "test": "#8a1c1c"}
_SUPPORT, _QUERY = "#1b6e3c", "#8a1c1c"
_GAP, _HEAD = 2, 48
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".pdf")


def contact_sheet(store: Store, rows: int = 20, columns: int = 12, split: str = "all", height: int | None = None) -> Image.Image:
    """Draw up to `rows` classes of a split, evenly spaced and sorted by split, with up to `columns` evenly spaced images of each.

    `height` is the side of a drawn image in pixels (default: the store's image size, at least 48).
    """
    chosen = sorted(store.classes(split).tolist(), key=lambda c: (store.class_split[c], c))
    if not chosen:
        raise UserError(f"{store.name}: has no {split} classes")
    selected = [chosen[i] for i in _spaced(len(chosen), rows)]
    side = height or max(48, store.image_size)
    large, small = font(15), font(12)
    labels = [(shortened(store.class_names[c], 32), SPLITS[store.class_split[c]], int(store.counts[c])) for c in selected]
    margin = 14 + round(max([large.getlength(name) for name, _, _ in labels] + [small.getlength("valid, 00000 images")]))
    head = 30
    sheet = Image.new("RGB", (margin + columns * (side + _GAP), head + len(selected) * (side + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    title = f"{store.name}: {len(selected)} of {len(chosen)} {'' if split == 'all' else split + ' '}classes, {len(store):,} images in all"
    draw.text((6, 5), shortened(title, (sheet.width - 10) // 8), fill="black", font=large)
    for row, (c, (name, part, count)) in enumerate(zip(selected, labels, strict=True)):
        top = head + row * (side + _GAP)
        draw.text((6, top + side // 2 - 18), name, fill="black", font=large)
        draw.text((6, top + side // 2 + 2), f"{part}, {count} images", fill=_COLOURS[part], font=small)
        for column, i in enumerate(_spaced(count, columns)):
            tile = _tile(np.asarray(store.images[store.class_offsets[c] + i]), side)
            sheet.paste(tile, (margin + column * (side + _GAP), top))
    return sheet


def write_contact_sheet(
    store: Store, out: str | Path, rows: int = 20, columns: int = 12, split: str = "all", replace: bool = False
) -> Path:
    """Draw `contact_sheet` into a file (PNG, or by its suffix). Raises UserError for an existing file without `replace`."""
    out = Path(out)
    if out.exists() and not replace:
        raise UserError(f"{out}: exists already; choose another name, or give --replace")
    if out.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{out}: give a file name that ends in .png (or .jpg, .webp, .pdf)")
    sheet = contact_sheet(store, rows, columns, split)
    with atomic_path(out) as draft:
        sheet.save(draft)
    return out


def _spaced(total: int, wanted: int) -> list[int]:
    """Return up to `wanted` evenly spaced numbers below `total`, ascending."""
    count = min(total, wanted)
    return [i * total // count for i in range(count)]


def shortened(text: str, length: int) -> str:
    """Shorten `text` to one line of at most `length` characters, with "…"; control characters become escape sequences."""
    text = shown(" ".join(text.split()))
    return text if len(text) <= length else text[: length - 1] + "…"


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return DejaVu Sans (many scripts) from matplotlib's files, without importing matplotlib, else Pillow's default font."""
    spec = find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def episode_picture(store: Any, plan: EpisodePlan, title: str, most: int = 12) -> Image.Image:
    """Draw one row per class, with up to `most` support and `most` query images and the full counts."""
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
