"""Compare augmentation with closed forms, torchvision and Pillow."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torchvision.transforms import v2

from smatcli.config.schema import AugmentConfig
from smatcli.data import augment as A

EVERYTHING = AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5, jitter=0.4, grayscale=0.2, rotate=15, erase=0.3)


def pictures(count: int = 6, size: int = 24, seed: int = 0) -> torch.Tensor:
    """Smooth images uint8 [B, H, W, 3] with values of about 60 to 190, so that colour changes do not clip."""
    noise = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)
    return (60 + 130 * smooth).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def keyed(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def denormalise(images: torch.Tensor) -> torch.Tensor:
    """Inverse of `normalise`, to uint8 [B, 3, H, W]."""
    return ((images * torch.tensor(A.STD).view(3, 1, 1) + torch.tensor(A.MEAN).view(3, 1, 1)) * 255).round().clamp(0, 255).to(torch.uint8)


class Fixed(A._UniformNoise):
    """Replacement for the noise that returns the listed values in turn."""

    def __init__(self, count: int, *values: float) -> None:
        self.count, self.values = count, list(values)

    def __call__(self, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return torch.full((self.count,), float(self.values.pop(0)))

    def chance(self, probability: float) -> torch.Tensor:
        return self() > 0.5


@pytest.mark.parametrize("layout", ["last", "first"])
def test_normalise_is_torchvisions(layout):
    images = pictures()
    first = images.permute(0, 3, 1, 2)
    expected = v2.functional.normalize(first / 255, list(A.MEAN), list(A.STD))
    torch.testing.assert_close(A.normalise(images if layout == "last" else first), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(denormalise(expected), first)


@pytest.mark.parametrize("size", [10, 24, 40])
def test_normalise_resizes_with_antialias(size):
    first = pictures().permute(0, 3, 1, 2).float()
    expected = F.interpolate(first, (size, size), mode="bilinear", antialias=True)
    torch.testing.assert_close(denormalise(A.normalise(pictures(), size)).float(), expected.round(), atol=1.0, rtol=0)


def test_images_of_no_known_layout_are_refused():
    with pytest.raises(ValueError, match="B, H, W, 3"):
        A.normalise(torch.zeros(2, 8, 8, 4, dtype=torch.uint8))


@pytest.mark.parametrize(("source", "target"), [(24, 24), (24, 10), (24, 37), (9, 64)])
def test_interpolation_of_the_whole_line_is_pytorchs(source, target):
    line = torch.rand(1, 1, 1, source, dtype=torch.float64)
    expected = F.interpolate(line, (1, target), mode="bilinear", antialias=True)
    whole = A.interpolation(torch.zeros(1).double(), torch.full((1,), float(source)).double(), torch.tensor([False]), source, target)
    torch.testing.assert_close(whole[0] @ line[0, 0, 0], expected[0, 0, 0])


def test_crop_and_flip_are_torchvisions_resized_crop_inside():
    """Crop 12 x 16 at (8, 2) of 24 px, flipped, to 20 px: equal except at the border, where this filter uses pixels outside the crop."""
    pixels = pictures(2).permute(0, 3, 1, 2).double() / 255
    area, aspect = 12 * 16 / 24**2, 16 / 12
    noise = Fixed(2, area, np.log(aspect), 8 / 12, 2 / 8, 1)
    mine = A._crop_and_flip(pixels.float(), AugmentConfig(crop_scale=(0.1, 1)), noise, 20)
    expected = v2.functional.resized_crop(pixels, 8, 2, 12, 16, [20, 20], antialias=True).flip(-1)
    torch.testing.assert_close(mine[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2].float(), atol=1e-5, rtol=0)


def test_a_shrinking_crop_is_antialiased():
    """A checkerboard of single pixels becomes grey when the image shrinks by four."""
    board = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255).to(torch.uint8).expand(3, 64, 64).permute(1, 2, 0)[None]
    out = denormalise(A.augment(board, AugmentConfig(crop_scale=(0.99, 1.0)), keyed(), 16)).float()
    assert (out - 127.5).abs().max() < 8


def test_quarter_turns():
    pixels = pictures(3).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(A._rotate(pixels, 90, Fixed(3, 90)), torch.rot90(pixels, 1, (2, 3)), atol=1e-4, rtol=0)
    torch.testing.assert_close(A._rotate(pixels, 90, Fixed(3, 0)), pixels, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("factors", "enhancer"), [((1.2, 1, 1), "Brightness"), ((1, 0.7, 1), "Contrast"), ((1, 1, 1.3), "Color")])
def test_colour_changes_are_pils(factors, enhancer):
    images = pictures(3)
    expected = np.stack(
        [
            np.asarray(getattr(ImageEnhance, enhancer)(Image.fromarray(i.numpy())).enhance(max(factors, key=lambda f: abs(f - 1))))
            for i in images
        ]
    )
    mine = A._recolour(images.permute(0, 3, 1, 2) / 255, AugmentConfig(jitter=0.4), Fixed(3, *factors, 0)) * 255
    assert np.abs(mine.permute(0, 2, 3, 1).numpy() - expected).max() < 2


def test_colour_changes_together_are_torchvisions_one_after_the_other():
    first = pictures(3).permute(0, 3, 1, 2) / 255
    functions = v2.functional
    expected = functions.adjust_saturation(functions.adjust_contrast(functions.adjust_brightness(first, 1.1), 0.8), 1.2)
    mine = A._recolour(first, AugmentConfig(jitter=0.4), Fixed(3, 1.1, 0.8, 1.2, 0))
    torch.testing.assert_close(mine, expected, atol=2e-3, rtol=0)


def test_grayscale_is_torchvisions():
    first = pictures(3).permute(0, 3, 1, 2) / 255
    mine = A._recolour(first, AugmentConfig(grayscale=1), Fixed(3, 1, 1, 1, 1))
    torch.testing.assert_close(mine, v2.functional.rgb_to_grayscale(first, 3), atol=2e-3, rtol=0)


def test_flip_alone_mirrors_its_share():
    images = pictures(1).expand(400, -1, -1, -1)
    out = A.augment(images, AugmentConfig(flip=0.25), keyed())
    plain = A.normalise(images[:1])
    same = (out - plain).abs().amax((1, 2, 3)) < 1e-5
    mirrored = (out - plain.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    assert (same ^ mirrored).all()
    assert abs(mirrored.float().mean() - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5


def test_erase_takes_a_rectangle_of_a_third_at_most():
    images = pictures(300, 32)
    out = A.augment(images, AugmentConfig(erase=0.5), keyed())
    gone = (out == 0).all(1)
    hit = gone.any((1, 2))
    assert abs(hit.float().mean() - 0.5) < 4 * (0.25 / 300) ** 0.5
    torch.testing.assert_close(out[~hit], A.normalise(images)[~hit], atol=1e-5, rtol=0)
    for box in gone[hit]:
        height, width = box.any(1).sum(), box.any(0).sum()
        assert box.sum() == height * width
        assert 0 < box.sum() <= 0.33 * 32 * 32 + height + width


def test_no_augmentation_is_plain_normalisation():
    torch.testing.assert_close(A.augment(pictures(), AugmentConfig(), keyed()), A.normalise(pictures()), atol=1e-5, rtol=0)


def test_a_plain_colour_survives_crop_and_rotation():
    images = torch.full((8, 24, 24, 3), 77, dtype=torch.uint8)
    config = AugmentConfig(crop_scale=(0.1, 1.0), flip=0.5, rotate=45)
    torch.testing.assert_close(A.augment(images, config, keyed(), 20), A.normalise(images, 20), atol=1e-4, rtol=0)


def test_results_depend_on_the_generator_only():
    images = pictures(8)
    one = A.augment(images, EVERYTHING, keyed(1), 20)
    assert one.shape == (8, 3, 20, 20)
    assert one.dtype == torch.float32
    assert one.isfinite().all()
    torch.manual_seed(99)
    assert torch.equal(one, A.augment(images, EVERYTHING, keyed(1), 20))
    torch.testing.assert_close(one, A.augment(images.permute(0, 3, 1, 2), EVERYTHING, keyed(1), 20))
    assert not torch.equal(one, A.augment(images, EVERYTHING, keyed(2), 20))
    alike = A.augment(images[:1].expand(8, -1, -1, -1), EVERYTHING, keyed(1))
    assert len({image.numpy().tobytes() for image in alike}) == 8


def test_values_stay_those_of_an_image():
    out = A.augment(pictures(32), EVERYTHING, keyed(), 20)
    low, high = A.normalise(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 1, 3))
    assert (out >= low - 1e-4).all()
    assert (out <= high + 1e-4).all()


def test_mixup_mixes_images_and_targets_alike():
    """With images that are their own one-hot labels, mixed images and mixed targets are equal."""
    labels = torch.arange(3).repeat(50)
    images = F.one_hot(labels, 3).float()[:, :, None, None].expand(-1, 3, 4, 4)
    mixed, targets = A.mixup(images, labels, 3, 0.4, keyed())
    torch.testing.assert_close(mixed[:, :, 2, 1], targets)
    torch.testing.assert_close(targets.sum(1), torch.ones(150))
    assert (targets >= 0).all()


def test_mixup_weights_are_beta():
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)); here, partners differ in class."""
    count, alpha = 4000, 0.8
    _, targets = A.mixup(torch.zeros(count, 1), torch.arange(count), count, alpha, keyed())
    own = targets.diagonal()[targets.gt(0).sum(1) == 2].double()
    assert len(own) > 0.99 * count
    assert abs(own.mean() - 0.5) < 0.03
    assert abs(own.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_no_mixup_keeps_images():
    images, labels = torch.rand(4, 3, 2, 2), torch.tensor([0, 2, 1, 1])
    mixed, targets = A.mixup(images, labels, 3, 0.0, keyed())
    assert mixed is images
    assert torch.equal(targets, F.one_hot(labels, 3).float())
    soft = torch.full((4, 3), 1 / 3)
    torch.testing.assert_close(A.mixup(images, soft, 3, 0.5, keyed())[1], soft)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same_images():
    images = pictures(8)
    here = A.augment(images, EVERYTHING, keyed(), 20)
    there = A.augment(images.cuda(), EVERYTHING, keyed(), 20)
    torch.testing.assert_close(there.cpu(), here, atol=1e-2, rtol=0)
