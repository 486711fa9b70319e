"""Synthetic images with masks: tinted discs, squares and triangles on noisy ground, which are easy to learn."""

import numpy as np

from smatcli.data.counted import counted_rng

FORMS = ("ground", "disc", "square", "triangle")
TINTS = np.array([(0.8, 0.3, 0.2), (0.2, 0.4, 0.8), (0.3, 0.8, 0.3)])


def draw(index: int, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw image `index`, uint8 [size, size, 3], and its mask, uint8 [size, size] (0 ground, 1 disc, 2 square, 3 triangle)."""
    rng = counted_rng("segment-synthetic", seed, index)
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    slope = rng.uniform(-0.4, 0.4, (2, 3))
    image = rng.uniform(0.2, 0.8, 3) + slope[0] * (x - 0.5)[..., None] + slope[1] * (y - 0.5)[..., None]
    mask = np.zeros((size, size), np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        form = int(rng.integers(1, len(FORMS)))
        radius, angle = rng.uniform(0.12, 0.28), rng.uniform(0, 2 * np.pi)
        cx, cy = rng.uniform(radius, 1 - radius, 2)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        inside = (u**2 + v**2 < radius**2, np.maximum(abs(u), abs(v)) < 0.8 * radius, _triangle(u, v, radius))[form - 1]
        image[inside] = np.clip(TINTS[form - 1] + rng.uniform(-0.3, 0.3, 3), 0, 1)
        mask[inside] = form
    image = image + rng.normal(0, 0.04, image.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), mask


def _triangle(u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Return the equilateral triangle with corners at `radius` from the centre."""
    turns = [np.pi / 2 + 2 * np.pi * i / 3 for i in range(3)]
    return np.asarray(np.all([u * np.cos(t) + v * np.sin(t) < radius / 2 for t in turns], 0))
