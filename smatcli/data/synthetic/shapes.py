"""Filled geometric shapes: class = outline x interior; colours, pose and clutter vary."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from smatcli.data.synthetic.canvas import Array, Draws, Pose, backdrop, cover, finished, fold, ink_and_paper, paint, polar, posed

Field = Callable[[Array, Array], Array]


def polygon(sides: int) -> Field:
    def field(x: Array, y: Array) -> Array:
        radius, angle = polar(x, y)
        return np.asarray(radius * np.cos(fold(angle + np.pi / 2, sides)) - np.cos(np.pi / sides))

    return field


def star(points: int, inner: float) -> Field:
    """A straight-edged star of outer radius 1 and inner radius `inner`."""
    tip, notch = np.array([1.0, 0.0]), inner * np.array([np.cos(np.pi / points), np.sin(np.pi / points)])
    normal = np.array([notch[1] - tip[1], tip[0] - notch[0]], np.float32)
    normal /= np.linalg.norm(normal)

    def field(x: Array, y: Array) -> Array:
        radius, angle = polar(x, y)
        sector = np.abs(fold(angle + np.pi / 2, points))
        return np.asarray((radius * np.cos(sector) - 1) * normal[0] + radius * np.sin(sector) * normal[1])

    return field


def box(width: float, height: float) -> Field:
    return lambda x, y: np.maximum(np.abs(x) - width, np.abs(y) - height)


def superellipse(width: float, height: float, power: float) -> Field:
    return lambda x, y: (np.abs(x / width) ** power + np.abs(y / height) ** power + 1e-6) ** (1 / power) - 1


def wavy(count: int, depth: float) -> Field:
    def field(x: Array, y: Array) -> Array:
        radius, angle = polar(x, y)
        return radius - (1 - depth) - depth * np.cos(count * angle)

    return field


def cross(width: float, slant: float = 0.0) -> Field:
    def field(x: Array, y: Array) -> Array:
        return np.minimum(box(1.0, width)(x, y + slant * x), box(width, 1.0)(x, y))

    return field


def crescent(x: Array, y: Array) -> Array:
    return np.asarray(np.maximum(np.hypot(x, y) - 1, 0.85 - np.hypot(x - 0.5, y)))


def heart(x: Array, y: Array) -> Array:
    return np.hypot(x, -1.15 * y + 0.15 - 0.8 * np.sqrt(np.abs(x) + 1e-3)) - 0.9


def drop(x: Array, y: Array) -> Array:
    """A disc around (0, 0.35) with a tip at (0, -1): the sides are tangents from the tip to the disc."""
    side = np.maximum((np.abs(x) * 1.2 - (y + 1) * 0.61) * 0.74, y - 0.05)
    return np.asarray(np.minimum(np.hypot(x, y - 0.35) - 0.62, side))


def arrow(x: Array, y: Array) -> Array:
    head = np.maximum(-1 - y, np.maximum(np.abs(x) * 1.1 - (y + 1), y - 0.05))
    return np.asarray(np.minimum(head, np.maximum(np.abs(x) - 0.32, np.maximum(-y - 0.1, y - 1))))


def half_disc(x: Array, y: Array) -> Array:
    return np.asarray(np.maximum(np.hypot(x, y - 0.4) - 1, y - 0.45))


def trapezium(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(y) - 0.6, np.abs(x) - 0.65 - 0.45 * y)


def ell(x: Array, y: Array) -> Array:
    return np.asarray(np.maximum(box(0.85, 0.85)(x, y), -np.maximum(0.15 - x - 0.3, y - 0.25)))


def bow(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x) - 0.95, np.abs(y) - 0.12 - 0.7 * np.abs(x))


OUTLINES: dict[str, Field] = {
    "triangle": polygon(3), "square": box(0.8, 0.8), "pentagon": polygon(5), "hexagon": polygon(6), "disc": superellipse(0.9, 0.9, 2),
    "star3": star(3, 0.25), "star4": star(4, 0.35), "star5": star(5, 0.42), "star6": star(6, 0.5), "star8": star(8, 0.6),
    "bar": box(1.0, 0.4), "ellipse": superellipse(1.0, 0.5, 2), "clover": wavy(4, 0.3),
    "trefoil": wavy(3, 0.3), "cog": wavy(9, 0.13), "plus": cross(0.3), "kite": superellipse(0.6, 1.0, 1.0), "crescent": crescent,
    "heart": heart, "drop": drop, "arrow": arrow, "half": half_disc, "trapezium": trapezium, "ell": ell, "bow": bow,
}  # fmt: skip
INTERIORS = ("plain", "hollow", "hole", "split", "striped")


def shape_catalogue(draws: Draws) -> list[tuple[str, tuple[str, str]]]:
    """Combine every outline with every interior, outlines in turn, so that the first classes include all of them."""
    outlines, shift = draws.generator().permutation(list(OUTLINES)), draws.integers(len(INTERIORS), len(OUTLINES))
    out = []
    for step in range(len(INTERIORS)):
        for outline, start in zip(outlines.tolist(), shift.tolist(), strict=True):
            interior = INTERIORS[(step + start) % len(INTERIORS)]
            out.append((f"{outline}-{interior}", (outline, interior)))
    return out


def draw_shape(spec: tuple[str, str], draws: Draws, n: int, size: int) -> NDArray[np.uint8]:
    outline, interior = OUTLINES[spec[0]], spec[1]
    x, y = posed(draws, n, size, Pose(scale=(0.5, 0.85), shift=0.3, stretch=0.15, wobble=0.05))
    mask = cover(outline(x, y))
    if interior == "hollow":
        mask = mask - cover(outline(x / 0.62, y / 0.62))
    elif interior == "hole":
        mask = mask * (1 - cover(np.hypot(x, y) - 0.36))
    elif interior == "split":
        mask = mask * (1 - cover(np.abs(x - y) - 0.16))
    elif interior == "striped":
        mask = mask * (1 - cover(np.cos(9 * x)))
    ink, paper = ink_and_paper(draws, n)
    image = backdrop(draws, paper, size, uneven=0.35)
    distractor = cover(np.hypot(*posed(draws, n, size, Pose(scale=(0.12, 0.25), shift=0.9, stretch=0.6))) - 1)
    image = paint(image, distractor, draws.uniform(0, 1, n, 3))
    return finished(draws, paint(image, np.clip(mask, 0, 1), ink[:, None, None, :] + 0.25 * (image - image.mean((1, 2), keepdims=True))))
