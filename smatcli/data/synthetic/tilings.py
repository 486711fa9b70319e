"""Plane patterns with rotational symmetry (unseen): lattice and harmonics define the class; position, angle, size and colours vary."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smatcli.data.synthetic.canvas import Draws, Pose, finished, paint, posed, rows, turn

TILINGS = 90
LATTICES = {
    2: ((1.0, 0.0), (0.35, 0.8)),
    3: ((1.0, 0.0), (0.5, 0.866)),
    4: ((1.0, 0.0), (0.0, 1.0)),
    6: ((1.0, 0.0), (0.5, 0.866)),
}
HARMONICS = ((1, 1), (2, 0), (2, 1), (0, 1), (3, 0), (1, 2))


@dataclass(frozen=True)
class Tiling:
    """A periodic pattern with `fold`-fold symmetry: waves (kx, ky, amplitude, phase) on one reciprocal lattice."""

    fold: int
    waves: tuple[tuple[float, float, float, float], ...]


def tiling_catalogue(draws: Draws) -> list[tuple[str, Tiling]]:
    """Draw random tilings: the fundamental wave of a lattice and two harmonics with random amplitudes and phases, in all rotations."""
    numbers = draws.uniform(0, 1, TILINGS, 8)
    pairs = [(first, second) for first in range(len(HARMONICS)) for second in range(first)]
    out = []
    for index, (scale, twist, *rest) in enumerate(numbers.tolist()):
        fold = (4, 6, 2, 3)[index % 4]
        (ax, ay), (bx, by) = LATTICES[fold]
        if fold == 2:
            bx, by = bx + 0.5 * twist, by + 0.4 * rest[5]
        pitch = 6 + 4 * scale if fold != 2 else 5.5 + 3 * scale
        first, second = pairs[(index * 7) % len(pairs)]
        # Two-fold symmetry needs a wave across, otherwise the pattern is only stripes.
        terms = ((1, 0), (0, 1) if fold == 2 else HARMONICS[first], HARMONICS[second])
        waves = []
        for (h, k), amplitude, phase in zip(terms, (0.8, *rest[:2]), (0.0, *rest[2:4]), strict=True):
            phase = 2 * np.pi * phase if fold == 3 else np.pi * round(phase)
            waves.append((pitch * (h * ax + k * bx), pitch * (h * ay + k * by), 0.35 + 0.75 * amplitude, phase))
        out.append((f"p{fold}-{index // 4:02d}", Tiling(fold, tuple(waves))))
    return out


def draw_tiling(tiling: Tiling, draws: Draws, n: int, size: int) -> NDArray[np.uint8]:
    x, y = posed(draws, n, size, Pose(scale=(0.85, 1.15), angle=np.pi, shift=1.5, stretch=0.08, wobble=0.03))
    value = np.zeros_like(x)
    for kx, ky, amplitude, phase in tiling.waves:
        for step in range(tiling.fold):
            angle = 2 * np.pi * step / tiling.fold
            u, v = turn(x, y, angle)
            value += amplitude * np.cos(kx * u + ky * v + phase)
    value = (value - value.mean((1, 2), keepdims=True)) / (value.std((1, 2), keepdims=True) + 1e-3)
    image = np.broadcast_to(draws.uniform(0, 1, n, 1, 1, 3), (*x.shape, 3))
    for level in (-0.6, 0.5):
        mask = np.clip((value - level) * 4 + 0.5, 0, 1)
        image = paint(image, mask, draws.uniform(0, 1, n, 3))
    # Three random colours can be nearly equal; shading by the pattern keeps it visible.
    sign = np.where(draws.flip(0.5, n), 0.14, -0.14)
    return finished(draws, image + (rows(sign) * np.clip(value, -1.5, 1.5))[..., None])
