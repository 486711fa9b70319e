"""The sparsity constraint E[L0(z_m)] / P <= 1 - tau of each expert, by Lagrange multipliers."""

import torch
from torch import Tensor, nn

from smatcli.config.methods import SparsityConfig


class SparsityController(nn.Module):
    """One multiplier per expert, learned by gradient ascent on the violation of its constraint.

    The ascent is a loss term whose gradient is the negative violation. Plain SGD with rate `sparsity.lr` on the group `multipliers`
    performs it, so that meta-batches, checkpoints and distributed training need no special case.
    """

    def __init__(self, config: SparsityConfig, experts: int) -> None:
        super().__init__()
        self.config = config
        self.multipliers = nn.Parameter(torch.zeros(experts))

    def measured(self, expected_l0: Tensor, counted: Tensor) -> Tensor:
        """Return the sparsity [M] that drives the multipliers: 1 - E[L0], or the counted share of zeros."""
        return counted if self.config.measure == "counted" else 1 - expected_l0.detach()

    @torch.no_grad()
    def reset(self, sparsity: Tensor) -> None:
        """Set the multipliers of experts sparser than tau to 0."""
        if self.config.reset:
            self.multipliers.masked_fill_(sparsity > self.config.tau, 0.0)

    def terms(self, expected_l0: Tensor, sparsity: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Return (penalty, ascent), both scalars.

        penalty = sum_m w_m lambda_m (tau - 1 + E[L0]_m) with gradient to E[L0] only; ascent = sum_m w_m lambda_m (sparsity_m - tau)
        with gradient to lambda only. w = 1, or alpha with `weighting: alpha`.
        """
        tau = self.config.tau
        weight = alpha.detach() if self.config.weighting == "alpha" else torch.ones_like(self.multipliers)
        penalty = (weight * self.multipliers.detach().clone() * (tau - 1 + expected_l0)).sum()
        ascent = (weight * (sparsity.detach() - tau) * self.multipliers).sum()
        return penalty, ascent

    @torch.no_grad()
    def project(self) -> None:
        """Clamp the multipliers to non-negative values, after an update."""
        if self.config.project:
            self.multipliers.clamp_(min=0.0)
