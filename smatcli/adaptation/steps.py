"""Fine-tuning steps of N flat vectors side by side: for N = 1 the step of one task, for more a batch by `torch.func.vmap`.

Every member has its own start, rate, images, labels and noise; nothing that one does is seen by another, so that each ends where it would
alone, up to the rounding of batched products. All tensors are static: on CUDA a step is captured as a graph once, and replayed.
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
WARM = 3  # steps before a capture: kernels are chosen, the optimizer's state is made
Pure = Callable[[Tensor, Tensor, Tensor], Tensor]


class Member(NamedTuple):
    """One fine-tuning: from `start` [V] with what stays fixed [F] (may be empty), at the optimizer's `rate`, with the noise of `seed`."""

    start: Tensor
    fixed: Tensor
    support: Support
    rate: float
    seed: int


class Steps:
    """Steps of `count` members like `like`: `pure(values [V], fixed [F], images)` -> features; `shared`: all have the same `fixed`."""

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
        # On CUDA rates are tensors, because a captured step can read no others.
        self.rates = [torch.zeros((), device=row.device) for row in rows] if cuda else []
        groups = [{"params": [row], **({"lr": self.rates[i]} if cuda else {})} for i, row in enumerate(rows)]
        self.rows, self.optimizer = rows, torch.optim.Adam(groups, fused=cuda or self.values.device.type == "cpu", capturable=cuda)
        self.graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        if capture:
            self.graphs = {False: self._captured(False)} if noisy else {once: self._captured(once) for once in (False, True)}

    def begin(self, members: Sequence[Member]) -> None:
        """The members at their starts, with an optimizer as if it were new."""
        with torch.no_grad():
            for i, one in enumerate(members):
                self.values[i].copy_(one.start)
                self.pictures[i, : self.size].copy_(one.support.images)
                self.labels[i].copy_(one.support.labels)
                if self.rates:
                    self.rates[i].fill_(one.rate)
                else:
                    self.optimizer.param_groups[i]["lr"] = one.rate
            for i in range(len(self.fixed)):
                self.fixed[i].copy_(members[i].fixed)
            for state in self.optimizer.state.values():
                for moment in state.values():
                    moment.zero_()

    def __call__(self, once: bool) -> Tensor:
        """Losses [N] and one step of all members; `once`: no copies are augmented, the support set is embedded once."""
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
        known, asked = features[: self.size], features[-self.size :]
        return F.cross_entropy(cosine_logits(asked, prototypes(known, labels, self.ways), self.scale), labels)

    def _captured(self, once: bool) -> torch.cuda.CUDAGraph:
        """A step as a graph. The capture is this thread's own: others may prepare episodes meanwhile."""
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
    """Steps that are replayed as a CUDA graph; None, with one logged line, where the capture fails."""
    try:
        return Steps(pure, scale, like, count, shared, capture=True, noisy=noisy)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        log.warning("fine-tuning steps are not captured as a CUDA graph but run one by one: %s: %s", type(error).__name__, reason)
        return None


def take(steps: Steps, members: Sequence[Member], config: FullConfig, after: Callable[[Tensor], None] | None = None) -> list[list[float]]:
    """All steps of the members, which `steps.values` then hold; the losses of each. `after` is shown the values [N, V] after every step."""
    steps.begin(members)
    # Members of the same support set and seed have the same copies: they are drawn once.
    twins: dict[tuple[int, int], list[int]] = {}
    for i, one in enumerate(members):
        twins.setdefault((id(one.support), one.seed), []).append(i)
    sources = [(members[same[0]].support.images, torch.Generator().manual_seed(seed), same) for (_, seed), same in twins.items()]
    losses = []
    for _ in range(config.steps):
        changed = False
        with torch.no_grad():
            made = [diff_augment(images, noise, config.probability, config.colour, config.translation) for images, noise, _ in sources]
            changed = any(copies is not images for copies, (images, _, _) in zip(made, sources, strict=True))
            if changed or steps.noisy:
                for copies, (_, _, same) in zip(made, sources, strict=True):
                    for i in same:
                        steps.pictures[i, steps.size :].copy_(copies)
        losses.append(steps(once=not changed and not steps.noisy))
        if after is not None:
            after(steps.values.detach())
    return torch.stack(losses).T.tolist()  # type: ignore[no-any-return]
