"""Sparse upcycling: every feed-forward layer becomes a mixture of copies of itself, with the top experts of each token.

The copies start equal and the gate weights of the chosen experts sum to 1, so the model starts as the base model. The load-balancing
loss is that of Switch Transformers (Fedus et al., 2022, eq. 4-6), extended to top-k; it is logged, and never off by default.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from smatcli.config.llm import UpcycleConfig
from smatcli.errors import UserError
from smatcli.llm.find import find_segments
from smatcli.llm.methods.base import LanguageMethod


class TokenMixture(nn.Module):
    """E copies of a feed-forward layer; each token takes the `top` with the largest gate, weighted by the gates normalised over these."""

    def __init__(self, base: nn.Module, width: int, config: UpcycleConfig) -> None:
        super().__init__()
        self.experts = nn.ModuleList([copy.deepcopy(base) for _ in range(config.experts)])
        self.gate = nn.Linear(width, config.experts, bias=False)
        nn.init.normal_(self.gate.weight, std=0.02)
        self.top = config.top
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H] -> [B, T, H]; `balance` becomes the load-balancing loss of these tokens."""
        tokens = x.reshape(-1, x.shape[-1])
        probabilities = torch.softmax(self.gate(tokens).float(), -1)
        weights, chosen = probabilities.topk(self.top, -1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        out = torch.zeros_like(tokens)
        load = []
        for number, expert in enumerate(self.experts):
            place, slot = (chosen == number).nonzero(as_tuple=True)
            load.append(len(place) / chosen.numel())
            if len(place):
                out = out.index_add(0, place, (weights[place, slot, None] * expert(tokens[place])).to(out.dtype))
        self.balance = len(self.experts) * (probabilities.mean(0) * probabilities.new_tensor(load)).sum()
        return out.view_as(x)


class UpcycleMethod(LanguageMethod):
    """Full fine-tuning of a model whose feed-forward layers are mixtures."""

    def __init__(self, base: Any, config: UpcycleConfig) -> None:
        if config.top > config.experts:
            raise UserError(f"method.top: {config.top} experts per token of {config.experts}; choose at most {config.experts}")
        super().__init__(base.float())
        self.config = config
        parents = dict.fromkeys(segment.name.rpartition(".")[0] for segment in find_segments(base, "ffn"))
        for name in parents:
            parent, _, leaf = name.rpartition(".")
            setattr(base.get_submodule(parent), leaf, TokenMixture(base.get_submodule(name), int(base.config.hidden_size), config))
        for parameter in self.base.parameters():
            parameter.requires_grad = True

    def merged(self, features: Tensor | None) -> Any:
        """Refuse: experts are chosen by token."""
        raise UserError("sparse upcycling chooses experts by token: there is no dense model of a prompt; export a run of another method")

    def penalties(self) -> dict[str, Tensor]:
        """Return the load-balancing loss of the last forward pass, averaged over the layers."""
        losses = [m.balance for m in self.base.modules() if isinstance(m, TokenMixture)]
        return {"balance": self.config.balance * torch.stack(losses).mean()}
