"""The router (hypernetwork): class prototypes under the pre-trained model -> one transformer block -> merging scores of M experts."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smatcli.config.methods import RouterConfig
from smatcli.errors import UserError
from smatcli.experts.masks import noise


class SpectralLinear(nn.Linear):
    """A linear layer divided by its largest singular value, tracked by one power iteration per training call (Miyato et al. 2018)."""

    u: Tensor
    v: Tensor

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias)
        self.register_buffer("u", F.normalize(torch.randn(outputs), dim=0, eps=1e-12))
        self.register_buffer("v", F.normalize(torch.randn(inputs), dim=0, eps=1e-12))
        self.iterate(15)

    @torch.no_grad()
    def iterate(self, steps: int = 1) -> None:
        """Run power iterations on (u, v), in place."""
        for _ in range(steps):
            self.v.copy_(F.normalize(self.weight.T @ self.u, dim=0, eps=1e-12))
            self.u.copy_(F.normalize(self.weight @ self.v, dim=0, eps=1e-12))

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        if self.training:
            self.iterate()
        # Clones, because the next call changes the buffers while the graph of this call may still be alive.
        sigma = self.u.clone() @ self.weight @ self.v.clone()
        return F.linear(input, self.weight / sigma, self.bias)


class Router(nn.Module):
    """Prototypes [C, D] -> M logits -> scores in (0, 1). Invariant to the order of the classes with `pool: mean`."""

    temperature: Tensor

    def __init__(self, config: RouterConfig, dim: int, experts: int) -> None:
        super().__init__()
        if dim % config.heads:
            raise UserError(f"method.router.heads: {config.heads} heads do not divide {dim} features; choose a divisor")
        self.config = config
        linear: Any = SpectralLinear if config.spectral_norm else nn.Linear
        hidden = round(dim * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.qkv = linear(dim, 3 * dim, bias=False)
        self.proj = linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.fc1 = linear(dim, hidden)
        self.fc2 = linear(hidden, dim)
        self.keys = nn.Parameter(torch.randn(experts, dim) * (2 / dim) ** 0.5)
        self.skills = nn.Parameter(torch.randn(config.skill_tokens, dim) * 1e-3) if config.skill_tokens else None
        self.register_buffer("temperature", torch.tensor(float(config.temperature[0])))

    def skip_task(self) -> None:
        """Update the buffers as a training call would, without computing scores."""
        for module in self.modules():
            if isinstance(module, SpectralLinear) and module.training:
                module.iterate()

    def embed(self, prototypes: Tensor) -> Tensor:
        """Return the task embedding [D] of class prototypes [C, D]."""
        ways = len(prototypes)
        x: Tensor
        x = prototypes if self.skills is None else torch.cat([prototypes, self.skills])
        x = x + self._attend(self.norm1(x))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x[0] if self.config.pool == "first" else x[:ways].mean(0)

    def _attend(self, x: Tensor) -> Tensor:
        tokens, dim = x.shape
        q, k, v = self.qkv(x).view(tokens, 3, self.config.heads, dim // self.config.heads).permute(1, 2, 0, 3)
        weights = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)
        return self.proj((weights @ v).transpose(0, 1).reshape(tokens, dim))  # type: ignore[no-any-return]

    def forward(self, prototypes: Tensor) -> Tensor:
        """Return logits [M] of class prototypes [C, D]."""
        return self.keys @ self.embed(prototypes)

    def scores(self, logits: Tensor, generator: torch.Generator | None = None, u: Tensor | None = None) -> Tensor:
        """Return scores [M] in (0, 1): sigmoid(logits / T), or relaxed Bernoulli with noise u [M] in (0, 1), given or from `generator`."""
        if u is None and generator is not None and self.config.sampling == "gumbel":
            u = noise(tuple(logits.shape), generator, logits)
        return torch.sigmoid((logits if u is None else logits + torch.logit(u)) / self.temperature)

    @torch.no_grad()
    def anneal(self, tasks_done: int) -> None:
        """Set the temperature: linear from the first to the last value over `temperature_tasks` tasks, then constant."""
        first, last = self.config.temperature
        self.temperature.fill_(first + (last - first) * min(1.0, tasks_done / self.config.temperature_tasks))
