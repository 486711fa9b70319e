"""One mask file to classes uint8 [H, W], 255 = ignored: palette, binary, 8- and 16-bit, and what is wrong with the others."""

import numpy as np
from PIL import Image

from smatcli.data.images import Unreadable, _opened

IGNORE = 255


def decode_mask(data: bytes, kind: str, classes: int, zero_ignored: bool = False) -> np.ndarray:
    """Classes uint8 [H, W] of an encoded mask; `kind` index (pixel or palette index = class) or binary (bright = 1).

    With `zero_ignored` (ADE20K) 0 means ignored and the classes begin at 1. Raises Unreadable with the reason.
    """
    with _opened(data) as image:
        image.load()
        if kind == "binary":
            return _binary(image)
        values = _indices(image)
    if zero_ignored:
        values = np.where((values == 0) | (values == IGNORE), IGNORE, values - 1)
    wrong = values[(values != IGNORE) & ((values < 0) | (values >= classes))]
    if len(wrong):
        first = 1 if zero_ignored else 0
        found, last = int(wrong.max() if wrong.max() >= classes else wrong.min()) + first, classes - 1 + first
        raise Unreadable(f"label {found}, but the classes are {first} to {last} ({IGNORE} = ignored)")
    return values.astype(np.uint8)


def _indices(image: Image.Image) -> np.ndarray:
    """Whole numbers [H, W]."""
    if image.mode == "LA":
        image = image.getchannel(0)
    values = np.asarray(image)
    if values.ndim == 3:
        colours = values[..., :3]
        if (colours != colours[..., :1]).any():
            raise Unreadable("coloured mask, not one of class numbers; save it as a palette or grey image")
        values = colours[..., 0]
    if values.dtype.kind == "f" and (not np.isfinite(values).all() or (values != np.rint(values)).any()):
        raise Unreadable("holds values that are no whole numbers")
    return values.astype(np.int64)


def _binary(image: Image.Image) -> np.ndarray:
    """0 and 1: as they are where there is nothing else, else above the middle (JPEG masks are not exactly black and white)."""
    if image.mode in ("P", "1"):
        values = np.asarray(image).astype(np.int64)
        if values.max(initial=0) > 1:
            values = np.asarray(image.convert("L")).astype(np.int64)
    elif image.mode.startswith(("I", "F")):
        values = _indices(image)
    else:
        values = np.asarray(image.convert("L")).astype(np.int64)
    top = int(values.max(initial=0))
    if values.min(initial=0) < 0:
        raise Unreadable("holds negative values")
    middle = next(m for m, bound in ((1, 1), (128, 255), (32768, float("inf"))) if top <= bound)
    return (values >= middle).astype(np.uint8)


def check_binary(counts: np.ndarray, ignored: int, where: str) -> str:
    """Why masks read by index look binary (only class 0 and 255 occur), or an empty string; `counts` [C] are pixels a class."""
    if ignored and counts[0] and not counts[1:].any():
        return f"{where}: the masks hold 0 and 255 only, and 255 = ignored; set data.values=binary"
    return ""
