"""One image file to uint8 [size, size, 3]: any mode, any size, first frame, upright, on white; what cannot be read says why."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from smatcli.safe.files import pointer_kind

Fit = Literal["crop", "squash"]

MAX_PIXELS = 89_478_485  # Pillow's own bound, as an error instead of a warning
MAX_BYTES = 512 * 2**20
_UNSAFE = {"EPS"}  # read by running Ghostscript
_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
_GAP = 3.0  # reduce by whole factors down to 3 times the target, then filter: indistinguishable, and fast for large photographs


class Unreadable(Exception):
    """A file that is not a readable image; the message is a short reason."""


def decode_image(data: bytes, size: int, fit: Fit = "crop") -> np.ndarray:
    """Decode an encoded image to uint8 RGB [size, size, 3]; `fit` as in `fit_image`. Raises Unreadable with the reason."""
    with _opened(data) as image:
        image.draft(None, (round(_GAP * size), round(_GAP * size)))
        image.load()
        return np.asarray(fit_image(to_rgb(_upright(image)), size, fit))


def decode_whole(data: bytes) -> Image.Image:
    """Decode an encoded image to RGB in its own size, as its pixels are stored (not turned upright). Raises Unreadable with the reason."""
    with _opened(data) as image:
        image.load()
        return to_rgb(image)


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The image, not yet loaded; whatever goes wrong with it inside the block is raised as Unreadable."""
    if not data:
        raise Unreadable("empty file")
    if kind := pointer_kind(data[:1000]):
        raise Unreadable(f"{kind} pointer, not the image")
    if len(data) > MAX_BYTES:
        raise Unreadable(f"file of {len(data):,} bytes, larger than {MAX_BYTES:,}")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Unreadable(f"decompression bomb: {width} x {height} pixels, more than {MAX_PIXELS:,}")
            yield image
    except (Unreadable, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise Unreadable(f"decompression bomb: more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise Unreadable("not an image") from None
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise Unreadable("truncated" if "truncated" in reason.lower() else f"damaged ({reason})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of an image of any mode: transparency on white, 16 bits divided by 257, wider types by the range that their values show.

    I;16 is taken as 0 to 65535. I and F are taken as 0 to 255 if all values are within it (F: 0 to 1 if within that), I as 0 to 65535
    if within that, anything else is stretched from its own minimum to its maximum.
    """
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.mode in _ALPHA or (image.mode in ("P", "1", "L", "RGB") and "transparency" in image.info):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode == "LAB":
        from PIL import ImageCms

        converted = ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert converted is not None
        return converted
    return image if image.mode == "RGB" else image.convert("RGB")


def fit_image(image: Image.Image, size: int, fit: Fit = "crop") -> Image.Image:
    """Resize to size x size with an antialiased bicubic filter; `crop` keeps the centre square, `squash` the whole image (Meta-Dataset)."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side) if fit == "crop" else (0, 0, width, height)
    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=_GAP)


def _to_eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise Unreadable("holds NaN or infinite values")
    low, high = float(values.min()), float(values.max())
    if mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 65535:
        tops = (1.0, 255.0) if mode.startswith("F") else (255.0, 65535.0)
        low, high = (0.0, next(top for top in tops if high <= top)) if high <= tops[-1] else (low, high)
    return np.rint((values - low) * (255.0 / max(high - low, 1e-300))).astype(np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image


@cache
def _formats() -> list[str]:
    Image.init()
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    return [name for name in Image.OPEN if name not in _UNSAFE]


@cache
def image_suffixes() -> frozenset[str]:
    """File name endings of the image kinds that can be read, lower case with the dot."""
    return frozenset(Image.registered_extensions())
