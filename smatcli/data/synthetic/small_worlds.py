"""Two more unseen domains: mirror-symmetric pixel sprites, and cells under a microscope."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smatcli.data.synthetic.canvas import Array, Draws, Pose, backdrop, cover, finished, hsv, ink_and_paper, paint, posed, rows, shuffled

SPRITES = 150
SIDE = 10


def sprite_catalogue(draws: Draws) -> list[tuple[str, NDArray[np.int64]]]:
    """Draw mirror-symmetric 10 x 10 sprites in three inks (0 is transparent), denser in the middle, without isolated pixels."""
    out = []
    axis = np.abs(np.arange(SIDE) - (SIDE - 1) / 2) / (SIDE / 2)
    density = (0.85 - 0.6 * np.maximum.outer(axis, axis) ** 2)[:, : SIDE // 2]
    for index in range(SPRITES):
        rng = draws.generator()
        half = rng.random(density.shape) < density
        half[[0, -1]] = False
        half[:, 0] = False
        padded = np.pad(np.concatenate([half, half[:, ::-1]], 1), 1)
        neighbours = padded[:-2, 1:-1].astype(int) + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
        full = padded[1:-1, 1:-1] & (neighbours > 0)
        blocks = rng.integers(1, 4, (SIDE // 2, SIDE // 4 + 1)).repeat(2, 0).repeat(2, 1)[:, : SIDE // 2]
        inks = np.concatenate([blocks, blocks[:, ::-1]], 1)
        out.append((f"sprite-{index:03d}", np.where(full, inks, 0)))
    return out


def draw_sprite(sprite: NDArray[np.int64], draws: Draws, n: int, size: int) -> NDArray[np.uint8]:
    x, y = posed(draws, n, size, Pose(scale=(0.7, 1.15), angle=0.3, shift=0.25, stretch=0.15))
    column, row = ((c + 1) * (SIDE / 2) - 0.5 for c in (x, y))
    ink, paper = ink_and_paper(draws, n)
    palette = np.stack([ink, ink * 0.55 + 0.45 * draws.uniform(0, 1, n, 3), ink * 0.5 + 0.5 * draws.uniform(0, 1, n, 3)])
    image = backdrop(draws, paper, size, uneven=0.35, cells=3)
    for number in (1, 2, 3):
        layers = np.repeat((sprite == number)[None], n, 0) ^ (draws.flip(0.02, n, SIDE, SIDE) & (number == 1))
        image = paint(image, np.clip(2.5 * (_interpolate(layers.astype(np.float32), column, row) - 0.5) + 0.5, 0, 1), palette[number - 1])
    return finished(draws, image)


def _interpolate(layers: Array, column: Array, row: Array) -> Array:
    """Interpolate layers [n, k, k] bilinearly at fractional pixel positions, zero outside."""
    padded = np.pad(layers, ((0, 0), (1, 2), (1, 2)))
    width = padded.shape[1]
    column, row = (np.clip(c + 1, 0, width - 2.001) for c in (column, row))
    left, top = column.astype(int), row.astype(int)
    u, v = column - left, row - top
    flat = padded.ravel()
    start = (np.arange(len(layers)) * width * width)[:, None, None] + top * width + left
    return np.asarray(
        (flat[start] * (1 - u) + flat[start + 1] * u) * (1 - v) + (flat[start + width] * (1 - u) + flat[start + width + 1] * u) * v
    )


@dataclass(frozen=True)
class Culture:
    """Cell radius, elongation, outline, nucleus, and hue of the stain."""

    radius: float
    long: float
    outline: str
    nucleus: str
    hue: float


def cell_catalogue(draws: Draws) -> list[tuple[str, Culture]]:
    outlines, nuclei = ("smooth", "lobed", "spiky", "membrane"), ("none", "one", "twin", "grains", "hollow")
    combinations = shuffled(draws, (0.26, 0.36, 0.5), (1.0, 1.9), outlines, nuclei, (0.93, 0.75, 0.58))
    return [(_culture_name(kind), kind) for kind in (Culture(*combination) for combination in combinations[:200])]


def _culture_name(kind: Culture) -> str:
    form = "long" if kind.long > 1 else "round"
    return f"r{round(kind.radius * 100)}-{form}-{kind.outline}-{kind.nucleus}-h{round(kind.hue * 360)}"


def draw_cells(kind: Culture, draws: Draws, n: int, size: int) -> NDArray[np.uint8]:
    hue = kind.hue + draws.normal(0.03, n)
    light = hsv(hue, draws.uniform(0.02, 0.2, n), draws.uniform(0.75, 1.0, n))
    body = hsv(hue, draws.uniform(0.3, 0.6, n), draws.uniform(0.55, 0.8, n))
    dark = hsv(hue + 0.02, draws.uniform(0.5, 0.9, n), draws.uniform(0.25, 0.55, n))
    image = backdrop(draws, light, size, uneven=0.12, cells=3)
    count = round(1.2 / kind.radius)
    for k in range(count * 2):
        here = draws.flip(0.55 if k else 1.0, n)
        x, y = posed(draws, n, size, Pose(scale=(0.85 * kind.radius, 1.15 * kind.radius), shift=0.85 if k else 0.4, stretch=0.1))
        radius, edge = np.hypot(x / kind.long**0.5, y * kind.long**0.5), 1 + 0 * x
        angle = np.arctan2(y, x)
        if kind.outline == "lobed":
            edge = 0.85 + 0.22 * np.cos(4 * angle)
        elif kind.outline == "spiky":
            edge = 0.8 + 0.3 * np.abs(np.sin(5 * angle)) ** 3
        visible = rows(here) * cover(radius - edge)
        image = paint(image, visible, body)
        if kind.outline == "membrane":
            image = paint(image, visible * cover(0.78 * edge - radius), dark)
        image = paint(image, visible * _nucleus(kind, x, y, draws), dark if kind.nucleus != "hollow" else light)
    return finished(draws, image, light=0.15)


def _nucleus(kind: Culture, x: Array, y: Array, draws: Draws) -> Array:
    if kind.nucleus == "none":
        return np.zeros_like(x)
    if kind.nucleus == "grains":
        u, v = x * 7 + rows(draws.uniform(0, 7, len(x))), y * 7 + rows(draws.uniform(0, 7, len(x)))
        return cover(0.2 - np.sin(u) * np.sin(v))
    dx, dy = (rows(draws.uniform(-0.15, 0.15, len(x))) for _ in range(2))
    if kind.nucleus == "twin":
        return cover(np.hypot(np.abs(x - dx) - 0.35, y - dy) - 0.28)
    return cover(np.hypot(x - dx, y - dy) - 0.45)
