"""What the tasks of a meta-batch share: theta of all of them from one merge, and one backward through it when all tasks are done."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge


@dataclass
class Cut:
    """A graph cut in two at some tensors: what comes after them runs backward first, what comes before when the cut is closed."""

    edges: list[GradientEdge] = field(default_factory=list)
    grads: list[Tensor | None] = field(default_factory=list)

    def at(self, tensor: Tensor) -> Tensor:
        """A leaf with the value of `tensor`. Neither is held here: the gradient is taken from the leaf as soon as it is there."""
        place = len(self.edges)
        leaf = tensor.detach().requires_grad_()
        self.edges.append(get_gradient_edge(tensor))
        self.grads.append(None)

        def take(leaf: Tensor) -> None:
            before = self.grads[place]
            self.grads[place] = leaf.grad if before is None or leaf.grad is None else before + leaf.grad
            leaf.grad = None

        leaf.register_post_accumulate_grad_hook(take)
        return leaf

    def close(self) -> None:
        """Hands the gradients that came by now to the graphs before the cut."""
        found = [(edge, grad) for edge, grad in zip(self.edges, self.grads, strict=True) if grad is not None]
        self.edges, self.grads = [], []
        if found:
            edges, grads = zip(*found, strict=True)
            torch.autograd.backward(list(edges), list(grads))
