"""Procedural textures: the structure is the class; phase, pose, colours and light vary."""

import numpy as np
from numpy.typing import NDArray

from smatcli.data.synthetic.canvas import Array, Draws, Pose, finished, ink_and_paper, paint, posed, rows, smooth_noise, turn

FAMILIES = ("gabor", "stripes", "cells", "cracks", "dots", "clouds", "ridges", "marble", "weave", "checks", "bubbles", "rings", "scratches")
TEXTURES = 104


def texture_catalogue(draws: Draws) -> list[tuple[str, tuple[str, Array]]]:
    """Choose families in turn; each class has a frequency level and three more numbers in [0, 1]."""
    numbers = draws.uniform(0, 1, TEXTURES, 4)
    levels = np.array([0, 2, 1, 3, 0, 2, 1, 3])
    out = []
    for index in range(TEXTURES):
        variant, family = divmod(index, len(FAMILIES))
        numbers[index, 0] = (levels[(variant + family) % len(levels)] + 0.6 * numbers[index, 0]) / 3.6
        out.append((f"{FAMILIES[family]}-{variant}", (FAMILIES[family], numbers[index])))
    return out


def draw_texture(spec: tuple[str, Array], draws: Draws, n: int, size: int) -> NDArray[np.uint8]:
    family, numbers = spec
    angle = np.pi if family not in ("stripes", "gabor", "weave") else 0.3
    x, y = posed(draws, n, size, Pose(scale=(0.85, 1.15), angle=angle, shift=2.0, stretch=0.12, wobble=0.05))
    value = _value(family, numbers.tolist(), x, y, draws)
    centre, spread = value.mean((1, 2), keepdims=True), value.std((1, 2), keepdims=True) + 1e-3
    hardness = 0.7 + 2.0 * float(numbers[3]) if family != "clouds" else 0.7
    blend = 0.5 + 0.5 * np.tanh(hardness * (value - centre) / spread)
    ink, paper = ink_and_paper(draws, n, 0.3)
    light = 1 + 0.35 * smooth_noise(draws, n, size, 1)
    image = paint(np.broadcast_to(paper[:, None, None, :], (*x.shape, 3)), blend, ink) * light[..., None]
    return finished(draws, image)


def _value(family: str, numbers: list[float], x: Array, y: Array, draws: Draws) -> Array:
    level, a, b, _ = numbers
    n = len(x)
    wave = 5 * 2.6**level
    if family == "gabor":
        parts = [_plane(x, y, wave * (0.7 + 0.6 * f), np.pi * d, draws) for f, d in ((a, a), (b, b + 0.33), ((a + b) / 2, a + 0.66))]
        return np.asarray(parts[0] + parts[1] * (0.4 + b) + parts[2] * a)
    if family == "stripes":
        u, _ = turn(x, y, np.pi * a)
        phase = wave * 0.8 * u + rows(draws.uniform(0, 7, n))
        return np.asarray(np.sin(phase) + (0.2 + b) * np.sin((2 if a > 0.5 else 3) * phase))
    if family == "weave":
        u, v = turn(x, y, np.pi / 2 * a)
        p, q = wave * u, wave * v * (0.7 + 0.6 * b)
        return np.asarray(np.where(np.sin(p) * np.sin(q) > 0, np.sin(3 * p), np.sin(3 * q)))
    if family == "checks":
        squeeze = 1 + 1.5 * a
        return np.asarray(np.sin(wave * x) * np.sin(wave * y * squeeze) + 0.9 * b * np.sin(wave * x / 2))
    if family == "dots":
        u, v = (wave * (x + (0.5 * y if a > 0.5 else 0.0)), wave * y * (0.87 if a > 0.5 else 1.0))
        return np.asarray(-(np.hypot(np.sin(u / 2), np.sin(v / 2)) ** (0.5 + 2 * b)))
    if family == "rings":
        u, v = np.sin(wave * x / 3), np.sin(wave * y / 3)
        return np.asarray(np.sin((4 + 5 * a) * np.hypot(u, v) + 3 * b))
    if family in ("cells", "cracks", "bubbles"):
        first, second = _nearest(x, y, 1.2 + 2.2 * level, 0.25 + 0.75 * a, draws)
        if family == "bubbles":
            return np.asarray(np.sin((6 + 8 * b) * first))
        return second - first if family == "cells" else -np.exp(-(8 + 10 * b) * (second - first))
    if family == "scratches":
        u, v = turn(x, y, np.pi * a)
        return _noise(u * wave * 0.7, v * wave * (0.12 + 0.1 * b), draws, n)
    cloud = np.zeros_like(x)
    for octave in (1, 2, 4):
        cloud += _noise(x * wave * 0.35 * octave, y * wave * 0.35 * octave, draws, n) * (0.3 + 0.5 * a) ** np.log2(octave)
    if family == "ridges":
        return -(np.abs(cloud) ** (0.4 + 0.6 * b))
    if family == "marble":
        return np.asarray(np.sin(wave * 0.7 * x + (2 + 5 * b) * cloud))
    return cloud


def _plane(x: Array, y: Array, wave: float, angle: float, draws: Draws) -> Array:
    return np.asarray(np.sin(wave * (np.cos(angle) * x + np.sin(angle) * y) + rows(draws.uniform(0, 7, len(x)))))


def _noise(x: Array, y: Array, draws: Draws, n: int, period: int = 16) -> Array:
    """Value noise on a unit lattice of period 16, with one lattice per image."""
    lattice = draws.uniform(-1, 1, n, period * period).ravel()
    column, row = np.floor(x), np.floor(y)
    u, v = x - column, y - row
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    base = (np.arange(n) * period * period)[:, None, None]
    left, top = column.astype(int) % period, row.astype(int) % period
    right, below = (left + 1) % period, (top + 1) % period * period
    top = top * period + base
    below = below + base
    upper = lattice[top + left] * (1 - u) + lattice[top + right] * u
    lower = lattice[below + left] * (1 - u) + lattice[below + right] * u
    return np.asarray(upper * (1 - v) + lower * v)


def _nearest(x: Array, y: Array, wave: float, disorder: float, draws: Draws) -> tuple[Array, Array]:
    """Distances to the nearest and second nearest point of a jittered lattice (Worley noise), in lattice units."""
    n, period = len(x), 16
    jitter = draws.uniform(-disorder / 2, disorder / 2, n, period * period, 2).reshape(-1, 2)
    u, v = x * wave, y * wave
    column, row = np.floor(u).astype(int), np.floor(v).astype(int)
    base = (np.arange(n) * period * period)[:, None, None]
    first = np.full(x.shape, 9, np.float32)
    second = first.copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            site = base + (row + dy) % period * period + (column + dx) % period
            distance = np.hypot(column + dx + 0.5 + jitter[site, 0] - u, row + dy + 0.5 + jitter[site, 1] - v).astype(np.float32)
            second = np.minimum(second, np.maximum(first, distance))
            first = np.minimum(first, distance)
    return first, second
