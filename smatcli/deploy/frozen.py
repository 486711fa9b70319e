"""Plain networks with the merged parameters of a task, independent of the method."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smatcli.backbones import create_backbone
from smatcli.backbones.layers import LastBlocks
from smatcli.config.schema import BackboneConfig
from smatcli.device import Precision
from smatcli.experts.space import at_least_fp32
from smatcli.methods.base import FlatMethod
from smatcli.methods.prototypes import EPS, cosine_logits


class Network(nn.Module):
    """Map images [B, 3, S, S] to fp32 features [B, D].

    The features are those of the backbone or, with `fuse` > 0, those of its last `fuse` blocks, concatenated and normalised.
    """

    def __init__(self, backbone: nn.Module, fuse: int = 0):
        super().__init__()
        self.backbone, self.fuse = backbone, fuse
        self._blocks = [LastBlocks(backbone, fuse)] if fuse else []

    def forward(self, images: Tensor) -> Tensor:
        if not self._blocks:
            return at_least_fp32(self.backbone(images))
        return F.normalize(torch.cat(list(at_least_fp32(self._blocks[0](images))), 1), dim=1, eps=EPS)


class FrozenHead:
    """A `Classifier` that consists of a network and prototypes [C, D]."""

    def __init__(self, network: Network, centres: Tensor, scale: float, precision: Precision):
        self.network, self.centres, self.scale, self.precision = network, centres, scale, precision
        self.info: dict[str, Any] = {}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Return logits [Q, C] of normalised images [Q, 3, H, W]."""
        with self.precision.autocast():
            features = self.network(images)
        return cosine_logits(features, self.centres, self.scale)


def backbone_of(config: BackboneConfig, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return the backbone of `config` with the parameters `tensors`, on the CPU. Raises RuntimeError if the tensors do not match exactly.

    The module is created on the meta device, because initialising the weights would take most of the time.
    """
    plain = config.model_copy(update={"weights": "none"})
    with torch.device("meta"):
        module = create_backbone(plain)
    module.load_state_dict(tensors, assign=True)
    if any(tensor.is_meta for tensor in module.buffers()):  # buffers that are not in the file
        module = create_backbone(plain)
        module.load_state_dict(tensors)
    return module.eval().requires_grad_(requires_grad=False)


def module_of(method: FlatMethod, theta: Tensor, config: BackboneConfig) -> nn.Module:
    """Return the backbone of `config` with the parameters `theta` [P] and the method's buffers, on the CPU."""
    named = {**method.backbone.state_dict(), **method.space.unflatten(theta.detach())}
    return backbone_of(config, {name: tensor.detach().cpu().clone() for name, tensor in named.items()})
