"""Decoding of images: every mode, compared with Pillow and closed forms, and the reasons of unreadable files."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from smatcli.data import images
from smatcli.data.images import Unreadable, decode_image


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


RGB = Image.fromarray(noise(16, 16, 3))


def test_rgb_of_the_stored_size_is_unchanged():
    np.testing.assert_array_equal(decode_image(encoded(RGB), 16), np.asarray(RGB))


@pytest.mark.parametrize(
    ("mode", "kind"), [("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("CMYK", "JPEG")]
)
def test_plain_modes_are_pillows_own_conversion(mode, kind):
    data = encoded(RGB.convert(mode), kind)
    np.testing.assert_array_equal(decode_image(data, 16), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_lab():
    data = encoded(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF")  # L = 100 %, a = b = 0: white
    assert decode_image(data, 4).min() >= 253


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "TIFF"), ("RGBA", "WEBP")])
def test_transparency_lies_on_white(mode, kind):
    image = RGB.convert("RGBA")
    alpha = noise(16, 16, seed=1)
    image.putalpha(Image.fromarray(alpha))
    data = encoded(image.convert(mode), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    colour = np.asarray(image.convert(mode).convert("RGBA"), np.float64)[..., :3]
    share = alpha[..., None] / 255
    np.testing.assert_allclose(decode_image(data, 16), colour * share + 255 * (1 - share), atol=1.01)


def test_transparent_palette_colour_becomes_white():
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0])
    found = decode_image(encoded(image, transparency=1), 2)
    np.testing.assert_array_equal(found, [[[10, 20, 30], [255, 255, 255]], [[0, 200, 0], [10, 20, 30]]])


def test_transparent_grey_becomes_white():
    image = Image.fromarray(np.array([[0, 100], [200, 255]], np.uint8))
    assert decode_image(encoded(image, transparency=100), 2)[..., 0].tolist() == [[0, 255], [200, 255]]


def test_sixteen_bits_are_divided_by_257():
    values = np.array([[0, 257], [32896, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        found = decode_image(encoded(Image.fromarray(values), kind), 2)
        assert found[..., 0].tolist() == [[0, 1], [128, 255]]
        assert (found == found[..., :1]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 100], [200, 255]], np.int32), [[0, 100], [200, 255]]),
        (np.array([[0, 257], [514, 65535]], np.int32), [[0, 1], [2, 255]]),
        (np.array([[-1000, 0], [500, 1000]], np.int32), [[0, 128], [191, 255]]),
        (np.array([[0, 0.2], [0.6, 1]], np.float32), [[0, 51], [153, 255]]),
        (np.array([[0, 2], [100, 255]], np.float32), [[0, 2], [100, 255]]),
        (np.array([[-1, 0], [1, 3]], np.float32), [[0, 64], [128, 255]]),
    ],
)
def test_wide_types_by_their_range(values, expected):
    assert decode_image(encoded(Image.fromarray(values), "TIFF"), 2)[..., 0].tolist() == expected


def test_nan_is_unreadable():
    with pytest.raises(Unreadable, match="NaN"):
        decode_image(encoded(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), 2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """The stored picture is the upright one, transformed according to the tag (EXIF 2.3, table of tag 0x0112)."""
    upright = noise(4, 4, 3, seed=2)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(decode_image(data, 4), upright)


def test_images_with_damaged_exif_are_readable():
    np.testing.assert_array_equal(decode_image(encoded(RGB, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), 16), np.asarray(RGB))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animated_first_frame(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    found = decode_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), 4)
    assert (np.abs(found.astype(int) - [255, 0, 0]) <= 4).all()


@pytest.mark.parametrize(("width", "height"), [(48, 16), (16, 48), (17, 16), (16, 16)])
def test_crop_keeps_the_centre_square(width, height):
    picture = noise(height, width, 3, seed=3)
    left, top = (width - 16) // 2, (height - 16) // 2
    if (width - 16) % 2 == 0:
        np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(picture)), 16), picture[top : top + 16, left : left + 16])
    else:
        assert decode_image(encoded(Image.fromarray(picture)), 16).shape == (16, 16, 3)


def test_squash_keeps_everything():
    picture = np.zeros((8, 24, 3), np.uint8)
    picture[:, 12:] = 240
    found = decode_image(encoded(Image.fromarray(picture)), 8, "squash")
    assert (found[:, :2] < 10).all()
    assert (found[:, -2:] > 230).all()


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_shrinking_is_antialiased(fit):
    """A checkerboard of single pixels has the mean 127.5; subsampling would give 0 or 255."""
    board = (np.indices((120, 90)).sum(0) % 2 * 255).astype(np.uint8)
    found = decode_image(encoded(Image.fromarray(board)), 10, fit)[2:-2, 2:-2]
    assert (np.abs(found.astype(float) - 127.5) < 8).all()


def test_resize_is_pillows_bicubic():
    picture = Image.fromarray(noise(40, 30, 3, seed=4))
    np.testing.assert_array_equal(
        decode_image(encoded(picture), 20, "squash"), np.asarray(picture.resize((20, 20), Image.Resampling.BICUBIC))
    )


def test_small_images_are_enlarged_and_thin_ones_survive():
    assert decode_image(encoded(Image.new("RGB", (3, 2), (9, 8, 7))), 32).tolist() == [[[9, 8, 7]] * 32] * 32
    assert decode_image(encoded(Image.new("RGB", (1, 500), (9, 8, 7))), 8).tolist() == [[[9, 8, 7]] * 8] * 8


def test_large_jpeg_close_to_the_full_decode():
    x, y = np.meshgrid(np.linspace(0, 1, 1200), np.linspace(0, 1, 900))
    picture = Image.fromarray((np.stack([x, y, (np.sin(9 * x * y) + 1) / 2], -1) * 255).astype(np.uint8))
    data = encoded(picture, "JPEG", quality=92)
    full = picture.crop((150, 0, 1050, 900)).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(decode_image(data, 64).astype(int) - np.asarray(full, int)).max() <= 6


def png_claiming(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(99)))
    )


JPEG = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello", "not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs pointer"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (encoded(RGB)[:300], "truncated|damaged"),
        (JPEG[:2] + bytes(50), "not an image"),
        (png_claiming(10_000, 10_000), "decompression bomb: 10000 x 10000"),
        (png_claiming(60_000, 60_000), "decompression bomb"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "not an image"),
    ],
)
def test_unreadable(data, reason):
    with pytest.raises(Unreadable, match=reason):
        decode_image(data, 16)


def test_too_many_bytes(monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(Unreadable, match="larger than 100"):
        decode_image(JPEG, 16)


def test_damaged_bytes_never_raise_anything_else():
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        whole = encoded(RGB, kind)
        for _ in range(40):
            damaged = bytearray(whole)
            for position in rng.integers(0, len(whole), 4):
                damaged[position] = rng.integers(256)
            try:
                assert decode_image(bytes(damaged), 8).shape == (8, 8, 3)
            except Unreadable as error:
                assert str(error)
