"""Letters of many scripts (training domain) and two-digit numbers in other fonts (unseen domain)."""

import functools
import unicodedata

import numpy as np
from numpy.typing import NDArray

from smatcli.data.synthetic.canvas import Array, Draws, Pose, backdrop, finished, hsv, ink_and_paper, paint, posed, rows
from smatcli.data.synthetic.fonts import DIGIT_FONTS, LETTER_FONTS, code_points, glyph_mask, soft, stamped

SCRIPTS = {
    "latin": (0x41, 0x7B), "ipa": (0x250, 0x2B0), "greek": (0x391, 0x3CA), "coptic": (0x3D8, 0x400), "cyrillic": (0x402, 0x482),
    "armenian": (0x531, 0x588), "hebrew": (0x5D0, 0x5EB), "arabic": (0x621, 0x64B), "lao": (0xE81, 0xEB0), "georgian": (0x10A0, 0x10FB),
    "syllabics": (0x1401, 0x1676), "lisu": (0xA4D0, 0xA4F8), "arrows": (0x2190, 0x2200), "math": (0x2200, 0x2300),
    "symbols": (0x2600, 0x26B0), "dingbats": (0x2701, 0x27C0),
}  # fmt: skip
PER_SCRIPT = 25
LETTERS = 200
MIN_INK = 3.5


def letter_catalogue(draws: Draws) -> list[tuple[str, str]]:
    """Choose up to 200 characters from all scripts in turn, each in three or more fonts, no two of them similar."""
    available = [code_points(font) for font in LETTER_FONTS]
    by_script = []
    for name, (start, stop) in SCRIPTS.items():
        drawable = [c for c in range(start, stop) if unicodedata.category(chr(c))[0] in "LS" and sum(c in font for font in available) >= 3]
        drawable = [c for c in drawable if not unicodedata.decomposition(chr(c))]
        order = draws.generator().permutation(len(drawable))[:PER_SCRIPT]
        by_script.append([(name, drawable[k]) for k in order])
    candidates = [script[k] for k in range(PER_SCRIPT) for script in by_script if k < len(script)]
    chosen: list[tuple[str, str]] = []
    seen = np.zeros((0, 32 * 32), np.float32)
    for name, code in candidates:
        ink = _signature(chr(code))
        if ink is None or (len(seen) and float((seen @ ink).max()) > 0.8):
            continue
        seen = np.concatenate([seen, ink[None]])
        chosen.append((f"{name}-{code:04x}", chr(code)))
        if len(chosen) == LETTERS:
            break
    return chosen


def _signature(text: str) -> Array | None:
    """Return the blurred glyph mask [1024], centred and of unit length, or None for a blank glyph or a dot."""
    page = soft(soft(glyph_mask("DejaVuSans", text)[None]))[0].reshape(32, 2, 32, 2).mean((1, 3)).ravel()
    page = page - page.mean()
    length = float(np.linalg.norm(page))
    return page / length if length > MIN_INK else None


@functools.lru_cache(maxsize=4)
def _letter_masks(text: str) -> Array:
    return soft(np.stack([glyph_mask(font, text) for font in LETTER_FONTS if ord(text) in code_points(font)]))


def draw_letter(text: str, draws: Draws, n: int, size: int) -> NDArray[np.uint8]:
    masks = _letter_masks(text)
    x, y = posed(draws, n, size, Pose(scale=(0.85, 1.25), angle=0.35, shift=0.3, stretch=0.25, wobble=0.12))
    mask = stamped(masks, draws.integers(len(masks), n), x, y, draws.uniform(0.0, 0.35, n))
    ink, paper = ink_and_paper(draws, n)
    return finished(draws, paint(backdrop(draws, paper, size), mask, ink))


def number_catalogue(draws: Draws) -> list[tuple[str, tuple[int, int]]]:
    """The numbers 10 to 99 in random order."""
    return [(f"{number}", divmod(int(number), 10)) for number in 10 + draws.generator().permutation(90)]


@functools.cache
def _digit_masks() -> Array:
    return soft(np.stack([glyph_mask(font, str(digit)) for digit in range(10) for font in DIGIT_FONTS]))


def draw_number(digits: tuple[int, int], draws: Draws, n: int, size: int) -> NDArray[np.uint8]:
    masks, fonts = _digit_masks(), len(DIGIT_FONTS)
    x, y = posed(draws, n, size, Pose(scale=(0.8, 1.1), angle=0.3, shift=0.2, stretch=0.15, wobble=0.08))
    font, weight = draws.integers(fonts, n), draws.uniform(0.0, 0.35, n)
    mask = np.zeros((n, size, size), np.float32)
    for digit, side in zip(digits, (-1, 1), strict=True):
        # Shift each digit slightly, as in handwriting.
        dx, dy = side * 0.42 + draws.uniform(-0.08, 0.08, n), draws.uniform(-0.12, 0.12, n)
        lean = rows(draws.uniform(-0.25, 0.25, n))
        v = (y - rows(dy)) * 0.85
        mask = np.maximum(mask, stamped(masks, digit * fonts + font, (x - rows(dx)) * 0.95 + lean * v, v, weight))
    dark = draws.uniform(0, 0.15, n)
    paper = np.repeat(dark[:, None], 3, 1)
    ink = hsv(draws.uniform(0, 1, n), draws.uniform(0, 0.25, n), draws.uniform(0.75, 1, n))
    image = paint(backdrop(draws, paper, size, uneven=0.05), mask, ink)
    return finished(draws, image, light=0.1)
