"""Gates: M hard-concrete masks over G groups, without any parameters behind them.

The vision methods expand gates to a flat vector of parameters; a language model multiplies the rows of its layers by them.
"""

from typing import Literal

import torch
from torch import Tensor

from smatcli.config.methods import MaskConfig
from smatcli.experts.masks import HardConcrete, initial_log_alpha
from smatcli.experts.noise import logistic

Scope = Literal["each", "all", "union"]


class Gates:
    """Learned gates z [M, G] from log_alpha [M, G]; `members` [G] counts the parameters behind each entry (None: one each)."""

    def __init__(self, config: MaskConfig, groups: int, members: Tensor | None = None) -> None:
        self.config, self.groups = config, groups
        self.shape = HardConcrete.of(config)
        weights = torch.ones(groups, dtype=torch.float64) if members is None else members.double()
        self.share = weights / weights.sum()

    def initial_log_alpha(self, experts: int) -> Tensor:
        """Draw log_alpha [M, G] from torch's global generator."""
        return initial_log_alpha(experts, self.groups, self.config)

    def draw(self, log_alpha: Tensor, seed: int) -> Tensor:
        """Return training gates z [M, G] with the counter-based noise of `seed`, or without noise if the recipe says deterministic."""
        if self.config.noise == "deterministic":
            return self.shape.train_gate(log_alpha)
        return self.shape.gate(log_alpha + logistic(seed, len(log_alpha), self.groups, log_alpha), self.shape.beta)

    def inference(self, log_alpha: Tensor) -> Tensor:
        """Return inference gates z [M, G]: no noise, temperature `eval_beta`."""
        return self.shape.eval_gate(log_alpha)

    def expected(self, log_alpha: Tensor) -> Tensor:
        """Return P(z > 0) in training, [M, G] in (0, 1)."""
        return self.shape.expected_l0_element(log_alpha)

    def density(self, present: Tensor, scope: Scope) -> Tensor:
        """Return the share of parameters that are kept, [M] for `each`, else [1], from probabilities or booleans `present` [M, G].

        `each`: per expert. `all`: the mean over the experts, i.e. of the stacked masks. `union`: rows kept by any expert, as if the
        experts were independent.
        """
        share = self.share.to(present.device, torch.promote_types(present.dtype, torch.float32))
        if scope == "union":
            return ((1 - (1 - present.to(share)).prod(0)) @ share)[None]
        each = present.to(share) @ share
        return each if scope == "each" else each.mean(0, keepdim=True)
