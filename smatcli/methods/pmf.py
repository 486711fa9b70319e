"""PMF's meta-training (Hu et al., CVPR 2022): ProtoNet on all parameters of the pre-trained backbone."""

import torch
import torch.nn.functional as F
from torch import nn

from smatcli.config.methods import PmfConfig
from smatcli.config.schema import GroupConfig
from smatcli.methods.base import FlatMethod
from smatcli.methods.prototypes import accuracy, cosine_logits, prototypes
from smatcli.seams import Episode, Losses, Support, Task


class PmfMethod(FlatMethod):
    """One vector theta [P], trained from theta_pre by the cross-entropy of the query set under cosine prototypes."""

    def __init__(self, config: PmfConfig, backbone: nn.Module):
        super().__init__(backbone, config.scale)
        self.theta = nn.Parameter(self.theta_pre.clone())

    def task(self, support: Support) -> Task:
        """Return the tuned parameters, the same for every task."""
        return self.made(self.theta.detach())

    def loss(self, episode: Episode, generator: torch.Generator) -> Losses:
        """Return the cross-entropy of the query set; support and query share one forward pass."""
        support = episode.support
        features = self.embed(torch.cat([support.images, episode.query_images]), self.theta)
        known, query = torch.split(features, [len(support.images), len(episode.query_images)])
        logits = cosine_logits(query, prototypes(known, support.labels, support.ways), self.scale)
        ce = F.cross_entropy(logits, episode.query_labels)
        return Losses(ce, {"ce": float(ce.detach())}, {"accuracy": accuracy(logits.detach(), episode.query_labels)})

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return one group, `theta`."""
        return {"theta": [self.theta]}

    def default_groups(self) -> dict[str, GroupConfig]:
        """Return Adam with the learning rate that performed best on the validation classes of the real-image recipe."""
        return {"theta": GroupConfig(optimizer="adam", lr=1e-4, clip=1.0)}

    def statistics(self) -> dict[str, float]:
        """Return the distance from the pre-trained model, relative to its norm."""
        moved = (self.theta.detach() - self.theta_pre).norm() / self.theta_pre.norm()
        return {"moved": float(moved)}
