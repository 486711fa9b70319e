"""Base class of tuners: a pre-trained network that learns one dataset by a few additional parameters and a linear head."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smatcli.errors import UserError


class Tuner(nn.Module, ABC):
    """A network for one dataset on frozen (or, for `full`, trained) backbones; `head` maps features [B, D] to logits [B, C]."""

    head: nn.Module

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return features [B, D] of the adapted backbone, the input of the head, for normalised images [B, 3, H, W]."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, C] of normalised images [B, 3, H, W]."""
        return self.head(self.features(images))

    @abstractmethod
    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Return optimizer groups (`tuner`, `head`): every parameter that requires a gradient, exactly once."""

    def merge(self) -> nn.Module | None:
        """Return a plain timm module with equal logits (head included), without the tuner's parameters; None if impossible (prompts)."""
        return None

    def frozen_prefix(self, images: Tensor) -> Tensor | None:
        """Return the part [B, ...] of the computation that training never changes, to be cached per image, or None."""
        return None

    def from_prefix(self, prefix: Tensor) -> Tensor:
        """Return logits [B, C] for a result of `frozen_prefix`."""
        raise NotImplementedError(f"{type(self).__name__} has no frozen prefix")


def only(backbones: Sequence[nn.Module]) -> nn.Module:
    """Return the single backbone of a tuner."""
    (backbone,) = backbones
    return backbone


def linear_head(backbone: nn.Module, classes: int) -> nn.Linear:
    """Return a new classifier on the features of `backbone`: weights N(0, 0.02^2), zero bias."""
    head = nn.Linear(int(backbone.num_features), classes)  # type: ignore[arg-type]
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def with_head(backbone: nn.Module, head: nn.Module) -> nn.Module:
    """Set `head` as the classifier of `backbone`, and return the backbone: one plain timm module that computes logits."""
    if not isinstance(getattr(backbone, "head", None), nn.Module):
        raise UserError(f"{type(backbone).__name__} has no classifier that the head could replace; choose a timm ViT")
    backbone.head = head
    if isinstance(head, nn.Linear) and hasattr(backbone, "num_classes"):
        backbone.num_classes = head.out_features  # type: ignore[assignment]
    return backbone


@torch.no_grad()
def count(parameters: Sequence[nn.Parameter]) -> int:
    """Return the number of elements in `parameters`."""
    return sum(p.numel() for p in parameters)


class Wrapped(Tuner):
    """A backbone (images to features) with a linear head; the parameters of the backbone that require a gradient are the tuner's."""

    def __init__(self, backbone: nn.Module, classes: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(requires_grad=False)
        self.head = linear_head(backbone, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return features [B, D]."""
        return self.backbone(images)

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Return the backbone's parameters that require a gradient, and the head's."""
        return {"tuner": [p for p in self.backbone.parameters() if p.requires_grad], "head": list(self.head.parameters())}

    def merge(self) -> nn.Module | None:
        """Return a copy of the backbone with the head; tuners that add modules merge them into its weights (`settle`)."""
        plain = copy.deepcopy(self.backbone)
        self.settle(plain)
        return with_head(plain, copy.deepcopy(self.head)).requires_grad_(requires_grad=False).eval()

    def settle(self, backbone: nn.Module) -> None:
        """Replace the tuner's modules in a copy of the backbone by equivalent plain ones."""
