"""Traffic-sign-like plates: class = frame x colour scheme x pictogram; each part is shared by many classes."""

import numpy as np
from numpy.typing import NDArray

from smatcli.data.synthetic.canvas import Array, Draws, Pose, cover, finished, hsv, paint, posed, rows, shuffled, smooth_noise
from smatcli.data.synthetic.shapes import Field, arrow, box, cross, polygon, superellipse, trapezium

FRAMES: dict[str, Field] = {
    "circle": superellipse(1.0, 1.0, 2), "triangle": lambda x, y: polygon(3)(x / 1.2, (y - 0.15) / 1.2),
    "yield": lambda x, y: polygon(3)(x / 1.2, (-y - 0.15) / 1.2), "diamond": lambda x, y: np.abs(x) + np.abs(y) - 1.15,
    "square": superellipse(0.9, 0.9, 8), "octagon": lambda x, y: np.maximum(box(0.92, 0.92)(x, y), (np.abs(x) + np.abs(y)) * 0.7071 - 0.92),
}  # fmt: skip
# Border hue, saturation, value; plate hue, saturation, value; value of the (grey) pictogram.
SCHEMES = {
    "red": (0.0, 0.9, 0.8, 0.1, 0.05, 0.95, 0.1),
    "blue": (0.6, 0.1, 0.95, 0.6, 0.85, 0.7, 0.95),
    "yellow": (0.1, 0.3, 0.1, 0.13, 0.85, 0.95, 0.1),
    "green": (0.38, 0.1, 0.95, 0.38, 0.8, 0.5, 0.95),
    "stop": (0.0, 0.05, 0.95, 0.99, 0.9, 0.7, 0.95),
    "orange": (0.07, 0.9, 0.85, 0.1, 0.05, 0.95, 0.1),
}


def _turned(field: Field, quarter: int) -> Field:
    if quarter == 1:
        return lambda x, y: field(-y, x)
    return (lambda x, y: field(-x, -y)) if quarter == 2 else (lambda x, y: field(y, -x))


def _chevron(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(y - 0.8 * np.abs(x) + 0.4) - 0.28, np.abs(x) - 0.9)


def _zigzag(x: Array, y: Array) -> Array:
    return np.asarray(np.maximum(np.abs(x - 0.45 * np.sin(4 * y)) - 0.22, np.abs(y) - 1))


def _walker(x: Array, y: Array) -> Array:
    legs = np.maximum(np.abs(np.abs(x) - 0.25 - 0.4 * (y - 0.2)) - 0.14, np.abs(y - 0.6) - 0.4)
    return np.asarray(np.minimum(np.minimum(np.hypot(x, y + 0.75) - 0.27, box(0.3, 0.38)(x, y + 0.1)), legs))


def _dots(x: Array, y: Array) -> Array:
    return np.hypot(x, np.abs(y) - 0.55) - 0.34


def _truck(x: Array, y: Array) -> Array:
    body = np.minimum(box(0.55, 0.4)(x + 0.3, y + 0.15), box(0.25, 0.25)(x - 0.65, y))
    return np.asarray(np.minimum(body, np.hypot(np.abs(x) - 0.5, y - 0.45) - 0.2))


PICTOGRAMS: dict[str, Field] = {
    "up": arrow, "right": _turned(arrow, 3), "left": _turned(arrow, 1), "down": _turned(arrow, 2),
    "bar": box(0.85, 0.24), "post": box(0.24, 0.85), "cross": cross(0.25),
    "saltire": lambda x, y: cross(0.22)((x + y) * 0.75, (x - y) * 0.75), "slash": lambda x, y: box(1.0, 0.2)((x + y) * 0.7, (x - y) * 0.7),
    "disc": superellipse(0.6, 0.6, 2), "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.62) - 0.2,
    "dots": _dots, "abreast": lambda x, y: _dots(y, x), "chevron": _chevron, "vee": _turned(_chevron, 2), "zigzag": _zigzag,
    "walker": _walker, "truck": _truck, "tent": trapezium, "hump": lambda x, y: np.maximum(np.hypot(x, y - 0.4) - 0.8, y - 0.4),
    "slope": lambda x, y: np.maximum(np.maximum(-x - 0.8, y - 0.7), x - y - 0.1),
}  # fmt: skip


def sign_catalogue(draws: Draws) -> list[tuple[str, tuple[str, str, str]]]:
    combinations = shuffled(draws, list(FRAMES), list(SCHEMES), list(PICTOGRAMS))
    return [("-".join(c), c) for c in combinations]


def draw_sign(spec: tuple[str, str, str], draws: Draws, n: int, size: int) -> NDArray[np.uint8]:
    frame, pictogram = FRAMES[spec[0]], PICTOGRAMS[spec[2]]
    border_hsv, plate_hsv, dark = SCHEMES[spec[1]][:3], SCHEMES[spec[1]][3:6], SCHEMES[spec[1]][6]
    image = _street(draws, n, size)
    x, y = posed(draws, n, size, Pose(scale=(0.42, 0.85), angle=0.2, shift=0.35, stretch=0.2, wobble=0.03))
    fade, hue = draws.uniform(0.4, 1.0, n), draws.uniform(-0.035, 0.035, n)
    border, plate = (hsv((h + hue) % 1, s * fade, v * draws.uniform(0.55, 1, n)) for h, s, v in (border_hsv, plate_hsv))
    outer = cover(frame(x, y))
    image = paint(image, cover(np.abs(x) - 0.1) * cover(-y) * (1 - outer), draws.uniform(0.2, 0.7, n, 1).repeat(3, 1))
    image = paint(image, outer, border)
    image = paint(image, cover(frame(x / 0.78, y / 0.78)), plate)
    low = 0.22 if spec[0] == "triangle" else -0.22 if spec[0] == "yield" else 0.0
    room = 0.42 if low else 0.52
    image = paint(image, cover(pictogram(x / room, (y - low) / room)), np.full((n, 3), dark, np.float32) * draws.uniform(0.7, 1, n, 1))
    shade = rows(draws.uniform(0.0, 0.35, n)) * np.clip(3 * smooth_noise(draws, n, size, 1) + 0.5, 0, 1)
    night = np.exp(draws.uniform(-0.45, 0.15, n))[:, None, None, None]
    return finished(draws, image * (1 - shade[..., None]) * night)


def _street(draws: Draws, n: int, size: int) -> Array:
    """Sky over greenery or walls: two blotchy colours with a soft edge, and a random bright or dark patch."""
    sky = hsv(draws.uniform(0.5, 0.65, n), draws.uniform(0, 0.5, n), draws.uniform(0.5, 1, n))
    ground = hsv(draws.uniform(0.02, 0.45, n), draws.uniform(0.1, 0.6, n), draws.uniform(0.15, 0.7, n))
    edge = smooth_noise(draws, n, size, 3, 0.8) + rows(draws.uniform(-0.6, 0.6, n))
    _, y = posed(draws, n, size, Pose(angle=0.2, scale=(1, 1), shift=0))
    image: Array = np.broadcast_to(sky[:, None, None, :], (n, size, size, 3)) + smooth_noise(draws, n, size, 4, 0.15, channels=3)
    image = paint(image, np.clip(4 * (y + edge) + 0.5, 0, 1), ground)
    patch = cover(np.maximum(*(np.abs(c) for c in posed(draws, n, size, Pose(scale=(0.2, 0.5), shift=1.0, stretch=0.6)))) - 1)
    return paint(image, patch, draws.uniform(0, 1, n, 3))
