"""Vision transformers by timm name, with weights from timm, a file or a pre-training run, resampled to the recipe's image size."""

from smatcli.backbones.create import create_backbone
from smatcli.backbones.weights import save_backbone

__all__ = ["create_backbone", "save_backbone"]
