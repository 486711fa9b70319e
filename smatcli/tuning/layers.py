"""Linear layers of a backbone by name, and putting others in their place."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from smatcli.errors import UserError

BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def linear_layers(backbone: nn.Module, patterns: Sequence[str], where: str = "tuner.layers") -> dict[str, nn.Linear]:
    """The linear layers whose name fits one of `patterns` (shell style), in the order of the network.

    UserError for a pattern that fits none (it lists what there is), and for attention that bypasses its linear layer.
    """
    known = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            there = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in known))
            raise UserError(f"{where}: no linear layer fits {pattern!r}; there are {there or 'none'}")
    chosen = {name: layer for name, layer in known.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    for name in chosen:
        owner = backbone.get_submodule(name.rpartition(".")[0])
        if name.endswith("qkv") and getattr(owner, "q_bias", None) is not None:
            raise UserError(f"{where}: {type(owner).__name__} reads the weights of {name} past the layer; leave it out")
    return chosen


def block_of(name: str) -> int | None:
    """Number of the block that a layer belongs to."""
    found = BLOCK.search(name)
    return int(found.group(1)) if found else None


def depth_of(backbone: nn.Module) -> int:
    """Number of blocks; UserError for a network without any."""
    blocks = getattr(backbone, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise UserError(f"{type(backbone).__name__} has no sequence of blocks; choose a timm ViT")
    return len(blocks)
