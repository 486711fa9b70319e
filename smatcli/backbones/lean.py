"""Compute only the CLS token in the last block of a ViT.

The feature of a ViT is the CLS token after the last block. There, the other tokens are needed only as keys and values; their queries,
projections and MLP are skipped. Parameters have the same names as in the plain module, and features are equal up to rounding.
"""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn


def lean(module: nn.Module, several: bool = False) -> nn.Module | None:
    """Return a CLS-only copy of a timm ViT, or None if the architecture is not supported. The copy's own weights are empty.

    `several`: embed patches by a matrix product, for networks that run side by side (vmap would create a grouped convolution).
    """
    if type(module) is not VisionTransformer or module.global_pool != "token" or module.attn_pool is not None or not len(module.blocks):
        return None
    last = module.blocks[-1]
    if module.cls_token is None or type(last) is not Block or type(last.attn) is not Attention or last.attn.gate is not None:
        return None
    if any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in module.modules()):
        return None  # the copy would not call the hooks of the original
    empty = {id(p): nn.Parameter(p.detach().new_empty(0), p.requires_grad) for p in module.parameters()}  # do not copy weights
    short = copy.deepcopy(module, empty).eval()
    short.blocks[-1].forward = partial(_class_token, short.blocks[-1])
    if several and _plain(short.patch_embed):
        short.patch_embed.forward = partial(_patches, short.patch_embed)
    return short


def _class_token(block: Block, x: Tensor) -> Tensor:
    """Map tokens [B, N, D] to the CLS token [B, 1, D] after the block."""
    attn = block.attn
    assert isinstance(attn, Attention)
    first = x[:, :1] + block.ls1(_attend(attn, block.norm1(x)))
    return first + block.ls2(block.mlp(block.norm2(first)))  # type: ignore[no-any-return]


def _attend(attn: Attention, x: Tensor) -> Tensor:
    """Return the attention output of the first token, [B, 1, D], given all tokens [B, N, D]."""
    count, tokens, _ = x.shape
    heads, cuts = (attn.num_heads, attn.head_dim), [attn.attn_dim, 2 * attn.attn_dim]
    own, rest = torch.split(attn.qkv.weight, cuts)
    bias = (None, None) if attn.qkv.bias is None else torch.split(attn.qkv.bias, cuts)
    q = F.linear(x[:, :1], own, bias[0]).reshape(count, 1, *heads).transpose(1, 2)
    k, v = F.linear(x, rest, bias[1]).reshape(count, tokens, 2, *heads).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    mixed = F.scaled_dot_product_attention(q, k, v) if attn.fused_attn else (q * attn.scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return attn.proj(attn.norm(mixed.transpose(1, 2).reshape(count, 1, attn.attn_dim)))  # type: ignore[no-any-return]


def _plain(embed: nn.Module) -> bool:
    """Whether the patch embedding splits an image of fixed size into patches without overlap or gaps."""
    conv = getattr(embed, "proj", None)
    if type(embed) is not PatchEmbed or type(conv) is not nn.Conv2d or not embed.flatten or embed.dynamic_img_pad:
        return False
    return conv.kernel_size == conv.stride and conv.padding == (0, 0) and conv.dilation == (1, 1) and conv.groups == 1


def _patches(embed: PatchEmbed, images: Tensor) -> Tensor:
    """Map images [B, 3, H, W] to patch tokens [B, N, D]."""
    conv = embed.proj
    (high, wide), (count, channels, height, width) = conv.kernel_size, images.shape
    cut = images.reshape(count, channels, height // high, high, width // wide, wide).permute(0, 2, 4, 1, 3, 5)
    patches = cut.reshape(count, -1, channels * high * wide)
    return embed.norm(F.linear(patches, conv.weight.flatten(1), conv.bias))  # type: ignore[no-any-return]
