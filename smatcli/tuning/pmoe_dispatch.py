"""Dispatcher of pMoE: the weights with which the n-th prompts of all experts are mixed into the n-th prompt of each, per layer."""

import torch
from torch import Tensor, nn

from smatcli.config.pmoe import DispatcherConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
INPUTS = ("prompts", "outputs", "patches")


class DispatchMlp(nn.Module):
    """Linear layer, activation, linear layer: [..., width] -> [..., experts]. The last starts at zero, so that weights start equal."""

    def __init__(self, width: int, hidden: int, experts: int, activation: str) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(width, hidden), ACTIVATIONS[activation](), nn.Linear(hidden, experts)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores [..., experts] of tokens [..., width]."""
        return self.second(self.act(self.first(tokens)))

    def mean(self, tokens: Tensor) -> Tensor:
        """Return the mean of `forward` over the second-last axis; the second layer is linear and is applied to the mean once."""
        return self.second(self.act(self.first(tokens)).mean(-2))


class RoutedMlp(nn.Module):
    """MoE-MLP dispatcher: E dispatching MLPs, and a linear router whose softmax weights their scores per token."""

    def __init__(self, width: int, hidden: int, experts: int, activation: str, count: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, count)
        self.mlps = nn.ModuleList(DispatchMlp(width, hidden, experts, activation) for _ in range(count))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores [..., experts] of tokens [..., width]."""
        shares = self.router(tokens).softmax(-1)
        return (torch.stack([mlp(tokens) for mlp in self.mlps], -1) * shares.unsqueeze(-2)).sum(-1)

    def mean(self, tokens: Tensor) -> Tensor:
        """Return the mean of `forward` over the second-last axis."""
        return self.forward(tokens).mean(-2)


class Dispatcher(nn.Module):
    """The dispatcher of one layer, shared by all experts: weights [B, K, N_p, K] over the experts whose prompts are mixed.

    weights[b, k, n] = softmax over K of MLP(P_k)[n] + MLP(Z_Pk)[b, n] + mean over patches of MLP(Z_k)[b]   (pMoE, token dispatching)
    """

    def __init__(self, width: int, experts: int, config: DispatcherConfig) -> None:
        super().__init__()
        hidden = config.hidden or max(1, width // 4)
        count = 1 if config.mlps == "shared" else len(INPUTS)

        def build_mlp() -> nn.Module:
            if config.kind == "moe":
                return RoutedMlp(width, hidden, experts, config.activation, config.count)
            return DispatchMlp(width, hidden, experts, config.activation)

        self.mlps = nn.ModuleList(build_mlp() for _ in range(count))

    def forward(self, prompts: Tensor, outputs: Tensor | None, patches: Tensor) -> Tensor:
        """Return weights [B, K, N_p, K], which sum to 1 over the last axis.

        Inputs: prompts [K, N_p, D], prompt outputs of the previous block [B, K, N_p, D] (None for the first), patches [B, K, N, D].
        """
        of = [self.mlps[i % len(self.mlps)] for i in range(len(INPUTS))]
        scores = of[0](prompts) + of[2].mean(patches).unsqueeze(2)  # type: ignore[operator]
        if outputs is not None:
            scores = scores + of[1](outputs)
        exact = torch.promote_types(scores.dtype, torch.float32)  # bf16 weights would not sum to 1
        return scores.softmax(-1, dtype=exact).to(prompts.dtype)


def mix(weights: Tensor, prompts: Tensor) -> Tensor:
    """Return mixed prompts [B, K, N_p, D]: the n-th prompt of expert k is the weighted sum of all experts' n-th prompts [K, N_p, D]."""
    return torch.einsum("bknj,jnd->bknd", weights, prompts)
