"""Stages of a timm ViT as functions (embed, blocks, finish), so that prompts can be inserted between them."""

from collections.abc import Sequence

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from smatcli.errors import UserError


def check_vit(backbone: nn.Module, what: str) -> VisionTransformer:
    """Return `backbone` as a plain timm ViT. Raises `UserError`, with the prefix `what`, for another architecture."""
    if not isinstance(backbone, VisionTransformer) or getattr(backbone, "patch_embed", None) is None:
        raise UserError(f"{what}: {type(backbone).__name__} is not a plain timm ViT, which prompts need; choose a vit_* model")
    return backbone


def check_alike(vits: Sequence[VisionTransformer]) -> None:
    """Raise `UserError` unless all experts of pMoE have the same image size, patch grid and number of blocks."""
    first = vits[0]
    for k, vit in enumerate(vits[1:]):
        where = f"tuner.experts[{k}]"
        if len(vit.blocks) != len(first.blocks):
            raise UserError(f"{where}: has {len(vit.blocks)} blocks, `backbone` has {len(first.blocks)}; pMoE needs equal depth")
        if vit.patch_embed.img_size != first.patch_embed.img_size:
            sizes = (vit.patch_embed.img_size[0], first.patch_embed.img_size[0])
            raise UserError(f"{where}: takes images of {sizes[0]} px, `backbone` of {sizes[1]}; set the same image_size")
        if vit.patch_embed.grid_size != first.patch_embed.grid_size:
            ours, theirs = ("x".join(map(str, v.patch_embed.grid_size)) for v in (vit, first))
            raise UserError(f"{where}: has a patch grid of {ours}, `backbone` of {theirs}; pMoE needs equal patch grids")


def embed(vit: VisionTransformer, images: Tensor) -> Tensor:
    """Return the tokens [B, prefix + N, D] that enter the first block, with a resampled position embedding for other image sizes."""
    patch_embed = vit.patch_embed
    if tuple(images.shape[-2:]) == tuple(patch_embed.img_size):
        return vit.norm_pre(vit.patch_drop(vit._pos_embed(patch_embed(images))))
    patches = patch_embed.proj(images)
    grid = list(patches.shape[-2:])
    patches = patch_embed.norm(patches.flatten(2).transpose(1, 2))
    special = [token.expand(len(images), -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
    if vit.pos_embed is None:
        return vit.norm_pre(torch.cat([*special, patches], 1))
    free = 0 if vit.no_embed_class else vit.num_prefix_tokens
    places = resample_abs_pos_embed(vit.pos_embed, grid, num_prefix_tokens=free)
    if vit.no_embed_class:
        return vit.norm_pre(torch.cat([*special, patches + places], 1))
    return vit.norm_pre(torch.cat([*special, patches], 1) + places)


def finish(vit: VisionTransformer, tokens: Tensor) -> Tensor:
    """Pool a ViT's final tokens [B, prefix + N, D] (after its norm) to features [B, D]."""
    return vit.forward_head(tokens, pre_logits=True)
