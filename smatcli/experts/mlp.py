"""Split the flat vector of a vision transformer into the parameters of its MLP layers and the rest, and join the two."""

from dataclasses import dataclass

import torch
from torch import Tensor

from smatcli.errors import UserError
from smatcli.experts.space import ParameterSpace

LAYERS = ("fc1", "fc2")


@dataclass(frozen=True)
class MlpParts:
    """Consecutive runs of the flat vector: run i has `sizes[i]` parameters, which belong to MLP layers if `inside[i]`."""

    sizes: tuple[int, ...]
    inside: tuple[bool, ...]
    names: tuple[str, ...]  # of the MLP layers' tensors

    @classmethod
    def of(cls, space: ParameterSpace) -> "MlpParts":
        """Return the runs of a space. Raises `UserError` for a backbone without MLP layers."""
        sizes: list[int] = []
        inside: list[bool] = []
        names = []
        for segment in space.segments:
            within = segment.layer in LAYERS or ".mlp." in segment.name
            if within:
                names.append(segment.name)
            if inside and inside[-1] == within:
                sizes[-1] += segment.size
            else:
                sizes.append(segment.size)
                inside.append(within)
        if not names:
            raise UserError("method.name: the backbone has no MLP layers, which this method needs; use method.name=smat")
        return cls(tuple(sizes), tuple(inside), tuple(dict.fromkeys(names)))

    @property
    def size(self) -> int:
        """Number of parameters in the MLP layers."""
        return sum(n for n, within in zip(self.sizes, self.inside, strict=True) if within)

    def take(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return (MLP part, rest) of a vector [P], as copies."""
        runs = torch.split(vector, list(self.sizes))
        kinds = [[run for run, within in zip(runs, self.inside, strict=True) if within == wanted] for wanted in (True, False)]
        mlp, rest = (torch.cat(kind) if kind else vector[:0] for kind in kinds)
        return mlp, rest

    def join(self, mlp: Tensor, rest: Tensor) -> Tensor:
        """Return the vector [P] for an MLP part and a rest, with graph: the inverse of `take`."""
        runs = [
            iter(torch.split(part, [n for n, w in zip(self.sizes, self.inside, strict=True) if w == kind]))
            for part, kind in ((rest, False), (mlp, True))
        ]
        return torch.cat([next(runs[within]) for within in self.inside])
