"""Contact sheet of predictions: a row of images per predicted class, most confident first, then a row of rejected images."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from smatcli.data.images import Fit, decode_image
from smatcli.data.pictures import font, shortened
from smatcli.deploy.pictures import PictureSet
from smatcli.deploy.predictions import PredictionRow, PredictionTable

GAP, CAPTION = 4, 16
INK, SURE, DOUBTFUL, REJECTED = "#1f2328", "#1b6e3c", "#9a6700", "#8a1c1c"
DOUBT = 0.5


def prediction_sheet(
    table: PredictionTable, pictures: PictureSet, fit: Fit, columns: int = 10, side: int = 96, rows: int = 60
) -> Image.Image:
    """Draw up to `columns` images per class, evenly spaced from most to least probable, for up to `rows` classes."""
    groups = _groups(table)[:rows]
    large, small = font(15), font(12)
    margin = 14 + round(max([large.getlength(shortened(name, 32)) for name, _ in groups] + [small.getlength("00000 images")]))
    step = side + CAPTION + GAP
    widest = min(columns, max(len(members) for _, members in groups))
    title = f"{sum(len(members) for _, members in groups):,} images, {len(table.facts['classes'])} classes; numbers: probability"
    sheet = Image.new("RGB", (max(margin + widest * (side + GAP), 24 + round(large.getlength(title))), 30 + len(groups) * step), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((6, 5), title, fill=INK, font=large)
    for line, (name, members) in enumerate(groups):
        top = 30 + line * step
        rejected = members[0].rejected
        draw.text((6, top + side // 2 - 18), shortened(name, 32), fill=REJECTED if rejected else INK, font=large)
        draw.text((6, top + side // 2 + 2), f"{len(members):,} image{'s' * (len(members) > 1)}", fill=INK, font=small)
        for column, row in enumerate(_spread(members, columns)):
            left = margin + column * (side + GAP)
            sheet.paste(Image.fromarray(np.asarray(decode_image(pictures.read(row.file), side, fit))), (left, top))
            caption = f"d {row.distance:.2f}" if rejected else f"{row.top[0][1]:.2f}"
            colour = REJECTED if rejected else SURE if row.top[0][1] >= DOUBT else DOUBTFUL
            draw.text((left + 2, top + side + 1), caption, fill=colour, font=small)
    return sheet


def _groups(table: PredictionTable) -> list[tuple[str, list[PredictionRow]]]:
    """Group the images by predicted class, most probable first, followed by a group of rejected images, nearest first."""
    groups: list[tuple[str, list[PredictionRow]]] = []
    for label in table.facts["classes"]:
        mine = sorted((r for r in table.rows if r.label == label), key=lambda r: -r.top[0][1])
        if mine:
            groups.append((str(label), mine))
    rejected = sorted((r for r in table.rows if r.rejected), key=lambda r: r.distance or 0.0)
    return [*groups, ("rejected (d: distance)", rejected)] if rejected else groups


def _spread(rows: Sequence[PredictionRow], wanted: int) -> list[PredictionRow]:
    if len(rows) <= wanted:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (wanted - 1))] for i in range(wanted)]
