"""Two fine-grained domains: flowers seen from above, and mushrooms seen from the side."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smatcli.data.synthetic.canvas import Array, Draws, Pose, cover, finished, fold, hsv, paint, polar, posed, rows, shuffled, smooth_noise

HUES = (0.0, 0.08, 0.14, 0.6, 0.75, 0.9)
PETAL_FORMS = {"round": (0.55, 0.45), "long": (0.3, 0.7), "pointed": (0.9, 1.0), "notched": (0.5, -0.5), "broad": (0.2, 0.3)}


def flower_catalogue(draws: Draws) -> list[tuple[str, tuple[Any, ...]]]:
    """Combine petal count, form, hue, heart (small pale, large dark), and one or two whorls."""
    out = []
    for count, form, hue, heart, whorls in shuffled(draws, (3, 4, 5, 6, 8, 12), list(PETAL_FORMS), HUES, ("light", "dark"), (1, 2)):
        name = f"{count}-{form}-h{round(hue * 360)}-{heart}-{whorls}"
        out.append((name, (count, form, hue, heart, whorls)))
    return out[:200]


def draw_flower(spec: tuple[Any, ...], draws: Draws, n: int, size: int) -> NDArray[np.uint8]:
    count, form, hue, heart, whorls = spec
    image = _foliage(draws, n, size)
    x, y = posed(draws, n, size, Pose(scale=(0.5, 0.95), shift=0.3, stretch=0.25, wobble=0.06))
    radius, angle = polar(x, y)
    tone = (hue + draws.normal(0.02, n)) % 1
    strength, value = draws.uniform(0.45, 0.9, n), draws.uniform(0.6, 1.0, n)
    for whorl in range(whorls):
        reach = 1.0 if whorl == 0 else 0.6
        within = fold(angle + whorl * np.pi / count, count) * (count / np.pi)
        edge = reach * _petal(within, form)
        shade = np.clip(radius / edge, 0, 1)[..., None] * 0.35 + 0.75 - 0.35 * np.abs(within)[..., None] * (0.5 + 0.5 * whorl)
        colour = hsv(tone, strength * (0.65 if whorl else 1), value)[:, None, None, :] * shade
        image = paint(image, cover(radius - edge), colour)
    middle = 0.18 if heart == "light" else 0.32
    core = hsv(*((0.14, 0.8, 0.95) if heart == "light" else (0.06, 0.7, 0.3)))
    image = paint(image, cover(radius - middle * rows(draws.uniform(0.85, 1.15, n))), np.broadcast_to(core, (n, 3)))
    return finished(draws, image)


def _petal(within: Array, form: str) -> Array:
    """Radius of a petal's outline at a position in its sector, [-1, 1] from edge to edge."""
    depth, power = PETAL_FORMS[form]
    middle = 1 - np.abs(within)
    if form == "notched":
        return 1 - depth * (1 - np.minimum(middle * 2.2, 1) ** 0.5) - 0.35 * np.clip(middle - 0.55, 0, None)
    return 1 - depth + depth * (middle + 1e-4) ** power


def _foliage(draws: Draws, n: int, size: int) -> Array:
    base = hsv(draws.uniform(0.2, 0.45, n), draws.uniform(0.3, 0.8, n), draws.uniform(0.15, 0.6, n))
    leaves = smooth_noise(draws, n, size, 6, 0.5) + smooth_noise(draws, n, size, 3, 0.4)
    image: Array = base[:, None, None, :] * (1 + leaves[..., None])
    for _ in range(2):
        x, y = posed(draws, n, size, Pose(scale=(0.4, 0.7), shift=0.9, stretch=0.2))
        leaf = cover(np.hypot(x, y * (2.2 + 1.2 * x)) - 1)
        image = paint(image, leaf, hsv(draws.uniform(0.2, 0.4, n), draws.uniform(0.4, 0.9, n), draws.uniform(0.2, 0.75, n)))
    return image


@dataclass(frozen=True)
class Mushroom:
    """Cap profile, cap hue, stem width and bulge, and markings."""

    cap: str
    hue: float
    stem: str
    marks: str


CAPS = {"dome": (0.75, 0.62), "cone": (0.6, 1.0), "flat": (0.95, 0.28), "funnel": (0.85, -0.35), "bell": (0.55, 0.85), "ball": (0.6, 0.6)}
STEMS = {"thin": (0.1, 0.0), "stout": (0.22, 0.0), "bulbous": (0.13, 0.22), "tapered": (0.2, -0.12)}


def mushroom_catalogue(draws: Draws) -> list[tuple[str, Mushroom]]:
    hues, marks = (0.0, 0.07, 0.12, 0.3, 0.65, 0.85), ("plain", "spots", "bands", "gills", "ring")
    kinds = [Mushroom(*combination) for combination in shuffled(draws, list(CAPS), hues, list(STEMS), marks)][:200]
    return [(f"{m.cap}-h{round(m.hue * 360)}-{m.stem}-{m.marks}", m) for m in kinds]


def draw_mushroom(kind: Mushroom, draws: Draws, n: int, size: int) -> NDArray[np.uint8]:
    image = _forest(draws, n, size)
    x, y = posed(draws, n, size, Pose(scale=(0.5, 0.95), angle=0.35, shift=0.3, stretch=0.18, wobble=0.06))
    width, bulge = STEMS[kind.stem]
    low = np.clip((y + 0.1) / 1.0, 0, 1)
    stem = cover(np.maximum(np.abs(x) - width * rows(draws.uniform(0.8, 1.2, n)) - bulge * low**3, np.maximum(-0.2 - y, y - 0.95)))
    pale = hsv(draws.uniform(0.08, 0.14, n), draws.uniform(0.05, 0.35, n), draws.uniform(0.6, 0.95, n))
    image = paint(image, stem, pale[:, None, None, :] * (1 - 0.9 * np.clip(x, -0.2, 0.3))[..., None])
    if kind.marks == "ring":
        image = paint(image, cover(np.hypot(x / (width + 0.2), (y - 0.25) / 0.12) - 1), pale * 0.8)
    cap = cover(_cap(kind.cap, x, y))
    colour = hsv((kind.hue + draws.normal(0.02, n)) % 1, draws.uniform(0.45, 0.9, n), draws.uniform(0.4, 0.9, n))
    lit = (0.8 - 0.35 * y - 0.25 * x)[..., None]
    image = paint(image, cap, colour[:, None, None, :] * lit)
    marks = _marks(kind.marks, x, y, draws, n)
    if marks is not None:
        image = paint(image, marks * cap * 0.85, pale if kind.marks == "spots" else colour * 0.45)
    grass = cover(smooth_noise(draws, n, size, 8, 0.25) + 1.0 - y - rows(draws.uniform(0, 0.3, n)))
    image = paint(image, grass, hsv(draws.uniform(0.1, 0.4, n), draws.uniform(0.3, 0.8, n), draws.uniform(0.15, 0.5, n)))
    return finished(draws, image)


def _cap(form: str, x: Array, y: Array) -> Array:
    width, height = CAPS[form]
    if form == "ball":
        return np.asarray(np.hypot(x / width, (y + 0.4) / height) - 1)
    if form == "funnel":
        return np.asarray(np.maximum(np.abs(x) - width * (0.35 - y - 0.15) / 0.85, np.maximum(-0.62 - y, y - 0.15)))
    v = (0.05 - y) / height
    if form == "cone":
        return np.asarray(np.maximum(np.abs(x) / width - (1 - v), -v))
    power = 2.0 if form != "bell" else 1.3
    return np.asarray(np.maximum((np.abs(x) / width) ** power + np.clip(v, 0, None) ** (2 if form != "bell" else 2.5) - 1, -v))


def _marks(marks: str, x: Array, y: Array, draws: Draws, n: int) -> Array | None:
    if marks == "spots":
        u, v = x * 9 + rows(draws.uniform(0, 7, n)), y * 9 + rows(draws.uniform(0, 7, n))
        return cover(0.25 - np.sin(u) * np.sin(v))
    if marks == "bands":
        return cover(np.cos(14 * y + 2 * x * x))
    if marks == "gills":
        return cover(np.maximum(-0.12 - y, np.cos(22 * x) - 0.2))
    return None


def _forest(draws: Draws, n: int, size: int) -> Array:
    colour = hsv(draws.uniform(0.06, 0.4, n), draws.uniform(0.2, 0.7, n), draws.uniform(0.15, 0.65, n))
    image = colour[:, None, None, :] * (1 + smooth_noise(draws, n, size, 5, 0.6)[..., None])
    return image + smooth_noise(draws, n, size, 2, 0.15, channels=3)
