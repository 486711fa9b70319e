"""Cheap recomputation: backward recomputes the outputs of LayerNorm and of the activation function instead of storing them.

These tensors make up a third of a transformer block's activations, and recomputing them takes a few percent of its time. The results are
equal bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SMALL = 1 << 18  # elements; for smaller tensors the Python overhead of recomputation outweighs the memory


def can_recompute_cheaply(block: nn.Module) -> bool:
    """Whether `block` is an unmodified timm ViT block whose norms feed one linear layer each."""
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp or block.attn.gate is not None:
        return False
    modules = (block, block.attn, block.mlp, block.mlp.act, *_norms(block), *_linears(block))
    hooked = any("forward" in m.__dict__ or m._forward_hooks or m._forward_pre_hooks for m in modules)
    norms = all(isinstance(n, nn.LayerNorm) and not getattr(n, "_fast_norm", False) for n in _norms(block))
    plain = all(type(linear) is nn.Linear for linear in _linears(block)) and not list(block.mlp.act.parameters())
    # Nothing else may lie between the activation and fc2. Dropout is off, because backbones run in eval mode.
    return not hooked and norms and plain and isinstance(block.mlp.norm, nn.Identity)


def _norms(block: Any) -> tuple[nn.Module, nn.Module]:
    return block.norm1, block.norm2


def _linears(block: Any) -> tuple[nn.Module, ...]:
    return block.attn.qkv, block.mlp.fc1, block.mlp.fc2


def _mlp(block: Any) -> Any:
    return block.mlp


@contextmanager
def cheap_recomputation(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Make blocks that pass `can_recompute_cheaply` save the inputs of their norms and activations instead of the outputs."""
    changed: list[nn.Module] = []

    def replace(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        setattr(module, "forward", forward)  # noqa: B010
        changed.append(module)

    try:
        for block in blocks:
            for norm, linear in zip(_norms(block), _linears(block)[:2], strict=True):
                replace(norm, _identity)
                replace(linear, partial(_norm_linear, norm, linear))
            act, last = _mlp(block).act, _mlp(block).fc2
            replace(last, partial(_act_linear, act.forward, last))
            replace(act, _identity)
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


def _identity(x: Tensor) -> Tensor:
    return x


def _norm_linear(norm: Any, linear: Any, x: Tensor) -> Tensor:
    """Return linear(norm(x)). The tensors are arguments, because the modules no longer have the swapped parameters in backward."""

    def run(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(F.layer_norm(x, norm.normalized_shape, scale, shift, norm.eps), weight, bias)

    return _checkpointed(run, x, norm.weight, norm.bias, linear.weight, linear.bias)


def _act_linear(act: Callable[[Tensor], Tensor], linear: Any, x: Tensor) -> Tensor:
    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(act(x), weight, bias)

    return _checkpointed(run, x, linear.weight, linear.bias)


def _checkpointed(run: Callable[..., Tensor], x: Tensor, *tensors: Tensor | None) -> Tensor:
    """Run `run` with a checkpoint: backward recomputes the input of the matrix product and stops there."""
    if not torch.is_grad_enabled() or x.numel() < SMALL:
        return run(x, *tensors)
    kept: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
    result: Tensor = checkpoint(run, x, *tensors, **kept)
    return result
