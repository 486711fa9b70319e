"""`pmoe`: several frozen experts with prompts that dispatchers mix; a linear head on the mean of their outputs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smatcli.config.pmoe import PmoeConfig
from smatcli.errors import UserError
from smatcli.tuning.base import Tuner, linear_head
from smatcli.tuning.pmoe_experts import PromptedExperts


class Pmoe(Tuner):
    """pMoE (Mo et al. 2026): logits from the mean of K prompted, frozen ViTs; see `PromptedExperts` and docs/pmoe.md."""

    def __init__(self, config: PmoeConfig, backbones: Sequence[nn.Module], classes: int) -> None:
        super().__init__()
        if len(backbones) != 1 + len(config.experts):
            raise UserError(f"tuner.experts: {len(config.experts)} experts beside `backbone`, but {len(backbones) - 1} were created")
        self.experts = PromptedExperts(backbones, config.prompts, config.layers, config.gated, config.dispatcher)
        self.head = linear_head(backbones[0], classes)
        self._shapes = [(v.num_prefix_tokens + v.patch_embed.num_patches, v.embed_dim) for v in self.experts.models]

    def features(self, images: Tensor) -> Tensor:
        """Return the representation [B, D] of images [B, 3, H, W]: the mean of the experts' outputs."""
        return self.experts.pooled(self.experts.blocks(self.experts.embed(images)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, C]."""
        return self.head(self.features(images))

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Return prompts, gates, dispatchers and projections (`tuner`), and the head."""
        return {"tuner": self.experts.own(), "head": list(self.head.parameters())}

    def merge(self) -> None:
        """Return None: prompts cannot be merged into weights."""
        return None

    def frozen_prefix(self, images: Tensor) -> Tensor:
        """Return the embedded tokens of all experts, flat [B, sum of T_k D_k]: nothing before the first block is trained."""
        return torch.cat([t.flatten(1) for t in self.experts.embed(images)], 1)

    def from_prefix(self, prefix: Tensor) -> Tensor:
        """Return logits [B, C] for a result of `frozen_prefix`."""
        parts = prefix.split([n * d for n, d in self._shapes], 1)
        tokens = [part.unflatten(1, shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return self.head(self.experts.pooled(self.experts.blocks(tokens)))

    def paths(self, images: Tensor) -> Tensor:
        """Return dispatch weights [layers, B, K, N_p, K] of images; see `PromptedExperts.paths`."""
        return self.experts.paths(images)


def build(config: PmoeConfig, backbones: Sequence[nn.Module], classes: int) -> Pmoe:
    """Build the tuner over its backbones: that of the recipe, then `config.experts`."""
    return Pmoe(config, backbones, classes)
