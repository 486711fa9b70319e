"""Router of SIMoE: the frozen features of a prompt -> merging scores of the M experts, one vector per prompt for the whole network."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smatcli.config.llm import PromptRouterConfig
from smatcli.experts.masks import noise


class PromptRouter(nn.Module):
    """Features [B, D] -> LayerNorm -> Linear -> GELU -> Linear -> M logits -> alpha [B, M], each row summing to 1."""

    temperature: Tensor

    def __init__(self, config: PromptRouterConfig, features: int, experts: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(features)
        self.hidden = nn.Linear(features, config.hidden)
        self.out = nn.Linear(config.hidden, experts)
        self.register_buffer("temperature", torch.tensor(float(config.temperature[0])))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, M]."""
        return self.out(F.gelu(self.hidden(self.norm(features))))  # type: ignore[no-any-return]

    def alpha(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return scores [B, M] that sum to 1 per prompt; relaxed Bernoulli noise from `generator` with `scores: gumbel-sigmoid`."""
        if self.config.scores == "softmax":
            return torch.softmax(logits / self.temperature, -1)
        u = None if generator is None else noise(tuple(logits.shape), generator, logits)
        scores = torch.sigmoid((logits if u is None else logits + torch.logit(u)) / self.temperature)
        return scores / scores.sum(-1, keepdim=True)

    @torch.no_grad()
    def anneal(self, share: float) -> None:
        """Set the temperature for a share of the training that is done: linear from the first to the last value."""
        first, last = self.config.temperature
        self.temperature.fill_(first + (last - first) * min(1.0, share))


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens with mask 1: hidden [B, T, D], mask [B, T] -> [B, D], at least in fp32."""
    weights = mask.to(hidden.device, torch.promote_types(hidden.dtype, torch.float32))[..., None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def frozen_features(base: Any, kind: str, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the prompt tokens of the base model's `embedding`s or `last` hidden states, [B, D]."""
    if kind == "embedding":
        return pooled(base.get_input_embeddings()(ids), mask)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base.base_model
    return pooled(decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state, mask)
