"""The encoded form of an image in a store of encoding jpeg."""

import io

import numpy as np
from PIL import Image

QUALITY = 95


def encode(source: bytes | np.ndarray, fitted: np.ndarray) -> bytes:
    """The smaller of the image as it came and its fitted pixels (uint8 [S, S, 3]) as a JPEG of quality 95, 4:4:4.

    As it came: the file itself, or a PNG of pixels [H, W, 3] (no more of them than fitted ones), so that small drawings lose nothing.
    """
    choices = [_save(Image.fromarray(fitted), "JPEG", quality=QUALITY, subsampling=0)]
    if isinstance(source, bytes):
        choices.append(source)
    elif source.size <= fitted.size:
        grey = (source == source[..., :1]).all()
        choices.append(_save(Image.fromarray(source[..., 0] if grey else source), "PNG"))
    return min(reversed(choices), key=len)


def _save(image: Image.Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
