"""Plain models (a backbone with merged weights), and the check of an exported copy."""

from dataclasses import dataclass

from torch import Tensor

from smatcli.config.schema import BackboneConfig
from smatcli.deploy.frozen import Network
from smatcli.deploy.predictions import Label
from smatcli.errors import SmatError

TOLERANCE = 1e-3


@dataclass(frozen=True)
class PlainModel:
    """A network on a plain timm model with merged parameters, its architecture, and optionally classes with prototypes [C, D]."""

    network: Network
    backbone: BackboneConfig
    origin: str
    classes: tuple[Label, ...] = ()
    centres: Tensor | None = None
    scale: float = 10.0


def check_close(actual: Tensor, wanted: Tensor, what: str) -> None:
    """`SmatError` unless `actual` equals `wanted` up to 1e-3 of its largest entry."""
    if not float((actual - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max()):
        raise SmatError(f"{what} does not reproduce the outputs of the run; nothing was written")
