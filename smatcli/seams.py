"""Types and protocols shared by methods, adaptations and engines.

S support images, Q query images, C ways, D features, P parameters, M experts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from smatcli.experts.space import ParameterSpace


@dataclass(frozen=True)
class Support:
    """The support set, the data available to an adaptation: `images` [S, 3, H, W] normalised float, `labels` [S] int64 in [0, ways)."""

    images: Tensor
    labels: Tensor
    ways: int


@dataclass(frozen=True)
class Episode:
    """Support and query set. The episode is reproducible from (seed, split, dataset, index)."""

    support: Support
    query_images: Tensor  # [Q, 3, H, W]
    query_labels: Tensor  # [Q] int64
    dataset: str
    index: int
    seed: int
    rows: tuple[int, ...] | None = None  # store rows of the support images, then of the query images; None if images are augmented

    def __str__(self) -> str:
        return f"{self.dataset} episode {self.index} (seed {self.seed})"


@dataclass(frozen=True)
class Parts:
    """Parts of theta that are tuned jointly: initial `tensors` by name, and `compose(tensors)`, which returns theta [P] with graph.

    `compose` of the initial tensors returns the task's theta. The model's own tensors are never modified.
    """

    tensors: dict[str, Tensor]
    compose: Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Task:
    """A method's parameters and functions for one support set.

    - `theta` [P]: the parameters of the task.
    - `embed(images, theta)` -> features [B, D] (fp32).
    - `scale`: factor of the cosine similarities in the logits.
    - `alpha` [M]: merging scores, or None.
    - `merge(alpha)` -> theta for other scores, or None. Scores of any scale are normalised; all-zero scores give the pre-trained model.
    - `delta(alpha_from, alpha_to, theta)` -> `merge(alpha_to)`, computed from `theta` at the non-zeros of the experts whose scores differ;
      None: use `merge`.
    - `space`: the names and shapes of the tensors in theta.
    - `seed`: derived from the episode; the only source of an adaptation's noise.
    - `module`: the architecture of the network; its weights are not used.
    - `run(module, tensors, images)` -> features [B, D] of `module` or of a variant of it, in the method's precision.
    - `parts()`: the parts of theta; None for a method without experts.
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
    """Loss of one training episode: `total` (with graph), its weighted `terms` by name, and other values to log (`logs`: accuracy ...)."""

    total: Tensor
    terms: dict[str, float] = field(default_factory=dict)
    logs: dict[str, float] = field(default_factory=dict)


class Classifier(Protocol):
    """An adapted few-shot classifier. `info` describes the adaptation (chosen experts, losses, forward passes)."""

    info: dict[str, Any]

    def predict(self, images: Tensor) -> Tensor:
        """Return logits [Q, C] for normalised images [Q, 3, H, W]."""
        ...


class Adaptation(Protocol):
    """Strategy that turns a task and its support set into a classifier, without the query labels."""

    def adapt(self, task: Task, support: Support) -> Classifier: ...


class Method(Protocol):
    """A meta-tuning method. It is also an `nn.Module`: every trainable tensor is registered, saved and restored."""

    def task(self, support: Support) -> Task:
        """Return the task of a support set for inference (no noise, no graph)."""
        ...

    def loss(self, episode: Episode, generator: torch.Generator) -> Losses:
        """Return the training loss of one episode; `generator` (on the method's device) is the only source of noise."""
        ...

    def groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """Return the optimizer groups by name. Every trainable parameter is in exactly one of them."""
        ...

    def begin(self, episodes: Sequence[Episode], generators: Sequence[torch.Generator]) -> None:
        """Compute results that the tasks of a meta-batch share; `loss` of the same episode objects uses them. May do nothing."""
        ...

    def end(self) -> None:
        """Complete the gradients of the shared results, after the backward pass of the last task of a meta-batch."""
        ...

    def after_step(self, tasks_done: int) -> None:
        """Update the method's own state after an optimizer update; `tasks_done` counts the tasks so far."""
        ...

    def statistics(self) -> dict[str, float]:
        """Return slowly changing values for the log and the validation line (sparsity, multipliers, temperature)."""
        ...
