"""`linear`, `full` and `bias`: nothing, everything, or the biases of the backbone are trained beside the head."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smatcli.config.tuning import BiasConfig, FullTuneConfig, LinearConfig
from smatcli.tuning.base import Wrapped, only


class Linear(Wrapped):
    """A linear classifier; the features of an image are computed once."""

    def train(self, mode: bool = True) -> "Linear":
        """The frozen backbone stays in inference mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Frozen features [B, D]."""
        with torch.no_grad():
            return self.backbone(images)

    def frozen_prefix(self, images: Tensor) -> Tensor:
        """The features [B, D]."""
        return self.features(images)

    def from_prefix(self, prefix: Tensor) -> Tensor:
        """Logits [B, C]."""
        return self.head(prefix)


def build_linear(config: LinearConfig, backbones: Sequence[nn.Module], classes: int) -> Linear:
    """A linear probe."""
    return Linear(only(backbones), classes)


def build_full(config: FullTuneConfig, backbones: Sequence[nn.Module], classes: int) -> Wrapped:
    """Fine-tuning of all parameters."""
    tuner = Wrapped(only(backbones), classes)
    tuner.backbone.requires_grad_(True)
    return tuner


def build_bias(config: BiasConfig, backbones: Sequence[nn.Module], classes: int) -> Wrapped:
    """Fine-tuning of all biases of the backbone (norms and patch embedding included)."""
    tuner = Wrapped(only(backbones), classes)
    for name, parameter in tuner.backbone.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] == "bias")
    return tuner
