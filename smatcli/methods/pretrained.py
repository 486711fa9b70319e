"""No meta-tuning: theta_i is the pre-trained model for every task ("Pre" in the tables)."""

import torch
from torch import nn

from smatcli.config.methods import PretrainedConfig
from smatcli.errors import SmatError
from smatcli.methods.base import FlatMethod
from smatcli.seams import Episode, Losses, Support, Task


class PretrainedMethod(FlatMethod):
    """The unchanged pre-trained backbone."""

    def __init__(self, config: PretrainedConfig, backbone: nn.Module):
        super().__init__(backbone, config.scale)

    def task(self, support: Support) -> Task:
        """Return theta_pre for any support set."""
        return self.made(self.theta_pre)

    def loss(self, episode: Episode, generator: torch.Generator) -> Losses:
        """Raise `SmatError`: there is nothing to train."""
        raise SmatError("method 'pretrained' has nothing to train; set train.steps=0")
