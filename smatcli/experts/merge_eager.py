"""Merge of several tasks in eager torch, chunk by chunk over P, with closed-form gradients; runs on any device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smatcli.experts.masks import HardConcrete
from smatcli.experts.noise import key_tensor, uniform

_CHUNK = {"cpu": 2**17}
_CHUNK_DEVICE = 2**25
# Up to this many mask entries (256 MiB in fp32), gates are kept for backward; above, backward recomputes them.
_KEEP = 2**26

Noise = Tensor | int | None


@dataclass(frozen=True)
class Gate:
    """How masks are computed from log_alpha: constants, training or inference, noise, and always-dense parameters [P] (bool).

    `noise` (in training only) is u [M, P] in (0, 1), a seed for counter-based u (`smatcli.experts.noise`), or None for u = 0.5.
    """

    shape: HardConcrete
    training: bool = True
    noise: Noise = None
    dense: Tensor | None = None

    def chunks(self, log_alpha: Tensor, kept: Tensor | None, filled: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (s, z) per chunk of P: the unstretched gate s in (0, 1) and the mask z, both [M, n]. Every call uses the same noise.

        If `kept` is given, s is a view of it: read from it if `filled`, else written to it.
        """
        noise = self.noise if self.training else None
        keys = key_tensor([noise], len(log_alpha))[0] if isinstance(noise, int) else None
        for part in parts(log_alpha):
            logits = log_alpha[:, part]
            s = torch.empty_like(logits) if kept is None else kept[:, part]
            if not filled:
                scale = 1 / self.shape.temperature(self.training)
                if isinstance(noise, Tensor):
                    torch.add(torch.logit(noise[:, part]), logits, out=s).mul_(scale).sigmoid_()
                elif keys is not None:
                    torch.add(uniform(keys, part, logits).logit_(), logits, out=s).mul_(scale).sigmoid_()
                else:
                    torch.mul(logits, scale, out=s).sigmoid_()
            yield s, (s * self.shape.stretch).add_(self.shape.gamma).clamp_(0, 1)

    def merged(self, alpha: Tensor, z: Tensor, part: slice) -> Tensor:
        """Return sum_m alpha_m z_m of a chunk, 1 where dense."""
        mask = alpha @ z
        return mask if self.dense is None else mask.masked_fill_(self.dense[part], 1.0)

    def through_clamp(self, grad: Tensor, s: Tensor) -> Tensor:
        """Return `grad` where the stretched gate lies inside (0, 1), else 0; one vectorised kernel replaces three slow comparisons."""
        low, high = -self.shape.gamma / self.shape.stretch, (1 - self.shape.gamma) / self.shape.stretch
        return torch.ops.aten.hardtanh_backward(grad, s, low, high)  # type: ignore[no-any-return]


def parts(log_alpha: Tensor) -> Iterator[slice]:
    """Return slices of P, so short that a slice of all experts fits into the cache."""
    experts, size = log_alpha.shape
    step = max(1, _CHUNK.get(log_alpha.device.type, _CHUNK_DEVICE) // experts)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def keeps_gates(log_alpha: Tensor, draws: int) -> bool:
    """Whether the gates of `draws` noise draws are kept for backward rather than recomputed."""
    return torch.is_grad_enabled() and log_alpha.requires_grad and draws * log_alpha.numel() <= _KEEP


def forward(
    theta_pre: Tensor, theta_delta: Tensor, log_alpha: Tensor, alphas: Tensor, gates: Sequence[Gate], kept: Sequence[Tensor | None]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return (thetas of B tasks [P], non-zeros [G, M], sum over P of E[L0] [M]) for G gates: one for all tasks or one per task.

    If `kept` has a tensor [M, P] for a gate, the gate is written to it for `backward`. Chunks of P are the outer loop, so that log_alpha
    stays in the cache.
    """
    tasks, shape = len(alphas), gates[0].shape
    thetas = [torch.empty_like(theta_pre) for _ in range(tasks)]
    nonzeros, l0 = log_alpha.new_zeros(len(gates), len(log_alpha)), log_alpha.new_zeros(len(log_alpha))
    for part, drawn in _by_chunk(gates, log_alpha, kept, filled=False):
        for i, (_, z) in enumerate(drawn):
            for b in range(tasks) if len(gates) == 1 else (i,):
                torch.addcmul(theta_pre[part], theta_delta[part], gates[i].merged(alphas[b], z, part), out=thetas[b][part])
            if gates[i].dense is not None:
                z.masked_fill_(gates[i].dense[part], 1.0)  # type: ignore[index]
            # sign, not a comparison: summing booleans is an order of magnitude slower on a CPU.
            nonzeros[i] += z.sign_().sum(1)
        if gates[0].training:
            l0 += torch.add(log_alpha[:, part], shape.l0_shift).sigmoid_().sum(1)
    return thetas, nonzeros, l0


def backward(
    grads: Sequence[Tensor | None],
    theta_delta: Tensor,
    log_alpha: Tensor,
    alphas: Tensor,
    gates: Sequence[Gate],
    kept: Sequence[Tensor | None],
    share: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of theta_delta [P], log_alpha [M, P] and alphas [B, M] from those of theta (None: unused) and E[L0] (`share`)."""
    tasks = [b for b, grad in enumerate(grads) if grad is not None]
    d_delta, d_log_alpha, d_alphas = torch.zeros_like(theta_delta), torch.empty_like(log_alpha), torch.zeros_like(alphas)
    shape = gates[0].shape
    slope = shape.stretch / shape.temperature(gates[0].training)
    for part, drawn in _by_chunk(gates, log_alpha, kept, filled=kept[0] is not None):
        out, delta, fresh = d_log_alpha[:, part], theta_delta[part], True
        curve = None
        if share is not None:
            p = torch.add(log_alpha[:, part], shape.l0_shift).sigmoid_()
            curve = p.addcmul_(p, p, value=-1)
        for i, (s, z) in enumerate(drawn):
            rows = tasks if len(gates) == 1 else [i]
            if len(gates) > 1 and grads[i] is None:
                rows = []
            if rows:
                g = torch.stack([grads[b][part] for b in rows])  # type: ignore[index]
                scores = alphas if len(rows) == len(alphas) else alphas[rows]
                d_delta[part] += (g * gates[i].merged(scores, z, part)).sum(0)
                g = g.mul_(delta)
                if gates[i].dense is not None:
                    g.masked_fill_(gates[i].dense[part], 0.0)  # type: ignore[index]
                if len(rows) == len(alphas):
                    d_alphas += g @ z.T
                else:
                    d_alphas[rows] += g @ z.T
                d_z = gates[i].through_clamp((scores.T * slope) @ g, s)
                slant = torch.addcmul(s, s, s, value=-1, out=z)
                term = torch.mul(d_z, slant, out=out if fresh else d_z)
            else:
                term = out.zero_() if fresh else torch.zeros_like(out)
            if curve is not None and share is not None:
                term.addcmul_(curve, (share.sum(0) if len(gates) == 1 else share[i])[:, None])
            if not fresh:
                out.add_(term)
            fresh = False
    return d_delta, d_log_alpha, d_alphas


def _by_chunk(
    gates: Sequence[Gate], log_alpha: Tensor, kept: Sequence[Tensor | None], filled: bool
) -> Iterator[tuple[slice, Iterator[tuple[Tensor, Tensor]]]]:
    """Yield (slice, (s, z) of each gate) per chunk of P; the gates of a chunk are computed lazily, one by one."""
    chunks = [gate.chunks(log_alpha, buffer, filled) for gate, buffer in zip(gates, kept, strict=True)]
    for part in parts(log_alpha):
        yield part, (next(gate_chunks) for gate_chunks in chunks)
