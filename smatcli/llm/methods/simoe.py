"""SIMoE around a causal language model: mixed layers, row gates, the router and the sparsity constraint."""

from typing import Any

import torch
from torch import Tensor, nn

from smatcli.config.llm import SimoeConfig
from smatcli.config.methods import SparsityConfig
from smatcli.config.schema import GroupConfig
from smatcli.errors import UserError
from smatcli.experts.gates import Gates
from smatcli.experts.sparsity import SparsityController
from smatcli.llm.find import find_segments, members_of, row_count
from smatcli.llm.loss import orthogonality, overlap, sparsities
from smatcli.llm.methods.base import LanguageMethod, Pieces
from smatcli.llm.mixed import Mixing, mix_layers, mixed_layers
from smatcli.llm.prompt_router import PromptRouter, frozen_features

TOLERANCE = 0.02  # of a sparsity


class Simoe(LanguageMethod):
    """theta(x) = theta_pre + sum_m alpha_m(x) (z_m * theta_delta), with z_m masks over rows and alpha a function of the prompt x.

    With delta 0, at the start, it is the base model. Raises UserError for a model that cannot be upcycled.
    """

    needs_features = True

    def __init__(self, base: Any, config: SimoeConfig) -> None:
        super().__init__(base)
        self.config = config
        self.segments = find_segments(base, config.upcycle)
        self.place = mix_layers(base, self.segments)
        members = members_of(self.segments) if config.sparsity.count == "parameters" else None
        self.gates = Gates(config.masks, row_count(self.segments), members)
        self.log_alpha = nn.Parameter(self.gates.initial_log_alpha(config.experts))
        self.router = PromptRouter(config.router, int(base.config.hidden_size), config.experts)
        constraint = SparsityConfig(tau=config.sparsity.tau, lr=config.sparsity.lr, reset=config.sparsity.reset)
        self.controller = SparsityController(constraint, config.experts if config.sparsity.scope == "each" else 1)
        self.begin_update(0)

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Return the optimizer groups; every trainable tensor is in one."""
        deltas = [d for layer in mixed_layers(self.base).values() for d in (layer.delta, layer.delta_bias) if d is not None]
        groups = {"delta": deltas, "masks": [self.log_alpha], "router": list(self.router.parameters())}
        if self.config.sparsity.tau > 0:
            groups["multipliers"] = [self.controller.multipliers]
        return groups

    def defaults(self) -> dict[str, GroupConfig]:
        """Return the defaults, with groups for masks, router and multipliers."""
        groups = super().defaults() | {
            "masks": GroupConfig(optimizer="adam", lr=2e-2, schedule="constant", warmup=0.0),
            "router": GroupConfig(lr=1e-4, schedule="linear", warmup=0.03),
            "multipliers": GroupConfig(optimizer="sgd", lr=self.config.sparsity.lr, schedule="constant", warmup=0.0),
        }
        return {name: groups[name] for name in self.trainable()}

    @torch.no_grad()
    def features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the frozen features [B, D] of prompts: ids and mask [B, T], padding masked with 0 on either side."""
        with self.place.set(None):
            return frozen_features(self.base, self.config.router.features, ids, mask)

    def begin_update(self, seed: int) -> None:
        """Draw the noise of the gates and of the scores."""
        self.seed = seed
        self.noise = torch.Generator().manual_seed(seed)

    def gate(self) -> Tensor:
        """Return the gates z [M, G] of the current update: with noise in training mode, else the inference gates."""
        return self.gates.draw(self.log_alpha, self.seed) if self.training else self.gates.inference(self.log_alpha)

    def condition(self, features: Tensor) -> Tensor:
        """Return the merging scores alpha [S, M] of prompt features."""
        return self.router.alpha(self.router(features), self.noise if self.training else None)

    def logits(self, ids: Tensor, scores: Tensor | None, pieces: Pieces = None, **inputs: Any) -> Tensor:
        """Return logits [B, T, V] of sequences with the scores alpha [S, M]."""
        if scores is None or (pieces is None and len(scores) != len(ids)):
            raise ValueError(f"{len(ids)} sequences, but scores for {0 if scores is None else len(scores)}")
        with self.place.set(Mixing(scores @ self.gate(), pieces)):
            return super().logits(ids, scores, pieces, **inputs)

    def penalties(self) -> dict[str, Tensor]:
        """Return `sparsity` (the penalty), `ascent` (of the multipliers) and `orthogonality`, each a scalar."""
        p = self.gates.expected(self.log_alpha)
        terms = {}
        if self.config.sparsity.tau > 0:
            density = self.gates.density(p, self.config.sparsity.scope)
            sparsity = 1 - density.detach()
            self.controller.reset(sparsity)
            uniform = density.new_ones(len(density))
            terms["sparsity"], terms["ascent"] = self.controller.terms(density, sparsity, uniform)
        if self.config.orthogonality.weight and self.config.experts > 1:
            rows = p if self.config.orthogonality.of == "expected" else self.gate()
            terms["orthogonality"] = self.config.orthogonality.weight * orthogonality(rows, self.config.orthogonality)
        return terms

    @torch.no_grad()
    def after_update(self, share: float) -> None:
        """Keep the multipliers non-negative and log_alpha within bounds; anneal the temperature and the target of the sparsity."""
        self.controller.project()
        self.log_alpha.clamp_(-self.config.masks.clamp, self.config.masks.clamp)
        self.router.anneal(share)
        warmup = self.config.sparsity.warmup
        tau = self.config.sparsity.tau * (min(1.0, share / warmup) if warmup else 1.0)
        self.controller.config = self.controller.config.model_copy(update={"tau": tau})

    @torch.no_grad()
    def feasible(self) -> bool:
        """Whether the expected sparsity is at most 0.02 below tau; always true without a constraint."""
        density = self.gates.density(self.gates.expected(self.log_alpha), self.config.sparsity.scope)
        return self.config.sparsity.tau == 0 or bool(1 - density.max() >= self.config.sparsity.tau - TOLERANCE)

    @torch.no_grad()
    def statistics(self) -> dict[str, float]:
        """Return the three sparsities and the overlap of the inference masks."""
        return {**sparsities(self.gates, self.log_alpha), "overlap": overlap(self.gates.inference(self.log_alpha))}

    @torch.no_grad()
    def merged(self, features: Tensor | None) -> Any:
        """Return the base model with the experts merged for a prompt, in fp32."""
        assert features is not None
        alpha = self.router.alpha(self.router(features))
        rows = (alpha @ self.gates.inference(self.log_alpha))[0]
        for name, layer in mixed_layers(self.base).items():
            segment, base = layer.segment, layer.base
            w = rows[segment.start : segment.stop]
            delta = layer.delta * (w if layer.delta.ndim == 1 else w[:, None])
            base.weight.add_(delta.T if segment.kind == "conv1d" else delta)  # type: ignore[operator]
            if layer.delta_bias is not None:
                base.bias.add_(w * layer.delta_bias)  # type: ignore[operator]
            parent, _, leaf = name.rpartition(".")
            setattr(self.base.get_submodule(parent), leaf, base)
        return self.base

    @torch.no_grad()
    def generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """Generate from left-padded prompts [B, T]: scores once per prompt, weights of a single prompt merged once.

        `options` are those of transformers' `generate`. Raises UserError for assisted decoding.
        """
        if options.get("assistant_model") is not None:
            raise UserError("assisted decoding: the assistant would need merging scores of its own; generate without it")
        alpha = self.router.alpha(self.router(self.features(ids, mask)))
        rows = (alpha @ self.gates.inference(self.log_alpha)).repeat_interleave(options.get("num_beams") or 1, 0)
        with self.place.set(Mixing(rows, keep=len(rows) == 1)):
            return self.base.generate(input_ids=ids, attention_mask=mask, **options)  # type: ignore[no-any-return]
