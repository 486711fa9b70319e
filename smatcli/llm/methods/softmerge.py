"""Soft merging (SMEAR; Muqeeth et al., 2024): copies of the feed-forward layers, merged into one per prompt by scores that sum to 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smatcli.config.llm import SoftMergeLlmConfig
from smatcli.config.schema import GroupConfig
from smatcli.llm.find import RowSegment, find_segments
from smatcli.llm.methods.base import LanguageMethod, Pieces
from smatcli.llm.prompt_router import PromptRouter, frozen_features


class _Scores:
    """The scores in force, shared by all merged layers."""

    def __init__(self) -> None:
        self.alpha: Tensor | None = None
        self.pieces: Pieces = None

    @contextmanager
    def set(self, alpha: Tensor | None, pieces: Pieces = None) -> Iterator[None]:
        before = self.alpha, self.pieces
        self.alpha, self.pieces = alpha, pieces
        try:
            yield
        finally:
            self.alpha, self.pieces = before


class MergedLinear(nn.Module):
    """M copies of a linear layer, averaged by the scores of each sequence; the base layer where no scores are in force."""

    def __init__(self, base: nn.Module, segment: RowSegment, experts: int, scores: _Scores) -> None:
        super().__init__()
        self.base, self.scores, self.transposed = base, scores, segment.kind == "conv1d"
        weight: Tensor = base.weight.T if segment.kind == "conv1d" else base.weight  # type: ignore[assignment]
        self.weights = nn.Parameter(weight.detach().float().expand(experts, *weight.shape).clone())
        bias = getattr(base, "bias", None)
        self.biases = None if bias is None else nn.Parameter(bias.detach().float().expand(experts, len(bias)).clone())

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, inputs] -> [B, T, outputs]."""
        alpha, pieces = self.scores.alpha, self.scores.pieces
        if alpha is None:
            return self.base(x)  # type: ignore[no-any-return]
        weights = torch.einsum("sm,moi->soi", alpha.to(self.weights.dtype), self.weights).to(x.dtype)
        biases = None if self.biases is None else (alpha.to(self.biases.dtype) @ self.biases).to(x.dtype)
        if pieces is None:
            y = torch.einsum("bti,boi->bto", x, weights)
            return y if biases is None else y + biases[:, None]
        parts = [F.linear(x[:, a:b], weights[s], None if biases is None else biases[s]) for s, (a, b) in enumerate(pieces)]
        return torch.cat(parts, 1)


class SoftMergeLlm(LanguageMethod):
    """Feed-forward layers merged per prompt; everything else stays frozen."""

    needs_features = True

    def __init__(self, base: Any, config: SoftMergeLlmConfig) -> None:
        super().__init__(base)
        for parameter in base.parameters():
            parameter.requires_grad = False
        self.scores = _Scores()
        for segment in find_segments(base, "ffn"):
            parent, _, leaf = segment.name.rpartition(".")
            merged = MergedLinear(base.get_submodule(segment.name), segment, config.experts, self.scores)
            setattr(base.get_submodule(parent), leaf, merged)
        self.router = PromptRouter(config.router, int(base.config.hidden_size), config.experts)
        self.kind = config.router.features

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Return the experts as `delta`, and the router."""
        router = {id(p) for p in self.router.parameters()}
        experts = [p for p in self.parameters() if p.requires_grad and id(p) not in router]
        return {"delta": experts, "router": list(self.router.parameters())}

    def defaults(self) -> dict[str, GroupConfig]:
        """Return the defaults, with a group for the router."""
        return super().defaults() | {"router": GroupConfig(lr=1e-4, schedule="linear", warmup=0.03)}

    @torch.no_grad()
    def features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the frozen features [B, D] of prompts."""
        with self.scores.set(None):
            return frozen_features(self.base, self.kind, ids, mask)

    def condition(self, features: Tensor) -> Tensor:
        """Return the merging scores [S, M]."""
        return self.router.alpha(self.router(features))

    def logits(self, ids: Tensor, scores: Tensor | None, pieces: Pieces = None, **inputs: Any) -> Tensor:
        """Return logits [B, T, V] with the layers merged for each sequence."""
        with self.scores.set(scores, pieces):
            return super().logits(ids, scores, pieces, **inputs)

    def after_update(self, share: float) -> None:
        """Anneal the router's temperature."""
        self.router.anneal(share)

    @torch.no_grad()
    def merged(self, features: Tensor | None) -> Any:
        """Return the base model whose feed-forward layers are the averages for a prompt."""
        assert features is not None
        alpha = self.condition(features)[0]
        for name, layer in [(n, m) for n, m in self.base.named_modules() if isinstance(m, MergedLinear)]:
            weight = torch.einsum("m,moi->oi", alpha.to(layer.weights.dtype), layer.weights)
            base: Any = layer.base
            base.weight.copy_(weight.T if layer.transposed else weight)
            if layer.biases is not None:
                base.bias.copy_(alpha.to(layer.biases.dtype) @ layer.biases)
            parent, _, leaf = name.rpartition(".")
            setattr(self.base.get_submodule(parent), leaf, base)
        return self.base

    @torch.no_grad()
    def generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """Generate with scores computed once per prompt."""
        alpha = self.condition(self.features(ids, mask)).repeat_interleave(options.get("num_beams") or 1, 0)
        with self.scores.set(alpha):
            return super().generate(ids, mask, **options)
