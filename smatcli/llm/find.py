"""Select the modules of a language model that are upcycled, and number their rows.

A row is an output feature of a linear layer (its bias entry belongs to it) or a feature of a norm. All rows of all selected modules form
one vector of G entries: one mask entry switches one row.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from smatcli.errors import UserError

Which = Literal["all", "ffn", "attention", "norms"]
Kind = Literal["linear", "conv1d", "norm"]

# Words of a module's name -> layer type. The first match counts.
_TYPES: tuple[tuple[str, str], ...] = (
    (r"query_key_value|c_attn|qkv_proj|Wqkv|in_proj", "qkv"),
    (r"gate_up_proj", "gate_up"),
    (r"q_proj|q_lin|\bquery", "q"),
    (r"k_proj|k_lin|\bkey", "k"),
    (r"v_proj|v_lin|\bvalue", "v"),
    (r"gate_proj|\bw1\b", "gate"),
    (r"up_proj|\bw3\b|dense_h_to_4h|c_fc|fc1|fc_in", "up"),
    (r"down_proj|\bw2\b|dense_4h_to_h|mlp\.c_proj|fc2|fc_out", "down"),
    (r"o_proj|out_proj|out_lin|attention\.dense|self_attention\.dense|attn\.c_proj|Wo\b", "o"),
)
_FFN = ("gate", "up", "down", "gate_up")
_ATTENTION = ("q", "k", "v", "o", "qkv")


@dataclass(frozen=True)
class RowSegment:
    """Rows `start` to `start + rows` of G: one module, its layer type and the index of its decoder layer."""

    name: str
    kind: Kind
    type: str
    layer: int
    start: int
    rows: int
    members: int
    """Parameters per row."""

    @property
    def stop(self) -> int:
        """First row after the module's."""
        return self.start + self.rows


def find_segments(model: nn.Module, which: Which = "all") -> list[RowSegment]:
    """Return the segments of the decoder layers of `model`, in the model's order.

    Embeddings, the output head and norms outside of decoder layers are never selected. Raises UserError for a model that is a mixture of
    experts already, for a module that has two names (tied weights), and for a model without a module to upcycle.
    """
    _refuse_mixture(model)
    segments: list[RowSegment] = []
    owners: dict[int, str] = {}
    for name, module, layer in _decoder_modules(model):
        kind = _kind(module)
        if kind is None:
            continue
        label = _type(name, kind, segments, layer)
        if not _selected(label, kind, which):
            continue
        weight = getattr(module, "weight")  # noqa: B009  (typed as Tensor | Module)
        if other := owners.get(id(weight)):
            raise UserError(f"{name}: shares its weight with {other}; tied layers cannot be upcycled, choose a method.upcycle without them")
        owners[id(weight)] = name
        bias = getattr(module, "bias", None) is not None
        rows, members = _shape(weight, kind)
        start = segments[-1].stop if segments else 0
        segments.append(RowSegment(name, kind, label, layer, start, rows, members + bias))
    if not segments:
        raise UserError(f"{type(model).__name__}: no linear layer or norm inside of decoder layers to upcycle ({which})")
    return segments


def row_count(segments: list[RowSegment]) -> int:
    """Return G."""
    return segments[-1].stop


def members_of(segments: list[RowSegment]) -> Tensor:
    """Return the number of parameters of every row, [G] (float64)."""
    return torch.cat([torch.full((s.rows,), float(s.members), dtype=torch.float64) for s in segments])


def _refuse_mixture(model: nn.Module) -> None:
    config = getattr(model, "config", None)
    counts = [getattr(config, key, None) or 0 for key in ("num_local_experts", "num_experts", "n_routed_experts")]
    if (experts := max(counts)) > 1:
        raise UserError(f"{type(model).__name__}: is a mixture of {experts} experts already; choose a dense model")


def _decoder_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Yield (name, module, layer index) of every leaf module below a numbered block of the longest list of blocks."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        return
    prefix, blocks = max(lists, key=lambda pair: len(pair[1]))
    for index, block in enumerate(blocks):
        for name, module in block.named_modules():
            if not any(module.children()):
                yield f"{prefix}.{index}.{name}", module, index


def _kind(module: nn.Module) -> Kind | None:
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        return "linear"
    if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2:
        return "conv1d"  # GPT-2's linear layer: its weight is [inputs, outputs]
    if isinstance(weight, Tensor) and weight.ndim == 1 and "norm" in type(module).__name__.lower():
        return "norm"
    return None


def _type(name: str, kind: Kind, before: list[RowSegment], layer: int) -> str:
    if kind == "norm":
        if re.search(r"(q|k|query|key)_?(layer)?norm|norm_?(q|k)\b", name):
            return "norm_qk"
        count = sum(s.layer == layer and s.type.startswith("norm") and s.type != "norm_qk" for s in before)
        return f"norm{count + 1}"
    return next((label for pattern, label in _TYPES if re.search(pattern, name)), "other")


def _selected(label: str, kind: Kind, which: Which) -> bool:
    if label == "norm_qk":
        return False  # one weight per head dimension, shared by all heads
    if which == "all":
        return True
    return kind == "norm" if which == "norms" else label in (_FFN if which == "ffn" else _ATTENTION)


def _shape(weight: Tensor, kind: Kind) -> tuple[int, int]:
    """Return (rows, weights per row)."""
    if kind == "norm":
        return len(weight), 1
    return (weight.shape[0], weight.shape[1]) if kind == "linear" else (weight.shape[1], weight.shape[0])
