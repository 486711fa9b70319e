"""SIMoE around a causal language model: mixed layers, row gates, the router and the sparsity constraint."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smatcli.config.llm import SimoeConfig
from smatcli.config.methods import SparsityConfig
from smatcli.errors import UserError
from smatcli.experts.gates import Gates
from smatcli.experts.sparsity import SparsityController
from smatcli.llm.find import find_segments, members_of, row_count
from smatcli.llm.loss import orthogonality, overlap, sparsities
from smatcli.llm.mixed import Mixing, mix_layers, mixed_layers
from smatcli.llm.prompt_router import PromptRouter, pooled


class Simoe(nn.Module):
    """theta(x) = theta_pre + sum_m alpha_m(x) (z_m * theta_delta), with z_m masks over rows and alpha a function of the prompt x.

    With delta 0, at the start, it is the base model. Raises UserError for a model that cannot be upcycled.
    """

    def __init__(self, base: Any, config: SimoeConfig) -> None:
        super().__init__()
        self.config = config
        self.segments = find_segments(base, config.upcycle)
        self.place = mix_layers(base, self.segments)
        self.base = base
        members = members_of(self.segments) if config.sparsity.count == "parameters" else None
        self.gates = Gates(config.masks, row_count(self.segments), members)
        self.log_alpha = nn.Parameter(self.gates.initial_log_alpha(config.experts))
        self.router = PromptRouter(config.router, int(base.config.hidden_size), config.experts)
        constraint = SparsityConfig(tau=config.sparsity.tau, lr=config.sparsity.lr, reset=config.sparsity.reset)
        self.controller = SparsityController(constraint, config.experts if config.sparsity.scope == "each" else 1)

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Return the optimizer groups; every trainable tensor is in one."""
        deltas = [d for layer in mixed_layers(self.base).values() for d in (layer.delta, layer.delta_bias) if d is not None]
        groups = {"delta": deltas, "masks": [self.log_alpha], "router": list(self.router.parameters())}
        if self.config.sparsity.tau > 0:
            groups["multipliers"] = [self.controller.multipliers]
        return groups

    @torch.no_grad()
    def features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the frozen features [B, D] of prompts: ids and mask [B, T], padding masked with 0 on either side."""
        with self.place.set(None):
            if self.config.router.features == "embedding":
                return pooled(self.base.get_input_embeddings()(ids), mask)
            decoder = self.base.get_decoder() if hasattr(self.base, "get_decoder") else self.base.base_model
            return pooled(decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state, mask)

    def alpha(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the merging scores [B, M] of prompt features."""
        return self.router.alpha(self.router(features), generator)

    def draw(self, seed: int) -> Tensor:
        """Return the gates [M, G] of one update: with noise in training mode, else the inference gates."""
        return self.gates.draw(self.log_alpha, seed) if self.training else self.gates.inference(self.log_alpha)

    def logits(self, ids: Tensor, alpha: Tensor, z: Tensor, pieces: Sequence[tuple[int, int]] | None = None, **inputs: Any) -> Tensor:
        """Return logits [B, T, V] of sequences with scores alpha [S, M] and gates z [M, G]; `pieces` are those of one packed row."""
        if pieces is None and len(alpha) != len(ids):
            raise UserError(f"{len(ids)} sequences, but scores for {len(alpha)}")
        with self.place.set(Mixing(alpha @ z, pieces)):
            return self.base(input_ids=ids, use_cache=False, **inputs).logits  # type: ignore[no-any-return]

    def penalties(self, z: Tensor) -> dict[str, Tensor]:
        """Return the loss terms of the masks: `sparsity` (penalty), `ascent` of the multipliers, and `orthogonality`, each a scalar."""
        p = self.gates.expected(self.log_alpha)
        terms = {}
        if self.config.sparsity.tau > 0:
            density = self.gates.density(p, self.config.sparsity.scope)
            sparsity = 1 - density.detach()
            self.controller.reset(sparsity)
            uniform = density.new_ones(len(density))
            terms["sparsity"], terms["ascent"] = self.controller.terms(density, sparsity, uniform)
        if self.config.orthogonality.weight and self.config.experts > 1:
            rows = p if self.config.orthogonality.of == "expected" else z
            terms["orthogonality"] = self.config.orthogonality.weight * orthogonality(rows, self.config.orthogonality)
        return terms

    @torch.no_grad()
    def statistics(self) -> dict[str, float]:
        """Return the three sparsities and the overlap of the inference masks."""
        return {**sparsities(self.gates, self.log_alpha), "overlap": overlap(self.gates.inference(self.log_alpha))}

    @torch.no_grad()
    def generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """Generate from left-padded prompts [B, T]: scores once per prompt, weights of a single prompt merged once.

        `options` are those of transformers' `generate`. Raises UserError for assisted decoding.
        """
        if options.get("assistant_model") is not None:
            raise UserError("assisted decoding: the assistant would need merging scores of its own; generate without it")
        alpha = self.alpha(self.features(ids, mask))
        rows = (alpha @ self.gates.inference(self.log_alpha)).repeat_interleave(options.get("num_beams") or 1, 0)
        with self.place.set(Mixing(rows, keep=len(rows) == 1)):
            return self.base.generate(input_ids=ids, attention_mask=mask, **options)  # type: ignore[no-any-return]
