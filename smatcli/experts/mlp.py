"""The MLP layers of a vision transformer as parts of its flat vector: which parameters have an expert, and a vector from both kinds."""

from dataclasses import dataclass

import torch
from torch import Tensor

from smatcli.errors import UserError
from smatcli.experts.space import ParameterSpace

LAYERS = ("fc1", "fc2")


@dataclass(frozen=True)
class MlpParts:
    """Consecutive runs of the flat vector: `sizes[i]` parameters that belong to MLP layers where `inside[i]`, and to others elsewhere."""

    sizes: tuple[int, ...]
    inside: tuple[bool, ...]
    names: tuple[str, ...]  # of the MLP layers' tensors

    @classmethod
    def of(cls, space: ParameterSpace) -> "MlpParts":
        """The runs of a space; `UserError` for a backbone without MLP layers."""
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
            raise UserError("method.name: the backbone has no MLP layers that could have experts; use method.name=smat")
        return cls(tuple(sizes), tuple(inside), tuple(dict.fromkeys(names)))

    @property
    def size(self) -> int:
        """Number of parameters of the MLP layers."""
        return sum(n for n, within in zip(self.sizes, self.inside, strict=True) if within)

    def take(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """(MLP part, rest) of a vector [P]; views only where a part is one run."""
        pieces = vector.split(list(self.sizes))
        kinds = [[p for p, within in zip(pieces, self.inside, strict=True) if within == wanted] for wanted in (True, False)]
        mlp, rest = (torch.cat(found) if found else vector[:0] for found in kinds)
        return mlp, rest

    def join(self, mlp: Tensor, rest: Tensor) -> Tensor:
        """The vector [P] of which `take` would give (mlp, rest), with graph."""
        found = [
            iter(part.split([n for n, w in zip(self.sizes, self.inside, strict=True) if w == kind]))
            for part, kind in ((rest, False), (mlp, True))
        ]
        return torch.cat([next(found[within]) for within in self.inside])
