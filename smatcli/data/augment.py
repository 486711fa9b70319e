"""Convert uint8 images to normalised floats: resize, augmentation and mixup, batched on the device of the images.

Crop, flip and resize are one pair of interpolation matrices per image (rows [S, H], columns [W, S]). The triangle filter widens with the
scale, so crops are antialiased when they shrink, unlike with a single `grid_sample` (for the costs see benchmarks/loader.py).
Brightness, contrast, saturation, grayscale and normalisation are affine in colour, so they are one 3x4 matrix per image.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smatcli.config.schema import AugmentConfig

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)
ASPECT = (3 / 4, 4 / 3)
ERASE_AREA = (0.02, 0.33)
ERASE_ASPECT = (0.3, 1 / 0.3)
_CACHED_PIXELS = 200_000  # float32 values that fit into a core's cache


def _channels_first(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] or [B, 3, H, W] -> [B, 3, H, W] (a view)."""
    if images.ndim != 4 or 3 not in (images.shape[1], images.shape[3]):
        raise ValueError(f"images must be [B, H, W, 3] or [B, 3, H, W], not {list(images.shape)}")
    return images.permute(0, 3, 1, 2) if images.shape[3] == 3 else images


def _floats(images: Tensor) -> Tensor:
    """Return a float32 copy [B, 3, H, W] that may be modified in place."""
    return _channels_first(images).to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, 3, 1, 1)


def resize(images: Tensor, size: int) -> Tensor:
    """Antialiased bilinear resize of [B, 3, H, W] (uint8 or float, dtype kept) to [B, 3, size, size]."""
    if images.shape[-2:] == (size, size):
        return images
    if images.dtype == torch.uint8 and images.device.type != "cpu":
        return F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True).round_().clamp_(0, 255).to(torch.uint8)
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def normalise(images: Tensor, size: int | None = None) -> Tensor:
    """Normalise uint8 [B, H, W, 3] or [B, 3, H, W] by ImageNet's mean and standard deviation: float32 [B, 3, size, size].

    `size` None keeps the images' size.
    """
    images = _channels_first(images)
    if size is not None and images.shape[-2:] != (size, size):
        pixels = resize(_floats(images), size)
        return pixels.sub_(255 * _column(MEAN, pixels)).div_(255 * _column(STD, pixels))
    pixels = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    mean, std = 255 * _column(MEAN, pixels), 255 * _column(STD, pixels)
    # On a CPU, process a few images at a time, so that they stay in the cache for all three steps (twice as fast at 128 px).
    step = max(1, _CACHED_PIXELS // max(1, pixels[0].numel())) if images.device.type == "cpu" and len(images) else max(1, len(images))
    for part, source in zip(torch.split(pixels, step), torch.split(images, step), strict=True):
        part.copy_(source).sub_(mean).div_(std)
    return pixels


class _UniformNoise:
    """Uniform noise, drawn on the generator's device and moved to `device`: a CPU generator gives equal numbers on every device."""

    def __init__(self, generator: torch.Generator, count: int, device: torch.device) -> None:
        self.generator, self.count, self.device = generator, count, device

    def __call__(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw [B] uniform in [low, high)."""
        noise = torch.rand(self.count, generator=self.generator, device=self.generator.device)
        return (low + (high - low) * noise).to(self.device, non_blocking=True)

    def chance(self, probability: float) -> Tensor:
        """Draw [B] bool, true with the given probability."""
        return self() < probability


def interpolation(start: Tensor, length: Tensor, flipped: Tensor, source: int, target: int) -> Tensor:
    """Matrices [B, target, source] that resample [start, start + length) of a line of `source` pixels to `target` pixels.

    `start`, `length` [B] are in pixels; `flipped` [B] bool reverses the target. The triangle filter has half-width max(1, length / target),
    its weights are renormalised at the border: the full line gives PyTorch's antialiased bilinear resize.
    """
    scale = (length / target).view(-1, 1, 1)
    position = torch.arange(target, device=start.device, dtype=start.dtype)
    position = torch.where(flipped.view(-1, 1), target - 1 - position, position).unsqueeze(-1)
    centre = start.view(-1, 1, 1) + (position + 0.5) * scale
    pixel = torch.arange(source, device=start.device, dtype=start.dtype) + 0.5
    weight = (1 - (pixel - centre).abs() / scale.clamp(min=1.0)).clamp_(min=0)
    return weight / weight.sum(-1, keepdim=True)


def _crop_and_flip(pixels: Tensor, config: AugmentConfig, noise: _UniformNoise, size: int) -> Tensor:
    """Random resized crop (area, then aspect ratio; sides are clipped to the image) and flip: [B, 3, H, W] -> [B, 3, size, size]."""
    height, width = pixels.shape[-2:]
    area = noise(*config.crop_scale)
    aspect = torch.exp(noise(math.log(ASPECT[0]), math.log(ASPECT[1])))
    rows = (area / aspect).sqrt().clamp(max=1) * height
    columns = (area * aspect).sqrt().clamp(max=1) * width
    top, left = noise() * (height - rows), noise() * (width - columns)
    flipped = noise.chance(config.flip)
    by_column = interpolation(left, columns, flipped, width, size).transpose(1, 2)
    by_row = interpolation(top, rows, torch.zeros_like(flipped), height, size)
    count = len(pixels)
    resampled = torch.bmm(pixels.reshape(count, 3 * height, width), by_column).view(count, 3, height, size)
    return torch.matmul(by_row.unsqueeze(1), resampled)


def _rotate(pixels: Tensor, degrees: float, noise: _UniformNoise) -> Tensor:
    """Rotate by up to +-degrees about the centre; pixels outside the image are mirrored."""
    angle = noise(-degrees, degrees) * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cos, -sin, zero], -1), torch.stack([sin, cos, zero], -1)], 1)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _recolour(pixels: Tensor, config: AugmentConfig, noise: _UniformNoise) -> Tensor:
    """Change brightness, contrast (about the mean grey) and saturation by factors in [1 - jitter, 1 + jitter], then apply grayscale.

    Values in [0, 1] are clamped once at the end (torchvision clamps after each step and shuffles the steps).
    """
    low, high = max(0.0, 1 - config.jitter), 1 + config.jitter
    brightness, contrast, saturation = noise(low, high), noise(low, high), noise(low, high)
    saturation = torch.where(noise.chance(config.grayscale), torch.zeros_like(saturation), saturation)
    luma = torch.tensor(LUMA, device=pixels.device)
    grey = (pixels.mean((2, 3)) * luma).sum(1)
    # saturation s: x -> s x + (1 - s) luma.x, so the matrix is b c (s I + (1 - s) 1 luma'); contrast adds one offset to all channels
    identity = torch.eye(3, device=pixels.device)
    matrix = saturation.view(-1, 1, 1) * identity + (1 - saturation).view(-1, 1, 1) * luma.view(1, 1, 3)
    matrix = matrix * (brightness * contrast).view(-1, 1, 1)
    offset = ((1 - contrast) * brightness * grey).view(-1, 1, 1)
    flat = torch.baddbmm(offset, matrix, pixels.reshape(len(pixels), 3, -1))
    return flat.view(pixels.shape).clamp_(0, 1)


def _erase(pixels: Tensor, probability: float, noise: _UniformNoise) -> Tensor:
    """Random erasing (Zhong et al. 2020): with the given probability, set a rectangle of 2-33 % of the area to 0, the mean colour."""
    height, width = pixels.shape[-2:]
    hit = noise.chance(probability)
    area = noise(*ERASE_AREA)
    aspect = torch.exp(noise(math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1])))
    rows, columns = (area / aspect).sqrt().clamp(max=1) * height, (area * aspect).sqrt().clamp(max=1) * width
    top, left = noise() * (height - rows), noise() * (width - columns)
    y = torch.arange(height, device=pixels.device) + 0.5
    x = torch.arange(width, device=pixels.device) + 0.5
    inside_y = (y >= top[:, None]) & (y < (top + rows)[:, None])
    inside_x = (x >= left[:, None]) & (x < (left + columns)[:, None])
    box = inside_y[:, :, None] & inside_x[:, None, :] & hit[:, None, None]
    return pixels.masked_fill_(box.unsqueeze(1), 0.0)


def augment(images: Tensor, config: AugmentConfig, generator: torch.Generator, size: int | None = None) -> Tensor:
    """Augment each image of uint8 [B, H, W, 3] or [B, 3, H, W] independently and normalise: float32 [B, 3, size, size].

    All random numbers come from `generator` (a CPU generator gives the same ones on all devices). `size` None keeps the images' size.
    `config.mixup` is not applied here, as it needs labels: see `mixup`.
    """
    first = _channels_first(images)
    size = first.shape[-1] if size is None else size
    noise = _UniformNoise(generator, len(first), images.device)
    pixels = _floats(images).div_(255)
    if config.crop_scale != (1.0, 1.0):
        pixels = _crop_and_flip(pixels, config, noise, size)
    else:
        pixels = resize(pixels, size)
        if config.flip > 0:
            pixels = torch.where(noise.chance(config.flip).view(-1, 1, 1, 1), pixels.flip(-1), pixels)
    if config.rotate > 0:
        pixels = _rotate(pixels, config.rotate, noise)
    if config.jitter > 0 or config.grayscale > 0:
        pixels = _recolour(pixels, config, noise)
    pixels = pixels.sub_(_column(MEAN, pixels)).div_(_column(STD, pixels))
    return _erase(pixels, config.erase, noise) if config.erase > 0 else pixels


def mixup(images: Tensor, labels: Tensor, classes: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018), with one lambda_i ~ Beta(alpha, alpha) per image: mixed images [B, ...] and soft targets [B, classes].

    Each image is mixed with a random partner. `labels` are int64 [B] or soft targets [B, classes]; `alpha` 0 disables mixing.
    """
    targets = F.one_hot(labels, classes).to(images.dtype) if labels.ndim == 1 else labels
    if alpha <= 0:
        return images, targets
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    rng = np.random.Generator(np.random.Philox(key=seed))  # torch has no public Beta that takes a generator
    weight = torch.from_numpy(rng.beta(alpha, alpha, len(images))).to(images.device, images.dtype)
    partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    mixed = torch.lerp(images[partner], images, weight.view(-1, *[1] * (images.ndim - 1)))
    return mixed, torch.lerp(targets[partner], targets, weight.to(targets.dtype).unsqueeze(1))
