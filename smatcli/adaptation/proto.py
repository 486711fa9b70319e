"""No adaptation: class-mean prototypes under theta_i and cosine logits (Snell et al. 2017)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.seams import Support, Task


class PrototypeClassifier:
    """Cosine logits of images embedded under `theta` [P] to fixed prototypes [C, D]; each `predict` adds one to `info["passes"]`."""

    def __init__(self, task: Task, theta: Tensor, centres: Tensor, info: dict[str, Any]):
        self.embed, self.scale = task.embed, task.scale
        self.theta, self.centres, self.info = theta, centres, info

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Return logits [Q, C] of normalised images [Q, 3, H, W], by one forward pass."""
        self.info["passes"] += 1
        return cosine_logits(self.embed(images, self.theta), self.centres, self.scale)


class Proto:
    """Prototypes of the support set under the task's own parameters: one forward pass, no search, no gradient."""

    @torch.no_grad()
    def adapt(self, task: Task, support: Support) -> PrototypeClassifier:
        """Return the prototype classifier; `info` has `passes`, and the support loss as `loss_start` and `loss`."""
        features = task.embed(support.images, task.theta)
        centres = prototypes(features, support.labels, support.ways)
        loss = float(F.cross_entropy(cosine_logits(features, centres, task.scale), support.labels))
        return PrototypeClassifier(task, task.theta, centres, {"passes": 1, "loss_start": loss, "loss": loss})
