"""Experts of pMoE: K frozen ViTs process the same images, with mixed prompts before the patch tokens in each block."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from smatcli.config.pmoe import DispatcherConfig
from smatcli.errors import UserError
from smatcli.tuning.pmoe_dispatch import Dispatcher, mix
from smatcli.tuning.pmoe_vit import check_alike, check_vit, embed, finish


class PromptedExperts(nn.Module):
    """K frozen ViTs with `prompts` prompt tokens each in their first `layers` blocks (None: all; 1: shallow), mixed by dispatchers.

    K = 1 is VPT. Prompts have the width D of the first ViT. For a ViT of another width, one linear map projects tokens to D and another
    projects prompts from D; all layers share both.
    Raises `UserError` for ViTs of different depth, image size or patch grid, and for more prompt layers than blocks.
    """

    def __init__(
        self, backbones: Sequence[nn.Module], prompts: int, layers: int | None = None, gated: bool = False,
        dispatcher: DispatcherConfig | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        names = ["backbone", *(f"tuner.experts[{k}]" for k in range(len(backbones) - 1))]
        vits = [check_vit(b, name) for b, name in zip(backbones, names, strict=True)]
        check_alike(vits)
        self.vits = nn.ModuleList(vits).requires_grad_(requires_grad=False).eval()
        first, count = vits[0], len(vits)
        self.depth, self.width, self.count = len(first.blocks), int(first.embed_dim), count
        self.layers = self.depth if layers is None else layers
        if self.layers > self.depth:
            said = f"{self.layers} prompt layers, but the backbones have {self.depth} blocks; give at most {self.depth}"
            raise UserError(f"tuner.layers: {said}")
        config = dispatcher or DispatcherConfig(kind="none")
        self.kind = config.kind if count > 1 else "none"  # a softmax over one expert is 1
        self.prompts = nn.Parameter(torch.empty(self.layers, count, prompts, self.width))
        patch = 3 * math.prod(first.patch_embed.patch_size)
        bound = math.sqrt(6 / (patch + self.width))  # Xavier's bound of the patch embedding: Jia et al. 2022
        nn.init.uniform_(self.prompts, -bound, bound)
        self.gates = nn.Parameter(torch.zeros(self.depth - 1, count)) if gated else None
        mixed = self.kind in ("mlp", "moe")
        self.dispatchers = nn.ModuleList(Dispatcher(self.width, count, config) for _ in range(self.layers if mixed else 0))
        others = {str(k): int(vit.embed_dim) for k, vit in enumerate(vits) if vit.embed_dim != self.width}
        self.reads = nn.ModuleDict({k: _projection(width, self.width) for k, width in others.items()})
        self.writes = nn.ModuleDict({k: _projection(self.width, width) for k, width in others.items()})

    def train(self, mode: bool = True) -> "PromptedExperts":
        """Set the training mode of trained modules; frozen ViTs stay in inference mode (no dropout, no drop-path)."""
        super().train(mode)
        self.vits.eval()
        return self

    @property
    def models(self) -> list[VisionTransformer]:
        """The frozen ViTs, in the order of the experts."""
        return cast(list[VisionTransformer], list(self.vits))

    def own(self) -> list[nn.Parameter]:
        """Return the trained parameters: prompts, gates, dispatchers and projections."""
        return [p for n, p in self.named_parameters() if not n.startswith("vits.")]

    def read(self, k: int, tokens: Tensor) -> Tensor:
        """Project tokens [..., D_k] of expert k to the common width D."""
        return self.reads[str(k)](tokens) if str(k) in self.reads else tokens

    def embed(self, images: Tensor) -> list[Tensor]:
        """Return the tokens [B, prefix_k + N, D_k] that enter the first block of each expert; nothing before it is trained."""
        return [embed(vit, images) for vit in self.models]

    def blocks(self, tokens: list[Tensor], paths: list[Tensor] | None = None) -> list[Tensor]:
        """Return the final tokens [B, prefix_k + N, D_k] of each expert, after its norm and without prompts, from embedded tokens.

        The weights [B, K, N_p, K] of every prompt layer are appended to `paths`, if given: row k contains the
        share of each expert in the prompts of expert k.
        """
        tokens = list(tokens)
        passed: list[tuple[Tensor, Tensor]] = []
        for layer in range(self.depth):
            entered = self._entering(layer, tokens, passed, paths)
            passed = []
            for k, vit in enumerate(self.models):
                start = vit.num_prefix_tokens
                whole = vit.blocks[layer](torch.cat([tokens[k][:, :start], entered[k].to(tokens[k].dtype), tokens[k][:, start:]], 1))
                end = start + self.prompts.shape[2]
                passed.append((entered[k], whole[:, start:end]))
                tokens[k] = torch.cat([whole[:, :start], whole[:, end:]], 1)
        return [vit.norm(t) for vit, t in zip(self.models, tokens, strict=True)]

    def _entering(self, layer: int, tokens: list[Tensor], passed: list[tuple[Tensor, Tensor]], paths: list[Tensor] | None) -> list[Tensor]:
        """Return the prompts [B, N_p, D_k] that enter a block; `passed` are those of the previous block, at its entry and its exit."""
        if layer >= self.layers:
            return [self._gated(layer, k, after, first) for k, (first, after) in enumerate(passed)]
        mixed = self._mixed(layer, tokens, [after for _, after in passed], paths)
        written = [self.writes[str(k)](mixed[:, k]) if str(k) in self.writes else mixed[:, k] for k in range(self.count)]
        return [self._gated(layer, k, new, passed[k][1]) for k, new in enumerate(written)] if layer else written

    def _gated(self, layer: int, k: int, new: Tensor, old: Tensor) -> Tensor:
        return new if self.gates is None else torch.lerp(old, new.to(old.dtype), self.gates[layer - 1, k].sigmoid().to(old.dtype))

    def _mixed(self, layer: int, tokens: list[Tensor], outputs: list[Tensor], paths: list[Tensor] | None) -> Tensor:
        """Return mixed prompts [B, K, N_p, D] of a prompt layer."""
        prompts, batch, count = self.prompts[layer], len(tokens[0]), self.count
        if self.kind == "none":
            weights = torch.eye(count, device=prompts.device).view(1, count, 1, count)
            mixed = prompts.expand(batch, -1, -1, -1)
        elif self.kind == "average":
            weights = torch.full((1, count, 1, count), 1 / count, device=prompts.device)
            mixed = prompts.mean(0).expand(batch, count, -1, -1)
        else:
            seen = [self.read(k, t[:, vit.num_prefix_tokens :]) for k, (vit, t) in enumerate(zip(self.models, tokens, strict=True))]
            left = torch.stack([self.read(k, o) for k, o in enumerate(outputs)], 1) if outputs else None
            weights = self.dispatchers[layer](prompts, left, torch.stack(seen, 1))
            mixed = mix(weights, prompts)
        if paths is not None:
            paths.append(weights.expand(batch, -1, prompts.shape[1], -1))
        return mixed

    def pooled(self, final: list[Tensor]) -> Tensor:
        """Return the representation [B, D]: the mean over experts of their pooled final tokens."""
        return torch.stack([self.read(k, finish(vit, t)) for k, (vit, t) in enumerate(zip(self.models, final, strict=True))]).mean(0)

    def patches(self, final: list[Tensor]) -> Tensor:
        """Return patch tokens [B, N, D], averaged over experts."""
        kept = [self.read(k, t[:, vit.num_prefix_tokens :]) for k, (vit, t) in enumerate(zip(self.models, final, strict=True))]
        return torch.stack(kept).mean(0)

    @torch.no_grad()
    def paths(self, images: Tensor) -> Tensor:
        """Return dispatch weights [layers, B, K, N_p, K]: the share of each expert in expert k's n-th prompt."""
        found: list[Tensor] = []
        self.blocks(self.embed(images), found)
        return torch.stack(found)


def _projection(source: int, target: int) -> nn.Linear:
    layer = nn.Linear(source, target)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
