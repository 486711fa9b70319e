"""`linear`, `full` and `bias`: train the head alone, all parameters, or the head and the biases of the backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smatcli.config.tuning import BiasConfig, FullTuneConfig, LinearConfig
from smatcli.tuning.base import Wrapped, only


class Linear(Wrapped):
    """A linear classifier; the features of an image are computed once."""

    def train(self, mode: bool = True) -> "Linear":
        """Set the training mode; the frozen backbone stays in inference mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return frozen features [B, D]."""
        with torch.no_grad():
            return self.backbone(images)

    def frozen_prefix(self, images: Tensor) -> Tensor:
        """Return the features [B, D]."""
        return self.features(images)

    def from_prefix(self, prefix: Tensor) -> Tensor:
        """Return logits [B, C]."""
        return self.head(prefix)


def build_linear(config: LinearConfig, backbones: Sequence[nn.Module], classes: int) -> Linear:
    """Build a linear probe."""
    return Linear(only(backbones), classes)


def build_full(config: FullTuneConfig, backbones: Sequence[nn.Module], classes: int) -> Wrapped:
    """Build a tuner that trains all parameters."""
    tuner = Wrapped(only(backbones), classes)
    tuner.backbone.requires_grad_(requires_grad=True)
    return tuner


def build_bias(config: BiasConfig, backbones: Sequence[nn.Module], classes: int) -> Wrapped:
    """Build a tuner that trains all biases of the backbone (including norms and patch embedding)."""
    tuner = Wrapped(only(backbones), classes)
    for name, parameter in tuner.backbone.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] == "bias")
    return tuner
