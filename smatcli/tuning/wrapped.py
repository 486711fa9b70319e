"""Tuners that leave the shape of a network alone: a frozen backbone with own parameters inside it, and a head."""

import copy

from torch import Tensor, nn

from smatcli.tuning.base import Tuner, linear_head, with_head


class Wrapped(Tuner):
    """A backbone (images to features) under a linear head; whatever requires a gradient in the backbone is the tuner's."""

    def __init__(self, backbone: nn.Module, classes: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = linear_head(backbone, classes)

    def features(self, images: Tensor) -> Tensor:
        """Features [B, D]."""
        return self.backbone(images)

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """What requires a gradient in the backbone, and the head."""
        return {"tuner": [p for p in self.backbone.parameters() if p.requires_grad], "head": list(self.head.parameters())}

    def merge(self) -> nn.Module | None:
        """A copy of the backbone with the head; tuners that add modules put them into its weights (`settle`)."""
        plain = copy.deepcopy(self.backbone)
        self.settle(plain)
        return with_head(plain, copy.deepcopy(self.head)).requires_grad_(False).eval()

    def settle(self, backbone: nn.Module) -> None:
        """Replace the tuner's modules in a copy of the backbone by plain ones that compute the same."""
