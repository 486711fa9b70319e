"""Line drawings: a class is a random list of strokes; every image draws them with an unsteady hand."""

import numpy as np
from numpy.typing import NDArray

from smatcli.data.synthetic.canvas import Array, Draws, Pose, backdrop, finished, hsv, paint, posed, rows

SKETCHES = 120
STEPS = 7
KINDS = ("line", "bend", "circle", "zigzag", "arc", "box")


def sketch_catalogue(draws: Draws) -> list[tuple[str, list[Array]]]:
    """Draw random sketches of three or four strokes, polylines [k, 2] in [-0.8, 0.8]; in half of them, all but the first are mirrored."""
    out = []
    for index in range(SKETCHES):
        rng = draws.generator()
        strokes: list[Array] = []
        corner = rng.uniform(-0.4, 0.4, 2)
        for _ in range(rng.integers(3, 5)):
            stroke = _random_stroke(KINDS[rng.integers(len(KINDS))], corner, rng)
            strokes.append(stroke)
            corner = stroke[rng.integers(len(stroke))]
        if rng.random() < 0.5:
            strokes += [stroke * np.array([-1, 1], np.float32) for stroke in strokes[1:]]
        out.append((f"sketch-{index:03d}", [_fitted(stroke, strokes) for stroke in strokes]))
    return out


def _random_stroke(kind: str, start: Array, rng: np.random.Generator) -> Array:
    t = np.linspace(0, 1, STEPS)[:, None]
    end = start + rng.uniform(0.5, 1.2) * _direction(rng)
    end = np.clip(end, -0.9, 0.9)
    side = np.array([start[1] - end[1], end[0] - start[0]])
    if kind == "line":
        points = np.stack([start, end])
    elif kind == "bend":
        points = (1 - t) ** 2 * start + 2 * t * (1 - t) * (start + side * rng.choice((-1.0, 1.0))) + t**2 * end
    elif kind == "zigzag":
        k = np.arange(6)[:, None]
        points = start + (end - start) * k / 5 + 0.16 * side * (-1.0) ** k
    elif kind == "box":
        half = rng.uniform(0.15, 0.5, 2)
        points = start + half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)])
    else:
        turn = 1.0 if kind == "circle" else rng.uniform(0.4, 0.7)
        angle = 2 * np.pi * (turn * np.linspace(0, 1, 11 if kind == "circle" else STEPS) + rng.random())
        points = start + rng.uniform(0.18, 0.5) * np.stack([np.cos(angle), np.sin(angle)], 1)
    return points.astype(np.float32)


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def _fitted(stroke: Array, strokes: list[Array]) -> Array:
    points = np.concatenate(strokes)
    low, high = points.min(0), points.max(0)
    return np.asarray((1.6 * (stroke - (low + high) / 2) / (high - low).max()).astype(np.float32))


def draw_sketch(strokes: list[Array], draws: Draws, n: int, size: int) -> NDArray[np.uint8]:
    x, y = posed(draws, n, size, Pose(scale=(0.6, 1.05), angle=0.3, shift=0.25, stretch=0.2, wobble=0.1))
    squared = np.full((n, size, size), 9, np.float32)
    for stroke in strokes:
        points = stroke + draws.normal(0.035, n, len(stroke), 2) + draws.normal(0.05, n, 1, 2)
        for k in range(len(stroke) - 1):
            np.minimum(squared, _squared_distance(x, y, points[:, k], points[:, k + 1]), out=squared)
    width = rows(draws.uniform(0.04, 0.12, n))
    mask = np.clip((width - np.sqrt(squared)) * size / 2 + 0.5, 0, 1)
    pressure = 1 - rows(draws.uniform(0, 0.5, n)) * draws.uniform(0, 1, n, size, size)
    paper = hsv(draws.uniform(0, 1, n), draws.uniform(0, 0.25, n), draws.uniform(0.75, 1, n))
    pen = hsv(draws.uniform(0, 1, n), draws.uniform(0, 0.9, n), draws.uniform(0, 0.4, n))
    image = backdrop(draws, paper, size, uneven=0.15, cells=3)
    return finished(draws, paint(image, mask * pressure, pen))


def _squared_distance(x: Array, y: Array, start: Array, end: Array) -> Array:
    """Squared distance [n, S, S] of the pixels to the segments start -> end, each [n, 2]."""
    along = end - start
    length = rows((along**2).sum(1) + 1e-6)
    dx, dy = x - rows(start[:, 0]), y - rows(start[:, 1])
    ax, ay = rows(along[:, 0]), rows(along[:, 1])
    t = np.clip((dx * ax + dy * ay) / length, 0, 1)
    return (dx - t * ax) ** 2 + (dy - t * ay) ** 2
