"""Augmentation of a support set during adaptation: DiffAugment (Zhao et al. 2020), batched on the device of the images."""

import torch
from torch import Tensor


def diff_augment(
    images: Tensor, generator: torch.Generator, probability: float = 0.9, colour: bool = True, translation: float = 0.125
) -> Tensor:
    """Augment normalised float images [B, 3, H, W] at random, differentiably.

    The whole batch is augmented with probability `probability`, each image with its own random numbers; otherwise `images` itself is
    returned (as in PMF and the release of SMAT). `colour`: brightness + U(-0.5, 0.5), then saturation about the pixel's mean by U(0, 2),
    then contrast about the image's mean by U(0.5, 1.5), all in units of the normalised image. `translation`: the largest shift as a share
    of the side, in whole pixels, padded with 0, the mean colour. All random numbers come from `generator`; a CPU generator gives the same
    results on all devices.
    """
    if probability <= 0 or not len(images) or float(_uniform(generator, (1,))) >= probability:
        return images
    if colour:
        brightness, saturation, contrast = _uniform(generator, (3, len(images), 1, 1, 1)).to(images)
        images = images + (brightness - 0.5)
        images = torch.lerp(images.mean(1, keepdim=True), images, 2 * saturation)
        images = torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast + 0.5)
    if translation > 0:
        for side in (2, 3):
            images = _shifted(images, side, translation, generator)
    return images


def _uniform(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _shifted(images: Tensor, side: int, share: float, generator: torch.Generator) -> Tensor:
    """Shift each image along dimension `side` by a whole number of pixels, uniform up to +-round(share * length)."""
    length = images.shape[side]
    most = round(share * length)
    noise = _uniform(generator, (len(images), 1))
    shift = ((2 * most + 1) * noise).floor().clamp_(max=2 * most).to(images.device, torch.int64) - most
    source = torch.arange(length, device=images.device) - shift
    inside = (source >= 0) & (source < length)
    form = [len(images), 1, 1, 1]
    form[side] = length
    moved = images.gather(side, source.clamp(0, length - 1).view(form).expand_as(images))
    return moved * inside.view(form).to(images.dtype)
