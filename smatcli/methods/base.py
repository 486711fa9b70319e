"""What every meta-tuning method shares: a frozen backbone as a flat vector, and the embedding call under the run's precision."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from smatcli.config.schema import GroupConfig
from smatcli.experts.space import ParameterSpace, at_least_fp32
from smatcli.methods.running.execution import Execution
from smatcli.seams import Episode, Losses, Support, Task


class Autocast(Protocol):
    """The part of `smatcli.device.Precision` that a method needs."""

    def autocast(self) -> AbstractContextManager[object]: ...


class FullPrecision:
    """No autocast: what a method uses until the engine sets its `precision`."""

    def autocast(self) -> AbstractContextManager[object]:
        return nullcontext()


def pooled(episode: Episode) -> Episode:
    """An episode without a split: support and query together are both the support and the query (the same tensors)."""
    support = episode.support
    images, labels = torch.cat([support.images, episode.query_images]), torch.cat([support.labels, episode.query_labels])
    return replace(episode, support=Support(images, labels, support.ways), query_images=images, query_labels=labels)


def embed_both(embed: Callable[[Tensor, Tensor], Tensor], episode: Episode, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Features of the support [S, D] and the query [Q, D] by one forward pass; a pooled episode is embedded once."""
    known, asked = episode.support.images, episode.query_images
    if known is asked:
        features = embed(known, theta)
        return features, features
    first, second = embed(torch.cat([known, asked]), theta).split([len(known), len(asked)])
    return first, second


class FlatMethod(nn.Module, ABC):
    """A method over the flat parameter vector of a frozen backbone: holds `theta_pre` [P] and calls the backbone with any theta [P]."""

    theta_pre: Tensor

    def __init__(self, backbone: nn.Module, scale: float):
        super().__init__()
        self.space = ParameterSpace.of(backbone)
        self.register_buffer("theta_pre", self.space.flatten(backbone).detach().clone())
        # Only the architecture is needed from here on: outside the module tree, so that its weights are not saved a second time, and
        # views of theta_pre, so that they are not held a second time.
        self._backbone = [backbone.eval().requires_grad_(False)]
        with torch.no_grad():
            for name, value in self.space.unflatten(self.theta_pre).items():
                backbone.get_parameter(name).data = value
        self.scale = scale
        self.precision: Autocast = FullPrecision()
        self.execution = Execution(backbone)

    @property
    def backbone(self) -> nn.Module:
        """The module whose architecture is called; its weights (views of theta_pre) are not used after construction, nor to be written."""
        return self._backbone[0]

    def embed(self, images: Tensor, theta: Tensor) -> Tensor:
        """Features [B, D] (fp32) of `images` [B, 3, H, W] under the parameters `theta` [P]."""
        with self.precision.autocast():
            return at_least_fp32(self.execution(self.execution.views(self.space, theta), images))

    def made(self, theta: Tensor, **known: Any) -> Task:
        """A task of this method: `theta` [P] with the backbone that reads it, and what else is `known` (alpha, merge, delta)."""
        return Task(theta=theta, embed=self.embed, scale=self.scale, space=self.space, module=self.backbone, run=self.run, **known)

    def run(self, module: nn.Module, tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Features [B, D] (at least fp32) of `module`, a variant of the backbone, with parameters by name, in the method's precision."""
        with self.precision.autocast():
            return at_least_fp32(functional_call(module, dict(tensors), (images,)))

    @abstractmethod
    def task(self, support: Support) -> Task:
        """Task parameters for inference (no noise, no graph)."""

    @abstractmethod
    def loss(self, episode: Episode, generator: torch.Generator) -> Losses:
        """Training loss of one episode; `generator` is the only source of noise."""

    def begin(self, episodes: Sequence[Episode], generators: Sequence[torch.Generator]) -> None:
        """What the tasks of a meta-batch can share is done here once; `loss` of these very episodes then uses it. Optional."""

    def end(self) -> None:
        """Called when all tasks of the meta-batch have gone backward: completes the gradients of what `begin` shared."""

    def skip_tasks(self, generators: Sequence[torch.Generator]) -> None:
        """Tasks of the meta-batch that another process works on: what their losses would change here (power iterations, multipliers)."""

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
