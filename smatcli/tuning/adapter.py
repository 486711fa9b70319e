"""`adapter` (`adaptformer`): a bottleneck parallel to every MLP."""

import math
from collections.abc import Sequence

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from smatcli.config.tuning import AdapterConfig
from smatcli.errors import UserError
from smatcli.tuning.base import Wrapped, only
from smatcli.tuning.layers import depth_of


class Bottleneck(nn.Module):
    """Bottleneck scale * up(dropout(relu(down x))), [..., D] -> [..., D]; `up` is initialised with zeros."""

    def __init__(self, width: int, config: AdapterConfig) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, config.hidden), nn.Linear(config.hidden, width)
        self.act, self.drop, self.scale = nn.ReLU(), nn.Dropout(config.dropout), config.scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return self.scale * self.up(self.drop(self.act(self.down(x))))


class AdaptedBlock(nn.Module):
    """A pre-norm block with a bottleneck parallel to its MLP: x + MLP(norm x) + bottleneck(x), x after the attention."""

    def __init__(self, block: Block, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.block, self.adapter = block, bottleneck

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, N, D] to [B, N, D]."""
        block = self.block
        x = x + block.drop_path1(block.ls1(block.attn(block.norm1(x))))
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))) + self.adapter(x)


class Adapter(Wrapped):
    """AdaptFormer (Chen et al. 2022). It cannot be merged, because the bottleneck is not linear."""

    def __init__(self, config: AdapterConfig, backbone: nn.Module, classes: int) -> None:
        super().__init__(backbone, classes)
        width = int(backbone.embed_dim) if hasattr(backbone, "embed_dim") else int(backbone.num_features)  # type: ignore[arg-type]
        for i in range(depth_of(backbone)):
            block = backbone.blocks[i]  # type: ignore[index]
            if type(block) is not Block:
                raise UserError(
                    f"tuner: {type(block).__name__} is not a plain transformer block, which {config.name} needs; choose a timm ViT"
                )
            backbone.blocks[i] = AdaptedBlock(block, Bottleneck(width, config))  # type: ignore[operator, assignment]

    def merge(self) -> None:
        """Return None: the bottleneck is not linear and cannot be merged."""
        return None


def build(config: AdapterConfig, backbones: Sequence[nn.Module], classes: int) -> Adapter:
    """Build a tuner with a bottleneck in every block."""
    return Adapter(config, only(backbones), classes)
