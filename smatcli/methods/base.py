"""What every meta-tuning method shares: a frozen backbone as a flat vector, and the embedding call under the run's precision."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from smatcli.config.schema import GroupConfig
from smatcli.experts.space import ParameterSpace, call
from smatcli.seams import Episode, Losses, Support, Task


class Autocast(Protocol):
    """The part of `smatcli.device.Precision` that a method needs."""

    def autocast(self) -> AbstractContextManager[object]: ...


class FullPrecision:
    """No autocast: what a method uses until the engine sets its `precision`."""

    def autocast(self) -> AbstractContextManager[object]:
        return nullcontext()


class FlatMethod(nn.Module, ABC):
    """A method over the flat parameter vector of a frozen backbone: holds `theta_pre` [P] and calls the backbone with any theta [P]."""

    theta_pre: Tensor

    def __init__(self, backbone: nn.Module, scale: float):
        super().__init__()
        self.space = ParameterSpace.of(backbone)
        self.register_buffer("theta_pre", self.space.flatten(backbone).detach().clone())
        # Only the architecture is needed from here on: outside the module tree, so that its weights are not saved a second time.
        self._backbone = [backbone.eval().requires_grad_(False)]
        self.scale = scale
        self.precision: Autocast = FullPrecision()

    @property
    def backbone(self) -> nn.Module:
        """The module whose architecture is called; its own weights are never used after construction."""
        return self._backbone[0]

    def embed(self, images: Tensor, theta: Tensor) -> Tensor:
        """Features [B, D] (fp32) of `images` [B, 3, H, W] under the parameters `theta` [P]."""
        with self.precision.autocast():
            features = call(self.backbone, self.space, theta, images)
        return features.float() if features.dtype in (torch.bfloat16, torch.float16) else features

    @abstractmethod
    def task(self, support: Support) -> Task:
        """Task parameters for inference (no noise, no graph)."""

    @abstractmethod
    def loss(self, episode: Episode, generator: torch.Generator) -> Losses:
        """Training loss of one episode; `generator` is the only source of noise."""

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Optimizer groups by name."""
        return {}

    def default_groups(self) -> dict[str, GroupConfig]:
        """Optimizer settings of the groups that a recipe does not name."""
        return {}

    def after_step(self, tasks_done: int) -> None:
        """Nothing to do by default."""

    def statistics(self) -> dict[str, float]:
        """Nothing to report by default."""
        return {}

    def feasible(self) -> bool:
        """May this state be kept as the best one? (A constrained method says no while its constraint is violated.)"""
        return True
