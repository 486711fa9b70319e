"""`ssf`: a scale and a shift per feature after every linear layer, norm and convolution."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smatcli.config.tuning import SsfConfig
from smatcli.tuning.base import Wrapped, only

SCALED = (nn.Linear, nn.LayerNorm, nn.Conv2d)


class Scaled(nn.Module):
    """Layer followed by a scale and a shift per feature: inner(x) * scale + shift, on the last axis, for a convolution on the second."""

    def __init__(self, inner: nn.Module, std: float) -> None:
        super().__init__()
        self.inner = inner
        width = len(inner.weight)  # type: ignore[arg-type]
        self.scale = nn.Parameter(1 + std * torch.randn(width))
        self.shift = nn.Parameter(std * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled and shifted output of the layer."""
        y = self.inner(x)
        shape = (-1, 1, 1) if isinstance(self.inner, nn.Conv2d) else (-1,)
        return y * self.scale.view(shape).to(y.dtype) + self.shift.view(shape).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Merge scale and shift into weight and bias of the layer, and return it."""
        inner, scale, shift = self.inner, self.scale.double(), self.shift.double()
        weight: Tensor = inner.weight  # type: ignore[assignment]
        old: Tensor | None = inner.bias  # type: ignore[assignment]
        bias = shift if old is None else old.double() * scale + shift
        weight.copy_(weight.double() * scale.view(-1, *[1] * (weight.ndim - 1)))
        inner.bias = nn.Parameter(bias.to(weight.dtype))
        return inner


class Ssf(Wrapped):
    """Scaling and shifting of features (Lian et al. 2022); merges into the weights."""

    def __init__(self, config: SsfConfig, backbone: nn.Module, classes: int) -> None:
        super().__init__(backbone, classes)
        chosen = [n for n, m in backbone.named_modules() if isinstance(m, SCALED) and getattr(m, "weight", None) is not None]
        for name in chosen:
            backbone.set_submodule(name, Scaled(backbone.get_submodule(name), config.init_std))

    def settle(self, backbone: nn.Module) -> None:
        """Merge scales and shifts into weights and biases."""
        for name, module in list(backbone.named_modules()):
            if isinstance(module, Scaled):
                backbone.set_submodule(name, module.merged())


def build(config: SsfConfig, backbones: Sequence[nn.Module], classes: int) -> Ssf:
    """Build scales and shifts throughout the backbone."""
    return Ssf(config, only(backbones), classes)
