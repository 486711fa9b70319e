"""The tensors of a transformer's blocks as views of a flat vector that are made when the block is reached.

Autograd works through nodes from the last made to the first. With all views made before the network runs, the gradients of all weights
would stay single tensors until the end of backward, among the activations that come and go: the heap could then not be reused, and a
process on a CPU takes a third more memory. Views made late are left early: a block's gradients become one tensor when its backward ends.
"""

from collections.abc import Iterator, Mapping, ValuesView
from contextlib import contextmanager
from functools import partial
from itertools import groupby

from torch import Tensor, nn

from smatcli.experts.space import ParameterSpace


class LateViews:
    """`tensors`: theta [P] by name; those of the `blocks` (by their names' beginning) have a graph once, in `ready`, a block is reached.

    Raises `SmatError` where theta is not of the space.
    """

    def __init__(self, space: ParameterSpace, theta: Tensor, blocks: Mapping[str, nn.Module]) -> None:
        space.check(theta)

        def owner(name: str) -> str | None:
            return next((prefix for prefix in blocks if name.startswith(f"{prefix}.")), None)

        groups = [(prefix, list(names)) for prefix, names in groupby(space.names, owner)]
        sizes, shapes = dict(zip(space.names, space.sizes, strict=True)), dict(zip(space.names, space.shapes, strict=True))
        parts = theta.split([sum(sizes[name] for name in names) for _, names in groups])
        self.tensors: dict[str, Tensor] = {}
        self._blocks = []
        for (prefix, names), part in zip(groups, parts, strict=True):
            own = ParameterSpace(tuple(names), tuple(shapes[name] for name in names))
            self.tensors |= own.unflatten(part if prefix is None else part.detach())
            if prefix is not None:
                self._blocks.append((blocks[prefix], prefix, own, part))

    def values(self) -> ValuesView[Tensor]:
        """As of a mapping."""
        return self.tensors.values()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Inside, every block takes its views with graph when it is called; the tensors of before must be put back by the caller."""
        handles = [block.register_forward_pre_hook(partial(_swap, *what)) for block, *what in self._blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _swap(prefix: str, own: ParameterSpace, part: Tensor, block: nn.Module, args: object) -> None:
    for name, tensor in own.unflatten(part).items():
        path, _, leaf = name.removeprefix(f"{prefix}.").rpartition(".")
        block.get_submodule(path)._parameters[leaf] = tensor  # type: ignore[assignment]
