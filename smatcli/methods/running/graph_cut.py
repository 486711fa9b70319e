"""Cut an autograd graph in two, so that the tasks of a meta-batch share one merge and one backward pass through it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge


@dataclass
class GraphCut:
    """A graph that is cut at some tensors: backward runs first through the graph after them, and through that before them on `close`."""

    edges: list[GradientEdge] = field(default_factory=list)
    grads: list[Tensor | None] = field(default_factory=list)

    def at(self, tensor: Tensor) -> Tensor:
        """Return a leaf with the value of `tensor`. The cut stores only the leaf's gradient, as soon as it is computed."""
        index = len(self.edges)
        leaf = tensor.detach().requires_grad_()
        self.edges.append(get_gradient_edge(tensor))
        self.grads.append(None)

        def take(leaf: Tensor) -> None:
            before = self.grads[index]
            self.grads[index] = leaf.grad if before is None or leaf.grad is None else before + leaf.grad
            leaf.grad = None

        leaf.register_post_accumulate_grad_hook(take)
        return leaf

    def close(self) -> None:
        """Run backward through the graphs before the cut, with the gradients collected so far."""
        edges = [edge for edge, grad in zip(self.edges, self.grads, strict=True) if grad is not None]
        grads = [grad for grad in self.grads if grad is not None]
        self.edges, self.grads = [], []
        if edges:
            torch.autograd.backward(edges, grads)
