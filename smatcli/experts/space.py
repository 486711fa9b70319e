"""Parameters of a module as one flat vector [P], and calls of the module with any such vector."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call

from smatcli.errors import SmatError

_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers?|stages|resblocks|h)\.(\d+)\.")
_TYPES = (
    ("cls_token", re.compile(r"cls_token$|class_embedding$")),
    ("reg_token", re.compile(r"reg_token$|register_tokens$")),
    ("pos_embed", re.compile(r"pos_embed|position_embeddings?")),
    ("patch_embed", re.compile(r"patch_embed|patch_embeddings")),
    ("qkv", re.compile(r"\.qkv\.")),
    ("q", re.compile(r"\.(q|q_proj|query)\.")),
    ("k", re.compile(r"\.(k|k_proj|key)\.")),
    ("v", re.compile(r"\.(v|v_proj|value)\.")),
    ("norm", re.compile(r"norm")),
    ("proj", re.compile(r"attn\.proj\.|attention\.output\.dense\.")),
    ("fc1", re.compile(r"\.fc1\.|intermediate\.dense\.")),
    ("fc2", re.compile(r"\.fc2\.|output\.dense\.")),
    ("layer_scale", re.compile(r"\.ls\d?\.|gamma$|lambda")),
    ("head", re.compile(r"(^|\.)(head|classifier|fc)\.")),
)


@dataclass(frozen=True)
class Segment:
    """A contiguous run of the flat vector: tensor name, slice, layer type, and block number (None outside the blocks)."""

    name: str
    slice: slice
    layer: str
    depth: int | None

    @property
    def size(self) -> int:
        """Number of parameters in the segment."""
        return int(self.slice.stop - self.slice.start)


def layer_type(name: str) -> str:
    """Return the layer type of a parameter by its name (`cls_token`, `patch_embed`, `qkv`, `proj`, `fc1`, `norm`, ..., else `other`)."""
    return next((kind for kind, pattern in _TYPES if pattern.search(name)), "other")


@dataclass(frozen=True)
class ParameterSpace:
    """Names and shapes of a module's floating-point parameters, in the order of a flat vector [P]. Buffers are not part of it."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, module: nn.Module) -> "ParameterSpace":
        """Return the space of the floating-point parameters of `module`; a shared tensor is listed once."""
        entries = [(name, p.shape) for name, p in module.named_parameters() if p.is_floating_point()]
        if not entries:
            raise SmatError(f"{type(module).__name__} has no floating-point parameters to tune")
        return cls(tuple(name for name, _ in entries), tuple(shape for _, shape in entries))

    @cached_property
    def sizes(self) -> list[int]:
        """Number of elements per tensor."""
        return [prod(shape) for shape in self.shapes]

    @cached_property
    def size(self) -> int:
        """P, the length of the flat vector."""
        return sum(self.sizes)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """All segments in order; together they cover [0, P). A fused qkv (weight or bias) is split into q, k and v."""
        segments: list[Segment] = []
        start = 0
        for name, shape, size in zip(self.names, self.shapes, self.sizes, strict=True):
            block = _BLOCK.search(name)
            depth = int(block.group(1)) if block else None
            kind = layer_type(name)
            parts = ("q", "k", "v") if kind == "qkv" and shape[0] % 3 == 0 else (kind,)
            step = size // len(parts)
            for part in parts:
                segments.append(Segment(name, slice(start, start + step), part, depth))
                start += step
        return tuple(segments)

    def flatten(self, source: nn.Module | Mapping[str, Tensor]) -> Tensor:
        """Return one vector [P]: a detached copy of a module's parameters, or the tensors of a mapping by name, with graph."""
        tensors = {n: p.detach() for n, p in source.named_parameters()} if isinstance(source, nn.Module) else source
        missing = [name for name in self.names if name not in tensors]
        if missing:
            raise SmatError(f"{len(missing)} of {len(self.names)} parameters are missing, first {missing[0]!r}: a different architecture")
        for name, shape in zip(self.names, self.shapes, strict=True):
            if tensors[name].shape != shape:
                raise SmatError(f"parameter {name!r} has shape {tuple(tensors[name].shape)}, expected {tuple(shape)}")
        return torch.cat([tensors[name].reshape(-1) for name in self.names])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a vector [P] by name. Uses one split, whose backward is one concatenation; slices would allocate P zeros each."""
        self.check(vector)
        parts = torch.split(vector, self.sizes)
        return {name: part.view(shape) for name, shape, part in zip(self.names, self.shapes, parts, strict=True)}

    def check(self, vector: Tensor) -> None:
        """Raise `SmatError` unless `vector` has shape [P]."""
        if vector.shape != (self.size,):
            raise SmatError(f"a parameter vector must have shape ({self.size},), got {tuple(vector.shape)}")

    def where(self, prefixes: tuple[str, ...]) -> Tensor:
        """Return a boolean vector [P]: True for parameters whose name starts with one of `prefixes`."""
        return torch.cat([torch.full((n,), name.startswith(prefixes)) for name, n in zip(self.names, self.sizes, strict=True)])


def call(module: nn.Module, space: ParameterSpace, theta: Tensor, images: Tensor) -> Tensor:
    """Return features [B, D] of `module` with parameters `theta` [P] for images [B, 3, H, W], in fp32 or higher even under autocast."""
    return at_least_fp32(functional_call(module, space.unflatten(theta), (images,)))


def at_least_fp32(features: Tensor) -> Tensor:
    """Convert fp16 and bf16 to fp32; keep fp32 and fp64."""
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
