"""No meta-tuning: theta_i is the pre-trained model for every task (the tables' 'Pre')."""

import torch
from torch import nn

from smatcli.config.methods import PretrainedConfig
from smatcli.errors import SmatError
from smatcli.methods.base import FlatMethod
from smatcli.seams import Episode, Losses, Support, Task


class PretrainedMethod(FlatMethod):
    """The pre-trained backbone as it is."""

    def __init__(self, config: PretrainedConfig, backbone: nn.Module):
        super().__init__(backbone, config.scale)

    def task(self, support: Support) -> Task:
        """theta_pre, whatever the support set."""
        return self.made(self.theta_pre)

    def loss(self, episode: Episode, generator: torch.Generator) -> Losses:
        """Refused: there is nothing to train."""
        raise SmatError("method 'pretrained' has nothing to train; set train.steps=0")
