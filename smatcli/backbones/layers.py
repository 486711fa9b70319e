"""Features of the last blocks of a ViT."""

import torch
from torch import Tensor, nn

from smatcli.errors import UserError


class LastBlocks(nn.Module):
    """A timm ViT that returns the features [last, B, D] of its last blocks (or of all, if there are fewer).

    The tokens of each block pass through the final norm and the pooling, so that `[-1]` is the backbone's own output. Parameter names have
    the prefix `backbone.`. Raises `UserError` for a backbone without `forward_intermediates`.
    """

    def __init__(self, backbone: nn.Module, last: int):
        super().__init__()
        blocks = getattr(backbone, "blocks", None)
        if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not hasattr(backbone, "forward_intermediates"):
            raise UserError(f"{type(backbone).__name__} does not provide the features of its blocks; use a timm ViT")
        self.backbone, self.last = backbone, min(last, len(blocks))

    def forward(self, images: Tensor) -> Tensor:
        """Return features [last, B, D] of images [B, 3, H, W]."""
        backbone = self.backbone
        outputs = backbone.forward_intermediates(  # type: ignore[operator]
            images, indices=self.last, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
        )
        pairs = [pair if isinstance(pair, tuple) else (pair, None) for pair in outputs]
        tokens = [patches if prefix is None else torch.cat([prefix, patches], 1) for patches, prefix in pairs]
        return torch.stack([backbone.forward_head(t, pre_logits=True) for t in tokens])  # type: ignore[operator]
