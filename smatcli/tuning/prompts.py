"""`vpt-shallow`, `vpt-deep` and `gapt`: prompt tokens between the special tokens and the patches of a frozen ViT."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smatcli.config.tuning import GaptConfig, VptDeepConfig, VptShallowConfig
from smatcli.errors import UserError
from smatcli.tuning.base import Tuner, linear_head, only
from smatcli.tuning.pmoe_vit import check_vit, embed, finish

PromptConfig = VptShallowConfig | VptDeepConfig | GaptConfig


class Prompted(Tuner):
    """A ViT with `prompts` [L, P, D]: in each of the first L blocks, P learned tokens replace the prompts of the previous block.

    Later blocks receive the prompt outputs of their predecessor. With `gates` [depth - 1], block l + 1 receives g_l times the prompt
    outputs of block l plus 1 - g_l times its prompt inputs (Yoo et al. 2023). Raises `UserError` for more prompt layers than blocks.
    """

    def __init__(self, config: PromptConfig, backbone: nn.Module, classes: int) -> None:
        super().__init__()
        self.vit = check_vit(backbone, "backbone").requires_grad_(requires_grad=False)
        depth = len(self.vit.blocks)
        layers = (config.layers or depth) if isinstance(config, VptDeepConfig) else 1
        if layers > depth:
            raise UserError(f"tuner.layers: {layers} prompt layers, but the backbone has {depth} blocks; give at most {depth}")
        self.prompts = nn.Parameter(torch.empty(layers, config.prompts, self.vit.embed_dim))
        patch = 3 * math.prod(self.vit.patch_embed.patch_size)
        bound = math.sqrt(6 / (patch + self.vit.embed_dim))  # Xavier's bound of the patch embedding: Jia et al. 2022
        nn.init.uniform_(self.prompts, -bound, bound)
        self.gates = nn.Parameter(torch.full((depth - 1,), config.gate)) if isinstance(config, GaptConfig) else None
        self.drop = nn.Dropout(config.dropout)
        self.head = linear_head(backbone, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return features [B, D]."""
        return self._features(embed(self.vit, images))

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Return prompts and gates, and the head."""
        own = [self.prompts] if self.gates is None else [self.prompts, self.gates]
        return {"tuner": own, "head": list(self.head.parameters())}

    def frozen_prefix(self, images: Tensor) -> Tensor:
        """Return the tokens [B, N, D] that enter the first block; prompts affect everything after it."""
        return embed(self.vit, images)

    def from_prefix(self, prefix: Tensor) -> Tensor:
        """Return logits [B, C]."""
        return self.head(self._features(prefix))

    def _features(self, tokens: Tensor) -> Tensor:
        start = self.vit.num_prefix_tokens
        end = start + self.prompts.shape[1]
        special, patches = tokens[:, :start], tokens[:, start:]
        given = left = tokens.new_empty(0)
        for layer, block in enumerate(self.vit.blocks):
            if layer < len(self.prompts):
                given = self.drop(self.prompts[layer]).to(tokens.dtype).expand(len(tokens), -1, -1)
            elif self.gates is None:
                given = left
            else:
                given = torch.lerp(given, left, self.gates[layer - 1].sigmoid().to(left.dtype))
            whole = block(torch.cat([special, given, patches], 1))
            special, left, patches = whole[:, :start], whole[:, start:end], whole[:, end:]
        return finish(self.vit, self.vit.norm(torch.cat([special, patches], 1)))


def build(config: PromptConfig, backbones: Sequence[nn.Module], classes: int) -> Prompted:
    """Build prompts from their settings."""
    return Prompted(config, only(backbones), classes)
