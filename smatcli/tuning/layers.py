"""Linear layers and blocks of a backbone, by name."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from smatcli.errors import UserError

BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def linear_layers(backbone: nn.Module, patterns: Sequence[str], where: str = "tuner.layers") -> dict[str, nn.Linear]:
    """Return the linear layers whose names match one of `patterns` (shell style), in the order of the network.

    Raises `UserError` for a pattern that matches no layer (and lists the layers), and for attention that bypasses its linear layer.
    """
    layers = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            there = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in layers))
            raise UserError(f"{where}: no linear layer matches {pattern!r}; use {there or 'another backbone'}")
    chosen = {name: layer for name, layer in layers.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    for name in chosen:
        owner = backbone.get_submodule(name.rpartition(".")[0])
        if name.endswith("qkv") and getattr(owner, "q_bias", None) is not None:
            raise UserError(f"{where}: {type(owner).__name__} bypasses the layer {name} and reads its weights; remove it")
    return chosen


def block_of(name: str) -> int | None:
    """Return the number of the block that contains a layer, or None."""
    match = BLOCK.search(name)
    return int(match.group(1)) if match else None


def depth_of(backbone: nn.Module) -> int:
    """Return the number of blocks. Raises `UserError` for a network without blocks."""
    blocks = getattr(backbone, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise UserError(f"{type(backbone).__name__} has no sequence of blocks; choose a timm ViT")
    return len(blocks)
