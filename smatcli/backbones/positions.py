"""Position embeddings that keep their pre-trained size and are stretched to the image at every call, as in DINO, PMF and SMAT's release.

A SMAT expert masks each entry of the position embedding, so that the embedding cannot be resized before the experts are merged: resized
entries have no mask. theta_i keeps the size of the checkpoint, and the forward pass resizes it.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from smatcli.config.schema import BackboneConfig
from smatcli.errors import UserError

MARGIN = 0.1


def stretch(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """Map [1, 1 + n^2, D] to [1, 1 + h w, D]: bicubic without antialiasing, at scale (h + 0.1) / n; the CLS row is kept.

    The margin of 0.1 originally avoided rounding errors. The published models were tuned with it; timm resamples without it.
    """
    side = isqrt(embedding.shape[1] - 1)
    if grid == (side, side):
        return embedding
    token, patches = embedding[:, :1], embedding[:, 1:]
    square = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = [(length + MARGIN) / side for length in grid]
    resized = F.interpolate(square, scale_factor=scale, mode="bicubic", align_corners=False)
    return torch.cat([token, resized.flatten(2).transpose(1, 2)], 1)


class StretchedViT(VisionTransformer):
    """A ViT whose `pos_embed` was created for another image size and is stretched at every call."""

    def _pos_embed(self, x: Tensor) -> Tensor:
        assert self.cls_token is not None
        assert self.pos_embed is not None
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        embedded: Tensor = self.pos_drop(tokens + stretch(self.pos_embed, self.patch_embed.grid_size))
        return embedded


def stretched(model: nn.Module, config: BackboneConfig) -> nn.Module:
    """Make `model`, created for `config.position_size`, accept images of `config.image_size`.

    Raises `UserError` if the architecture does not support this.
    """
    plain = type(model) is VisionTransformer and model.cls_token is not None and model.pos_embed is not None
    if not plain or model.num_prefix_tokens != 1 or model.no_embed_class or model.dynamic_img_size:
        raise UserError(f"backbone.position_size: {config.name} is not a plain ViT with a class token; leave position_size at null")
    # Only the class of the object changes: the names, hooks and attention settings of the timm model are kept.
    model.__class__ = StretchedViT
    model.patch_embed.set_input_size((config.image_size, config.image_size))  # type: ignore[union-attr, operator]
    return model


def settled(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of `model` for a plain timm model of the same image size, by name, with `pos_embed` stretched."""
    if not isinstance(model, StretchedViT):
        return tensors
    return {**tensors, "pos_embed": stretch(tensors["pos_embed"], model.patch_embed.grid_size)}
