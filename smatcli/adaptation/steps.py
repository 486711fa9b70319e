"""Fine-tuning steps of N flat vectors side by side: a plain step for N = 1, else a batch by `torch.func.vmap`.

Every member has its own start, learning rate, images, labels and noise. Members are independent: each result equals that of a separate
fine-tuning, up to the rounding of batched products. All tensors are static, so that a step can be captured as a CUDA graph and replayed.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from smatcli.adaptation.diffaugment import diff_augment
from smatcli.config.finetune import FullConfig
from smatcli.methods.prototypes import cosine_logits, prototypes
from smatcli.seams import Support

log = logging.getLogger(__name__)
WARM = 3  # steps before a capture, which select kernels and create the optimizer's state
Pure = Callable[[Tensor, Tensor, Tensor], Tensor]


class Member(NamedTuple):
    """One fine-tuning: initial values `start` [V], fixed values [F] (may be empty), support, learning rate, and seed of the noise."""

    start: Tensor
    fixed: Tensor
    support: Support
    rate: float
    seed: int


class Steps:
    """Steps of `count` members of the shapes of `like`, with features `pure(values [V], fixed [F], images)`.

    `shared`: all members have the same `fixed`. `noisy`: equal images have different features in training. `capture`: capture CUDA graphs.
    """

    def __init__(
        self, pure: Pure, scale: float, like: Member, count: int, shared: bool, capture: bool = False, noisy: bool = False
    ) -> None:
        self.pure, self.scale, self.ways, self.count = pure, scale, like.support.ways, count
        images, labels = like.support.images, like.support.labels
        self.size, self.noisy = len(labels), noisy

        def still(rows: int, tensor: Tensor, *shape: int) -> Tensor:
            return torch.zeros(rows, *shape, dtype=tensor.dtype, device=tensor.device)

        self.values = still(count, like.start, *like.start.shape).requires_grad_()
        self.fixed = still(1 if shared else count, like.fixed, *like.fixed.shape)
        self.pictures = still(count, images, 2 * self.size, *images.shape[1:])  # the support set, then its augmented copies
        self.labels = still(count, labels, self.size)
        self.losses = still(count, like.start)
        rows = [row.requires_grad_() for row in self.values.detach().unbind()]
        cuda = self.values.device.type == "cuda"
        # On CUDA, learning rates are tensors, because a captured step cannot read Python numbers.
        self.rates = [torch.zeros((), device=row.device) for row in rows] if cuda else []
        groups = [{"params": [row], **({"lr": self.rates[i]} if cuda else {})} for i, row in enumerate(rows)]
        self.rows, self.optimizer = rows, torch.optim.Adam(groups, fused=cuda or self.values.device.type == "cpu", capturable=cuda)
        self.graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        if capture:
            self.graphs = {once: self._captured(once) for once in ((False,) if noisy else (False, True))}

    def begin(self, members: Sequence[Member]) -> None:
        """Set the members to their starts, and reset the optimizer."""
        with torch.no_grad():
            for i, member in enumerate(members):
                self.values[i].copy_(member.start)
                self.pictures[i, : self.size].copy_(member.support.images)
                self.labels[i].copy_(member.support.labels)
                if self.rates:
                    self.rates[i].fill_(member.rate)
                else:
                    self.optimizer.param_groups[i]["lr"] = member.rate
            for i in range(len(self.fixed)):
                self.fixed[i].copy_(members[i].fixed)
            for state in self.optimizer.state.values():
                for moment in state.values():
                    moment.zero_()

    def __call__(self, once: bool) -> Tensor:
        """Run one step of all members and return the losses [N]; `once`: without augmented copies, embed the support set once."""
        graph = self.graphs.get(once)
        if graph is None:
            self._step(once)
        else:
            graph.replay()
        return self.losses.clone()

    def _step(self, once: bool) -> None:
        pictures = self.pictures[:, : self.size] if once else self.pictures
        if self.count == 1:
            losses = self._loss(self.values.view(-1), self.fixed[0], pictures[0], self.labels[0])[None]
        else:
            dims = (0, 0 if len(self.fixed) == self.count else None, 0, 0)
            fixed = self.fixed if dims[1] == 0 else self.fixed[0]
            losses = vmap(self._loss, dims, randomness="error")(self.values, fixed, pictures, self.labels)
        (gradients,) = torch.autograd.grad(losses.sum(), [self.values])
        for row, gradient in zip(self.rows, gradients.unbind(), strict=True):
            row.grad = gradient
        self.optimizer.step()
        self.losses.copy_(losses.detach())

    def _loss(self, values: Tensor, fixed: Tensor, pictures: Tensor, labels: Tensor) -> Tensor:
        features = self.pure(values, fixed, pictures)
        plain, copies = features[: self.size], features[-self.size :]
        return F.cross_entropy(cosine_logits(copies, prototypes(plain, labels, self.ways), self.scale), labels)

    def _captured(self, once: bool) -> torch.cuda.CUDAGraph:
        """Capture a step as a graph, in thread-local mode, because other threads may prepare episodes meanwhile."""
        device = self.values.device
        with torch.cuda.device(device), torch.random.fork_rng([device]):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM):
                    self._step(once)
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step(once)
        return graph


def captured(pure: Pure, scale: float, like: Member, count: int, shared: bool, noisy: bool) -> Steps | None:
    """Return steps that replay a CUDA graph, or log one line and return None if the capture fails."""
    try:
        return Steps(pure, scale, like, count, shared, capture=True, noisy=noisy)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        log.warning("fine-tuning steps run without a CUDA graph, because the capture failed: %s: %s", type(error).__name__, reason)
        return None


def take(steps: Steps, members: Sequence[Member], config: FullConfig, after: Callable[[Tensor], None] | None = None) -> list[list[float]]:
    """Run all steps of the members and return their losses; the results are in `steps.values`.

    `after` is called with the values [N, V] after each step.
    """
    steps.begin(members)
    # Members with the same support set and seed have the same copies, which are drawn once.
    twins: dict[tuple[int, int], list[int]] = {}
    for i, member in enumerate(members):
        twins.setdefault((id(member.support), member.seed), []).append(i)
    sources = [(members[same[0]].support.images, torch.Generator().manual_seed(seed), same) for (_, seed), same in twins.items()]
    losses = []
    for _ in range(config.steps):
        changed = False
        with torch.no_grad():
            drawn = [diff_augment(images, noise, config.probability, config.colour, config.translation) for images, noise, _ in sources]
            changed = any(copies is not images for copies, (images, _, _) in zip(drawn, sources, strict=True))
            if changed or steps.noisy:
                for copies, (_, _, same) in zip(drawn, sources, strict=True):
                    for i in same:
                        steps.pictures[i, steps.size :].copy_(copies)
        losses.append(steps(once=not changed and not steps.noisy))
        if after is not None:
            after(steps.values.detach())
    return [[float(loss) for loss in row] for row in torch.stack(losses).T.tolist()]
