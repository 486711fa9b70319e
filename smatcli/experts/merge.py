"""theta = theta_pre + theta_delta * sum_m alpha_m z_m: a plain reference, and a closed form in one chunked pass each way."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smatcli.device import exact_products
from smatcli.experts.masks import NOISE_MARGIN, HardConcrete
from smatcli.phases import phase

EPS = 1e-8
_CHUNK = {"cpu": 2**17}
_CHUNK_DEVICE = 2**25
# Up to so many mask entries (256 MiB in fp32) the gates are kept for backward; above, they are made again.
_KEEP = 2**26

Noise = Tensor | int | None


def normalise(scores: Tensor) -> Tensor:
    """alpha = s / (sum_m s_m + 1e-8) over the last axis; all zero stays all zero, which merges to the pre-trained model."""
    return scores / (scores.sum(-1, keepdim=True) + EPS)


def merge_reference(
    theta_pre: Tensor,
    theta_delta: Tensor,
    log_alpha: Tensor,
    alpha: Tensor,
    shape: HardConcrete,
    *,
    training: bool,
    u: Tensor | None = None,
    dense: Tensor | None = None,
) -> Tensor:
    """The definition, by autograd: theta [P] (or [B, P] for alpha [B, M]). Where `dense` [P] is True the merged mask is 1."""
    mask = alpha @ (shape.train_gate(log_alpha, u) if training else shape.eval_gate(log_alpha))
    if dense is not None:
        mask = torch.where(dense, torch.ones_like(mask), mask)
    return theta_pre + theta_delta * mask


class Merged(NamedTuple):
    """theta [P] or [B, P], the non-zeros of each mask [M] (a count, no gradient), and E[L0(z_m)] / P [M]."""

    theta: Tensor
    nonzeros: Tensor
    expected_l0: Tensor


@dataclass(frozen=True)
class Gate:
    """How a chunk of masks is made: constants, noise and the always-dense parameters."""

    shape: HardConcrete
    training: bool
    noise: Noise
    dense: Tensor | None

    def parts(self, log_alpha: Tensor) -> Iterator[slice]:
        """The chunks of P, such that a chunk of all experts fits the cache."""
        experts, size = log_alpha.shape
        step = max(1, _CHUNK.get(log_alpha.device.type, _CHUNK_DEVICE) // experts)
        return (slice(start, min(start + step, size)) for start in range(0, size, step))

    def chunks(self, log_alpha: Tensor, kept: Tensor | None, filled: bool) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(slice, s, z) by chunks of P: s the unstretched gate in (0, 1), z the mask, both [M, n]; the same noise at every call.

        s is a view of `kept` where that is given, and read from it where it is `filled`.
        """
        generator = torch.Generator(log_alpha.device).manual_seed(self.noise) if isinstance(self.noise, int) else None
        for part in self.parts(log_alpha):
            logits = log_alpha[:, part]
            s = torch.empty_like(logits) if kept is None else kept[:, part]
            if not filled:
                self._fill(s, logits, part, generator)
            yield part, s, (s * self.shape.stretch).add_(self.shape.gamma).clamp_(0, 1)

    def _fill(self, s: Tensor, logits: Tensor, part: slice, generator: torch.Generator | None) -> None:
        scale = 1 / self.shape.temperature(self.training)
        if isinstance(self.noise, Tensor):
            torch.add(torch.logit(self.noise[:, part]), logits, out=s).mul_(scale).sigmoid_()
        elif generator is not None:
            torch.add(logistic_noise(logits.shape, generator, logits), logits, out=s).mul_(scale).sigmoid_()
        else:
            torch.mul(logits, scale, out=s).sigmoid_()

    def merged(self, alpha: Tensor, z: Tensor, part: slice) -> Tensor:
        """sum_m alpha_m z_m of a chunk, 1 where dense."""
        mask = alpha @ z
        return mask if self.dense is None else mask.masked_fill_(self.dense[part], 1.0)

    def through_clamp(self, grad: Tensor, s: Tensor) -> Tensor:
        """`grad` where the stretched gate lies inside (0, 1), else 0: one vectorised kernel, where comparisons would be three slow ones."""
        low, high = -self.shape.gamma / self.shape.stretch, (1 - self.shape.gamma) / self.shape.stretch
        return torch.ops.aten.hardtanh_backward(grad, s, low, high)  # type: ignore[no-any-return]


def logistic_noise(shape: tuple[int, ...] | torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    """logit(u), u ~ U(0, 1). On a CPU u takes 65,536 equidistant values, four from each 64-bit draw: three times faster than uniform_."""
    if like.device.type != "cpu":
        u = torch.empty(shape, dtype=like.dtype, device=like.device).uniform_(generator=generator)
        return u.clamp_(NOISE_MARGIN, 1 - NOISE_MARGIN).logit_()
    count = torch.Size(shape).numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    u = words.view(torch.int16)[:count].to(like.dtype)
    return u.add_(32768.5).mul_(2.0**-16).logit_().view(shape)


class _Merge(torch.autograd.Function):
    """Forward and backward of the merge and of E[L0], chunk by chunk over P."""

    @staticmethod
    def forward(ctx: Any, theta_pre: Tensor, theta_delta: Tensor, log_alpha: Tensor, alpha: Tensor, gate: Gate, keep: bool) -> Any:
        experts, size = log_alpha.shape
        theta = log_alpha.new_empty((*alpha.shape[:-1], size))
        nonzeros, l0 = log_alpha.new_zeros(experts), log_alpha.new_zeros(experts)
        kept = torch.empty_like(log_alpha) if keep else None
        for part, _, z in gate.chunks(log_alpha, kept, filled=False):
            torch.addcmul(theta_pre[part], theta_delta[part], gate.merged(alpha, z, part), out=theta[..., part])
            if gate.dense is not None:
                z.masked_fill_(gate.dense[part], 1.0)
            # sign, not a comparison: summing booleans is an order of magnitude slower on a CPU.
            nonzeros += z.sign_().sum(1)
            if gate.training:
                l0 += torch.add(log_alpha[:, part], gate.shape.l0_shift, out=z).sigmoid_().sum(1)
        ctx.save_for_backward(theta_delta, log_alpha, alpha, kept)
        ctx.gate = gate
        ctx.mark_non_differentiable(nonzeros)
        ctx.set_materialize_grads(False)
        return theta, nonzeros, l0 / size

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: None, grad_l0: Tensor | None) -> Any:
        with phase("merge"), exact_products():
            return _Merge._backward(ctx, grad, grad_l0)

    @staticmethod
    def _backward(ctx: Any, grad: Tensor | None, grad_l0: Tensor | None) -> Any:
        theta_delta, log_alpha, alpha, kept = ctx.saved_tensors
        gate: Gate = ctx.gate
        rows = alpha.reshape(-1, alpha.shape[-1])
        flat = log_alpha.new_zeros(len(rows), log_alpha.shape[1]) if grad is None else grad.reshape(len(rows), -1)
        d_delta, d_log_alpha, d_alpha = torch.empty_like(theta_delta), torch.empty_like(log_alpha), torch.zeros_like(rows)
        slope = gate.shape.stretch / gate.shape.temperature(gate.training)
        for part, s, z in gate.chunks(log_alpha, kept, filled=kept is not None):
            g = flat[:, part]
            torch.sum(g * gate.merged(rows, z, part), 0, out=d_delta[part])
            g = g * theta_delta[part]
            if gate.dense is not None:
                g.masked_fill_(gate.dense[part], 0.0)
            d_alpha += g @ z.T
            d_z = gate.through_clamp((rows.T * slope) @ g, s)
            out = torch.mul(d_z, torch.addcmul(s, s, s, value=-1, out=z), out=d_log_alpha[:, part])
            if grad_l0 is not None and gate.training:
                p = torch.add(log_alpha[:, part], gate.shape.l0_shift, out=z).sigmoid_()
                out.addcmul_(p.addcmul_(p, p, value=-1), grad_l0[:, None] / log_alpha.shape[1])
        d_pre = flat.sum(0) if ctx.needs_input_grad[0] else None
        return d_pre, d_delta, d_log_alpha, d_alpha.view_as(alpha), None, None


def keeps_gates(log_alpha: Tensor, draws: int = 1) -> bool:
    """Are the gates of `draws` noises kept for backward, or made again there?"""
    return torch.is_grad_enabled() and log_alpha.requires_grad and draws * log_alpha.numel() <= _KEEP


def merge(
    theta_pre: Tensor,
    theta_delta: Tensor,
    log_alpha: Tensor,
    alpha: Tensor,
    shape: HardConcrete,
    *,
    training: bool,
    noise: Noise = None,
    dense: Tensor | None = None,
) -> Merged:
    """theta [P] ([B, P] for alpha [B, M], with shared noise), the masks' non-zeros [M], and in training E[L0] / P [M] (else zeros).

    `noise` (training only): u [M, P] in (0, 1), a seed from which u is drawn, or None for u = 0.5. Equal to `merge_reference` and
    `expected_l0`, in one chunked pass forward and one backward; no second derivatives.
    """
    gate = Gate(shape, training, noise if training else None, dense)
    keep = keeps_gates(log_alpha)
    with torch.autocast(log_alpha.device.type, enabled=False), exact_products():
        return Merged(*_Merge.apply(theta_pre, theta_delta, log_alpha, alpha, gate, keep))
