"""Layers whose weights differ between sequences: y = x (W + diag(w) D)^T, with w = alpha @ z over the rows of W.

W is frozen, D ("delta") is shared by all experts and trained. `MergedProduct` computes the layer with one product per sequence and a
backward in closed form: G = dy^T x gives dD = w * G and dw = rowsum(G * D), so that only x is kept and the cost is that of full
fine-tuning. Short sequences take two products instead, since building a weight per sequence would cost more than it saves.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from smatcli.llm.find import RowSegment

MERGE_FROM = 64  # tokens per sequence; from here on, one merged product is faster than two products


@dataclass
class Mixing:
    """Row weights of one forward pass, read by every mixed layer.

    `rows` [S, G] are the row weights of S sequences. `pieces` are the token ranges of the sequences of one packed row [1, T, H]; None
    where sequence s is row s of the batch. A single sequence may keep its merged weights in `merged` (generation).
    """

    rows: Tensor
    pieces: Sequence[tuple[int, int]] | None = None
    keep: bool = False
    merged: dict[str, Tensor] = field(default_factory=dict)

    def parts(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (sequence, its tokens [t, H]) of x [B, T, H]."""
        if self.pieces is None:
            yield from enumerate(x.unbind(0))
        else:
            for sequence, (start, stop) in enumerate(self.pieces):
                yield sequence, x[0, start:stop]

    def shortest(self, tokens: int) -> int:
        """Return the fewest tokens of a sequence, for rows of `tokens` tokens."""
        return tokens if self.pieces is None else min(stop - start for start, stop in self.pieces)

    def per_token(self, values: Tensor, tokens: int) -> Tensor:
        """Broadcast values [S, n] to the tokens of x: [S, 1, n], or [1, T, n] for a packed row."""
        if self.pieces is None:
            return values[:, None]
        lengths = torch.tensor([stop - start for start, stop in self.pieces], device=values.device)
        return values.repeat_interleave(lengths, 0, output_size=tokens)[None]


class MixingPlace:
    """The mixing that is in force; one object is shared by all mixed layers of a model. None: the base model."""

    def __init__(self) -> None:
        self.current: Mixing | None = None

    @contextmanager
    def set(self, mixing: Mixing | None) -> Iterator[None]:
        """Put a mixing in force for a block."""
        before, self.current = self.current, mixing
        try:
            yield
        finally:
            self.current = before


class MergedProduct(torch.autograd.Function):
    """y_s = x_s (W + diag(w_s) D)^T for every sequence s, with w [S, rows], x [B, T, in] and y [B, T, rows]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, delta: Tensor, w: Tensor, mixing: Mixing) -> Tensor:
        """Return y in the dtype of x; weights are merged in their own precision and rounded once."""
        ctx.save_for_backward(x, weight, delta, w)
        ctx.mixing = mixing
        y = x.new_empty(*x.shape[:-1], len(weight))
        for (s, inputs), (_, outputs) in zip(mixing.parts(x), mixing.parts(y), strict=True):
            torch.mm(inputs, _merged(weight, delta, w[s], x.dtype).T, out=outputs)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, delta and w."""
        x, weight, delta, w = ctx.saved_tensors
        (dy,) = grads
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        d_delta = torch.zeros_like(delta) if ctx.needs_input_grad[2] else None
        dw = torch.zeros_like(w) if ctx.needs_input_grad[3] else None
        slots = ctx.mixing.parts(dx) if dx is not None else ((s, None) for s, _ in ctx.mixing.parts(x))
        for (s, inputs), (_, dys), (_, slot) in zip(ctx.mixing.parts(x), ctx.mixing.parts(dy), slots, strict=True):
            if slot is not None:
                torch.mm(dys, _merged(weight, delta, w[s], x.dtype), out=slot)
            if d_delta is None and dw is None:
                continue
            product = (dys.T @ inputs).to(delta.dtype)
            if dw is not None:
                dw[s] = torch.linalg.vecdot(product, delta).to(w.dtype)
            if d_delta is not None:
                d_delta.addcmul_(product, w[s, :, None].to(delta.dtype))
        return dx, None, d_delta, dw, None


def _merged(weight: Tensor, delta: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.addcmul(weight.to(delta.dtype), delta, w[:, None].to(delta.dtype)).to(dtype)


class MixedLinear(nn.Module):
    """A frozen linear layer (or GPT-2's Conv1D) with a shared delta; without a mixing it is the base layer, bit for bit."""

    def __init__(self, base: nn.Module, segment: RowSegment, place: MixingPlace) -> None:
        super().__init__()
        self.base, self.segment, self.place = base, segment, place
        weight: Tensor = base.weight.T if segment.kind == "conv1d" else base.weight  # type: ignore[assignment]
        bias = getattr(base, "bias", None)
        self.delta = nn.Parameter(torch.zeros(weight.shape, dtype=torch.float32, device=weight.device))
        self.delta_bias = None if bias is None else nn.Parameter(torch.zeros(len(bias), dtype=torch.float32, device=weight.device))

    @property
    def weight(self) -> Tensor:
        """The base weight as [outputs, inputs]."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return weight.T if self.segment.kind == "conv1d" else weight

    @property
    def bias(self) -> Tensor | None:
        """The base bias."""
        return getattr(self.base, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, inputs] -> [B, T, outputs]."""
        mixing = self.place.current
        if mixing is None:
            return self.base(x)  # type: ignore[no-any-return]
        w = mixing.rows[:, self.segment.start : self.segment.stop]
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            y = self._product(x.to(dtype), w, mixing)
            if self.bias is None or self.delta_bias is None:
                return y
            return y + mixing.per_token(self.bias + w * self.delta_bias, x.shape[1]).to(dtype)

    def _product(self, x: Tensor, w: Tensor, mixing: Mixing) -> Tensor:
        if mixing.keep and len(w) == 1:
            if self.segment.name not in mixing.merged:
                mixing.merged[self.segment.name] = _merged(self.weight, self.delta, w[0], x.dtype)
            return F.linear(x, mixing.merged[self.segment.name])
        if mixing.shortest(x.shape[1]) >= MERGE_FROM:
            return MergedProduct.apply(x, self.weight, self.delta, w, mixing)  # type: ignore[no-any-return]
        extra = F.linear(x, self.delta.to(x.dtype)) * mixing.per_token(w, x.shape[1]).to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype)) + extra


class MixedNorm(nn.Module):
    """A frozen RMSNorm or LayerNorm whose weight is gamma + w * delta for every sequence (and its bias likewise)."""

    def __init__(self, base: nn.Module, segment: RowSegment, place: MixingPlace) -> None:
        super().__init__()
        self.base, self.segment, self.place = base, segment, place
        weight: Tensor = base.weight  # type: ignore[assignment]
        bias = getattr(base, "bias", None)
        self.delta = nn.Parameter(torch.zeros(len(weight), dtype=torch.float32, device=weight.device))
        self.delta_bias = None if bias is None else nn.Parameter(torch.zeros(len(bias), dtype=torch.float32, device=weight.device))
        self.plain = isinstance(base, nn.LayerNorm | nn.RMSNorm)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H] -> [B, T, H]."""
        mixing = self.place.current
        if mixing is None:
            return self.base(x)  # type: ignore[no-any-return]
        w, tokens = mixing.rows[:, self.segment.start : self.segment.stop], x.shape[1]
        base_weight: Tensor = self.base.weight  # type: ignore[assignment]
        weight = mixing.per_token(base_weight + w * self.delta, tokens)
        if not self.plain:  # transformers' RMSNorms multiply by their weight, which may then have a batch axis
            return torch.func.functional_call(self.base, {"weight": weight.to(base_weight.dtype)}, (x,))  # type: ignore[no-any-return]
        y = self._normalised(x) * weight
        if self.delta_bias is not None:
            y = y + mixing.per_token(self.base.bias + w * self.delta_bias, tokens)  # type: ignore[operator]
        return y.to(x.dtype)

    def _normalised(self, x: Tensor) -> Tensor:
        base: Any = self.base
        if isinstance(base, nn.LayerNorm):
            return F.layer_norm(x, base.normalized_shape, eps=base.eps)
        return F.rms_norm(x, base.normalized_shape, eps=base.eps)


def mix_layers(model: nn.Module, segments: Sequence[RowSegment]) -> MixingPlace:
    """Freeze `model`, replace the module of every segment by a mixed one, and return the place that their mixing is read from."""
    for parameter in model.parameters():
        parameter.requires_grad = False
    place = MixingPlace()
    for segment in segments:
        parent, _, leaf = segment.name.rpartition(".")
        base = model.get_submodule(segment.name)
        mixed = MixedNorm if segment.kind == "norm" else MixedLinear
        setattr(model.get_submodule(parent), leaf, mixed(base, segment, place))
    return place


def mixed_layers(model: nn.Module) -> dict[str, MixedLinear | MixedNorm]:
    """Map the name of every mixed layer in the base model to the layer."""
    return {m.segment.name: m for m in model.modules() if isinstance(m, MixedLinear | MixedNorm)}
