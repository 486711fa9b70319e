"""Augmentation in segmentation training: horizontal flips and random zoom, the same for image and mask."""

import torch
import torch.nn.functional as F
from torch import Tensor

from smatcli.data.augment import normalise
from smatcli.segmentation.masks import IGNORE


def augmented(images: Tensor, masks: Tensor, flip: float, zoom: tuple[float, float], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Augment uint8 images [B, S, S, 3] and masks [B, S, S]; return normalised float32 [B, 3, S, S] and int64 classes [B, S, S].

    Each image is flipped with probability `flip` and enlarged about a random centre by a factor drawn log-uniformly from `zoom`. Pixels
    from outside the image get the mean colour and are ignored. All random numbers come from `generator` (a CPU generator).
    """
    pixels, classes = normalise(images), masks.long()
    count, device = len(pixels), pixels.device
    mirrored = (torch.rand(count, generator=generator) < flip).to(device)
    pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
    classes = torch.where(mirrored.view(-1, 1, 1), classes.flip(-1), classes)
    if zoom == (1.0, 1.0):
        return pixels, classes
    low, high = torch.tensor(zoom).log()
    factor = torch.exp(low + (high - low) * torch.rand(count, generator=generator))
    # In [-1, 1] coordinates, a window of half-width 1 / factor fits around centres up to |1 - 1 / factor|.
    place = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - 1 / factor).abs().unsqueeze(1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / factor
    theta[:, :, 2] = place
    grid = F.affine_grid(theta.to(device), list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    shifted = F.grid_sample((classes + 1).float().unsqueeze(1), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    zoomed = shifted.squeeze(1).round().long() - 1
    return pixels, torch.where(zoomed < 0, torch.full_like(zoomed, IGNORE), zoomed)
