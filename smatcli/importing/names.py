"""Names and order of the tensors of a ViT in two libraries, and their conversion to timm.

The lists in the SMAT release are indexed by the network's named parameters. Their order is the order below, not the order in the file.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from smatcli.errors import UserError
from smatcli.importing.parsed import Named

_DEPTH = re.compile(r"(?:^|\.)(?:blocks|layer)\.(\d+)\.")
_HF_BLOCK = (
    ("attention.attention.query", "attn.qkv", 0),
    ("attention.attention.key", "attn.qkv", 1),
    ("attention.attention.value", "attn.qkv", 2),
    ("attention.output.dense", "attn.proj", None),
    ("intermediate.dense", "mlp.fc1", None),
    ("output.dense", "mlp.fc2", None),
    ("layernorm_before", "norm1", None),
    ("layernorm_after", "norm2", None),
)
_TIMM_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_KINDS = ("weight", "bias")


@dataclass(frozen=True)
class TensorName:
    """The foreign name of a tensor, its timm name, and which third of the fused qkv of timm it is (None: a whole tensor)."""

    theirs: str
    ours: str
    part: int | None = None


def transformers_entries(depth: int) -> list[TensorName]:
    """Return the tensors of a ViT of `transformers` 4 (separate q, k and v), in the order of its named parameters."""
    entries = [TensorName("embeddings.cls_token", "cls_token"), TensorName("embeddings.position_embeddings", "pos_embed")]
    entries += [TensorName(f"embeddings.patch_embeddings.projection.{kind}", f"patch_embed.proj.{kind}") for kind in _KINDS]
    for i in range(depth):
        for theirs, ours, part in _HF_BLOCK:
            entries += [TensorName(f"encoder.layer.{i}.{theirs}.{kind}", f"blocks.{i}.{ours}.{kind}", part) for kind in _KINDS]
    return entries + [TensorName(f"layernorm.{kind}", f"norm.{kind}") for kind in _KINDS]


def timm_entries(depth: int) -> list[TensorName]:
    """Return the tensors of a ViT of timm, torch hub or DINO (fused qkv), in the order of its named parameters."""
    names = ["cls_token", "pos_embed", *(f"patch_embed.proj.{kind}" for kind in _KINDS)]
    names += [f"blocks.{i}.{part}.{kind}" for i in range(depth) for part in _TIMM_BLOCK for kind in _KINDS]
    return [TensorName(name, name) for name in [*names, *(f"norm.{kind}" for kind in _KINDS)]]


def entries_for(path: Path, names: Collection[str]) -> list[TensorName]:
    """Return the layout of `names` (without the prefix of the network). Raises UserError if they are not the names of a ViT."""
    depth = max((int(match.group(1)) for name in names if (match := _DEPTH.search(name))), default=-1) + 1
    if depth and any(name.startswith(("embeddings.", "encoder.layer.")) for name in names):
        return transformers_entries(depth)
    if depth and any(name.startswith(("patch_embed.", "blocks.")) for name in names):
        return timm_entries(depth)
    raise UserError(f"{path}: its network is not a supported vision transformer (it has {', '.join(sorted(names)[:2])})")


def to_timm(entries: Sequence[TensorName], tensors: Sequence[Tensor], names: Sequence[str]) -> dict[str, Named]:
    """Return tensors by timm name, with q, k and v concatenated. `tensors` and `names` (in the file) are in the order of `entries`."""
    parts: dict[str, list[tuple[str, Tensor]]] = {}
    for entry, tensor, name in zip(entries, tensors, names, strict=True):
        parts.setdefault(entry.ours, []).append((name, tensor))
    return {ours: Named(group[0][0] + " (q, k, v)" * (len(group) > 1), torch.cat([t for _, t in group])) for ours, group in parts.items()}
