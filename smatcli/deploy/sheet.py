"""A picture of predictions: one row of images for every predicted class, the surest first; rejected ones last."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from smatcli.data.images import Fit, decode_image
from smatcli.data.pictures import font, shortened
from smatcli.deploy.pictures import Pictures
from smatcli.deploy.predictions import Row, Table

GAP, CAPTION = 4, 16
INK, SURE, DOUBTFUL, REJECTED = "#1f2328", "#1b6e3c", "#9a6700", "#8a1c1c"
DOUBT = 0.5


def prediction_sheet(table: Table, pictures: Pictures, fit: Fit, columns: int = 10, side: int = 96, rows: int = 60) -> Image.Image:
    """`columns` images a class, evenly spread from the most to the least probable, each with its probability, up to `rows` classes."""
    groups = _groups(table)[:rows]
    large, small = font(15), font(12)
    margin = 14 + round(max([large.getlength(shortened(name, 32)) for name, _ in groups] + [small.getlength("00000 images")]))
    step = side + CAPTION + GAP
    widest = min(columns, max(len(found) for _, found in groups))
    title = f"{sum(len(found) for _, found in groups):,} images, {len(table.facts['classes'])} classes; numbers: probability"
    sheet = Image.new("RGB", (max(margin + widest * (side + GAP), 24 + round(large.getlength(title))), 30 + len(groups) * step), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((6, 5), title, fill=INK, font=large)
    for line, (name, found) in enumerate(groups):
        top = 30 + line * step
        rejected = found[0].rejected
        draw.text((6, top + side // 2 - 18), shortened(name, 32), fill=REJECTED if rejected else INK, font=large)
        draw.text((6, top + side // 2 + 2), f"{len(found):,} image{'s' * (len(found) > 1)}", fill=INK, font=small)
        for column, row in enumerate(_spread(found, columns)):
            left = margin + column * (side + GAP)
            sheet.paste(Image.fromarray(np.asarray(decode_image(pictures.read(row.file), side, fit))), (left, top))
            caption = f"d {row.distance:.2f}" if rejected else f"{row.top[0][1]:.2f}"
            colour = REJECTED if rejected else SURE if row.top[0][1] >= DOUBT else DOUBTFUL
            draw.text((left + 2, top + side + 1), caption, fill=colour, font=small)
    return sheet


def _groups(table: Table) -> list[tuple[str, list[Row]]]:
    """Rows of every predicted class in the order of the classes, then the rejected ones; the surest (nearest) first."""
    found: list[tuple[str, list[Row]]] = []
    for label in table.facts["classes"]:
        mine = sorted((r for r in table.rows if r.label == label), key=lambda r: -r.top[0][1])
        if mine:
            found.append((str(label), mine))
    rejected = sorted((r for r in table.rows if r.rejected), key=lambda r: r.distance or 0.0)
    return [*found, ("rejected (d: distance)", rejected)] if rejected else found


def _spread(rows: Sequence[Row], wanted: int) -> list[Row]:
    if len(rows) <= wanted:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (wanted - 1))] for i in range(wanted)]
