"""Plain models (a backbone with merged weights), and a check of exported copies."""

from dataclasses import dataclass

from torch import Tensor

from smatcli.config.schema import BackboneConfig
from smatcli.deploy.frozen import Network
from smatcli.deploy.predictions import Label
from smatcli.errors import SmatError

TOLERANCE = 1e-3


@dataclass(frozen=True)
class PlainModel:
    """A plain timm model with merged parameters, its architecture and origin, and optionally classes and prototypes [C, D]."""

    network: Network
    backbone: BackboneConfig
    origin: str
    classes: tuple[Label, ...] = ()
    centres: Tensor | None = None
    scale: float = 10.0


def check_close(actual: Tensor, wanted: Tensor, what: str) -> None:
    """Raise `SmatError` unless `actual` equals `wanted` up to 1e-3 of the largest entry."""
    if not float((actual - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max()):
        raise SmatError(f"{what} does not reproduce the outputs of the run; nothing was written")
