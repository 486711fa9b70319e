"""Batched drawing on float32 arrays: counter-based random numbers, poses, antialiased implicit shapes, colours, exposure and grain."""

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating[Any]]  # float32 in practice, but numpy's stubs widen the type in arithmetic

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Draws:
    """Random arrays keyed by `key`: the k-th call uses its own Philox stream.

    The first n rows of a draw do not depend on the number of rows, so an image does not depend on the number of images.
    """

    def __init__(self, *key: int | str) -> None:
        words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
        self._key = np.random.SeedSequence(words).generate_state(2, np.uint64)
        self._calls = 0

    def generator(self) -> np.random.Generator:
        self._calls += 1
        return np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, 0, self._calls]))

    def uniform(self, low: ArrayLike, high: ArrayLike, *shape: int) -> Array:
        unit = self.generator().random(shape, dtype=np.float32)
        start = np.asarray(low, np.float32)
        return start + (np.asarray(high, np.float32) - start) * unit

    def normal(self, scale: float, *shape: int) -> Array:
        return np.float32(scale) * self.generator().standard_normal(shape, dtype=np.float32)

    def integers(self, high: int, *shape: int) -> NDArray[np.int64]:
        return self.generator().integers(high, size=shape)

    def flip(self, probability: float, *shape: int) -> NDArray[np.bool_]:
        return self.generator().random(shape, dtype=np.float32) < probability


def rows(values: ArrayLike) -> Array:
    """Reshape [n] to [n, 1, 1], to broadcast one number per image over its pixels."""
    return np.asarray(values, np.float32).reshape(-1, 1, 1)


def grid(size: int) -> tuple[Array, Array]:
    """Return the pixel centres of a size x size image in [-1, 1]: x to the right, y downwards, each [1, size, size]."""
    axis = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return x[None], y[None]


@dataclass(frozen=True)
class Pose:
    """Ranges of a random pose: factors of `scale`; `angle`, `shift` and log `stretch` up to +- the value; amplitude of the `wobble`."""

    scale: tuple[float, float] = (0.65, 1.0)
    angle: float = np.pi
    shift: float = 0.25
    stretch: float = 0.15
    wobble: float = 0.0


def posed(draws: Draws, n: int, size: int, pose: Pose) -> tuple[Array, Array]:
    """Return object coordinates x, y [n, size, size] under a random similarity, stretch (also serves as shear) and elastic wobble."""
    x, y = grid(size)
    if pose.wobble:
        x = x + smooth_noise(draws, n, size, 4, pose.wobble)
        y = y + smooth_noise(draws, n, size, 4, pose.wobble)
    x = x - rows(draws.uniform(-pose.shift, pose.shift, n))
    y = y - rows(draws.uniform(-pose.shift, pose.shift, n))
    zoom = draws.uniform(*pose.scale, n)
    ratio = np.exp(draws.uniform(-pose.stretch, pose.stretch, n))
    first, second = draws.uniform(-np.pi, np.pi, n), draws.uniform(-pose.angle, pose.angle, n)
    # Stretch along a random axis: rotate, stretch, rotate back, then apply the visible rotation.
    x, y = turn(x, y, first)
    x, y = turn(x * rows(ratio / zoom), y * rows(1 / (ratio * zoom)), second - first)
    return x, y


def turn(x: Array, y: Array, angle: ArrayLike) -> tuple[Array, Array]:
    """Rotate coordinates by `angle` radians ([n], or one number)."""
    cos, sin = rows(np.cos(angle)), rows(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def smooth_noise(draws: Draws, n: int, size: int, cells: int, amplitude: ArrayLike = 1.0, channels: int = 0) -> Array:
    """Smooth noise of `cells` bumps per side, [n, size, size] (or [n, size, size, channels]): cubic interpolation of a random grid."""
    knots = draws.uniform(-1, 1, n, cells + 3, cells + 3, max(channels, 1))
    return np.asarray(amplitude, np.float32) * upsample(knots if channels else knots[..., 0], size)


def upsample(knots: Array, size: int) -> Array:
    """Uniform cubic B-spline of knots [n, k, k(, c)] at the pixel centres of a size x size image."""
    cells = knots.shape[1] - 3
    at = (np.arange(size) + 0.5) / size * cells
    cell = at.astype(int)
    t = (at - cell).astype(np.float32)
    basis = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    weights = np.zeros((size, cells + 3), np.float32)
    for k in range(4):
        weights[np.arange(size), cell + k] = basis[:, k]
    flat = knots.reshape(*knots.shape[:3], -1)
    across = np.einsum("yk,nkjc->nyjc", weights, flat, optimize=True)
    return np.asarray(np.einsum("xj,nyjc->nyxc", weights, across, optimize=True).reshape(len(knots), size, size, *knots.shape[3:]))


def cover(field: Array, softness: ArrayLike = 1.0) -> Array:
    """Antialiased coverage in [0, 1] of {field < 0} [n, S, S]: distance to the border in pixels is field / |gradient|."""
    dy, dx = np.gradient(field, axis=(1, 2))
    steep = np.sqrt(dx * dx + dy * dy) + np.float32(1e-4)
    return np.asarray(np.clip(0.5 - field / (steep * np.asarray(softness, np.float32)), 0, 1))


def polar(x: Array, y: Array) -> tuple[Array, Array]:
    return np.hypot(x, y), np.arctan2(y, x)


def fold(angle: Array, count: ArrayLike) -> Array:
    """Fold an angle into one of `count` equal sectors, [-pi / count, pi / count]."""
    sector = 2 * np.pi / np.asarray(count, np.float32)
    return angle - sector * np.round(angle / sector)


def hsv(hue: ArrayLike, saturation: ArrayLike, value: ArrayLike) -> Array:
    """Convert HSV to RGB in [0, 1], [..., 3]; the hue is in turns."""
    hue, saturation, value = np.broadcast_arrays(*(np.asarray(part, np.float32) for part in (hue, saturation, value)))
    offset = np.array([5, 3, 1], np.float32)
    k = (offset + hue[..., None] * 6) % 6
    ramp = np.clip(np.minimum(k, 4 - k), 0, 1)
    return np.asarray((value[..., None] * (1 - saturation[..., None] * ramp)).astype(np.float32))


def ink_and_paper(draws: Draws, n: int, contrast: float = 0.35) -> tuple[Array, Array]:
    """Draw a dark ink and a light paper colour [n, 3] of any hue, with luminances that usually differ by `contrast` or more.

    The ink is always the darker one: with random polarity, colour dominates shape for networks that are trained for seconds only.
    """
    paper = hsv(draws.uniform(0, 1, n), draws.uniform(0, 0.4, n), draws.uniform(0.7, 1, n))
    ink = hsv(draws.uniform(0, 1, n), draws.uniform(0, 0.9, n), draws.uniform(0.05, 0.45, n))
    close = (paper - ink) @ LUMA < contrast
    return np.where(close[:, None], ink * 0.3, ink).astype(np.float32), paper


def backdrop(draws: Draws, colour: Array, size: int, uneven: float = 0.2, cells: int = 2) -> Array:
    """Draw an unevenly lit background [n, S, S, 3] around `colour` [n, 3]."""
    return colour[:, None, None, :] + smooth_noise(draws, len(colour), size, cells, uneven, channels=3)


def paint(image: Array, mask: Array, colour: Array) -> Array:
    """Blend a colour ([n, 3] or [n, S, S, 3]) over an image [n, S, S, 3], with the mask [n, S, S] as opacity."""
    over = colour if colour.ndim == 4 else colour[:, None, None, :]
    return image + mask[..., None] * (over - image)


def blurred(images: Array, radius: float) -> Array:
    """Apply a cheap binomial blur of about `radius` pixels over the two pixel axes of [n, S, S(, c)]."""
    for _ in range(max(1, round(2 * radius * radius))):
        for axis in (1, 2):
            padded = np.pad(images, [(1, 1) if a == axis else (0, 0) for a in range(images.ndim)], mode="edge")
            low, high = (np.take(padded, np.arange(s, s + images.shape[axis]), axis) for s in (0, 2))
            images = 0.25 * (low + high) + 0.5 * images
    return images


def finished(draws: Draws, images: Array, grain: float = 0.03, light: float = 0.2) -> NDArray[np.uint8]:
    """Convert images [n, S, S, 3] in [0, 1] to uint8, with random exposure, contrast and grain."""
    n, size = images.shape[:2]
    gain, lift = np.exp(draws.uniform(-light, light, n)), draws.uniform(-light / 2, light / 2, n)
    amount = draws.uniform(0, 2 * grain, n)
    out = (images - 0.5) * gain[:, None, None, None] + (0.5 + lift)[:, None, None, None]
    out += amount[:, None, None, None] * draws.normal(1.0, n, size, size, 3)
    return np.clip(out * 255 + 0.5, 0, 255).astype(np.uint8)


def shuffled(draws: Draws, *axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return all combinations of one value per axis, in random order."""
    combinations = list(itertools.product(*(range(len(a)) for a in axes)))
    order = draws.generator().permutation(len(combinations))
    return [tuple(axis[k] for axis, k in zip(axes, combinations[j], strict=True)) for j in order]
