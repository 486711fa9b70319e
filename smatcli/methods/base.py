"""Base class of meta-tuning methods: a frozen backbone as a flat vector, and the embedding call in the precision of the run."""

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
    """The interface of `smatcli.device.Precision` that a method needs."""

    def autocast(self) -> AbstractContextManager[object]: ...


class FullPrecision:
    """No autocast; used until the engine sets the method's `precision`."""

    def autocast(self) -> AbstractContextManager[object]:
        return nullcontext()


def pooled(episode: Episode) -> Episode:
    """Return the episode without a split: support and query together serve as both support and query (the same tensors)."""
    support = episode.support
    images, labels = torch.cat([support.images, episode.query_images]), torch.cat([support.labels, episode.query_labels])
    return replace(episode, support=Support(images, labels, support.ways), query_images=images, query_labels=labels)


def embed_both(embed: Callable[[Tensor, Tensor], Tensor], episode: Episode, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return features of the support [S, D] and the query [Q, D] from one forward pass; a pooled episode is embedded once."""
    support, query = episode.support.images, episode.query_images
    if support is query:
        features = embed(support, theta)
        return features, features
    first, second = torch.split(embed(torch.cat([support, query]), theta), [len(support), len(query)])
    return first, second


class FlatMethod(nn.Module, ABC):
    """A method over the flat parameter vector of a frozen backbone: `theta_pre` [P], and calls of the backbone with any theta [P]."""

    theta_pre: Tensor

    def __init__(self, backbone: nn.Module, scale: float):
        super().__init__()
        self.space = ParameterSpace.of(backbone)
        self.register_buffer("theta_pre", self.space.flatten(backbone).detach().clone())
        # From here on only the architecture is needed. The backbone is kept outside the module tree, so that its weights are not saved
        # twice, and its weights become views of theta_pre, so that they are not in memory twice.
        self._backbone = [backbone.eval().requires_grad_(requires_grad=False)]
        with torch.no_grad():
            for name, value in self.space.unflatten(self.theta_pre).items():
                backbone.get_parameter(name).data = value
        self.scale = scale
        self.precision: Autocast = FullPrecision()
        self.execution = Execution(backbone)

    @property
    def backbone(self) -> nn.Module:
        """The module whose architecture is used. Its weights are views of theta_pre: do not write to them."""
        return self._backbone[0]

    def embed(self, images: Tensor, theta: Tensor) -> Tensor:
        """Return features [B, D] (fp32) of `images` [B, 3, H, W] under the parameters `theta` [P]."""
        with self.precision.autocast():
            return at_least_fp32(self.execution(self.execution.views(self.space, theta), images))

    def made(self, theta: Tensor, **fields: Any) -> Task:
        """Return a task with parameters `theta` [P], the method's backbone, and other `fields` of `Task` (alpha, merge, delta)."""
        return Task(theta=theta, embed=self.embed, scale=self.scale, space=self.space, module=self.backbone, run=self.run, **fields)

    def run(self, module: nn.Module, tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Return features [B, D] (fp32 or higher) of `module`, a variant of the backbone, with parameters by name."""
        with self.precision.autocast():
            return at_least_fp32(functional_call(module, dict(tensors), (images,)))

    @abstractmethod
    def task(self, support: Support) -> Task:
        """Return the task's parameters for inference (no noise, no graph)."""

    @abstractmethod
    def loss(self, episode: Episode, generator: torch.Generator) -> Losses:
        """Return the training loss of one episode; `generator` is the only source of noise."""

    def begin(self, episodes: Sequence[Episode], generators: Sequence[torch.Generator]) -> None:
        """Compute results that the tasks of a meta-batch share; `loss` of the same episode objects then uses them. Optional."""

    def end(self) -> None:
        """Complete the gradients of the results shared by `begin`, after the backward passes of all tasks of the meta-batch."""

    def skip_tasks(self, generators: Sequence[torch.Generator]) -> None:
        """Update the method's state (power iterations, multipliers) for tasks whose losses another process computes."""

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return optimizer groups by name."""
        return {}

    def default_groups(self) -> dict[str, GroupConfig]:
        """Return optimizer settings for the groups that a recipe does not set."""
        return {}

    def after_step(self, tasks_done: int) -> None:
        """Run after each optimizer update; does nothing by default."""

    def statistics(self) -> dict[str, float]:
        """Return numbers for the log; an empty dictionary by default."""
        return {}

    def feasible(self) -> bool:
        """Whether this state may be kept as the best one: False while a method's constraint is violated."""
        return True
