"""Groups of parameters that share one mask entry: all weights of an input or of an output feature."""

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from smatcli.experts.space import ParameterSpace


@dataclass(frozen=True)
class ParameterGroups:
    """A partition of the flat vector [P] into G groups.

    A weight matrix [outputs, inputs, ...] has one group per output (`output`, which includes the layer's bias) or per input (`input`).
    Other tensors (norms, biases, tokens, position embedding) have one group per feature, the last axis.
    `counts` are the numbers of groups in consecutive parts of a group vector [G]; tensor i of the space uses part `parts[i]`, viewed as
    `views[i]`.
    """

    counts: tuple[int, ...]
    parts: tuple[int, ...]
    views: tuple[tuple[int, ...], ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, space: ParameterSpace, kind: str) -> "ParameterGroups":
        """Partition `space` by `kind`: "input" or "output"."""
        counts: list[int] = []
        parts: list[int] = []
        views: list[tuple[int, ...]] = []
        weights: dict[str, int] = {}
        for name, shape in zip(space.names, space.shapes, strict=True):
            weight = name.removesuffix("bias") + "weight"
            if kind == "output" and name.endswith("bias") and weight in weights and counts[weights[weight]] == prod(shape):
                parts.append(weights[weight])
                views.append(tuple(shape))
                continue
            view = _view(name, shape, kind)
            if len(shape) > 1 and name.endswith("weight"):
                weights[name] = len(counts)
            parts.append(len(counts))
            counts.append(prod(view))
            views.append(view)
        return cls(tuple(counts), tuple(parts), tuple(views), space.shapes)

    @property
    def size(self) -> int:
        """G, the number of groups."""
        return sum(self.counts)

    @cached_property
    def members(self) -> Tensor:
        """Number of parameters per group, [G] (float64)."""
        members = [torch.zeros(count, dtype=torch.float64) for count in self.counts]
        for part, view, shape in zip(self.parts, self.views, self.shapes, strict=True):
            members[part] += prod(shape) / prod(view)
        return torch.cat(members)

    def expand(self, values: Tensor) -> Tensor:
        """Return the value of each parameter's group: [G] -> [P], with graph. Uses one split, like `ParameterSpace.unflatten`."""
        chunks = torch.split(values, list(self.counts))
        tensors = zip(self.parts, self.views, self.shapes, strict=True)
        return torch.cat([chunks[part].view(view).expand(shape).reshape(-1) for part, view, shape in tensors])

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a vector [P] over each group, [G] (float64)."""
        sums = [torch.zeros(count, dtype=torch.float64, device=values.device) for count in self.counts]
        tensors = torch.split(values.double(), [prod(shape) for shape in self.shapes])
        for tensor, part, view, shape in zip(tensors, self.parts, self.views, self.shapes, strict=True):
            kept = tuple(size if size == full else 1 for size, full in zip(view, shape, strict=True))
            sums[part] += tensor.view(shape).sum_to_size(kept).reshape(-1)
        return torch.cat(sums) / self.members.to(values.device)


def _view(name: str, shape: torch.Size, kind: str) -> tuple[int, ...]:
    if len(shape) > 1 and name.endswith("weight"):
        return (shape[0], *(1 for _ in shape[1:])) if kind == "output" else (1, *shape[1:])
    return (*(1 for _ in shape[1:]), *shape[-1:])
