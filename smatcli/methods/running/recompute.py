"""Cheap recomputation: what a transformer block makes by LayerNorm and the activation is made again in backward instead of kept.

These tensors are a third of a block's activations and a few percent of its time. The products that read them keep their inputs alone, so
the same numbers come out bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SMALL = 1 << 18  # elements; smaller tensors cost more to make again (Python's part) than they take


def can_recompute_cheaply(block: nn.Module) -> bool:
    """Whether `block` is a timm ViT block as timm runs it, whose norms are read by one product each."""
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp or block.attn.gate is not None:
        return False
    modules = (block, block.attn, block.mlp, block.mlp.act, *_norms(block), *_linears(block))
    hooked = any("forward" in m.__dict__ or m._forward_hooks or m._forward_pre_hooks for m in modules)
    norms = all(isinstance(n, nn.LayerNorm) and not getattr(n, "_fast_norm", False) for n in _norms(block))
    plain = all(type(linear) is nn.Linear for linear in _linears(block)) and not list(block.mlp.act.parameters())
    # Between the activation and fc2 there must be nothing else: dropout is off, because backbones run in eval mode.
    return not hooked and norms and plain and isinstance(block.mlp.norm, nn.Identity)


def _norms(block: Any) -> tuple[nn.Module, nn.Module]:
    return block.norm1, block.norm2


def _linears(block: Any) -> tuple[nn.Module, ...]:
    return block.attn.qkv, block.mlp.fc1, block.mlp.fc2


def _mlp(block: Any) -> Any:
    return block.mlp


@contextmanager
def cheaply(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, the blocks (of `can_recompute_cheaply`) keep the inputs of their norms and activations, not the outputs."""
    changed: list[nn.Module] = []

    def replace(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        module.forward = forward  # type: ignore[method-assign,assignment]
        changed.append(module)

    try:
        for block in blocks:
            for norm, linear in zip(_norms(block), _linears(block)[:2], strict=True):
                replace(norm, _same)
                replace(linear, partial(_normed, norm, linear))
            act, last = _mlp(block).act, _mlp(block).fc2
            replace(last, partial(_activated, act.forward, last))
            replace(act, _same)
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


def _same(x: Tensor) -> Tensor:
    return x


def _normed(norm: Any, linear: Any, x: Tensor) -> Tensor:
    """linear(norm(x)); their tensors are arguments, because swapped parameters are gone from the modules in backward."""

    def run(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(F.layer_norm(x, norm.normalized_shape, scale, shift, norm.eps), weight, bias)

    return _again(run, x, norm.weight, norm.bias, linear.weight, linear.bias)


def _activated(act: Callable[[Tensor], Tensor], linear: Any, x: Tensor) -> Tensor:
    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(act(x), weight, bias)

    return _again(run, x, linear.weight, linear.bias)


def _again(run: Callable[..., Tensor], x: Tensor, *tensors: Tensor | None) -> Tensor:
    """`run`, of which backward makes again what comes before the product: recomputation stops where the last kept tensor is there."""
    if not torch.is_grad_enabled() or x.numel() < SMALL:
        return run(x, *tensors)
    kept: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
    return checkpoint(run, x, *tensors, **kept)  # type: ignore[no-any-return]
