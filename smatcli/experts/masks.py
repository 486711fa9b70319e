"""Hard-concrete masks (Louizos et al. 2018): stretched, rectified binary concrete variables z in [0, 1] with mass at 0 and 1."""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from smatcli.config.methods import MaskConfig

NOISE_MARGIN = 2.0**-17


@dataclass(frozen=True)
class HardConcrete:
    """Constants of the distribution: temperature `beta`, stretch [gamma, zeta], and temperature `eval_beta` of the inference gate."""

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1
    eval_beta: float = 1.0

    @classmethod
    def of(cls, config: MaskConfig) -> "HardConcrete":
        """Return the constants that a recipe sets."""
        return cls(config.beta, config.gamma, config.zeta, config.eval_beta)

    def temperature(self, training: bool) -> float:
        """Return the divisor of the gate's logit: `beta` in training, `eval_beta` at inference."""
        return self.beta if training else self.eval_beta

    @property
    def stretch(self) -> float:
        """Length of the stretched interval, zeta - gamma."""
        return self.zeta - self.gamma

    def gate(self, logits: Tensor, temperature: float) -> Tensor:
        """Return z = clip(sigmoid(logits / temperature) (zeta - gamma) + gamma, 0, 1), element-wise."""
        return (torch.sigmoid(logits / temperature) * self.stretch + self.gamma).clamp(0, 1)

    def train_gate(self, log_alpha: Tensor, u: Tensor | None = None) -> Tensor:
        """Return the training mask for noise `u` in (0, 1), of the shape of log_alpha; None means 0.5 everywhere (no noise)."""
        return self.gate(log_alpha if u is None else log_alpha + torch.logit(u), self.beta)

    def eval_gate(self, log_alpha: Tensor) -> Tensor:
        """Return the inference mask: no noise, temperature `eval_beta`."""
        return self.gate(log_alpha, self.eval_beta)

    def zero_below(self, training: bool) -> float:
        """Return the largest log_alpha for which the noise-free gate is 0."""
        return self.temperature(training) * log(-self.gamma / self.zeta)

    @property
    def l0_shift(self) -> float:
        """Shift of log_alpha in E[L0] = sigmoid(log_alpha + l0_shift) of one element: -beta log(-gamma / zeta)."""
        return -self.beta * log(-self.gamma / self.zeta)

    def expected_l0_element(self, log_alpha: Tensor) -> Tensor:
        """Return P(z > 0) in training, element-wise, in (0, 1) (Louizos et al. 2018, eq. 12)."""
        return torch.sigmoid(log_alpha + self.l0_shift)


def initial_log_alpha(experts: int, size: int, config: MaskConfig) -> Tensor:
    """Draw log_alpha [M, P] ~ N(init_mean, init_std^2), clamped to +-clamp, from torch's global generator."""
    return torch.randn(experts, size).mul_(config.init_std).add_(config.init_mean).clamp_(-config.clamp, config.clamp)


def noise(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw u ~ U(0, 1), clamped away from 0 and 1, in the dtype and on the device of `like`."""
    u = torch.empty(shape, dtype=like.dtype, device=like.device).uniform_(generator=generator)
    return u.clamp_(NOISE_MARGIN, 1 - NOISE_MARGIN)


def expected_l0(log_alpha: Tensor, shape: HardConcrete) -> Tensor:
    """Return E[L0(z_m)] / P of each expert, [M] in (0, 1), with gradient to log_alpha [M, P]; `merge` returns the same value."""
    return torch.stack([shape.expected_l0_element(row).mean() for row in log_alpha])


def counted_sparsity(log_alpha: Tensor, shape: HardConcrete, training: bool) -> Tensor:
    """Return the share of zeros of each expert's noise-free mask, [M] in [0, 1], under the training or the inference gate."""
    zero = shape.zero_below(training)
    return torch.stack([(row <= zero).to(row.dtype).mean() for row in log_alpha])
