"""SETR-PUP: patch tokens -> class logits by progressive upsampling (Zheng et al., CVPR 2021)."""

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class SetrPup(nn.Module):
    """Tokens [B, N, D] of a grid [h, w] -> logits [B, C, size, size]: `stages` times 3x3 convolution, batch norm, ReLU and doubling, then a
    1x1 convolution, and a bilinear step to `size` where the doublings do not end there. No auxiliary heads."""

    def __init__(self, width: int, classes: int, channels: int = 256, stages: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        widths = [width, *[channels] * stages]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(stages))
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, tokens: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Logits [B, C, *size]."""
        maps = self.norm(tokens).transpose(1, 2).unflatten(2, grid)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            maps = F.interpolate(F.relu(norm(conv(maps))), scale_factor=2, mode="bilinear", align_corners=False)
        logits = self.classify(maps)
        return logits if logits.shape[-2:] == size else F.interpolate(logits, size, mode="bilinear", align_corners=False)


def stages_of(patch: int) -> int:
    """Doublings from a patch grid to less than two pixels a step: 4 for patches of 16, 3 for 8 and 14, at least 1."""
    return max(1, int(math.log2(patch)))
