"""Segmentation networks: patch tokens of a tuner, and the SETR-PUP head."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from smatcli.config.pmoe import PmoeConfig
from smatcli.config.segment import HeadConfig, SegmentRecipe, SegmentVpt
from smatcli.tuning.pmoe_experts import PromptedExperts
from smatcli.tuning.pmoe_vit import check_vit, embed


class PlainTokens(nn.Module):
    """One ViT without prompts, frozen or trained."""

    def __init__(self, backbone: nn.Module, trained: bool) -> None:
        super().__init__()
        self.vit = check_vit(backbone, "backbone").requires_grad_(trained)
        self.trained, self.width = trained, int(self.vit.embed_dim)

    def train(self, mode: bool = True) -> "PlainTokens":
        """Set the training mode; a frozen ViT stays in inference mode."""
        super().train(mode)
        if not self.trained:
            self.vit.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return patch tokens [B, N, D]."""
        tokens = self.vit.norm(self.vit.blocks(embed(self.vit, images)))
        return tokens[:, self.vit.num_prefix_tokens :]


class ExpertTokens(nn.Module):
    """Prompted, frozen ViTs: the mean of their patch tokens."""

    def __init__(self, experts: PromptedExperts) -> None:
        super().__init__()
        self.experts, self.width = experts, experts.width

    def forward(self, images: Tensor) -> Tensor:
        """Return patch tokens [B, N, D]."""
        return self.experts.patches(self.experts.blocks(self.experts.embed(images)))


class SegmentNet(nn.Module):
    """Images [B, 3, H, W] (sides divisible by the patch size) -> logits [B, C, H, W]."""

    def __init__(self, tokens: PlainTokens | ExpertTokens, patch: int, classes: int, head: HeadConfig) -> None:
        super().__init__()
        self.tokens, self.patch = tokens, patch
        self.head = SetrPup(tokens.width, classes, head.channels, head.stages or stages_of(patch))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits at the size of the images."""
        height, width = images.shape[-2:]
        return self.head(self.tokens(images), (height // self.patch, width // self.patch), (height, width))

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return optimizer groups: `tuner` (prompts and dispatchers) or `backbone` (if trained), and `head`."""
        own = [p for p in self.tokens.parameters() if p.requires_grad]
        name = "backbone" if isinstance(self.tokens, PlainTokens) else "tuner"
        return {**({name: own} if own else {}), "head": list(self.head.parameters())}


def build_net(recipe: SegmentRecipe, backbones: Sequence[nn.Module]) -> SegmentNet:
    """Build the network of a recipe over its backbones (its own, then those of pmoe). Raises `UserError` if they do not fit together."""
    tuner = recipe.tuner
    tokens: PlainTokens | ExpertTokens
    if isinstance(tuner, PmoeConfig):
        experts = PromptedExperts(backbones, tuner.prompts, tuner.layers, tuner.gated, tuner.dispatcher)
        tokens = ExpertTokens(experts)
    elif isinstance(tuner, SegmentVpt):
        tokens = ExpertTokens(PromptedExperts(backbones, tuner.prompts, 1 if tuner.name == "vpt-shallow" else None))
    else:
        tokens = PlainTokens(backbones[0], tuner.name == "full")
    patch = int(check_vit(backbones[0], "backbone").patch_embed.patch_size[0])
    return SegmentNet(tokens, patch, recipe.data.number, recipe.head)


class SetrPup(nn.Module):
    """SETR-PUP head: tokens [B, N, D] of a grid [h, w] -> logits [B, C, *size].

    `stages` times 3x3 convolution, batch norm, ReLU and 2x upsampling, then a 1x1 convolution, and bilinear resizing if the result does
    not have `size`. No auxiliary heads.
    """

    def __init__(self, width: int, classes: int, channels: int = 256, stages: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        widths = [width, *[channels] * stages]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(stages))
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, tokens: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Return logits [B, C, *size]."""
        maps = self.norm(tokens).transpose(1, 2).unflatten(2, grid)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            maps = F.interpolate(F.relu(norm(conv(maps))), scale_factor=2, mode="bilinear", align_corners=False)
        logits = self.classify(maps)
        return logits if logits.shape[-2:] == size else F.interpolate(logits, size, mode="bilinear", align_corners=False)


def stages_of(patch: int) -> int:
    """Return the number of 2x upsamplings from the patch grid to a stride below two pixels: 4 for patches of 16, 3 for 8 and 14."""
    return max(1, int(math.log2(patch)))
