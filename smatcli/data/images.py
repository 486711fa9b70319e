"""Decode an image file of any mode and size to uint8 RGB [size, size, 3]: first frame, EXIF orientation applied, on white."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from smatcli.safe.files import pointer_kind

Fit = Literal["crop", "squash"]

MAX_PIXELS = 89_478_485  # Pillow's own limit, as an error instead of a warning
MAX_BYTES = 512 * 2**20
_UNSAFE = {"EPS"}  # decoded by running Ghostscript
_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
_GAP = 3.0  # reduce by an integer factor to 3 times the target size before filtering: no visible difference, fast for large photographs


class Unreadable(Exception):
    """The file is not a readable image; the message is a short reason."""


def decode_image(data: bytes, size: int, fit: Fit = "crop") -> np.ndarray:
    """Decode an encoded image to uint8 RGB [size, size, 3]; `fit` as in `fit_image`. Raises Unreadable with the reason."""
    with _opened(data) as image:
        image.draft(None, (round(_GAP * size), round(_GAP * size)))
        image.load()
        return np.asarray(fit_image(to_rgb(_upright(image)), size, fit))


def decode_whole(data: bytes) -> Image.Image:
    """Decode an encoded image to RGB in its own size, ignoring the EXIF orientation. Raises Unreadable with the reason."""
    with _opened(data) as image:
        image.load()
        return to_rgb(image)


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open an image without loading it; errors inside the block are raised as Unreadable."""
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
    """Convert an image of any mode to RGB, with transparency on white.

    I;16 has the range 0 to 65535. For I and F, the range is the smallest that contains all values: 0 to 1 (F only), 0 to 255,
    0 to 65535 (I only), otherwise from the minimum to the maximum of the image.
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
        raise Unreadable("has NaN or infinite values")
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
    except Exception:  # the EXIF block is damaged, but the pixels may be fine
        return image


@cache
def _formats() -> list[str]:
    Image.init()
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    return [name for name in Image.OPEN if name not in _UNSAFE]


@cache
def image_suffixes() -> frozenset[str]:
    """Return the file suffixes of all supported image formats, in lower case with the dot."""
    return frozenset(Image.registered_extensions())
