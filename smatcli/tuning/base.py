"""What every tuner is: a pre-trained network that learns one dataset by a few parameters of its own and a linear head."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smatcli.errors import UserError


class Tuner(nn.Module, ABC):
    """A network for one dataset over frozen (or, for `full`, trained) backbones; `head` maps features [B, D] to logits [B, C]."""

    head: nn.Module

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features [B, D] of the adapted backbone, of normalised images [B, 3, H, W]: what the head reads."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] of normalised images [B, 3, H, W]."""
        return self.head(self.features(images))

    @abstractmethod
    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Optimizer groups (`tuner`, `head`): every parameter that requires a gradient, exactly once."""

    def merge(self) -> nn.Module | None:
        """A plain timm module with equal logits (head included) and no parameters of the tuner; None where that cannot be (prompts)."""
        return None

    def frozen_prefix(self, images: Tensor) -> Tensor | None:
        """The part [B, ...] of the computation that training never changes, or None; it is computed once an image and kept."""
        return None

    def from_prefix(self, prefix: Tensor) -> Tensor:
        """Logits [B, C] of what `frozen_prefix` gave."""
        raise NotImplementedError(f"{type(self).__name__} has no frozen prefix")


def only(backbones: Sequence[nn.Module]) -> nn.Module:
    """The backbone of a tuner that takes one."""
    (backbone,) = backbones
    return backbone


def linear_head(backbone: nn.Module, classes: int) -> nn.Linear:
    """A new classifier on the features of `backbone`: weights N(0, 0.02^2), no bias yet."""
    head = nn.Linear(int(backbone.num_features), classes)  # type: ignore[arg-type]
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def with_head(backbone: nn.Module, head: nn.Module) -> nn.Module:
    """`backbone` with `head` as its own classifier: logits from one plain timm module."""
    if not isinstance(getattr(backbone, "head", None), nn.Module):
        raise UserError(f"{type(backbone).__name__} has no classifier to put the head into; a timm ViT has")
    backbone.head = head
    if isinstance(head, nn.Linear) and hasattr(backbone, "num_classes"):
        backbone.num_classes = head.out_features  # type: ignore[assignment]
    return backbone


@torch.no_grad()
def count(parameters: Sequence[nn.Parameter]) -> int:
    """Numbers in `parameters`."""
    return sum(p.numel() for p in parameters)


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
