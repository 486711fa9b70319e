"""Decode a mask file to classes uint8 [H, W], 255 = ignored: palette, binary, 8- and 16-bit; errors for other formats."""

import numpy as np
from PIL import Image

from smatcli.data.images import Unreadable, _opened

IGNORE = 255


def decode_mask(data: bytes, kind: str, classes: int, zero_ignored: bool = False) -> np.ndarray:
    """Return classes uint8 [H, W] of an encoded mask; `kind`: index (pixel value or palette index = class) or binary (bright = 1).

    With `zero_ignored` (ADE20K), 0 is ignored and classes start at 1. Raises `Unreadable` with the reason.
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
    """Return integers [H, W]."""
    if image.mode == "LA":
        image = image.getchannel(0)
    values = np.asarray(image)
    if values.ndim == 3:
        colours = values[..., :3]
        if (colours != colours[..., :1]).any():
            raise Unreadable("coloured mask, not one of class numbers; save it as a palette or grey image")
        values = colours[..., 0]
    if values.dtype.kind == "f" and (not np.isfinite(values).all() or (values != np.rint(values)).any()):
        raise Unreadable("contains values that are not integers")
    return values.astype(np.int64)


def _binary(image: Image.Image) -> np.ndarray:
    """Return 0 and 1: the stored values if there are no others, else thresholded at the middle (JPEG masks are inexact)."""
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
        raise Unreadable("contains negative values")
    middle = next(m for m, bound in ((1, 1), (128, 255), (32768, float("inf"))) if top <= bound)
    return (values >= middle).astype(np.uint8)


def check_binary(counts: np.ndarray, ignored: int, where: str) -> str:
    """Return an error line if masks read by index look binary (only 0 and 255 occur), else ""; `counts` [C] are pixels per class."""
    if ignored and counts[0] and not counts[1:].any():
        return f"{where}: the masks contain only 0 and 255, and 255 is ignored; set data.values=binary"
    return ""
