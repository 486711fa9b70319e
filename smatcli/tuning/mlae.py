"""`mlae`: masked LoRA experts, which are rank-one (or small) experts with learned coefficients; training drops some at random."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smatcli.config.tuning import MlaeConfig
from smatcli.tuning.base import Wrapped, only
from smatcli.tuning.layers import block_of, depth_of, linear_layers
from smatcli.tuning.patterns import experts_of, rates_of


class MaskedExperts(nn.Module):
    """A frozen linear layer with n experts: W x + sum_i m_i lambda_i b_i a_i x, b_i [out, cell], a_i [cell, in] (Wang et al. 2024).

    In training, m_i is 0 with probability p, else 1 / (1 - p); at inference all are 1. The sum is one low-rank product, with coefficients
    that scale the few rows of `a` instead of tokens.
    """

    def __init__(self, base: nn.Linear, experts: int, cell: int, init: float, p: float) -> None:
        super().__init__()
        self.base, self.cell, self.p = base, cell, p
        self.a = nn.Parameter(base.weight.new_empty(experts * cell, base.in_features))
        self.b = nn.Parameter(base.weight.new_zeros(base.out_features, experts * cell))
        self.coefficients = nn.Parameter(base.weight.new_full((experts,), init))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.only: int | None = None  # for analyses: index of the only active expert; -1 switches off all experts

    def weights(self) -> Tensor:
        """Return m_i lambda_i [n]; each call in training draws new m_i."""
        if self.only is not None:
            return self.coefficients * (torch.arange(len(self.coefficients), device=self.a.device) == self.only)
        return F.dropout(self.coefficients, self.p, self.training) if self.p else self.coefficients

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        weights = self.weights()
        if self.cell > 1:
            weights = weights.repeat_interleave(self.cell)
        return self.base(x) + F.linear(F.linear(x, self.a * weights.unsqueeze(1)), self.b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Merge all experts into the weight of the base layer, and return it."""
        weights = self.coefficients.double().repeat_interleave(self.cell)
        change = self.b.double() @ (self.a.double() * weights.unsqueeze(1))
        self.base.weight.copy_(self.base.weight.double() + change)
        return self.base


class Mlae(Wrapped):
    """Masked LoRA experts on the configured layers; masks follow `smatcli.tuning.patterns`."""

    def __init__(self, config: MlaeConfig, backbone: nn.Module, classes: int) -> None:
        super().__init__(backbone, classes)
        chosen = linear_layers(backbone, config.layers)
        depth = depth_of(backbone)
        numbers, rates = experts_of(config, depth), rates_of(config, depth)
        self.layers: list[str] = []
        for name, layer in chosen.items():
            block = block_of(name)
            count = config.rank // config.cell if block is None else numbers[block]
            p = (config.p if isinstance(config.p, float) else 0.0) if block is None else rates[block]
            if count:
                backbone.set_submodule(name, MaskedExperts(layer, count, config.cell, config.init, p))
                self.layers.append(name)

    def parts(self) -> dict[str, MaskedExperts]:
        """Return the layers with experts by name."""
        return {name: self.backbone.get_submodule(name) for name in self.layers}  # type: ignore[misc]

    def experts(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Return all experts (lambda b [out, cell], a [cell, in]) by layer."""
        experts = {}
        for name, part in self.parts().items():
            bs, rows = part.b.detach().split(part.cell, 1), part.a.detach().split(part.cell, 0)
            values = part.coefficients.detach()
            experts[name] = [(value * b, a) for value, b, a in zip(values, bs, rows, strict=True)]
        return experts

    def settle(self, backbone: nn.Module) -> None:
        """Merge all experts into the weights."""
        for name in self.layers:
            backbone.set_submodule(name, backbone.get_submodule(name).merged())  # type: ignore[operator]


def build(config: MlaeConfig, backbones: Sequence[nn.Module], classes: int) -> Mlae:
    """Build MLAE from its settings."""
    return Mlae(config, only(backbones), classes)
