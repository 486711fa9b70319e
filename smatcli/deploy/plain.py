"""Plain models: a run's backbone with its weights merged, and the check of an exported copy."""

from dataclasses import dataclass

from torch import Tensor

from smatcli.config.schema import BackboneConfig
from smatcli.deploy.frozen import Network
from smatcli.deploy.predictions import Label
from smatcli.errors import SmatError

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Plain:
    """A network over a plain timm model with merged parameters, its architecture, and classes with prototypes [C, D] where known."""

    network: Network
    backbone: BackboneConfig
    origin: str
    classes: tuple[Label, ...] = ()
    centres: Tensor | None = None
    scale: float = 10.0


def check_close(found: Tensor, wanted: Tensor, what: str) -> None:
    """`SmatError` unless `found` equals `wanted` to 1e-3 of its largest entry."""
    if not float((found - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max()):
        raise SmatError(f"{what} does not give the features of the run; nothing was written")
