"""The small types that rooms hand to each other. S support images, Q query images, C ways, D features, P parameters, M experts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from smatcli.experts.space import ParameterSpace


@dataclass(frozen=True)
class Support:
    """What an adaptation may see of a task: `images` [S, 3, H, W] normalised float, `labels` [S] int64 in [0, ways)."""

    images: Tensor
    labels: Tensor
    ways: int


@dataclass(frozen=True)
class Episode:
    """A support and a query. `dataset` and `index` name the episode: (seed, split, dataset, index) draws it again."""

    support: Support
    query_images: Tensor  # [Q, 3, H, W]
    query_labels: Tensor  # [Q] int64
    dataset: str
    index: int
    seed: int
    rows: tuple[int, ...] | None = None  # of the support's, then the query's images in their store, where they come unaltered

    def __str__(self) -> str:
        return f"{self.dataset} episode {self.index} (seed {self.seed})"


@dataclass(frozen=True)
class Parts:
    """What a method makes theta of, to be tuned together: named initial `tensors`, and `compose(tensors)` -> theta [P] with graph.

    Composed of the initial tensors it is the task's theta; the model's own tensors are never written.
    """

    tensors: dict[str, Tensor]
    compose: Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Task:
    """What a method makes of a support set.

    `theta` [P] the task's parameters; `alpha` [M] merging scores or None; `merge(alpha)` -> theta for other scores of any scale (it
    normalises them; all zero = the pre-trained model), or None; `embed(images, theta)` -> features [B, D] (fp32).
    `delta(alpha_from, alpha_to, theta)` -> theta for scores that differ from `alpha_from` in few experts, touching only their non-zeros
    (None: use `merge`); equal to `merge(alpha_to)`. `space` names the tensors of theta.
    `module` is the network's architecture (its own weights mean nothing), and `run(module, tensors, images)` -> features [B, D] of it or of
    a variant of it, in the method's precision. `parts()` are what theta is made of (None: a method without experts).
    `seed` is counted from the episode: an adaptation draws its noise from it and from nothing else.
    """

    theta: Tensor
    embed: Callable[[Tensor, Tensor], Tensor]
    scale: float = 10.0
    alpha: Tensor | None = None
    merge: Callable[[Tensor], Tensor] | None = None
    delta: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    space: "ParameterSpace | None" = None
    seed: int = 0
    module: torch.nn.Module | None = None
    run: Callable[[torch.nn.Module, Mapping[str, Tensor], Tensor], Tensor] | None = None
    parts: Callable[[], Parts] | None = None


@dataclass
class Losses:
    """Loss of one training episode: `total` (with graph), its named weighted `terms`, and numbers to log (`logs`: accuracy ...)."""

    total: Tensor
    terms: dict[str, float] = field(default_factory=dict)
    logs: dict[str, float] = field(default_factory=dict)


class Classifier(Protocol):
    """An adapted few-shot classifier. `info` holds what the adaptation did (chosen experts, losses, passes)."""

    info: dict[str, Any]

    def predict(self, images: Tensor) -> Tensor:
        """Logits [Q, C] of normalised images [Q, 3, H, W]."""
        ...


class Adaptation(Protocol):
    """Turns a task and its support set into a classifier; never sees a query label."""

    def adapt(self, task: Task, support: Support) -> Classifier: ...


class Method(Protocol):
    """A meta-tuning method: also an `nn.Module`, so that every trainable tensor is registered, saved and restored."""

    def task(self, support: Support) -> Task:
        """Task parameters for inference (no noise, no graph)."""
        ...

    def loss(self, episode: Episode, generator: torch.Generator) -> Losses:
        """Training loss of one episode; `generator` (on the method's device) is the only source of noise."""
        ...

    def groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """Optimizer groups by name; together they hold every trainable parameter exactly once."""
        ...

    def begin(self, episodes: Sequence[Episode], generators: Sequence[torch.Generator]) -> None:
        """Before the tasks of a meta-batch: what they can share; `loss` of these very episodes then uses it. May do nothing."""
        ...

    def end(self) -> None:
        """After the last task of a meta-batch went backward: completes the gradients of what was shared."""
        ...

    def after_step(self, tasks_done: int) -> None:
        """Called after every optimizer update, with the number of tasks seen so far."""
        ...

    def statistics(self) -> dict[str, float]:
        """Slow-moving numbers for the log and the validation line (sparsity of the experts, multipliers, temperature)."""
        ...
